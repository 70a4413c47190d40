"""The first screen of the report: the answer in words, with the numbers and curves behind it."""

from contextlib import suppress
from typing import Any

import pandas as pd

from loc_edit.analysis.regression.verdict import (
    CANNOT_SAY,
    FEWEST,
    IN_PART,
    NO,
    QUESTIONS,
    UNCLEAR,
    YES,
    localization_informs_editing,
)
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows, without_controls
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.names import method_label, problem_label
from loc_edit.report.explorer import OUTCOMES
from loc_edit.report.packing import number

QUESTION = "Does the place where a fact seems to be stored tell us where to edit it?"


def verdicts(rows: StudyRows, draws: int) -> tuple[list[dict[str, Any]], str]:
    """Returns the answer for each problem and method, for a table; or no answers, and the reason.

    Args:
        rows: the rows of a run.
        draws: resamples and permutations; 0 leaves the answer out.
    """
    if not draws:
        return [], "the statistics were left out (no draws)"
    try:
        answers = localization_informs_editing(rows.joined(), draws=draws)
    except (RowsMissing, ValueError) as error:
        return [], str(error)
    names = ("verdict", "n_facts", "r2_layer", "added_corrected", "added_low", "added_high")
    return [
        {
            "problem": problem_label(row["problem"]),
            "method": method_label(row["method"], int(row["window"])),
            "answers": [row[name] for name in ("answer", *QUESTIONS)],
            **{name: _plain(row[name]) for name in names},
        }
        for row in answers.to_dict("records")
    ], ""


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int) else number(value)


def headline(answers: list[str], reason: str = "") -> tuple[str, str]:
    """Returns the answers as one word or two, and as a sentence.

    Args:
        answers: "yes", "no", "in part", "unclear" or "cannot say" for each problem x method.
        reason: the reason why there are no answers.
    """
    known = [answer for answer in answers if answer != CANNOT_SAY]
    if not known:
        return "Cannot say", f"There is no answer yet: {reason or f'too few facts (fewer than {FEWEST}) or layers'}."
    n, (no, yes, in_part, unclear) = len(known), (known.count(answer) for answer in (NO, YES, IN_PART, UNCLEAR))
    rest = f" In {unclear} the intervals are too wide to say." if unclear and unclear < n else ""
    if n < len(answers):
        rest += f" {len(answers) - n} more have too few facts or layers for an answer."
    questions = "where to edit, how well an edit will go, and at which layers a fact is edited better"
    if no == n:
        of_all = "the combination" if n == 1 else f"each of {n} combinations"
        return "No" if n == len(answers) else "Mostly no", (
            f"In {of_all} of problem and method, Causal Tracing says too little beyond the edited layer to matter, "
            f"on all three questions: {questions}.{rest}"
        )
    if not yes + in_part:
        word = "Mostly no" if 2 * no > n else "Unclear"
        return word, (
            f"In {no} of {n} combinations of problem and method, Causal Tracing says too little beyond the edited "
            f"layer to matter.{rest}"
        )
    word = "Yes" if yes == n else "In part"
    return word, (
        f"Of {n} combinations of problem and method, Causal Tracing informs editing on all three questions in {yes} "
        f"({questions}), on some in {in_part}, and on none in {no}.{rest}"
    )


def curves(rows: StudyRows) -> dict[str, Any]:
    """Mean scores by edited layer and the mean tracing effect beside them, one panel per problem."""
    tracing: list[tuple[Any, float | None]] = []
    with suppress(RowsMissing, ValueError):
        means_by_layer = rows.by_layer().groupby("layer")["trace"].mean()
        tracing = [(layer, number(effect)) for layer, effect in means_by_layer.items()]
    edits = without_controls(rows.edits)
    means = mean_scores(edits, OUTCOMES) if len(edits) else pd.DataFrame()
    panels: dict[str, dict[str, dict[str, list[list[float | None]]]]] = {}
    for row in means.to_dict("records"):
        problem = panels.setdefault(problem_label(row["problem"]), {})
        lines = problem.setdefault(method_label(row["method"], int(row["window"])), {})
        lines.setdefault(row["outcome"], []).append([int(row["layer"]), number(row["mean"])])
    return {"tracing": tracing, "problems": panels, "outcomes": list(OUTCOMES)}


def counts(rows: StudyRows) -> list[tuple[str, str]]:
    """Counts the parts of the run, for a list: each number with its name, the number first."""
    edits = without_controls(rows.edits)
    numbers = {
        "fact": len(set(edits["fact_id"]) | set(rows.traces["fact_id"])),
        "finished edit": int((edits["status"] == "done").sum()),
        "edited layer": edits["layer"].nunique(),
        "combination": len(edits[["problem", "method", "window"]].drop_duplicates()),
        "traced cell": len(rows.traces),
    }
    return [
        (f"{n:,}", noun + "s" * (n != 1) + " of problem and method" * (noun == "combination"))
        for noun, n in numbers.items()
        if n or noun != "traced cell"
    ]
