"""Scores: their formulas by hand, and what they measure against whole-sequence runs with weights really written."""

import math
from dataclasses import fields, replace
from math import inf, isnan, nan

import oracles
import pytest
import torch

import loc_edit
from loc_edit.editing.rows import draw_noise
from loc_edit.editing.update import WeightUpdate
from loc_edit.models.adapter import VERSION
from loc_edit.prompts.encoding import find_subject
from loc_edit.prompts.randomness import generator
from loc_edit.prompts.sampling import sample_essences
from loc_edit.scoring import measuring
from loc_edit.scoring.measuring import Meter
from loc_edit.scoring.probes import Measured, make_probes
from loc_edit.scoring.scores import compare

SCORES = ("rewrite", "paraphrase", "neighborhood", "essence", "overall", "overall_essence", "neighborhood_new")


def measured(rewrite=0.5, paraphrase=(), neighborhood=(), neighborhood_new=(), essence=()):
    return Measured(rewrite, tuple(paraphrase), tuple(neighborhood), tuple(neighborhood_new), tuple(essence))


@pytest.fixture(scope="module")
def rich(facts):
    """The first fact with more prompts: three paraphrases, one without the subject, and three neighbors."""
    return replace(
        facts[0],
        paraphrases=("Nobody crossed it. The Golden Bridge is in", "It is in the city of", "The Golden Bridge, in"),
        neighbors=("The old bridge is located in the city of", "Norway is in", "The train was in the city of"),
    )


def measure(model, probes, edits):
    """Raw numbers of many (probes, edit) pairs, each under its own edit."""
    return Meter(model, probes).measure(edits)


def edits_of(model, request, stats_of, contexts, layer=1):
    """One edit by each method, and one by none."""
    stats = stats_of(model)
    return [
        loc_edit.rome(model, request, layer, stats=stats, contexts=contexts),
        loc_edit.memit(model, request, [0, 1], stats=stats, contexts=contexts),
        loc_edit.finetune(model, request, [0, 1], settings=loc_edit.FinetuneSettings(eps=0.05, lr=0.02)),
        None,
    ]


# Formulas, by hand


def test_scores_of_an_edit_that_raises_by_hand():
    score = compare(
        measured(0.2, (0.2, 0.5, 0.4), (0.1, 0.9), (0.5,), (10.0, 14.0)),
        measured(0.6, (0.6, 0.25, 0.7), (0.3, 0.4), (0.0,), (11.0, 15.5)),
        "raise",
    )
    assert score.rewrite == pytest.approx(0.4 / 0.8)
    assert score.paraphrase == pytest.approx((0.5 + 0.0 + 0.5) / 3)  # each prompt has its own floor
    first, second = 1 - 0.2 / (0.5 + 0.4), 1 - 0.5 / (0.5 + 0.4)
    assert score.neighborhood == pytest.approx((first + second) / 2)
    assert score.neighborhood_new == pytest.approx(0.0)
    assert score.essence == pytest.approx(1 - 1.25 / 5)
    three = (score.rewrite, score.paraphrase, score.neighborhood)
    assert score.overall == pytest.approx(sum(three) / 3)
    assert score.overall_essence == pytest.approx((sum(three) + score.essence) / 4)
    assert score.reason == ""


def test_scores_of_an_edit_that_lowers_by_hand():
    score = compare(
        measured(0.8, (0.5, 0.2), (0.6,), (), (3.0,)),
        measured(0.2, (0.1, 0.4), (0.9,), (), (2.0,)),
        "lower",
    )
    assert score.rewrite == pytest.approx(0.6 / 0.8)
    assert score.paraphrase == pytest.approx((0.8 + 0.0) / 2)
    assert score.neighborhood == pytest.approx(1 - 0.3 / 0.6)
    assert score.essence == 1.0  # a lower perplexity is no gain
    assert isnan(score.neighborhood_new)


