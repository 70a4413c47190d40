"""Localizers of many facts and windows at once: each is what it is by itself, and what whole rows give."""

import logging

import pytest
import torch
from oracles import gradient_effects

import loc_edit
from loc_edit.localization import question as question_room, sweep as sweep_room
from loc_edit.models.adapter import lens
from loc_edit.names import LOCALIZERS

STEPS = {"attribution": None, "integrated_gradients": 3}


@pytest.fixture
def localized(facts):
    """Localizes some facts, whose prompts have different lengths and subjects in different places."""

    def run(model, name, which=range(4), windows=(1, 3), spoilt=None, **options):
        chosen = [facts[i] for i in which]
        prompts = [loc_edit.encode(model, fact) for fact in chosen]
        noises = [loc_edit.subject_noise(model, p, scale=1.5, samples=3 - i % 2) for i, p in enumerate(prompts)]
        if spoilt is not None:
            noises[spoilt].fill_(torch.nan)
        options["foils"] = [fact.target_new for fact in chosen]
        options["references"] = [[loc_edit.encode(model, other) for other in facts]] * len(chosen)
        metric = "logit_difference" if name == "direct" else "log_probability"
        options |= {"facts": facts} if name == "tuned_lens" else {}
        targets, about = [fact.target_true for fact in chosen], {"localizer": name, "metric": metric}
        return loc_edit.localize_many(model, prompts, targets, noises=noises, windows=windows, **about, **options)

    return run


def assert_equal(many, others, atol=5e-5):
    for mine, same in zip(many, others, strict=True):
        for one, other in zip(mine, same, strict=True):
            assert (one.window, one.localizer, one.prompt.fact_id) == (
                other.window,
                other.localizer,
                other.prompt.fact_id,
            )
            assert one.effect.abs().max() > 1e-3
            assert one.p_clean == pytest.approx(other.p_clean, abs=atol)
            assert one.p_corrupted == pytest.approx(other.p_corrupted, abs=atol)
            torch.testing.assert_close(one.p_restored, other.p_restored, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("shape", ["gpt2_deep", "llama"])
@pytest.mark.parametrize("name", sorted(LOCALIZERS))
def test_each_fact_and_window_is_what_it_is_alone(shapes, localized, name, shape):
    together = localized(shapes[shape], name)
    assert len({len(traces[0].prompt) for traces in together}) > 1
    for window, column in zip((1, 3), zip(*together, strict=True), strict=True):
        assert {trace.window for trace in column} == {window}
    # The second fact has one sample less than the others.
    assert_equal(together[2:3], localized(shapes[shape], name, [2], windows=(1, 3)))
    assert_equal([row[1:] for row in together[:1]], localized(shapes[shape], name, [0], windows=(3,)))


@pytest.mark.parametrize("name", sorted(STEPS))
@pytest.mark.parametrize(
    ("shape", "site"), [("gpt2_deep", "mlp_out"), ("gptj", "attn.hook_k"), ("llama", "attn.hook_rot_k")]
)
def test_gradients_of_tails_are_those_of_whole_rows(shapes, localized, facts, name, shape, site):
    model, steps = shapes[shape], STEPS[name]
    found = localized(model, name, windows=(1,), site=site, **({"steps": steps} if steps else {}))
    for (trace,), fact, samples in zip(found, facts, (3, 2, 3, 2), strict=True):
        noise = loc_edit.subject_noise(model, trace.prompt, scale=1.5, samples=samples)
        answer = loc_edit.target_tokens(model, trace.prompt.text, fact.target_true)
        shares = [(step + 0.5) / steps for step in range(steps)] if steps else [1.0]
        expected = gradient_effects(model, trace.prompt.tokens, trace.prompt.subject, answer, noise, site, shares)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(trace.effect.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    [
        "attribution",
        "relp",
        "layer_integrated_gradients",
        "zero_ablation",
        "mean_ablation",
        "severed_mlp",
        "direct",
        "tuned_lens",
    ],
)
def test_a_fact_that_fails_leaves_the_others_alone(deep, localized, name, caplog):
    well = localized(deep, name)
    with caplog.at_level(logging.WARNING, logger="loc_edit"):
        found = localized(deep, name, spoilt=1)
    assert all(trace.is_nan for trace in found[1])
    assert "fact 1: its trace is not a number" in caplog.text
    assert_equal([found[i] for i in (0, 2, 3)], [well[i] for i in (0, 2, 3)])


@pytest.mark.parametrize(
    "name",
    ["attribution", "relp", "layer_integrated_gradients", "mean_ablation", "severed_attn", "tuned_lens", "random"],
)
def test_hooks_of_the_user_see_whole_rows_of_one_fact(deep, localized, name):
    plain, seen = localized(deep, name), []

    def third(value, hook):
        seen.append(value.shape[1])
        value = value.clone()
        value[:, 3] = 0.1
        return value

    with deep.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", third)]):
        together = localized(deep, name)
        assert min(seen) >= min(len(traces[0].prompt) for traces in plain)
        for i in (0, 2):
            assert_equal(together[i : i + 1], localized(deep, name, [i], windows=(1, 3)))
            assert abs(together[i][0].p_clean - plain[i][0].p_clean) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("attribution", 40),
        ("layer_integrated_gradients", 100),
        ("logit_lens", 100),
        ("resample_ablation", 200),
        ("severed_mlp", 100),
        ("random", 40),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(deep, localized, monkeypatch, caplog, name, memory):
    want, refused, block = localized(deep, name), [], sweep_room._block
    memory *= 1 if lens.takes_past(deep) else 2  # tails or whole rows

    def small(model, residual, *given):
        if residual.shape[0] * residual.shape[1] > memory:
            refused.append(residual.shape)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return block(model, residual, *given)

    monkeypatch.setattr(sweep_room, "_block", small)
    with caplog.at_level(logging.WARNING, logger="loc_edit"):
        got = localized(deep, name)
    assert refused
    assert "out of memory: going on with" in caplog.text
    assert_equal(want, got)


def test_attribution_runs_each_corrupted_row_once(deep, localized, monkeypatch):
    """Its forward pass with gradients is the corrupted run as well."""
    calls = []
    run_tails = question_room.Questions._run_tails
    monkeypatch.setattr(question_room.Questions, "_run_tails", lambda *given: (calls.append(given), run_tails(*given)))
    localized(deep, "attribution", [0])
    assert len(calls) == 1
