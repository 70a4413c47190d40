"""A model that takes no cached keys and values: computing whole rows gives the same results as the fast paths."""

import pytest
import torch
from conftest import EDITABLE, SHAPES, random_model

import loc_edit
from loc_edit.localization.tracing import trace_many
from loc_edit.models.adapter import VERSION, lens
from loc_edit.models.decoding import sample_tokens
from loc_edit.prompts.sampling import sample_essences

if VERSION >= 4:
    pytest.skip("TransformerLens 4 has no other paths", allow_module_level=True)

from transformer_lens import HookedTransformer


class Whole(HookedTransformer):
    """A model without `past_kv_cache`, as a bridge is."""

    def forward(self, given, start_at_layer=None, stop_at_layer=None):
        return super().forward(given, start_at_layer=start_at_layer, stop_at_layer=stop_at_layer)


@pytest.fixture(scope="module", params=EDITABLE)
def pair(request, tokenizer):
    """The same model twice: with and without a past."""
    fast, whole = (random_model(tokenizer, 3, **SHAPES[request.param]) for _ in range(2))
    whole.__class__ = Whole
    assert lens.takes_past(fast)
    assert not lens.takes_past(whole)
    return fast, whole


@pytest.mark.parametrize("site", ["mlp_out", "attn_out", "resid_post", "attn.hook_v"])
def test_traces(pair, facts, site):
    found = []
    for model in pair:
        prompts = [loc_edit.encode(model, fact) for fact in facts]
        noises = [loc_edit.subject_noise(model, prompt, scale=0.5, samples=3) for prompt in prompts]
        targets = [fact.target_true for fact in facts]
        found.append(
            trace_many(
                model,
                prompts,
                targets,
                noises=noises,
                site=site,
                windows=[1, 3],
                metric="log_probability",
                batch_size=90,
            )
        )
    assert max(one.effect.abs().max() for fast in found[0] for one in fast) > 0.1
    for fast, whole in zip(*found, strict=True):
        for one, other in zip(fast, whole, strict=True):
            torch.testing.assert_close(other.p_restored, one.p_restored, rtol=1e-5, atol=1e-5)
            assert (other.p_clean, other.p_corrupted) == pytest.approx((one.p_clean, one.p_corrupted), rel=1e-5)


@pytest.mark.parametrize("method", ["rome", "memit", "finetune"])
def test_edits_and_scores(pair, facts, contexts, stats_of, method):
    found, scores = [], []
    for model in pair:
        problems = ["error_injection", "error_injection", "fact_forcing", "fact_forcing"]
        requests = [loc_edit.pose(f, p, model, noise_scale=0.5) for f, p in zip(facts, problems, strict=True)]
        common = {"stats": stats_of(model), "contexts": contexts}
        last = model.cfg.n_layers - 1
        if method == "rome":
            settings = loc_edit.RomeSettings(steps=5)
            edits = [loc_edit.rome(model, requests, layer, settings=settings, **common) for layer in (0, 1, last)]
        elif method == "memit":
            settings = loc_edit.MemitSettings(steps=5, moment_weight=20.0)
            edits = [loc_edit.memit(model, requests, some, settings=settings, **common) for some in ([0, 1], [last])]
        else:
            settings = loc_edit.FinetuneSettings(steps=5, eps=1e-2)
            edits = [loc_edit.finetune(model, requests, some, settings=settings) for some in ([1], [0, last])]
        found.append([edit for some in edits for edit in some])
        scores.append(loc_edit.score(model, facts[0], requests[0], edits[0][0]))
    for fast, whole in zip(*found, strict=True):
        changes = [[edit.delta(layer) for layer in edit.layers] for edit in (fast, whole)]
        if method != "finetune" and fast.layers == (last,):
            # Nothing reads a value there but the essence row, whose loss starts at its least: it stays as it is.
            assert all(edit.delta(last).norm() < 1e-4 for edit in (fast, whole))
            changes = [[update.left for update in edit.updates] for edit in (fast, whole)]
        for one, other in zip(*changes, strict=True):
            assert one.norm() > 0
            assert (other - one).norm() <= 1e-4 * one.norm()
    one, other = scores
    assert other.after.rewrite == pytest.approx(one.after.rewrite, rel=1e-4)
    assert other.after.essence == pytest.approx(one.after.essence, rel=1e-3)
    assert other.overall_essence == pytest.approx(one.overall_essence, abs=1e-3)


def test_sampled_texts(pair, facts):
    subjects, ids = [fact.subject for fact in facts], [fact.fact_id for fact in facts]
    fast, whole = (sample_essences(model, subjects, ids, seed=1) for model in pair)
    assert all(torch.equal(a, b) for x, y in zip(fast, whole, strict=True) for a, b in zip(x, y, strict=True))
    greedy = [sample_tokens(model, [fast[0][0][:4]], [torch.zeros(5)], top_k=1)[0] for model in pair]
    assert torch.equal(*greedy)
