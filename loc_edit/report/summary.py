"""The first screen of the report: the answer in words, and the numbers and curves that it rests on."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from loc_edit.analysis.regression.statistics import MEANINGFUL, localization_informs_editing
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows, without_controls
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.names import method_label, problem_label
from loc_edit.report.explorer import OUTCOMES
from loc_edit.report.packing import number

QUESTION = "Does the place where a fact seems to be stored tell us where to edit it?"


def verdicts(rows: StudyRows, draws: int) -> tuple[list[dict[str, Any]], str]:
    """The answer per problem and method, for a table; or none, and why.

    Args:
        rows: a run's rows.
        draws: resamples and permutations; 0 leaves the answer out.
    """
    if not draws:
        return [], "the statistics were left out (no draws)"
    try:
        found = localization_informs_editing(rows.joined(), draws=draws)
    except (RowsMissing, ValueError) as error:
        return [], str(error)
    names = ("answer", "verdict", "n_facts", "r2_layer", "added_corrected", "added_low", "added_high")
    return [
        {
            "problem": problem_label(row["problem"]),
            "method": method_label(row["method"], int(row["window"])),
            **{name: _plain(row[name]) for name in names if name in row},
        }
        for row in found.to_dict("records")
    ], ""


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int) else number(value)


def headline(answers: list[str], why_none: str = "") -> tuple[str, str]:
    """The answers as one word or two, and a sentence.

    Args:
        answers: "yes", "no", "unclear" or "cannot say" for each problem x method.
        why_none: why there are none.
    """
    n = len(answers)
    no, yes, unclear = (answers.count(answer) for answer in ("no", "yes", "unclear"))
    if not no + yes + unclear:
        return "Cannot say", f"There is no answer yet: {why_none or 'too few facts or layers to tell'}."
    rest = f" In {unclear} the facts are too few to be sure." if unclear else ""
    if n > no + yes + unclear:
        rest += f" For {n - no - yes - unclear} there are too few facts or layers to tell."
    adds = f"adds less than {MEANINGFUL:.0%} of the variance"
    if no == n:
        return "No", (
            "The edited layer explains how well an edit works; what Causal Tracing says about the fact at that layer "
            f"{adds}" + (f", in each of {n} combinations of problem and method." if n > 1 else ".")
        )
    if not yes:
        word = "Mostly no" if 2 * no > n else "Unclear"
        return word, f"In {no} of {n} combinations of problem and method, Causal Tracing {adds} beyond the layer.{rest}"
    word = "Yes" if yes == n else "In part"
    return word, (
        f"In {yes} of {n} combinations of problem and method, what Causal Tracing says about the fact explains at "
        f"least {MEANINGFUL:.0%} of the variance beyond the layer; in {no} it does not.{rest}"
    )


def curves(rows: StudyRows) -> dict[str, Any]:
    """Mean scores by edited layer and the mean tracing effect beside them, one panel per problem."""
    tracing: dict[int, float | None] = {}
    try:
        found = rows.by_layer()
        tracing = {int(str(layer)): number(v) for layer, v in found.groupby("layer")["trace"].mean().items()}
    except (RowsMissing, ValueError):
        pass
    edits = without_controls(rows.edits)
    means = mean_scores(edits, OUTCOMES) if len(edits) else pd.DataFrame()
    panels: dict[str, dict[str, dict[str, list[list[float | None]]]]] = {}
    for row in means.to_dict("records"):
        problem = panels.setdefault(problem_label(row["problem"]), {})
        lines = problem.setdefault(method_label(row["method"], int(row["window"])), {})
        lines.setdefault(row["outcome"], []).append([int(row["layer"]), number(row["mean"])])
    return {"tracing": sorted(tracing.items()), "problems": panels, "outcomes": list(OUTCOMES)}


def counts(rows: StudyRows, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run is made of: a few numbers with their names, the number first."""
    edits = without_controls(rows.edits)
    facts = set(edits["fact_id"]) | set(rows.traces["fact_id"])
    kinds = edits[["problem", "method", "window"]].drop_duplicates()
    done = int((edits["status"] == "done").sum()) if len(edits) else 0
    layers = edits["layer"].nunique() if len(edits) else 0
    found = [
        (f"{len(facts):,}", _plural("fact", len(facts))),
        (f"{done:,}", f"finished {_plural('edit', done)}"),
        (f"{layers:,}", f"edited {_plural('layer', layers)}"),
        (f"{len(kinds):,}", f"{_plural('combination', len(kinds))} of problem and method"),
    ]
    if len(rows.traces):
        cells = len(rows.traces)
        found.append((f"{cells:,}", f"traced {_plural('cell', cells)}"))
    return found


def _plural(noun: str, n: int) -> str:
    return noun if n == 1 else f"{noun}s"
