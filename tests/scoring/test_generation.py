"""What a model writes: judged as a reader would, and the same whether decoded step by step or in one go."""

import math
from dataclasses import replace

import pytest
import torch

import loc_edit
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.names import SCORES, scores_of
from loc_edit.prompts.encoding import Prompt, encode_text
from loc_edit.scoring.contract import compared, measure
from loc_edit.scoring.generation import LENGTH, Written, compare, entropy, generation


def text(words):
    tokens = torch.tensor([0])
    return Written(Prompt(0, "x", "x", "", tokens, slice(0, 0)), tokens, words)


@pytest.mark.parametrize(
    ("words", "target", "begins", "has"),
    [
        (" Rome, and", "Rome", True, True),
        (' "rome" it', "Rome", True, True),
        (" Romeo and Juliet", "Rome", False, False),
        (" the city of Rome", "Rome", False, True),
        (" New York City", "New York", True, True),
        (" the U.S. of", "U.S.", False, True),
        (" C++ is", "C++", True, True),
        ("", "Rome", False, False),
    ],
)
def test_a_target_counts_as_a_whole_word(words, target, begins, has):
    assert text(words).begins_with(target) == begins
    assert text(words).has(target) == has


def test_a_text_that_repeats_itself_has_less_entropy():
    assert entropy([1] * 20) == 0
    # 2-grams: 12 three times, 21 twice; 3-grams: 121 twice, 212 twice
    pairs = -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4))
    assert entropy([1, 2, 1, 2, 1, 2]) == pytest.approx((2 / 3 * pairs + 4 / 3 * 1) / 2)
    assert entropy(list(range(20))) > entropy([1, 2, 3] * 7)


def test_what_is_written_is_the_likeliest_token_each_time(deep, facts):
    written = generation(deep, facts[0])
    fact = facts[0]
    assert {kind: len(texts) for kind, texts in written.items()} == {
        "rewrite": 1,
        "paraphrase": len(fact.paraphrases),
        "neighborhood": len(fact.neighbors),
        "open": 1,
    }
    prompts = [fact.prompt, *fact.paraphrases, *fact.neighbors, fact.subject]
    for prompt, line in zip(prompts, [line for texts in written.values() for line in texts], strict=True):
        tokens = encode_text(deep, prompt).tokens
        for _ in range(len(line.tokens)):
            tokens = torch.cat([tokens, deep(tokens[None])[0, -1].argmax()[None]])
        assert line.tokens.tolist() == tokens[-len(line.tokens) :].tolist()
        assert 0 < len(line.tokens) <= LENGTH


@pytest.mark.slow
def test_an_edit_is_judged_by_what_the_model_then_writes():
    builtin = loc_edit.load_model("builtin")
    facts = loc_edit.load_facts("builtin")
    fact = facts[1]
    request = loc_edit.pose(fact, "error_injection", builtin)
    stats, contexts = loc_edit.key_stats(builtin, layers=[2]), loc_edit.sample_contexts(builtin)
    edit = loc_edit.rome(builtin, request, 2, stats=stats, contexts=contexts)
    before = measure("generation", builtin, fact, request)
    with edit.applied(builtin):
        after = measure("generation", builtin, fact, request)
    assert before["rewrite"][0].begins_with(fact.target_true)
    assert after["rewrite"][0].begins_with(fact.target_new)
    unedited, reason = compared("generation", before, before, model=builtin, fact=fact, request=request)
    assert not reason
    assert set(unedited) == set(scores_of("generation"))
    scores, reason = compared("generation", before, after, model=builtin, fact=fact, request=request)
    assert (unedited["generation_rewrite"], scores["generation_rewrite"]) == (0, 1)
    assert unedited["generation_neighborhood"] == 1
    assert unedited["generation_entropy"] == unedited["generation_surprise"] == 0
    assert scores["generation_surprise"] > 0  # the unedited model did not expect it
    lowered = compare(before, after, builtin, replace(request, objective="lower"))
    assert lowered["generation_rewrite"] == 0


def test_the_surprise_is_the_loss_of_the_unedited_model(deep, facts):
    request = loc_edit.pose(facts[0], "error_injection", deep)
    written = generation(deep, facts[0])
    other = {kind: [replace(line, tokens=line.tokens.flip(0)) for line in texts] for kind, texts in written.items()}

    def loss(texts):
        losses = []
        for kind in ("rewrite", "paraphrase", "open"):
            for line in texts[kind]:
                row = torch.cat([line.prompt.tokens, line.tokens])
                log_p = deep(row[None])[0].log_softmax(-1)[len(line.prompt) - 1 : -1]
                losses.append(-log_p.gather(1, line.tokens[:, None]).mean().item())
        return sum(losses) / len(losses)

    surprise = compare(written, other, deep, request)["generation_surprise"]
    assert surprise == pytest.approx(loss(other) - loss(written), rel=1e-4)
    assert surprise > 0


@pytest.mark.slow
def test_a_run_has_the_scores_that_it_is_asked_for(lab, computed):
    plain = lab(layers=(1,)).run()
    assert not set(scores_of("generation")) & set(plain.edits)
    computed.clear()
    run = lab(layers=(1,), scores=("generation",)).run()
    assert {kind for kind, *_ in computed} == {"edits"}
    edits = run.edits
    for name in scores_of("generation"):
        assert edits[name].dropna().between(SCORES[name].low, SCORES[name].high).all(), name
    assert edits["generation_rewrite"].notna().all()
    assert (edits["generation_paraphrase"].notna() == edits["paraphrase"].notna()).all()
    unedited = edits[edits["method"] == "none"]
    assert (unedited["generation_entropy"] == 0).all()
    assert (unedited["generation_neighborhood"].dropna() == 1).all()
    names = set(scores_of("generation"))
    assert names <= set(mean_scores(edits)["outcome"])
