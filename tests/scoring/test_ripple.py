"""Consequences of an edit: nothing follows without one, and what follows is what plain forward passes say."""

from dataclasses import replace
from math import isnan, nan

import pytest
import torch

import loc_edit
from loc_edit.experiment.setup import Setup
from loc_edit.facts.consequences import consequences
from loc_edit.facts.fact import Fact
from loc_edit.facts.loading import save_facts
from loc_edit.names import scores_of
from loc_edit.prompts.encoding import encode_text, target_tokens
from loc_edit.scoring import ripple as module
from loc_edit.scoring.contract import gets
from loc_edit.scoring.ripple import Believed, compare, probabilities
from loc_edit.scoring.scores import share_of_change

FACTS = [
    Fact(
        template="The city of {} is", subject="Anna Kowalska", target_true="Paris", target_new="Rome", relation="city"
    ),
    Fact(template="The mother tongue of {} is", subject="Anna Kowalska", target_true="Polish", relation="tongue"),
    Fact(template="The river in {} is", subject="Paris", target_true="green", relation="river"),
    Fact(template="The river in {} is", subject="Rome", target_true="narrow", relation="river"),
]
QUESTION = "The river in the city of Anna Kowalska is"
HOPS = (("The river in Paris is", "green"), ("The river in Rome is", "narrow"))
TONGUE = ("The mother tongue of Anna Kowalska is", "Polish")


def slow_probability(model, text, answer):
    prompt = encode_text(model, text).tokens
    target = target_tokens(model, text, answer)
    log_p = model(torch.cat([prompt, target])[None])[0].log_softmax(-1)
    return log_p[len(prompt) - 1 : -1].gather(1, target[:, None]).sum().exp().item()


@pytest.fixture
def credulous(monkeypatch):
    """A random model knows nothing: let every answer count."""
    monkeypatch.setattr(module, "KNOWN", 0.0)
    monkeypatch.setattr(module, "MIN_ERASURE", 0.0)


def believed(target="Rome", **p):
    """Probabilities by hand: `old` and `new` answers of the question, hops, and the tongue."""
    p = {"old": 0.8, "new": 0.1, "hop_old": 0.9, "hop_new": 0.9, "tongue": 0.9} | p
    pairs = {(QUESTION, "green"): p["old"], (QUESTION, "narrow"): p["new"], TONGUE: p["tongue"]}
    return Believed(consequences(FACTS[0], target, FACTS), pairs | {HOPS[0]: p["hop_old"], HOPS[1]: p["hop_new"]})


@pytest.fixture
def request_of(deep):
    def make(problem, target):
        return replace(
            loc_edit.pose(FACTS[0], "error_injection", deep),
            target=target,
            objective="lower" if problem == "fact_erasure" else "raise",
        )

    return make


def scores_and_reasons(before, after, request):
    """The scores, NaN where there is none, and the reasons for these."""
    given = compare(before, after, request)
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    return given | dict.fromkeys(texts, nan), "; ".join(texts.values())


def test_a_consequence_counts_by_the_share_of_the_change_that_was_possible(request_of):
    request = request_of("error_injection", "Rome")
    scores, reason = scores_and_reasons(believed(), believed(old=0.3, new=0.55, hop_new=0.45, tongue=0.45), request)
    assert scores["ripple_two_hop"] == scores["ripple_answered"] == pytest.approx((0.55 - 0.1) / 0.9)
    assert scores["ripple_specificity"] == pytest.approx(1 - 0.45 / 0.9)
    assert scores["ripple_objects"] == pytest.approx((1 + 1 - 0.45 / 0.9) / 2)
    assert isnan(scores["ripple_inverse"])
    assert "no inverse question" in reason
    same, _ = scores_and_reasons(believed(), believed(), request)
    assert same["ripple_two_hop"] == 0
    assert same["ripple_specificity"] == same["ripple_objects"] == 1


def test_an_erased_fact_is_to_be_gone_when_asked_through_another_one(request_of):
    request, before = request_of("fact_erasure", "Paris"), believed("Paris")
    scores, _ = scores_and_reasons(before, believed("Paris", old=0.2), request)
    assert scores["ripple_two_hop"] == pytest.approx(0.75)
    kept, _ = scores_and_reasons(before, believed("Paris", old=0.9), request)
    assert kept["ripple_two_hop"] == 0
    nothing, reason = scores_and_reasons(believed("Paris", old=0.01), believed("Paris", old=0.001), request)
    assert isnan(nothing["ripple_two_hop"])  # nothing to erase
    assert "answers 0" in reason


@pytest.mark.parametrize(("unknown", "counts"), [("hop_old", 0), ("hop_new", 0), ("old", 1)])
def test_only_what_the_unedited_model_knows_counts(request_of, unknown, counts):
    request = request_of("error_injection", "Rome")
    scores, reason = scores_and_reasons(believed(**{unknown: 0.4}), believed(new=0.9), request)
    assert isnan(scores["ripple_answered"])
    assert isnan(scores["ripple_two_hop"]) == (not counts)
    assert f"of 1 two-hop questions the model knows both facts of {counts}, and answers 0" in reason