@pytest.mark.parametrize(("objective", "before", "after"), [("raise", 0.5, 0.3), ("lower", 0.5, 0.7)])
def test_a_change_the_wrong_way_scores_zero(objective, before, after):
    assert compare(measured(before), measured(after), objective).rewrite == 0.0


@pytest.mark.parametrize(("objective", "before"), [("raise", 1.0), ("lower", 0.0)])
@pytest.mark.parametrize("after", [0.0, 0.5, 1.0])
def test_where_nothing_can_change_the_score_is_no_number_and_says_why(objective, before, after):
    score = compare(measured(before, (0.5,), (0.5,)), measured(after, (0.5,), (0.5,)), objective)
    assert isnan(score.rewrite)
    assert isnan(score.overall)
    assert f"p before is {before:g}, nothing to {objective}" in score.reason
    assert not isnan(score.paraphrase)


@pytest.mark.parametrize(("objective", "before", "score"), [("raise", 0.0, 0.25), ("lower", 1.0, 0.75)])
def test_the_other_extreme_is_a_number(objective, before, score):
    assert compare(measured(before), measured(0.25), objective).rewrite == score


def test_paraphrases_that_are_no_number_are_left_out_and_counted():
    score = compare(measured(0.2, (nan, 0.5, 1.0)), measured(0.2, (nan, 0.75, 0.3)), "raise")
    assert score.paraphrase == pytest.approx(0.5)
    assert "paraphrase: 2 of 3 undefined" in score.reason
    none = compare(measured(0.2, (nan,)), measured(0.2, (nan,)), "raise")
    assert isnan(none.paraphrase)
    assert "paraphrase: 1 of 1 undefined" in none.reason


def test_without_prompts_there_is_no_score_and_a_reason():
    score = compare(measured(0.2), measured(0.6), "raise")
    assert score.rewrite == pytest.approx(0.5)
    assert isnan(score.paraphrase)
    assert isnan(score.neighborhood)
    assert isnan(score.essence)
    assert "paraphrase: none" in score.reason
    assert "neighborhood: none" in score.reason


def test_a_probability_that_is_no_number_is_named():
    score = compare(measured(0.2), measured(nan), "raise")
    assert isnan(score.rewrite)
    assert "rewrite: p goes from 0.2 to nan" in score.reason


@pytest.mark.parametrize(
    ("before", "after", "essence"),
    [((10.0,), (12.5,), 0.5), ((10.0,), (15.0,), 0.0), ((10.0,), (99.0,), 0.0), ((10.0,), (inf,), 0.0)],
)
def test_essence_is_clipped(before, after, essence):
    assert compare(measured(essence=before), measured(essence=after), "raise").essence == essence


def test_neighbors_that_cannot_move_further_score_zero():
    for before, after in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.3, 1.0)):
        score = compare(measured(neighborhood=(before,)), measured(neighborhood=(after,)), "raise")
        assert score.neighborhood == pytest.approx(0.0)


def test_rows_are_flat():
    before, after = measured(0.2, (0.3, 0.4), (0.5,), (0.6,), (7.0,)), measured(0.3, (0.4, 0.5), (0.6,), (0.7,), (8.0,))
    row = compare(before, after, "raise").to_row()
    raw = {f"{field.name}_{when}" for field in fields(Measured) for when in ("before", "after")}
    gaps = {f"{k}_{what}" for k in ("rewrite", "paraphrase", "neighborhood") for what in ("magnitude", "success")}
    assert set(row) == {*SCORES, "reason"} | raw | gaps
    assert row["rewrite_before"] == [0.2]
    assert row["paraphrase_after"] == [0.4, 0.5]
    assert all(isinstance(row[name], float) for name in SCORES)


