"""Choosing a layer from a few facts: every rule says what its numbers say, and how sure it is."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

import loc_edit
from loc_edit.editing.gradients import gradient_gains
from loc_edit.experiment.batch import Batch
from loc_edit.experiment.choosing import compare_rules
from loc_edit.experiment.config import BadConfig, ExperimentConfig
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import TraceCell, edit_cells
from loc_edit.prompts.encoding import encode_text, target_tokens


@pytest.fixture
def options(stats_of, deep, monkeypatch):
    monkeypatch.setattr(Setup, "stats", stats_of(deep))
    return {"noise": "1.5", "noise_samples": 2, "settings": {"rome": {"steps": 3}}, "preset": "none"}


@pytest.mark.parametrize("n_tokens", [1, 2])
def test_a_gradient_gain_is_the_slope_of_the_loss(deep, facts, n_tokens):
    target = {1: "Rome", 2: "Paris in"}[n_tokens]
    fact = replace(next(fact for fact in facts if fact.paraphrases), target_new=target)
    request = loc_edit.pose(fact, "error_injection", deep)
    assert len(request.target_tokens) == n_tokens
    gains = gradient_gains(deep, fact, request)
    assert gains.shape == (deep.cfg.n_layers,)

    def mean_loss():
        total = 0.0
        for text in fact.paraphrases:
            prompt, target = encode_text(deep, text), target_tokens(deep, text, request.target)
            row = torch.cat([prompt.tokens, target[:-1]])
            log_p = deep(row[None])[0, len(prompt) - 1 :].double().log_softmax(-1)
            total -= log_p.gather(1, target[:, None]).sum().item()
        return total / len(fact.paraphrases)

    # Along the gradient of the edit's own loss, by a small step in one layer
    weight = deep.blocks[2].mlp.W_out
    needed_gradient = weight.requires_grad
    row = torch.cat([request.prompt.tokens, request.target_tokens[:-1]])
    weight.requires_grad_()
    log_p = deep(row[None])[0, len(request.prompt) - 1 :].log_softmax(-1)
    [gradient] = torch.autograd.grad(-log_p.gather(1, request.target_tokens[:, None]).sum(), weight)
    weight.requires_grad_(needed_gradient)
    before, step = mean_loss(), 1e-2
    with torch.no_grad():
        kept = weight.clone()
        weight -= step * gradient / gradient.norm()
        after = mean_loss()
        weight.copy_(kept)
    assert (before - after) / step == pytest.approx(gains[2].item(), rel=0.05, abs=1e-4)


def test_targets_that_the_model_chose_have_gradients_too(deep, facts):
    request = loc_edit.pose(facts[0], "error_injection", deep)
    with torch.inference_mode():
        chosen = replace(request, target_tokens=request.target_tokens.clone())
    torch.testing.assert_close(gradient_gains(deep, facts[0], chosen), gradient_gains(deep, facts[0], request))


@pytest.mark.parametrize("rule", ["pilot", "gradient", "attribution"])
def test_every_rule_chooses_a_layer_and_leaves_the_model_as_it_was(deep, facts, options, rule):
    before = loc_edit.fingerprint(deep)
    choice = loc_edit.choose_layer(deep, facts, rule=rule, outcome="rewrite", window=1, **options)
    assert loc_edit.fingerprint(deep) == before
    table = choice.by_layer.set_index("layer")
    assert list(table.index) == list(range(deep.cfg.n_layers))
    assert choice.layer == table["mean"].idxmax()
    assert choice.sure == table.loc[choice.layer, "votes"]
    assert table["votes"].sum() == pytest.approx(1)
    assert f">{table['mean'].max():.3f}</td>" in choice._repr_html_()
    assert bool(choice.worth) == (rule == "pilot")
    if choice.worth:
        assert choice.worth["oracle"] >= table["mean"].max() >= choice.worth["any"]
        assert choice.worth["any"] == pytest.approx(table["mean"].mean())


def test_layers_and_names_are_checked(deep, facts, options):
    choice = loc_edit.choose_layer(deep, facts, rule="gradient", layers=(1, 3), **options)
    assert list(choice.by_layer["layer"]) == [1, 3]
    with pytest.raises(BadConfig, match="rule 'pilots': did you mean 'pilot'"):
        loc_edit.choose_layer(deep, facts, rule="pilots")
    with pytest.raises(ValueError, match="9"):
        loc_edit.choose_layer(deep, facts, rule="gradient", layers=(9,), **options)
    with pytest.raises(BadConfig, match="unknown key 'nois'"):
        loc_edit.choose_layer(deep, facts, rule="gradient", nois="1")


def test_rules_are_compared_on_the_facts_that_were_edited(deep, facts, options):
    values = {"methods": ("rome",), "problems": ("error_injection",), "layers": (1, 3), "windows": (1,)}
    config = ExperimentConfig.from_values({**values, **options, "facts": "all", "essence": False}, "a test")
    setup = Setup(config).with_data(facts, deep)
    batch = Batch(setup, facts)
    traces = TraceCell("attribution", 1).rows(batch)
    edits = pd.concat([cell.rows(batch) for cell in edit_cells(setup, "error_injection")])
    edits = edits.assign(rewrite=0.2 + 0.6 * (edits["layer"] == 3))  # so that the layer matters
    assert len(facts) > 3
    table = compare_rules(setup, traces, edits, window=1, facts=len(facts) - 1, draws=300).set_index("rule")
    assert set(table.index) == {"attribution", "gradient", "pilot"}
    scores = edits.pivot_table(index="fact_id", columns="layer", values="rewrite")
    gains = pd.DataFrame({fact.fact_id: _gains(deep, fact, setup)[[1, 3]].numpy() for fact in facts}, index=[1, 3]).T
    one_left_out = [scores.loc[one, gains.drop(one).mean().idxmax()] for one in scores.index]
    assert table.loc["gradient", "mean"] == pytest.approx(sum(one_left_out) / len(one_left_out), abs=0.1)
    assert table.loc["pilot", "mean"] == pytest.approx(0.8)
    assert table.loc["gradient", "worth"] == pytest.approx((table.loc["gradient", "mean"] - 0.5) / 0.3)
    assert set(table["n_facts"]) == {len(facts)}


def _gains(model, fact, setup):
    return gradient_gains(model, fact, setup.pose(fact, "error_injection", None))
