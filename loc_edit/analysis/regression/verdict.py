"""Answers in words whether localization informs editing: where to edit, how well it will go, and within a fact."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from loc_edit.analysis.regression.effect_sizes import SIZES
from loc_edit.analysis.regression.statistics import statistics
from loc_edit.arguments import checked
from loc_edit.names import SCORES, method_label, problem_label
from loc_edit.views.table import html_table

FEWEST = 20
"""The least number of facts for a verdict: with fewer, an interval's end can miss the truth more often than it says."""
CERTAIN = 0.05
"""The corrected p-value below which an effect counts as more than chance."""
YES, NO, IN_PART, UNCLEAR, CANNOT_SAY = "yes", "no", "in part", "unclear", "cannot say"


@dataclass(frozen=True)
class Question:
    """A question about localization and editing, with the effect size that answers it.

    Attributes:
        label: in words.
        size: the column of the effect size.
        p: the column of its p-value, corrected.
        margin: the smallest effect of interest, in units of the size.
        reason: why that one.
    """

    label: str
    size: str
    p: str
    margin: float
    reason: str


QUESTIONS = {
    "where_to_edit": Question(
        "where to edit",
        "gain",
        "p_gain_holm",
        0.02,
        "two points of the score: of fifty edits one more succeeds in full; less does not pay for tracing every fact",
    ),
    "how_well": Question(
        "how well it will go",
        "partial",
        "p_permutation_holm",
        0.05,
        "a correlation of .22, between small (.1) and medium (.3) by Cohen's convention; with less, a prediction's "
        "typical error shrinks by under 2.6 %.  It is a share of what the layer leaves, so it does not shrink where "
        "the layer explains nearly all",
    ),
    "within_fact": Question(
        "within a fact",
        "within",
        "p_within_holm",
        0.05,
        "the same share, of what both layer and fact leave",
    ),
}
"""What the verdict speaks of.  Each margin was chosen before the results and can be set."""