def test_magnitudes_compare_the_two_objects():
    after = measured(0.6, (0.2, nan, 0.5), (0.1, 0.3))
    after = replace(after, rewrite_other=0.1, paraphrase_other=(0.5, 0.1, 0.1), neighborhood_other=(0.6, 0.2))
    found = compare(measured(0.2, (0.1, 0.1, 0.1), (0.1, 0.1)), after, "raise").magnitudes
    assert found == pytest.approx(
        {
            "rewrite_magnitude": 0.5,
            "rewrite_success": 1.0,
            "paraphrase_magnitude": 0.05,  # of the two that are numbers
            "paraphrase_success": 0.5,
            "neighborhood_magnitude": 0.2,  # there the other object is the right one
            "neighborhood_success": 0.5,
        }
    )
    lower = compare(measured(0.7, (0.1, 0.1, 0.1), (0.1, 0.1)), after, "lower").magnitudes
    for name in ("rewrite", "paraphrase", "neighborhood"):
        assert lower[f"{name}_magnitude"] == pytest.approx(-found[f"{name}_magnitude"])
    assert all(isnan(value) for value in compare(measured(0.2), measured(0.6), "raise").magnitudes.values())


def test_a_tie_of_the_two_objects_is_no_success():
    after = replace(measured(0.3, (0.2, 0.4), (0.1,)), rewrite_other=0.3, paraphrase_other=(0.2, 0.3))
    found = compare(measured(0.2, (0.1, 0.1), (0.1,)), replace(after, neighborhood_other=(0.1,)), "raise").magnitudes
    names = ("rewrite_success", "paraphrase_success", "neighborhood_success")
    assert [found[name] for name in names] == [0.0, 0.5, 0.0]


# What is measured


@pytest.mark.parametrize("problem", ["error_injection", "fact_amplification", "fact_forcing", "tracing_reversal"])
def test_no_edit_changes_nothing(editable, rich, problem):
    request = loc_edit.pose(rich, problem, editable, noise_scale=2.0)
    score = loc_edit.score(editable, rich, request)
    assert (score.rewrite, score.paraphrase, score.neighborhood, score.essence) == (0.0, 0.0, 1.0, 1.0)
    assert score.neighborhood_new == 1.0
    assert score.before == score.after or problem == "fact_forcing"  # there one paraphrase is no number
    assert len(score.before.essence) == 5


def test_an_edit_that_works_shows_in_its_scores(deep, rich):
    request = loc_edit.pose(rich, "error_injection", deep)
    edit = loc_edit.finetune(deep, request, [1, 2], settings=loc_edit.FinetuneSettings(steps=40, eps=0.2, lr=0.05))
    score = loc_edit.score(deep, rich, request, edit)
    assert score.after.rewrite > 20 * score.before.rewrite
    assert score.rewrite > 0.03
    assert score.neighborhood < 1
    assert score.essence < 1


def test_essence_may_be_left_out(tiny, rich):
    score = loc_edit.score(tiny, rich, loc_edit.pose(rich, "error_injection", tiny), essence=False)
    assert score.before.essence == ()
    assert isnan(score.essence)
    assert score.overall == pytest.approx(1 / 3)


def slow_probability(model, text, target, hooks=()):
    prompt = torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    if model.cfg.default_prepend_bos:
        prompt = torch.cat([torch.tensor([model.tokenizer.bos_token_id]), prompt])
    logits = model.run_with_hooks(torch.cat([prompt, target[:-1]])[None], fwd_hooks=list(hooks))[0]
    return oracles.probability(logits, len(prompt), target).item()


def slow_perplexity(model, text):
    log_p = model(text[None])[0].log_softmax(-1)
    losses = [-log_p[i - 1, text[i]].item() for i in range(1, len(text))]
    return math.exp(sum(losses) / len(losses))


