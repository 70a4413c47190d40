"""Relearning: real fine-tuning of the weights agrees, and they are left alone; an edit of nothing loses nothing."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from oracles import leaf

import loc_edit
from loc_edit.models.adapter import VERSION
from loc_edit.models.model import W_out
from loc_edit.prompts.encoding import target_tokens, tokenize
from loc_edit.scoring.contract import compared, measure
from loc_edit.scoring.drawing import other_facts
from loc_edit.scoring.relearning import OTHERS, STEPS, compare, pace, share_returned


def data(facts):
    """The four facts, others of two relations, and false objects."""
    words = ("London", "Oslo", "Rome", "Berlin")
    more = [
        replace(facts[i], relation=relation, subject=f"The {word} Gate", target_true=word, fact_id=100 + 10 * i + j)
        for i, relation in enumerate(("city", "gates"))
        for j, word in enumerate(words)
    ]
    return [*facts, *more]


def log_p(model, text, target):
    tokens, ending = tokenize(model, text), target_tokens(model, text, target)
    logits = model(torch.cat([tokens, ending])[None])[0].log_softmax(-1)
    return sum(logits[len(tokens) - 1 + i, token] for i, token in enumerate(ending))


def slow_course(model, lessons, exam, steps):
    """Adam on the real weights of a copy of the model, one prompt after another."""
    model = copy.deepcopy(model)
    weights = [leaf(W_out(model, layer)) for layer in range(model.cfg.n_layers)]
    for weight in weights:
        weight.requires_grad_()
    adam = torch.optim.Adam(weights, lr=pace(model))
    course = {0: log_p(model, *exam).exp().item()}
    for k in range(1, max(steps) + 1):
        adam.zero_grad()
        (-sum(log_p(model, *lesson) for lesson in lessons) / len(lessons)).backward()
        adam.step()
        course[k] = log_p(model, *exam).exp().item()
    return {k: p for k, p in course.items() if k in (0, *steps)}


@pytest.mark.skipif(VERSION >= 4, reason="a TransformerBridge cannot be copied")
def test_fine_tuning_the_real_weights_agrees(editable, facts):
    whole, fact = data(facts), facts[0]
    request = loc_edit.pose(fact, "error_injection", editable)
    before = [parameter.clone() for parameter in editable.parameters()]
    courses = measure("relearning", editable, fact, request, facts=whole)
    assert all(torch.equal(a, b) for a, b in zip(before, editable.parameters(), strict=True))
    others = [(other.prompt, other.target_true) for other in other_facts(fact, request, whole, OTHERS)]
    paraphrases = [(text, fact.target_true) for text in fact.paraphrases]
    exam = (fact.prompt, fact.target_true)
    assert courses["others"] == pytest.approx(slow_course(editable, others, exam, STEPS["others"]), rel=2e-2)
    slow = slow_course(editable, paraphrases, exam, STEPS["paraphrases"])
    assert courses["paraphrases"] == pytest.approx(slow, rel=2e-2)
    assert abs(slow[3] / slow[0] - 1) > 0.03, "the steps change something"


def test_a_step_is_smaller_in_a_deeper_model(make_model):
    shallow, deep = make_model(n_layers=2), make_model(n_layers=4)
    assert pace(deep) == pytest.approx(pace(shallow) / 2, rel=0.1)  # the weights have the same size
    assert pace(make_model(d_mlp=96)) < pace(shallow) * 0.3  # 4 times the units, with weights of half the size


def test_the_weights_come_back_bit_for_bit_after_an_edit(deep, facts):
    request = loc_edit.pose(facts[0], "error_injection", deep)
    edit = loc_edit.finetune(deep, request, [1], settings=loc_edit.FinetuneSettings(steps=3, eps=0.05))
    before = loc_edit.fingerprint(deep)
    score = loc_edit.score(deep, facts[0], request, edit, essence=False, scores=["relearning"], facts=data(facts))
    assert loc_edit.fingerprint(deep) == before
    assert set(score.other_scores) == {
        "relearning_others_10",
        "relearning_paraphrases_1",
        "relearning_paraphrases_3",
        "relearning_savings_3",
    }


def test_an_edit_of_nothing_loses_nothing_that_could_come_back(deep, facts):
    request = loc_edit.pose(facts[0], "error_injection", deep)
    before = measure("relearning", deep, facts[0], request, facts=data(facts))
    scores, reason = compared("relearning", before, before, fact=facts[0])
    assert all(map(math.isnan, scores.values()))
    assert "nothing to come back" in reason


def test_what_returns_is_measured_from_the_edit_to_the_control():
    fact = loc_edit.Fact(template="{} is in", subject="It", target_true="Paris")
    control = {"others": {0: 0.9, 10: 0.8}, "paraphrases": {0: 0.9, 1: 0.9, 3: 1.0}, "rival": {0: 0.0, 1: 0.1, 3: 0.2}}
    edited = {"others": {0: 0.2, 10: 0.5}, "paraphrases": {0: 0.2, 1: 0.2, 3: 0.8}, "rival": {0: 0.1, 1: 0.1, 3: 0.4}}
    scores = compare(control, edited, fact)
    assert scores["relearning_others_10"] == pytest.approx(0.3 / 0.6)
    assert scores["relearning_paraphrases_1"] == 0
    assert scores["relearning_paraphrases_3"] == pytest.approx(0.6 / 0.8)
    assert scores["relearning_savings_3"] == pytest.approx(0.6 / 0.8 - 0.3 / 0.9)
    forgotten = control | {"others": {0: 0.9, 10: 0.2}}  # the steps alone make the model forget
    assert (
        compare(forgotten, edited, fact)["relearning_others_10"]
        == "10 steps take p('Paris') to 0.2000 without the edit"
    )
    unerased = edited | {"others": {0: 0.89, 10: 0.7}}
    assert "nothing to come back" in compare(control, unerased, fact)["relearning_others_10"]
    assert share_returned(0.2, 0.1, 0.8) == 0, "it fell further"
    assert share_returned(0.2, 0.9, 0.8) == 1, "it went beyond the control"


def test_a_fact_without_paraphrases_or_others_says_so(deep, facts):
    fact = replace(facts[0], paraphrases=())
    request = loc_edit.pose(fact, "error_injection", deep)
    before = measure("relearning", deep, fact, request, facts=[fact])
    _, reason = compared("relearning", before, before, fact=fact)
    assert "relearning_others_10: expected 4 facts of other relations, got 0" in reason
    assert "relearning_paraphrases_1: the fact has no paraphrase" in reason
