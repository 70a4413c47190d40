"""Where scores of your own register: a number from a model before and after an edit."""

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal, TypeVar

from loc_edit.contract import BadPlugin, describe_plugin, first_sentence, named_in, spelled_out
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.update import Edit
from loc_edit.facts.fact import Fact
from loc_edit.files import origin_of
from loc_edit.models.checks import ends_run, left_alone
from loc_edit.models.model import Model
from loc_edit.names import SCORES, Score, scores_of
from loc_edit.scoring.probes import Measured
from loc_edit.scoring.scores import EditScore, magnitudes

log = logging.getLogger(__name__)

Measure = TypeVar("Measure", bound=Callable[..., Any])


@dataclass(frozen=True)
class Scorer:
    """A function that measures a model, and one that makes scores of what was measured before and after an edit.

    Attributes:
        measure: a model, a fact, and what else its signature names -> anything that `compare` takes.
        compare: what was measured before and after the edit -> the score, or several by name.
    """

    measure: Callable[..., Any]
    compare: Callable[..., Any]


_WARNED: set[str] = set()
"""The reasons that were logged: once is enough for a grid of thousands of edits."""
SCORERS: dict[str, Scorer] = {}
"""What a run may be asked for; the scores that every edit has share one measurement (`Meter`)."""


def change(before: float, after: float) -> float:
    """The change of a number."""
    return after - before


def scorer(
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    better: Literal["high", "low"] = "high",
    compare: Callable[..., Any] = change,
    meaning: str = "",
    scores: Mapping[str, Score] | None = None,
) -> Callable[[Measure], Measure]:
    """Register a score: a function that measures a model, called before and after the edit.

    The function gets the model, the fact and, where its signature names them, the `request` and the `edit` that is in
    the weights (`None` before it is), the fact's subject `noise`, and `facts`, the whole data set.  It returns a
    number, or whatever `compare` takes.  Rows have the score as a column with its name.

    `compare` gets what was measured before and after, and what its signature names of `model` (unedited again), `fact`
    and `request`.  It may return a pair: the score or scores, and why some are NaN.

    Args:
        name: lower-case letters, digits and _.
        low: the smallest possible score.
        high: the largest.
        better: which end is the better one.
        compare: (before, after) -> the score; by default `after - before`.
        meaning: one line; by default the first sentence of the docstring.
        scores: several scores of one measurement, by the names of their columns; `compare` then returns a number for
            each name.  A run is still asked for `name`.

    Raises:
        BadPlugin: the name is taken, also by a column of the rows, or does not suit; the range is empty.
    """

    def register(measure: Measure) -> Measure:
        if origin := origin_of(measure):
            if name in {known.scorer for known in SCORES.values() if known.origin is None}:
                raise BadPlugin(f"score {name!r}: the name belongs to loc_edit")
            alone = Score(meaning or first_sentence(measure), low, high, better)
            for column, description in (scores or {name: alone}).items():
                _describe(column, replace(description, scorer=name, origin=origin))
        SCORERS[name] = Scorer(measure, compare)
        return measure

    return register


def _describe(name: str, score: Score) -> None:
    """Add the description of a plug-in's score, unless it does not suit."""
    if name in _columns():
        raise BadPlugin(f"score {name!r}: rows have a column of this name already")
    if not score.low < score.high or score.better not in ("high", "low"):
        given = f"{score.low}, {score.high}, {score.better!r}"
        raise BadPlugin(f"score {name!r}: expected low < high and better 'high' or 'low', got {given}")
    describe_plugin("score", SCORES, name, score)


def gets(name: str, what: Literal["noise", "facts"]) -> bool:
    """Whether what is asked for depends on the fact's subject noise, or on the whole data set."""
    return what in inspect.signature(SCORERS[name].measure).parameters


def measure(name: str, model: Model, fact: Fact, request: EditRequest, edit: Edit | None = None, **more: Any) -> Any:
    """What a score measures of a model with an edit in its weights; an exception that says why not, if it failed.

    Args:
        name: what was asked for.
        model: the model.
        fact: the fact.
        request: the request.
        edit: the edit that is in the weights; `None` before it is.
        more: what else the score gets if its signature names it: the fact's subject `noise`; `facts`, the data set.
    """
    function = SCORERS[name].measure
    try:
        with left_alone(model, f"score {name!r}"):
            return function(model, fact, **named_in(function, {"request": request, "edit": edit, **more}))
    except Exception as error:
        if ends_run(error):
            raise
        return BadPlugin(f"{type(error).__name__}: {error}")


def compared(name: str, before: Any, after: Any, **available: Any) -> tuple[dict[str, float], str]:
    """The scores of what was measured before and after an edit, and why one is NaN.

    Args:
        name: what the run was asked for.
        before: what it measured of the unedited model.
        after: what it measured of the edited model.
        available: what `compare` gets if its signature names it.
    """
    names, function = scores_of(name), SCORERS[name].compare
    values = dict.fromkeys(names, math.nan)
    try:
        for measured in (before, after):
            if isinstance(measured, BadPlugin):
                raise measured
        given = function(before, after, **named_in(function, available))
        given, why = given if isinstance(given, tuple) and len(given) == 2 else (given, "")
        if not isinstance(given, Mapping):
            given = {name: given}
        if set(given) != set(names):
            raise BadPlugin(f"expected the scores {', '.join(names)}, got {', '.join(map(str, given))}")
        for column, value in given.items():
            low, high = SCORES[column].low, SCORES[column].high
            if not isinstance(value, Real) or not (
                low <= float(value) <= high or (math.isnan(value) and len(names) > 1)
            ):
                raise BadPlugin(f"expected a number from {low:g} to {high:g}, got {value!r}")
            values[column] = float(value)
        return values, f"{name}: {why}" if why else ""
    except Exception as error:
        if ends_run(error):
            raise
        reason = f"{name}: {spelled_out(error)}"
        if reason not in _WARNED:
            _WARNED.add(reason)
            log.warning("a score is not a number, and its rows say why: %s", reason)
        return dict.fromkeys(names, math.nan), reason


def with_others(
    score: EditScore,
    before: Mapping[str, Any],
    model: Model,
    fact: Fact,
    request: EditRequest,
    edit: Edit | None,
    **more: Any,
) -> EditScore:
    """A score of an edit, and what else was asked for, measured with the edit in the weights.

    Args:
        score: the scores that every edit has.
        before: by what was asked for, what it measured of the unedited model.
        model: the unedited model.
        fact: the fact.
        request: the request.
        edit: the edit; `None` for the unedited model.
        more: see `measure`.
    """
    if not before:
        return score
    values, reasons = dict[str, float](), [score.reason]
    with (edit or Edit(())).applied(model):
        after = {name: measure(name, model, fact, request, edit, **more) for name in before}
    for name in before:
        scores, reason = compared(name, before[name], after[name], model=model, fact=fact, request=request)
        values |= scores
        reasons.append(reason)
    return replace(score, other_scores=values, reason="; ".join(filter(None, reasons)))


def _columns() -> set[str]:
    """The columns that edit rows have already."""
    names = {"problem", "method", "window", "layer", "fact_id", "fact_content", "seed", "cell", "status", "reason"}
    names |= {"target", "objective", "seconds", "trace", "relation", "prompt_length", "overall_essence"}
    names |= {f"{entry.name}_{when}" for entry in fields(Measured) for when in ("before", "after")}
    nothing = Measured(0.0, (), (), (), ())
    return names | {entry.name for entry in fields(EditScore)} | set(magnitudes(nothing, "raise"))