def test_weights_really_written_give_the_same_numbers(editable, rich, stats_of, contexts):
    """Every probe, of every method, by one whole run a row on the edited model."""
    rich = replace(rich, target_true="Norway and Sweden")
    request = loc_edit.pose(rich, "fact_amplification", editable)
    assert len(request.target_tokens) > 1
    texts = sample_essences(editable, [rich.subject], [rich.fact_id])[0]
    probes = make_probes(editable, rich, request, texts)
    edits = edits_of(editable, request, stats_of, contexts)
    found = measure(editable, [probes] * len(edits), edits)
    for edit, one in zip(edits, found, strict=True):
        edit = edit or loc_edit.Edit(())
        with edit.applied(editable):
            of = [slow_probability(editable, text, request.target_tokens) for text in (rich.prompt, *rich.paraphrases)]
            assert (one.rewrite, *one.paraphrase) == pytest.approx(of, rel=2e-3, abs=1e-6)
            of = [slow_probability(editable, text, request.target_tokens) for text in rich.neighbors]
            assert one.neighborhood == pytest.approx(of, rel=2e-3, abs=1e-6)
            new = loc_edit.pose(rich, "error_injection", editable).target_tokens
            assert len(new) != len(request.target_tokens)
            of = [slow_probability(editable, text, new) for text in (rich.prompt, *rich.paraphrases)]
            assert (one.rewrite_other, *one.paraphrase_other) == pytest.approx(of, rel=2e-3, abs=1e-6)
            of = [slow_probability(editable, text, new) for text in rich.neighbors]
            assert one.neighborhood_new == pytest.approx(of, rel=2e-3, abs=1e-6)
            assert one.essence == pytest.approx([slow_perplexity(editable, text) for text in texts], rel=2e-3)
    after = {one.rewrite for one in found}
    assert len(after) == len(edits)  # each edit does something else


def test_hooks_and_written_weights_agree(editable, rich, stats_of, contexts):
    request = loc_edit.pose(rich, "error_injection", editable)
    probes = make_probes(editable, rich, request, sample_essences(editable, [rich.subject], [0])[0])
    for edit in edits_of(editable, request, stats_of, contexts)[:3]:
        [hooked] = measure(editable, [probes], [edit])
        with edit.applied(editable):
            [written] = measure(editable, [probes], [None])
        assert flat(hooked) == pytest.approx(flat(written), rel=1e-4, abs=1e-7)


def flat(one):
    return [number for value in vars(one).values() for number in (value if isinstance(value, tuple) else [value])]


def test_neither_batch_size_nor_company_matters(deep, rich, facts, stats_of, contexts):
    request = loc_edit.pose(rich, "error_injection", deep)
    edits = edits_of(deep, request, stats_of, contexts)
    noised = loc_edit.pose(rich, "fact_forcing", deep, noise_scale=1.0)
    some = [make_probes(deep, rich, request, sample_essences(deep, [rich.subject], [0])[0])] * 4
    some += [make_probes(deep, fact, loc_edit.pose(fact, "error_injection", deep)) for fact in facts[1:]]
    some += [make_probes(deep, replace(rich, paraphrases=rich.paraphrases[:1]), noised)]
    edits += [edits[0], None, edits[2], edits[1]]
    together = measure(deep, some, edits)
    for size in (1, 200):
        for one, other in zip(Meter(deep, some, batch_tokens=size).measure(edits), together, strict=True):
            assert flat(one) == pytest.approx(flat(other), rel=1e-4, abs=1e-7)
    for probes, edit, other in zip(some, edits, together, strict=True):
        [one] = measure(deep, [probes], [edit])
        assert flat(one) == pytest.approx(flat(other), rel=1e-4, abs=1e-7)


