"""The rules of relevance propagation: values stay, relevance is conserved, and other MLPs are refused."""

import pytest
import torch
from conftest import SHAPES

import loc_edit
from loc_edit.localization.question import Questions
from loc_edit.localization.targets import targeted_prompt
from loc_edit.models.adapter import lens
from loc_edit.models.checks import BadModel
from loc_edit.models.relevance import relevance_rules


def functions(model):
    """The activation function of each layer's MLP."""
    found = [lens.activation(block.mlp) for block in model.blocks]
    return [getattr(owner, name) for owner, name, _ in found]


@pytest.mark.parametrize("shape", ["gpt2_deep", "llama", "gptj", "gemma3", "olmo2"])
def test_the_rules_change_no_value_and_leave_nothing_behind(shapes, facts, shape):
    model = shapes[shape]
    tokens, before = loc_edit.encode(model, facts[0]).tokens[None], functions(model)
    plain = model(tokens)
    with relevance_rules(model) as rules:
        assert all(new is not old for new, old in zip(functions(model), before, strict=True))
        torch.testing.assert_close(model.run_with_hooks(tokens, fwd_hooks=rules), plain, rtol=1e-4, atol=1e-4)
    assert functions(model) == before


def coefficients(model, fact, *, with_rules):
    """The residual stream before each layer in the corrupted runs, the coefficients there, and the metric."""
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale=1.5, samples=3)
    assert prompt.subject.start == 0, "all positions that matter are in the tail"
    targeted = targeted_prompt(model, prompt, fact.target_true, noise, "logit_difference", fact.target_new)
    asked = Questions(model, [targeted], "hook_resid_pre", [1], "logit_difference")
    with relevance_rules(model) as rules:
        (run,) = asked.at_share(1.0, gradients=True, rules=rules if with_rules else ())
    return run


@pytest.mark.parametrize("shape", ["gpt2_deep", "llama", "gemma3", "olmo2"])
def test_the_relevance_of_every_layer_adds_up_to_the_metric_where_no_bias_takes_any(make_model, facts, shape):
    model = make_model(seed=2, **(SHAPES[shape] | {"default_prepend_bos": False}))
    for name, p in model.named_parameters():
        if name.split(".")[-1].startswith("b"):
            p.data.zero_()
    run = coefficients(model, facts[0], with_rules=True)
    assert run.metric.abs().min() > 0.01
    for stream, coefficient in zip(run.site, run.gradients, strict=True):
        torch.testing.assert_close((stream * coefficient).flatten(1).sum(1), run.metric, rtol=1e-3, atol=1e-4)
    gradients = coefficients(
        make_model(seed=2, **(SHAPES[shape] | {"default_prepend_bos": False})), facts[0], with_rules=False
    )
    lost = (gradients.site[0] * gradients.gradients[0]).flatten(1).sum(1) - gradients.metric
    assert lost.abs().max() > 0.01, "gradients conserve nothing"


def test_an_mlp_without_rules_is_refused(make_model):
    model = make_model(num_experts=2, experts_per_token=1)
    with pytest.raises(BadModel, match=r"layer 0: no relevance rule for an MLP of kind MoE"), relevance_rules(model):
        pass
