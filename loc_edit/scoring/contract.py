"""Where scores of your own register: a number from a model before and after an edit."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, TypeVar

from loc_edit.editing.problems import EditRequest
from loc_edit.facts.fact import Fact
from loc_edit.files import origin_of
from loc_edit.models.checks import ends_run, left_alone
from loc_edit.models.model import Model
from loc_edit.names import SCORES, BadPlugin, Score, describe_plugin, first_sentence, named_in, spelled_out
from loc_edit.scoring.probes import Measured
from loc_edit.scoring.scores import EditScore, magnitudes

Measure = TypeVar("Measure", bound=Callable[..., Any])


@dataclass(frozen=True)
class Scorer:
    """A score of yours.

    Attributes:
        measure: a model, a fact, and what else its signature names -> anything that `compare` takes.
        compare: what was measured before and after the edit -> the score.
    """

    measure: Callable[..., Any]
    compare: Callable[[Any, Any], float]


SCORERS: dict[str, Scorer] = {}
"""The scores of plug-ins; the package's own share one measurement (`Meter`)."""


def change(before: float, after: float) -> float:
    """The change of a number."""
    return after - before


def scorer(
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    better: Literal["high", "low"] = "high",
    compare: Callable[[Any, Any], float] = change,
    meaning: str = "",
) -> Callable[[Measure], Measure]:
    """Register a score: a function that measures a model, called before and after the edit.

    The function gets the model, the fact and, where its signature names it, the `request`.  It returns a number, or
    whatever `compare` takes.  Rows have the score as a column with its name.

    Args:
        name: lower-case letters, digits and _.
        low: the smallest possible score.
        high: the largest.
        better: which end is the better one.
        compare: (before, after) -> the score; by default `after - before`.
        meaning: one line; by default the first sentence of the docstring.

    Raises:
        BadPlugin: the name is taken, also by a column of the rows, or does not suit; the range is empty.
    """

    def register(measure: Measure) -> Measure:
        if name in _columns():
            raise BadPlugin(f"score {name!r}: rows have a column of this name already")
        if not low < high or better not in ("high", "low"):
            raise BadPlugin(
                f"score {name!r}: expected low < high and better 'high' or 'low', got {low}, {high}, {better!r}"
            )
        description = Score(meaning or first_sentence(measure), low, high, better, origin_of(measure))
        describe_plugin("score", SCORES, name, description)
        SCORERS[name] = Scorer(measure, compare)
        return measure

    return register


def measure(name: str, model: Model, fact: Fact, request: EditRequest) -> Any:
    """What a score measures of a model; an exception that says why it measured nothing, if it failed."""
    function = SCORERS[name].measure
    try:
        with left_alone(model, f"score {name!r}"):
            return function(model, fact, **named_in(function, {"request": request}))
    except Exception as error:
        if ends_run(error):
            raise
        return BadPlugin(f"{type(error).__name__}: {error}")


def score_of(name: str, before: Any, after: Any) -> tuple[float, str]:
    """A score of what was measured before and after an edit, and why it is NaN."""
    known = SCORES[name]
    try:
        for measured in (before, after):
            if isinstance(measured, BadPlugin):
                raise measured
        value = SCORERS[name].compare(before, after)
        if not isinstance(value, Real) or not known.low <= float(value) <= known.high:
            raise BadPlugin(f"expected a number from {known.low:g} to {known.high:g}, got {value!r}")
        return float(value), ""
    except Exception as error:
        return math.nan, f"{name}: {spelled_out(error)}"


def _columns() -> set[str]:
    """The columns that edit rows have already."""
    names = {"problem", "method", "window", "layer", "fact_id", "fact_content", "seed", "cell", "status", "reason"}
    names |= {"target", "objective", "seconds", "trace", "relation", "prompt_length", "overall_essence"}
    names |= {f"{entry.name}_{when}" for entry in fields(Measured) for when in ("before", "after")}
    nothing = Measured(0.0, (), (), (), ())
    return names | {entry.name for entry in fields(EditScore)} | set(magnitudes(nothing, "raise"))