@pytest.mark.slow
def test_measuring_starts_at_the_edited_layer_and_changes_no_number(
    deep, rich, facts, stats_of, contexts, monkeypatch, request
):
    """An edit changes nothing below it: what was kept of the unedited model serves, also for noised rows."""
    requests = [
        loc_edit.pose(rich, "error_injection", deep),
        loc_edit.pose(rich, "fact_forcing", deep, noise_scale=1.0),
    ]
    probes = [make_probes(deep, rich, r, sample_essences(deep, [rich.subject], [0])[0]) for r in requests]
    settings = loc_edit.FinetuneSettings(eps=0.05, lr=0.02)
    layers = range(deep.cfg.n_layers)
    edits = {layer: [loc_edit.finetune(deep, r, [layer], settings=settings) for r in requests] for layer in layers}
    blocks = []
    for layer, block in enumerate(deep.blocks):
        handle = block.register_forward_pre_hook(lambda *_, layer=layer: blocks.append(layer))
        request.addfinalizer(handle.remove)
    whole, kept = Meter(deep, probes), Meter(deep, probes, layers)
    for layer in layers:
        expected = whole.measure(edits[layer])
        assert expected != whole.before
        blocks.clear()
        found = kept.measure(edits[layer])
        if VERSION < 4:  # a bridge calls the layers below, which pass on what they get
            assert set(blocks) == set(layers[layer + 1 :])  # the layer's keys are kept, and the stream after it
        for one, other in zip(found, expected, strict=True):
            assert flat(one) == pytest.approx(flat(other), rel=1e-4, abs=1e-7, nan_ok=True)
    one = Meter(deep, probes, [1])  # nothing of layer 0 is kept, so it runs from the start
    blocks.clear()
    one.measure(edits[0])
    assert 0 in blocks
    positions = sum(laid.batch.tokens.numel() for laid in kept.batches)
    monkeypatch.setattr(measuring, "KEPT_BYTES", positions * 4 * deep.cfg.d_model * len(layers))  # not for keys
    streams = Meter(deep, probes, layers)
    for layer in layers:
        blocks.clear()
        found = streams.measure(edits[layer])
        assert set(blocks) == set(layers[layer:])
        for one, other in zip(found, kept.measure(edits[layer]), strict=True):
            assert flat(one) == pytest.approx(flat(other), rel=1e-4, abs=1e-7, nan_ok=True)
    monkeypatch.setattr(measuring, "KEPT_BYTES", 1)
    none = Meter(deep, probes, layers)
    assert (none.keys, none.streams) == ([], [])


def test_targets_that_differ_in_their_last_token_share_a_line(deep, rich):
    rich = replace(rich, target_true="Paris", target_new="London")
    request = loc_edit.pose(rich, "error_injection", deep)
    assert len(request.target_tokens) == 1
    [batch, *more] = Meter(deep, [make_probes(deep, rich, request)]).batches
    n_runs = sum(len(one.lines) for one in (batch, *more))
    assert n_runs == 1 + len(rich.paraphrases) + len(rich.neighbors)


def test_every_request_needs_an_edit(deep, rich):
    meter = Meter(deep, [make_probes(deep, rich, loc_edit.pose(rich, "error_injection", deep))])
    with pytest.raises(ValueError, match="expected an edit for each of 1 requests, got 2 edits"):
        meter.measure([None, None])


def test_a_noised_subject_is_noised_where_it_stands(editable, rich):
    """Means over samples; paraphrases at their own spans; neighbors and essence texts clean."""
    prompt = loc_edit.encode(editable, rich)
    noise = loc_edit.subject_noise(editable, prompt, scale=1.5, samples=3)
    request = loc_edit.pose(rich, "fact_forcing", editable, noise=noise, noise_scale=1.5, seed=4)
    texts = sample_essences(editable, [rich.subject], [0])[0]
    [found] = measure(editable, [make_probes(editable, rich, request, texts)], [None])
    target = request.target_tokens

    def mean(text, noises, span):
        ps = [slow_probability(editable, text, target, oracles.add_noise(one, span)) for one in noises]
        return sum(ps) / len(ps)

    assert found.rewrite == pytest.approx(mean(rich.prompt, noise, prompt.subject), rel=1e-3)
    assert found.rewrite != pytest.approx(slow_probability(editable, rich.prompt, target), rel=1e-2)
    for i, text in enumerate(rich.paraphrases):
        if rich.subject not in text:
            assert isnan(found.paraphrase[i])
            continue
        row = find_subject(editable, text, rich.subject)
        draws = generator("score", 4, rich.fact_id, i)
        own = [draw_noise(request, row, draws) for _ in range(3)]
        assert found.paraphrase[i] == pytest.approx(mean(text, own, row.subject), rel=1e-3)
        assert found.paraphrase[i] != pytest.approx(slow_probability(editable, text, target), rel=1e-2)
    clean = [slow_probability(editable, text, target) for text in rich.neighbors]
    assert found.neighborhood == pytest.approx(clean, rel=1e-3)
    assert found.essence == pytest.approx([slow_perplexity(editable, text) for text in texts], rel=1e-3)
    score = compare(found, found, request.objective)
    assert score.paraphrase == 0.0
    assert "paraphrase: 1 of 3 undefined" in score.reason