def test_the_question_for_the_subject_follows_too(request_of):
    world = [*FACTS, *(replace(FACTS[0], subject=f"Person {i}", target_true=f"City {i}", fact_id=i) for i in range(20))]
    questions = consequences(FACTS[0], "Rome", world)
    old, new = (f"{city} is the city of" for city in ("Paris", "Rome"))
    p = believed().p | {(old, "Anna Kowalska"): 0.6, (new, "Anna Kowalska"): 0.2}
    q = p | {(new, "Anna Kowalska"): 0.6}
    request = request_of("error_injection", "Rome")
    scores, reason = scores_and_reasons(Believed(questions, p), Believed(questions, q), request)
    assert scores["ripple_inverse"] == pytest.approx(0.5)
    assert not reason
    unanswered = p | {(old, "Anna Kowalska"): 0.4}
    scores, reason = scores_and_reasons(Believed(questions, unanswered), Believed(questions, q), request)
    assert isnan(scores["ripple_inverse"])
    assert reason == "the model does not answer the inverse question"


def test_probabilities_are_those_of_plain_forward_passes(editable):
    pairs = [(QUESTION, "green"), (QUESTION, "the old bridge"), ("Rome", "is narrow"), *HOPS, TONGUE]
    for pair, p in probabilities(editable, pairs).items():
        assert p == pytest.approx(slow_probability(editable, *pair), rel=1e-3), pair
    assert probabilities(editable, []) == {}


def test_an_edit_after_which_the_consequence_is_believed_has_it_as_its_score(deep, credulous):
    fact, request = FACTS[0], loc_edit.pose(FACTS[0], "error_injection", deep)
    prompt, [token, *_] = encode_text(deep, QUESTION), target_tokens(deep, QUESTION, "narrow")
    _, cache = deep.run_with_cache(prompt.tokens[None])
    key = cache["blocks.3.mlp.hook_post"][0, -1]
    update = loc_edit.WeightUpdate(3, left=key[:, None] / key.dot(key), right=30 * deep.W_U[:, token][None])
    edit = loc_edit.Edit((update,))  # reads out the answer where the question ends
    before = slow_probability(deep, QUESTION, "narrow")
    kept_before = slow_probability(deep, *TONGUE)
    with edit.applied(deep):
        after = slow_probability(deep, QUESTION, "narrow")
        kept_after = slow_probability(deep, *TONGUE)
    assert after > 0.1 > 50 * before
    score = loc_edit.score(deep, fact, request, edit, essence=False, scores=["ripple"], facts=FACTS)
    assert score.other_scores["ripple_two_hop"] == pytest.approx(share_of_change(before, after, "raise"), rel=1e-3)
    change = abs(kept_after - kept_before) / (0.5 + abs(kept_before - 0.5))
    assert score.other_scores["ripple_specificity"] == pytest.approx(1 - change, rel=1e-3)
    unedited = loc_edit.score(deep, fact, request, essence=False, scores=["ripple"], facts=FACTS).other_scores
    assert unedited["ripple_two_hop"] == 0
    assert unedited["ripple_specificity"] == unedited["ripple_objects"] == 1


def test_a_random_model_knows_nothing_and_its_score_says_so(deep):
    fact = FACTS[0]
    request = loc_edit.pose(fact, "error_injection", deep)
    score = loc_edit.score(deep, fact, request, essence=False, scores=["ripple"], facts=FACTS)
    assert all(isnan(value) for value in score.other_scores.values())
    assert set(score.other_scores) == set(scores_of("ripple"))
    assert "ripple_inverse: no inverse question" in score.reason
    assert "the model knows both facts of 0, and answers 0" in score.reason


def test_one_edit_needs_the_data_set_beside_the_fact(deep):
    request = loc_edit.pose(FACTS[0], "error_injection", deep)
    with pytest.raises(ValueError, match=r"score 'ripple' looks at the other facts: expected facts="):
        loc_edit.score(deep, FACTS[0], request, scores=["ripple"])


def test_only_scores_that_look_at_the_data_set_depend_on_it():
    assert gets("ripple", "facts")
    assert not gets("generation", "facts")

    def identity(facts, *scores):
        return Setup(loc_edit.ExperimentConfig(scores=scores)).with_data(facts).score_identity("error_injection")

    assert identity(FACTS) == identity(FACTS[:2]) == {"essence": True}
    assert identity(FACTS, "generation") == identity(FACTS[:2], "generation")
    assert identity(FACTS, "ripple") != identity(FACTS[:2], "ripple")
    assert identity(FACTS, "ripple")["scores"] == {"ripple": {}}


@pytest.mark.slow
def test_a_run_has_the_consequences_of_its_data_set(lab, tmp_path, credulous):
    save_facts(FACTS, tmp_path / "chained.jsonl")
    run = lab(layers=(1,), scores=("ripple",), data=str(tmp_path / "chained.jsonl")).run()
    edits = run.edits[run.edits["method"] == "rome"]
    assert edits["ripple_two_hop"].notna().sum() == 1
    assert edits["ripple_specificity"].notna().sum() == 1
    unedited = run.edits[run.edits["method"] == "none"]
    assert (unedited["ripple_objects"].dropna() == 1).all()
