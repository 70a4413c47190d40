"""What survives: rounding is done as it says and undone exactly, and a merge is a share of the edit."""

import pytest
import torch

import loc_edit
from loc_edit.scoring.contract import compared, measure
from loc_edit.scoring.survival import GROUP, round_to_nearest, rounded


def test_rounding_keeps_within_half_a_step_of_its_group():
    weight = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))  # two groups of 32 and one of 6
    for bits in (8, 4):
        close = round_to_nearest(weight, bits)
        assert not torch.equal(close, weight)
        for group, own in zip(weight.split(GROUP), close.split(GROUP), strict=True):
            step = group.abs().amax(0) / (2 ** (bits - 1) - 1)
            assert ((group - own).abs() <= 0.5001 * step).all()
            steps = own / step
            torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
            assert steps.abs().max() <= 2 ** (bits - 1) - 1 + 1e-4
    torch.testing.assert_close(round_to_nearest(weight, 4, -1), round_to_nearest(weight.T, 4).T)
    assert torch.equal(round_to_nearest(torch.zeros(4, 4), 4), torch.zeros(4, 4))
    exact = torch.tensor([[7.0], [-3.0], [1.0]])
    torch.testing.assert_close(round_to_nearest(exact, 4), exact)  # already whole numbers of steps


def test_a_rounded_model_gets_its_bytes_back(editable):
    before, tokens = loc_edit.fingerprint(editable), torch.arange(1, 9)[None]
    logits = editable(tokens)
    with rounded(editable, 4):
        assert loc_edit.fingerprint(editable) != before
        assert not torch.allclose(editable(tokens), logits)
    assert loc_edit.fingerprint(editable) == before
    with pytest.raises(RuntimeError, match="stop"), rounded(editable, 4):
        raise RuntimeError("stop")
    assert loc_edit.fingerprint(editable) == before


def test_a_scaled_edit_is_that_share_of_it(deep, facts):
    request = loc_edit.pose(facts[0], "error_injection", deep)
    [edit] = loc_edit.finetune(deep, [request], [1], settings=loc_edit.FinetuneSettings(steps=2))
    low_rank = loc_edit.Edit((loc_edit.WeightUpdate(2, left=torch.ones(deep.cfg.d_mlp, 1), right=torch.ones(1, 16)),))
    for whole, layer in ((edit, 1), (low_rank, 2)):
        assert whole.delta(layer).abs().max() > 0
        torch.testing.assert_close(whole.scaled(0.25).delta(layer), 0.25 * whole.delta(layer))
    assert edit.scaled(0.5).about == edit.about
    before = [p.clone() for p in deep.parameters()]
    with edit.applied(deep), edit.scaled(-1.0).applied(deep):
        for own, parameter in zip(before, deep.parameters(), strict=True):
            torch.testing.assert_close(parameter, own)


@pytest.mark.slow
def test_survival_is_the_rewrite_score_of_what_is_left():
    model = loc_edit.load_model("builtin")
    fact = loc_edit.load_facts("builtin")[1]
    request = loc_edit.pose(fact, "error_injection", model)
    stats, contexts = loc_edit.key_stats(model, layers=[2]), loc_edit.sample_contexts(model)
    edit = loc_edit.rome(model, request, 2, stats=stats, contexts=contexts)
    before = measure("survival", model, fact, request)
    assert before["survival_merge_50"] == before["whole"]  # nothing to merge
    score = loc_edit.score(model, fact, request, edit, essence=False, scores=["survival"])
    half = loc_edit.score(model, fact, request, edit.scaled(0.5), essence=False)
    assert score.other_scores["survival_merge_50"] == pytest.approx(half.rewrite, abs=1e-4)
    assert 0 < half.rewrite < score.rewrite
    eight, four = score.other_scores["survival_int8"], score.other_scores["survival_int4"]
    assert eight == pytest.approx(score.rewrite, abs=0.05)
    assert abs(four - score.rewrite) > abs(eight - score.rewrite)
    with edit.applied(model), rounded(model, 4):
        p = loc_edit.score(model, fact, request, essence=False).before.rewrite
    assert four == pytest.approx((p - before["whole"]) / (1 - before["whole"]), abs=1e-4)
    unedited, _ = compared("survival", before, before, request=request)
    assert unedited["survival_merge_25"] == 0
