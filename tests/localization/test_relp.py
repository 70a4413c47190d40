"""RelP: exact where the coefficients of the corrupted run are held, and as cheap as attribution patching."""

import pytest
import torch
from asking import cells, names, only, put, questions
from oracles import add_noise

from loc_edit.localization.gradients import attribution, relp
from loc_edit.localization.question import Questions
from loc_edit.models.adapter import lens


def linearized(model, corrupted):
    """Hooks after which the model is linear: scales, patterns and ratios are the corrupted run's."""
    hooks, pre = [], {}

    def fixed(name):
        return lambda value, hook: corrupted[name]

    def keep(key):
        return lambda value, hook: pre.update({key: value})

    def mixed(block):
        mlp = f"blocks.{block}.mlp.hook_"

        def rule(post, hook):
            gate = corrupted[f"{mlp}pre"]
            owner, attribute, _ = lens.activation(model.blocks[block].mlp)
            act = getattr(owner, attribute)(gate)
            moved = pre[f"{mlp}pre"] * act / gate
            if not model.cfg.gated_mlp:
                return moved
            up, bias = corrupted[f"{mlp}pre_linear"], model.blocks[block].mlp.b_in
            return (moved * up + act * pre[f"{mlp}pre_linear"]) / 2 + (0 if bias is None else bias)

        return rule

    for name in model.hook_dict:
        if name.endswith((".hook_scale", ".attn.hook_q", ".attn.hook_k")):  # queries and keys make the pattern
            hooks.append((name, fixed(name)))
        elif name.endswith((".mlp.hook_pre", ".mlp.hook_pre_linear")):
            hooks.append((name, keep(name)))
    return hooks + [(f"blocks.{block}.mlp.hook_post", mixed(block)) for block in range(model.cfg.n_layers)]


@pytest.mark.parametrize("site", ["mlp_out", "attn_out"])
@pytest.mark.parametrize("shape", ["gpt2_deep", "llama", "gptj", "gemma3", "olmo2"])
def test_it_is_exact_patching_in_the_model_linearized_at_the_corrupted_run(shapes, facts, shape, site):
    model = shapes[shape]
    asked = questions(model, facts[1], site=site, metric="logit_difference", foil="French")
    q, found = only(asked.each()), only(relp(asked))
    last, tokens = len(q.prompt) - 1, q.tokens[None]
    _, clean = model.run_with_cache(tokens)
    expected = torch.zeros_like(found)
    for eps in q.noise:
        noise = add_noise(eps, q.prompt.subject)
        with model.hooks(fwd_hooks=noise):
            _, corrupted = model.run_with_cache(tokens)
        with model.hooks(fwd_hooks=[*noise, *linearized(model, corrupted)]):

            def measured(*patches):
                logits = model.run_with_hooks(tokens, fwd_hooks=list(patches))[0, last].double()
                return (logits[q.answer[0]] - logits[q.foil]).item()

            before = measured()
            for center, layers, pos in list(cells(q, q.prompt.subject.start))[::2]:
                (name,) = names(site, layers)
                expected[center, pos] += (measured((name, put(pos, clean[name][0, pos]))) - before) / len(q.noise)
    done = expected != 0
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(found[done], expected[done], rtol=1e-3, atol=1e-4)
    assert (found - only(attribution(asked)))[done].abs().max() > 0.01, "gradients are something else"


def test_queries_and_keys_are_refused_as_the_pattern_is_held(deep, facts):
    for site in ("attn.hook_q", "attn.hook_k"):
        with pytest.raises(ValueError, match=f"site '{site}': relevance propagation holds it constant"):
            relp(questions(deep, facts[1], site=site))
    assert only(relp(questions(deep, facts[1], site="attn.hook_v"))).abs().max() > 1e-3


def test_its_backward_pass_is_of_the_corrupted_run_which_runs_once(deep, facts, monkeypatch):
    calls = []
    run_tails = Questions._run_tails
    monkeypatch.setattr(Questions, "_run_tails", lambda *given: (calls.append(given), run_tails(*given)))
    asked = questions(deep, facts[1])
    relp(asked), asked.each()
    assert len(calls) == 1
