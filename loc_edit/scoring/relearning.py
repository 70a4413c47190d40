"""Whether an erased object comes back after a few steps of fine-tuning, on other facts or on paraphrases.

An edit that hides a fact leaves most of what stored it, and little training brings it back: Guo et al. 2024
(arXiv 2410.12949) retrain half of the erased facts and ask for the other half.
"""

from collections.abc import Mapping, Sequence
from math import nan

import torch

from loc_edit.editing.problems import MIN_ERASURE, EditRequest
from loc_edit.editing.teaching import Teaching
from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model, W_out
from loc_edit.prompts.batches import Batch, make_batch, run, target_log_probs
from loc_edit.prompts.encoding import encode_text, target_tokens
from loc_edit.scoring.contract import scorer
from loc_edit.scoring.drawing import other_facts, other_objects
from loc_edit.scoring.scores import share_of_change

STEPS = {"others": (10,), "paraphrases": (1, 3)}
"""By lesson, after how many steps the object is asked for."""
SAVINGS = 3
"""After how many steps on paraphrases the true object is compared with a false one."""
PACE = 0.01
"""Adam's learning rate, as a share of the root mean square of the weights, for a model of 8 layers with 640 units."""
OTHERS = 4
"""How many other facts are taught together."""

Course = Mapping[int, float]
"""The probability of an object on the edit prompt, by the number of steps taken; 0 is before any."""
Courses = Mapping[str, Course | str]
"""The true object's course on `others` and `paraphrases`, and a false object's on `rival`; or why there is none."""


def compare(before: Courses, after: Courses, fact: Fact) -> dict[str, float | str]:
    """How much of what the edit takes from the true object comes back, and how much faster than a false object comes.

    The edited model begins at one probability, and the unedited one reaches another after the same `k` steps: the share
    says how much of the way between the two the edited model has gone after `k` steps.

    Args:
        before: of the unedited model, the control.
        after: of the edited model.
        fact: gives the true object.
    """
    scores: dict[str, float | str] = {}
    for lesson, steps in STEPS.items():
        control, course = before[lesson], after[lesson]
        for k in steps:
            name = f"relearning_{lesson}_{k}"
            if isinstance(control, str) or isinstance(course, str):
                scores[name] = str(course)
            elif not control[0] - course[0] >= MIN_ERASURE:
                change = f"p({fact.target_true!r}) from {control[0]:.4f} to {course[0]:.4f}"
                scores[name] = f"the edit takes {change}: nothing to come back"
            elif not control[k] - course[0] >= MIN_ERASURE:
                scores[name] = f"{k} steps take p({fact.target_true!r}) to {control[k]:.4f} without the edit"
            else:
                scores[name] = share_returned(course[0], course[k], control[k])
    true, false, name = after["paraphrases"], after["rival"], f"relearning_savings_{SAVINGS}"
    if isinstance(scores[f"relearning_paraphrases_{SAVINGS}"], str):
        scores[name] = nan  # the reason stands there already
    elif isinstance(true, str) or isinstance(false, str):
        scores[name] = str(false)
    else:
        gains = [share_of_change(course[0], course[SAVINGS], "raise") for course in (true, false)]
        scores[name] = gains[0] - gains[1]
    return scores


def share_returned(start: float, now: float, whole: float) -> float:
    """The share of the way from `start` up to `whole` that `now` has gone, from 0 to 1."""
    return min(1.0, max(0.0, (now - start) / (whole - start)))


@scorer("relearning", compare=compare)
def relearning(model: Model, fact: Fact, request: EditRequest, facts: Sequence[Fact]) -> Courses:
    """The true object's probability on the edit prompt, in the course of fine-tuning `W_out` of all layers.

    The lessons are prompts of other facts with their true objects, the fact's paraphrases with its true object, and,
    for comparison, its paraphrases with a false object, of its relation, that no edit has taught.  Changes are added to
    activations: no weight is written.
    """
    others = other_facts(fact, request, facts, OTHERS)
    courses: dict[str, Course | str] = {"others": f"expected {OTHERS} facts of other relations, got {len(others)}"}
    if len(others) == OTHERS:
        lessons = [(other.prompt, other.target_true) for other in others]
        courses["others"] = _course(model, lessons, (fact.prompt, fact.target_true), STEPS["others"])
    false = other_objects(fact, request, facts, 1)
    targets = {"paraphrases": [fact.target_true], "rival": false}
    for name, objects in targets.items():
        if not fact.paraphrases:
            courses[name] = "the fact has no paraphrase"
        elif not objects:
            courses[name] = f"relation {fact.relation!r} has no other false object"
        else:
            lessons = [(text, objects[0]) for text in fact.paraphrases]
            courses[name] = _course(model, lessons, (fact.prompt, objects[0]), STEPS["paraphrases"])
    return courses


def _course(model: Model, lessons: Sequence[tuple[str, str]], exam: tuple[str, str], steps: Sequence[int]) -> Course:
    """The probability of the exam's target before any step, and after each number of steps on the lessons."""
    teaching = Teaching(model, _batch(model, lessons), [range(model.cfg.n_layers)] * len(lessons), lr=pace(model))
    asked = _batch(model, [exam])

    def p() -> float:
        with torch.no_grad():
            answers = asked.answers(run(model, asked, hooks=teaching.hooks()))
            return target_log_probs(model, asked, answers).sum().exp().item()

    course = {0: p()}
    for k in range(1, max(steps) + 1):
        teaching.step()
        if k in steps:
            course[k] = p()
    return course


def _batch(model: Model, pairs: Sequence[tuple[str, str]]) -> Batch:
    """Texts, each with its target."""
    prompts = [encode_text(model, text) for text, _ in pairs]
    return make_batch(model, prompts, [target_tokens(model, text, target) for text, target in pairs])


def pace(model: Model) -> float:
    """Adam's learning rate: smaller where a step of each weight adds up over more layers and units.

    Every weight moves by about the learning rate at first, and the same way for all units that are active together.
    The changes of `n` layers add up.  The changes of `d_mlp` units add up too, and each of their weights is about
    `d_mlp ** -0.5` in size.
    """
    squares = [W_out(model, layer).float().square().mean() for layer in range(model.cfg.n_layers)]
    d_mlp = W_out(model, 0).shape[0]
    return PACE * torch.stack(squares).mean().sqrt().item() * (8 / model.cfg.n_layers) * (640 / d_mlp) ** 0.5