class Verdicts(pd.DataFrame):
    """The table of `verdicts`, of which a notebook shows the answers and the sentences in full."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        rows = []
        for row in self.to_dict("records"):
            label = f"{method_label(row['method'], row['window'])}, {problem_label(row['problem']).lower()}"
            rows.append((label, *(row[name] for name in QUESTIONS), row["verdict"]))
        return html_table(rows, header=("", *(question.label for question in QUESTIONS.values()), ""))


@checked
def localization_informs_editing(
    frame: pd.DataFrame,
    outcome: str = "rewrite",
    *,
    margins: Mapping[str, float] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Verdicts:
    """Does the place where a fact seems to be stored tell us where to edit it?  The answer per problem x method.

    Args:
        frame: rows of the regression, see `Run.frame`.
        outcome: the score that is to be explained.
        margins: the smallest effects of interest by question, in place of the margins in `QUESTIONS`.
        draws: resamples and permutations.
        level: coverage of the intervals.
        seed: of the resampling.

    Returns:
        See `verdicts`.

    Raises:
        ValueError: a margin is of no question.
    """
    table = statistics(frame, outcome, draws=draws, level=level, seed=seed)
    return verdicts(table, margins=margins, level=level)


def verdicts(table: pd.DataFrame, *, margins: Mapping[str, float] | None = None, level: float = 0.95) -> Verdicts:
    """The answers to the three questions, from the table of `statistics`.

    `no`: the upper end of the interval is below the margin.  For the two shares, which cannot be negative, this is the
    decision of two one-sided tests (TOST) for equivalence, each at (1 - level) / 2; for the gain it is the one of the
    two that matters, as a loss is a no as well.  `yes`: the lower end reaches the margin, and the corrected p agrees.
    `unclear`: neither.  `cannot say`: fewer than `FEWEST` facts, or a number is missing.  The margin of the gain is a
    share of the score's range; where a score of yours has no ends, it has to be given, in units of the score.

    Returns:
        A row per problem x method x window: n_facts, unit, r2_layer, r2_added, the effect sizes, the corrected
        p-values, an answer for each question, `answer` ("no" and "yes" only if all three agree, "in part" if some say
        yes), verdict.

    Raises:
        ValueError: a margin is of no question.
    """
    chosen = {name: question.margin for name, question in QUESTIONS.items()} | dict(margins or {})
    set_by_hand = "where_to_edit" in (margins or {})
    if unknown := sorted(set(chosen) - set(QUESTIONS)):
        raise ValueError(f"margins {', '.join(unknown)}: expected {', '.join(QUESTIONS)}")
    rows = []
    for row in table.to_dict("records"):
        unit = 1.0 if set_by_hand else _range(str(row["outcome"]))
        in_units = chosen | {"where_to_edit": chosen["where_to_edit"] * unit}
        answers = {name: _answer(row, QUESTIONS[name], margin) for name, margin in in_units.items()}
        answer = _together(list(answers.values()))
        rows.append({str(k): v for k, v in row.items()} | answers | {"answer": answer})
        rows[-1]["verdict"] = _sentence(rows[-1], level)
    columns = ["problem", "method", "window", "outcome", "n_facts", "unit", "r2_layer", "r2_added", *SIZES]
    columns += [question.p for question in QUESTIONS.values()]
    return Verdicts(rows, columns=[*columns, *QUESTIONS, "answer", "verdict"])


def _range(outcome: str) -> float:
    """The range of a score, which margins of gain are a share of; NaN for a score without ends."""
    known = SCORES.get(outcome)
    size = known.high - known.low if known else 1.0
    return size if np.isfinite(size) else np.nan


def _answer(row: Mapping[Any, Any], question: Question, margin: float) -> str:
    low, high = row[f"{question.size}_low"], row[f"{question.size}_high"]
    if row["n_facts"] < FEWEST or np.isnan([low, high, margin]).any():
        return CANNOT_SAY
    if high < margin:
        return NO
    against = question.size == "within" and row["within_r"] < 0  # a fact is edited worse where tracing locates it
    return YES if low >= margin and row[question.p] < CERTAIN and not against else UNCLEAR


def _together(answers: list[str]) -> str:
    if YES in answers:
        return YES if set(answers) == {YES} else IN_PART
    if CANNOT_SAY in answers:
        return CANNOT_SAY
    return NO if set(answers) == {NO} else UNCLEAR


def _sentence(row: Mapping[str, Any], level: float) -> str:
    combination = (
        f"{method_label(str(row['method']), int(row['window']))}, {problem_label(str(row['problem'])).lower()}: "
    )
    if row["n_facts"] < FEWEST or np.isnan(row["r2_added"]):
        few = f"too few facts: expected at least {FEWEST}, got {row['n_facts']}"
        return f"{combination}{CANNOT_SAY} ({row['reason'] or few})."
    chance = "no more than chance would" if not row["p_permutation_holm"] < CERTAIN else "more than chance would"
    unit = _range(str(row["outcome"]))
    numbers = [row[name] for name in ("gain", "gain_low", "gain_high")]
    gain, low, high = (f"{x:+.3g}" if np.isnan(unit) else f"{100 * x / unit:+.1f}" for x in numbers)
    points = "" if np.isnan(unit) else " points"
    shares = {
        name: f"{row[name]:.1%} ({row[f'{name}_low']:.1%} to {row[f'{name}_high']:.1%})"
        for name in ("partial", "within")
    }
    return (
        f"{combination}{row['answer']}; the layer explains {row['r2_layer']:.1%} of the variance, tracing adds "
        f"{row['added_corrected']:.1%} ({level:.0%} interval {row['added_low']:.1%} to {row['added_high']:.1%}), "
        f"{chance} (permutation p = {row['p_permutation_holm']:.2g}, Holm).  Where to edit: {row['where_to_edit']}, at "
        f"the tracing peak the score is {gain}{points} ({low} to {high}) from that of one layer for all.  How well it "
        f"will go: {row['how_well']}, tracing explains {shares['partial']} of what the layer leaves.  Within a fact: "
        f"{row['within_fact']}, {shares['within']} of what layer and fact leave, r = {row['within_r']:.2f}."
    )
