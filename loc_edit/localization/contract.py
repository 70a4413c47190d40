"""Where localizers register, the package's own and yours: a question in, a layer x position grid out."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

from loc_edit.contract import BadPlugin, describe_plugin, first_sentence, keyword_defaults, spelled_out
from loc_edit.files import origin_of
from loc_edit.localization.question import Grids, Question, Questions
from loc_edit.models.checks import ends_run, left_alone
from loc_edit.names import LOCALIZERS, Localizer, Metric

Effect = TypeVar("Effect", bound=Callable[..., Any])

EFFECTS: dict[str, Callable[..., Grids]] = {}
"""By localizer, the function from `Questions` and options to the effect of each cell, in units of the metric."""


def localizer(
    name: str,
    *,
    meaning: str = "",
    cost: str = "",
    metric: Metric = "probability",
    references: int = 0,
    batched: bool = False,
) -> Callable[[Effect], Effect]:
    """Register a localizer: a function from a `Question` to the effect of each cell, in units of the metric.

    The function returns a `Float[Tensor, "layer pos"]` for `question.prompt`: for each layer and position, how much of
    the metric of the target hangs on it.  Its keyword arguments are its options, and need a default; in a grid one
    called `seed` gets the seed of the experiment, and one called `facts` the whole data set.

    Args:
        name: lower-case letters, digits and _.
        meaning: one line; by default the first sentence of the docstring.
        cost: in forward passes.
        metric: of the target, in a grid.
        references: how many other facts' prompts it finds in `question.reference`, in a grid.
        batched: whether the function takes `Questions`, some facts together, and returns a list of grids, one for each
            window, for each of them.

    Raises:
        BadPlugin: the name is taken, or does not suit; an option has no default.
    """

    def register(effect: Effect) -> Effect:
        if origin := origin_of(effect):
            defaults = keyword_defaults(effect, f"localizer {name!r}")
            options = {key: value for key, value in defaults.items() if key not in ("seed", "facts")}
            seeded, facts = "seed" in defaults, "facts" in defaults
            about = meaning or first_sentence(effect)
            description = Localizer(about, cost, metric, options, references, seeded, facts, origin=origin)
            if wrong := [key for key, value in options.items() if not isinstance(value, bool | int | float | str)]:
                raise BadPlugin(f"localizer {name!r}: expected a bool, int, float or string as default of {wrong[0]}")
            describe_plugin("localizer", LOCALIZERS, name, description)
        many = effect if batched else _one_by_one(effect)
        EFFECTS[name] = _checked(name, many) if origin else many
        return effect

    return register


def _one_by_one(effect: Callable[..., Any]) -> Callable[..., Grids]:
    """A function of `Questions` from one of a `Question`."""

    def effects(questions: Questions, **options: Any) -> list[list[Any]]:
        return [[effect(question, **options) for question in same_fact] for same_fact in questions.each()]

    return effects


def _checked(name: str, effects: Callable[..., Any]) -> Callable[..., Grids]:
    """A localizer of yours, which keeps to the contract; what it raises is a reason why a fact has no effects."""

    def checked(questions: Questions, **options: Any) -> Grids:
        with left_alone(questions.model, f"localizer {name!r}"):
            return isolated(questions, options)

    def isolated(questions: Questions, options: dict[str, Any]) -> Grids:
        try:
            grids = effects(questions, **options)
            _check(questions, grids)
            return grids
        except Exception as error:
            if ends_run(error):
                raise
            if len(questions.facts) == 1:
                fact_id = questions.facts[0].prompt.fact_id
                questions.failed[0] = f"localizer {name!r}, fact {fact_id}: {spelled_out(error)}"
                return [[torch.full(_shape(question), math.nan) for question in questions.each()[0]]]
        each = [questions.alone(i) for i in range(len(questions.facts))]
        together = [isolated(own, options)[0] for own in each]
        questions.failed |= {i: own.failed[0] for i, own in enumerate(each) if own.failed}
        return together

    return checked


def _shape(question: Question) -> tuple[int, int]:
    return question.model.cfg.n_layers, len(question.prompt)


def _check(questions: Questions, grids: object) -> None:
    """Refuse what are no grids of numbers."""
    each = questions.each()
    if not isinstance(grids, list) or [len(own) for own in grids] != [len(own) for own in each]:
        raise BadPlugin(f"expected for each of {len(each)} facts a list of one grid for each window")
    for question, grid in zip(chain(*each), chain(*grids), strict=True):
        expected = f"a tensor of floats of shape (layers, positions) = {_shape(question)}"
        if not isinstance(grid, Tensor):
            raise BadPlugin(f"expected {expected}, got {type(grid).__name__}")
        if tuple(grid.shape) != _shape(question) or not grid.is_floating_point():
            raise BadPlugin(f"expected {expected}, got {grid.dtype} of shape {tuple(grid.shape)}")
        if not grid.isfinite().all():
            layer, pos = (~grid.isfinite()).nonzero()[0].tolist()
            raise BadPlugin(f"expected numbers, got {grid[layer, pos].item()} at layer {layer}, position {pos}")
