"""Whether an edit holds in other formats: questions, another statement, and multiple choice.

An edit may change what follows its prompt and little else.  Guo et al. 2024 (arXiv 2410.12949) ask for an erased fact
by multiple choice; here the answers of a short question, a full sentence and a clause are asked for as well.
"""

from collections.abc import Mapping, Sequence
from math import nan
from statistics import fmean

import torch

from loc_edit.editing.problems import MIN_ERASURE, EditRequest
from loc_edit.facts.asking import asked
from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model
from loc_edit.prompts.randomness import generator
from loc_edit.scoring.contract import scorer
from loc_edit.scoring.drawing import other_objects
from loc_edit.scoring.measuring import text_probabilities
from loc_edit.scoring.scores import share_of_change

LETTERS = ("A", "B", "C", "D")
"""The letters of the options: a choice has this many."""
MIN_CHOICE = 0.5
"""The unedited model must give the true object at least this share of the options' probability."""
WRITTEN = ("formats_question", "formats_answer", "formats_statement")
"""The formats where the object is written out, and any other could be."""
CHOSEN = ("formats_choice", "formats_letter")
"""The formats where the object is one of the options."""

Answers = Mapping[str, Mapping[str, float] | str]
"""By format, the probability of each object, over the options if there are options; or why it cannot be asked."""


def compare(before: Answers, after: Answers, fact: Fact, request: EditRequest) -> dict[str, float | str]:
    """The share of the possible change of p(target) in each format, or why there is none.

    A format that the unedited model cannot answer says nothing about an edit: where the object is written out, it must
    give the true object a probability of at least .02, as erasure asks of the edit prompt, and among options at least
    half of their probability.

    Args:
        before: of the unedited model.
        after: of the edited model.
        fact: gives the true object.
        request: gives the target and whether its probability is to rise.
    """
    target, true = request.target, fact.target_true
    scores: dict[str, float | str] = {}
    for name in (*WRITTEN, *CHOSEN):
        p, q = before[name], after[name]
        if isinstance(p, str) or isinstance(q, str):
            scores[name] = str(p)
        elif name in WRITTEN and not p[true] >= MIN_ERASURE:
            scores[name] = f"the unedited model gives {true!r} p = {p[true]:.4f} < {MIN_ERASURE}"
        elif name in CHOSEN and not p[true] >= MIN_CHOICE:
            scores[name] = f"the unedited model gives {true!r} {p[true]:.2f} of the options < {MIN_CHOICE}"
        else:
            scores[name] = share_of_change(p[target], q[target], request.objective)
    chosen = after["formats_choice"]
    if isinstance(scores["formats_choice"], str) or isinstance(chosen, str):
        scores["formats_choice_first"] = nan  # the reason stands there already
    else:
        scores["formats_choice_first"] = float((_first(chosen) == target) == (request.objective == "raise"))
    return scores


@scorer("formats", compare=compare)
def formats(model: Model, fact: Fact, request: EditRequest, facts: Sequence[Fact]) -> Answers:
    """p(target) and p(true object) after questions and statements, and p(option) in multiple choice.

    No subject is noised.  In a choice among letters, each option stands once at each letter, and the probabilities are
    averaged: a liking for a letter drops out.
    """
    words = asked(fact)
    objects = list(dict.fromkeys((fact.target_true, request.target)))
    texts = {
        "formats_question": f"Q: {words.question}\nA:",
        "formats_answer": f"{words.question} {words.answer}",
        "formats_statement": words.statement,
    }
    posed = [(text, objects) for text in texts.values()]
    options = _options(fact, request, facts)
    whole = len(options) == len(LETTERS)
    if whole:
        listed = f"{', '.join(options[:-1])} or {options[-1]}"
        posed.append((f"{words.question} {listed}? {words.statement}", options))
        rotated = [options[i:] + options[:i] for i in range(len(options))]
        for order in rotated:
            lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, order, strict=True)]
            posed.append(("\n".join([words.question, *lines, "Answer:"]), list(LETTERS)))
    measured = text_probabilities(model, posed, fact_id=fact.fact_id)
    answers: dict[str, dict[str, float] | str] = {
        name: dict(zip(objects, p, strict=True)) for name, p in zip(WRITTEN, measured, strict=False)
    }
    if not whole:
        reason = f"expected {len(LETTERS)} objects of relation {fact.relation!r}, got {len(options)}"
        return answers | dict.fromkeys(CHOSEN, reason)
    of_choice, *of_letters = map(_normalized, measured[len(WRITTEN) :])
    answers["formats_choice"] = dict(zip(options, of_choice, strict=True))
    of_options = [dict(zip(order, p, strict=True)) for order, p in zip(rotated, of_letters, strict=True)]
    answers["formats_letter"] = {option: fmean(p[option] for p in of_options) for option in options}
    return answers


def _options(fact: Fact, request: EditRequest, facts: Sequence[Fact]) -> list[str]:
    """The true object, the target, the false object and others of the relation, as many as letters, in random order."""
    first = dict.fromkeys(filter(None, (fact.target_true, request.target, fact.target_new)))
    others = other_objects(fact, request, facts, len(LETTERS) - len(first))
    options = [*first, *others]
    order = torch.randperm(len(options), generator=generator("options", request.seed, fact.fact_id))
    return [options[i] for i in order.tolist()]


def _normalized(p: Sequence[float]) -> list[float]:
    total = sum(p)
    return [each / total if total > 0 else nan for each in p]


def _first(p: Mapping[str, float]) -> str:
    """The likeliest option."""
    return max(p, key=lambda option: p[option])