def test_a_prompt_and_its_target_may_fill_the_context_exactly(make_model, rich):
    """The target's last token is predicted and not read: it needs no place."""
    rich = replace(rich, target_new="Parisian")
    probes = make_probes(make_model(), rich, loc_edit.pose(rich, "error_injection", make_model())).probes
    longest = max(len(probe.prompt) + len(probe.target) - 1 for probe in probes)
    assert any(len(probe.target) > 1 for probe in probes)
    exact, short = make_model(n_ctx=longest), make_model(n_ctx=longest - 1)
    request = loc_edit.pose(rich, "error_injection", exact)
    assert loc_edit.score(exact, rich, request).rewrite == pytest.approx(0, abs=1e-6)
    with pytest.raises(loc_edit.BadPrompt, match="with its target it does not fit the context"):
        make_probes(short, rich, loc_edit.pose(rich, "error_injection", short))


def test_a_fact_without_paraphrases_and_neighbors_is_scored(tiny, facts, stats_of, contexts):
    fact = replace(facts[1], paraphrases=(), neighbors=())
    request = loc_edit.pose(fact, "error_injection", tiny)
    edit = loc_edit.rome(tiny, request, 0, stats=stats_of(tiny), contexts=contexts)
    score = loc_edit.score(tiny, fact, request, edit)
    assert 0 <= score.rewrite <= 1
    assert isnan(score.paraphrase)
    assert isnan(score.neighborhood)
    assert isnan(score.neighborhood_new)
    assert isnan(score.overall)
    assert 0 <= score.essence <= 1


def test_neighborhood_is_kept_on_both_targets(deep, rich, stats_of, contexts):
    for problem, same in (("error_injection", True), ("fact_amplification", False)):
        request = loc_edit.pose(rich, problem, deep)
        edit = loc_edit.rome(deep, request, 1, stats=stats_of(deep), contexts=contexts)
        score = loc_edit.score(deep, rich, request, edit, essence=False)
        assert len(score.after.neighborhood_new) == 3
        assert (score.neighborhood == score.neighborhood_new) == same
    request = loc_edit.pose(rich, "fact_amplification", deep)
    assert isnan(loc_edit.score(deep, replace(rich, target_new=None), request, essence=False).neighborhood_new)


def test_an_edit_that_breaks_the_model_scores_zero_and_is_no_crash(make_model, rich):
    model = make_model(normalization_type=None)
    request = loc_edit.pose(rich, "error_injection", model)
    blow_up = loc_edit.Edit((WeightUpdate(1, full=1e4 * torch.ones(24, 16), bias=torch.linspace(-1e5, 1e5, 16)),))
    score = loc_edit.score(model, rich, request, blow_up)
    assert score.after.essence[0] == inf
    assert score.essence == 0.0


def test_scores_repeat(tiny, rich):
    request = loc_edit.pose(rich, "fact_forcing", tiny, noise_scale=1.0, seed=2)
    first = loc_edit.score(tiny, rich, request)
    torch.manual_seed(3)
    assert repr(loc_edit.score(tiny, rich, request).before) == repr(first.before)


def test_reprs_are_short(tiny, rich):
    score = loc_edit.score(tiny, rich, loc_edit.pose(rich, "error_injection", tiny), essence=False)
    assert repr(score).startswith("EditScore(rewrite=0.0, ")
    assert len(repr(score)) < 300
