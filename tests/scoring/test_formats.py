"""Other formats: probabilities are those of plain forward passes, and a format that says nothing says why."""

import math
from dataclasses import replace

import pytest
import torch

import loc_edit
from loc_edit.editing.problems import EditRequest
from loc_edit.facts.asking import asked
from loc_edit.names import scores_of
from loc_edit.prompts.encoding import Prompt, target_tokens, tokenize
from loc_edit.scoring.contract import compared, measure
from loc_edit.scoring.drawing import other_facts, other_objects
from loc_edit.scoring.formats import LETTERS, compare

DATA = loc_edit.load_facts("builtin")
FACT = DATA[1]
PROMPT = Prompt(0, "It is in", "{} is in", "It", torch.tensor([0]), slice(0, 1))


@pytest.fixture(scope="module")
def model():
    return loc_edit.load_model("builtin")


def posed(model, problem="fact_erasure", fact=FACT):
    return loc_edit.pose(fact, problem, model)


def p(model, text, target):
    """The probability of a target after a text: one plain forward pass, token by token."""
    tokens, ending = tokenize(model, text), target_tokens(model, text, target)
    log_p = model(torch.cat([tokens, ending])[None])[0].log_softmax(-1)
    return math.exp(sum(log_p[len(tokens) - 1 + i, token].item() for i, token in enumerate(ending)))


def test_each_probability_is_that_of_a_plain_forward_pass(model):
    words = asked(FACT)
    measured = measure("formats", model, FACT, posed(model, "error_injection"), facts=DATA)
    options = list(measured["formats_choice"])
    assert len(options) == len(set(options)) == 4
    assert {FACT.target_true, FACT.target_new} < set(options)
    for target in (FACT.target_true, FACT.target_new):
        assert measured["formats_question"][target] == pytest.approx(
            p(model, f"Q: {words.question}\nA:", target), rel=1e-4
        )
        assert measured["formats_answer"][target] == pytest.approx(
            p(model, f"{words.question} {words.answer}", target), rel=1e-4
        )
        assert measured["formats_statement"][target] == pytest.approx(p(model, words.statement, target), rel=1e-4)
    text = f"{words.question} {options[0]}, {options[1]}, {options[2]} or {options[3]}? {words.statement}"
    of_options = [p(model, text, option) for option in options]
    for option, own in zip(options, of_options, strict=True):
        assert measured["formats_choice"][option] == pytest.approx(own / sum(of_options), rel=1e-4)
    of_letters = dict.fromkeys(options, 0.0)
    for i in range(4):
        order = options[i:] + options[:i]
        lines = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, order, strict=True))
        ps = [p(model, f"{words.question}\n{lines}Answer:", letter) for letter in LETTERS]
        for option, own in zip(order, ps, strict=True):
            of_letters[option] += own / sum(ps) / 4
    assert measured["formats_letter"] == pytest.approx(of_letters, rel=1e-4)
    assert sum(measured["formats_letter"].values()) == pytest.approx(1)


def test_an_erasure_and_an_injection_are_carried_into_other_formats_or_not(model):
    for problem in ("fact_erasure", "error_injection"):
        request = posed(model, problem)
        edit = loc_edit.finetune(model, request, [2], settings=loc_edit.FinetuneSettings(eps=0.01))
        nothing = loc_edit.score(model, FACT, request, essence=False, scores=["formats"], facts=DATA)
        score = loc_edit.score(model, FACT, request, edit, essence=False, scores=["formats"], facts=DATA)
        assert set(score.other_scores) == set(scores_of("formats"))
        for name in ("formats_answer", "formats_statement", "formats_choice", "formats_choice_first"):
            assert nothing.other_scores[name] == 0
        assert 0.05 < score.other_scores["formats_statement"] <= 1
        assert "formats_question: the unedited model gives 'Paris' p = 0.0" in score.reason
        assert math.isnan(score.other_scores["formats_question"])


def test_the_share_is_that_of_the_possible_change():
    before = {"formats_statement": {"Paris": 0.8, "Rome": 0.1}, "formats_choice": {"Paris": 0.7, "Rome": 0.3}}
    after = {"formats_statement": {"Paris": 0.2, "Rome": 0.4}, "formats_choice": {"Paris": 0.4, "Rome": 0.6}}
    rest = dict.fromkeys(("formats_question", "formats_answer", "formats_letter"), "not asked")
    fact = loc_edit.Fact(template="{} is in", subject="It", target_true="Paris")

    def request(target, objective):
        return EditRequest(PROMPT, target, PROMPT.tokens, objective)

    def scores(target, objective):
        return compare(before | rest, after | rest, fact, request(target, objective))

    lowered, raised = scores("Paris", "lower"), scores("Rome", "raise")
    assert lowered["formats_statement"] == pytest.approx(0.6 / 0.8)
    assert raised["formats_statement"] == pytest.approx(0.3 / 0.9)
    assert raised["formats_choice"] == pytest.approx(0.3 / 0.7)
    assert (lowered["formats_choice_first"], raised["formats_choice_first"]) == (1, 1)
    assert lowered["formats_letter"] == "not asked"
    wrong = before | {"formats_choice": {"Paris": 0.3, "Rome": 0.7}}
    unfit = compare(wrong | rest, after | rest, fact, request("Paris", "lower"))
    assert unfit["formats_choice"] == "the unedited model gives 'Paris' 0.30 of the options < 0.5"
    assert math.isnan(unfit["formats_choice_first"])


def test_a_relation_with_too_few_objects_has_no_choice(model):
    few = [FACT, *(fact for fact in DATA if fact.relation != FACT.relation)]
    request = posed(model)
    before = measure("formats", model, FACT, request, facts=few)
    scores, reason = compared("formats", before, before, fact=FACT, request=request)
    assert "formats_choice: expected 4 objects of relation 'landmark_city', got 2" in reason
    assert math.isnan(scores["formats_choice"])
    assert scores["formats_statement"] == 0


def test_what_is_drawn_depends_on_the_fact_and_the_seed_and_not_on_the_order(model):
    request = posed(model)
    objects, facts = other_objects(FACT, request, DATA, 3), other_facts(FACT, request, DATA, 4)
    assert len(set(objects)) == 3
    assert other_objects(FACT, request, DATA[::-1], 3) == objects
    assert other_facts(FACT, request, DATA[::-1], 4) == facts
    other_seed = replace(request, seed=1)
    assert other_objects(FACT, other_seed, DATA, 3) != objects
    assert other_facts(FACT, other_seed, DATA, 4) != facts
    true = {fact.target_true for fact in DATA if (fact.relation, fact.subject) == (FACT.relation, FACT.subject)}
    assert not {*true, FACT.target_new} & set(objects)
    assert all(fact.relation != FACT.relation and fact.target_true != FACT.target_true for fact in facts)
    nameless = [replace(fact, relation="") for fact in DATA]
    assert len(other_facts(nameless[1], request, nameless, 4)) == 4
