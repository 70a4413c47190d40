"""Lays out the paper's tables for readers, sets the study's numbers beside ours, and writes tables to files."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from loc_edit.analysis.tables.rows import RowsMissing, StudyRows, in_paper_order, method_labels
from loc_edit.analysis.tables.summaries import holm
from loc_edit.files import DATA
from loc_edit.names import SCORES, problem_label

log = logging.getLogger(__name__)

QUANTITIES = ("r2_layer", "r2_trace", "r2_both", "r2_added", "p")


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: `build` makes it from rows, or raises `RowsMissing`."""

    title: str
    build: Callable[[StudyRows], pd.DataFrame]


Output = TypeVar("Output")
Made = TypeVar("Made")


def make_each(
    outputs: Mapping[str, Output], make: Callable[[str, Output], Made], errors: type[ValueError] = RowsMissing
) -> tuple[dict[str, Made], dict[str, str]]:
    """Makes every table or figure that the rows allow.

    Args:
        outputs: the tables or figures by name.
        make: makes one, given its name too, such as the files of it; or raises one of `errors`.
        errors: these leave out just that table or figure; others go on.

    Returns:
        What was made, by name, and for tables or figures that cannot be made, the reason.
    """
    made: dict[str, Made] = {}
    missing: dict[str, str] = {}
    for name, output in outputs.items():
        try:
            made[name] = make(name, output)
        except errors as error:
            missing[name] = str(error)
            log.info("%s cannot be made: %s", name, error)
    return made, missing


def r2_table(fits: pd.DataFrame) -> pd.DataFrame:
    """R^2 of layer, tracing effect and both, with the F-test, one row per problem x method.

    Args:
        fits: the regressions, see `fits`.
    """
    if fits.empty:
        raise RowsMissing("there are no fits")
    fits = in_paper_order(fits)
    return pd.DataFrame(
        {
            "Problem": fits["problem"].map(problem_label),
            "Method": method_labels(fits),
            "Layer": fits["r2_layer"],
            "Tracing effect": fits["r2_trace"],
            "Both": fits["r2_both"],
            "Difference": fits["r2_added"],
            "F": fits["f"],
            "df": [_degrees(a, b) for a, b in zip(fits["df_num"], fits["df_den"], strict=True)],
            "p": fits["p"],
            "p (Holm)": holm(fits["p"]),
            "n": fits["n"],
        }
    )


def table_1(fits: pd.DataFrame) -> pd.DataFrame:
    """Table 1: R^2 of the rewrite score of ROME, per problem.

    Args:
        fits: the regressions of the rewrite score, see `fits`.
    """
    rows = fits[(fits["method"] == "rome") & (fits["window"] == 1) & (fits["outcome"] == "rewrite")]
    if rows.empty:
        raise RowsMissing("Table 1 needs the rewrite scores of ROME")
    return r2_table(rows)


def paper_numbers() -> pd.DataFrame:
    """The study's Tables 2 to 6 (Hase et al. 2023, arXiv 2301.04213; GPT-J): one row per table, problem and method.

    Table 1 repeats a row of Table 3.

    Returns:
        table, problem, method, window, outcome, facts (`all`, or `concentrated` in Table 2), r2_layer, r2_trace,
        r2_both, r2_added, and p as it is printed: `0.199`, or a bound such as `<1e-4`.
    """
    return pd.read_csv(DATA / "paper_numbers.csv", dtype={"p": str})


def beside_paper(fits: pd.DataFrame, concentrated: pd.DataFrame | None = None) -> pd.DataFrame:
    """Our R^2 and p-values beside the study's, for the problems and methods of both.

    Args:
        fits: the regressions of one outcome or several stacked, see `fits`.
        concentrated: the regressions of the facts with a concentrated tracing effect, for Table 2.

    Returns:
        problem, method, window, outcome, facts (`all`, `concentrated`), r2_layer, r2_trace, r2_both, r2_added, p,
        with `_paper` beside each.
    """
    key = ["problem", "method", "window", "outcome", "facts"]
    theirs = paper_numbers().drop(columns="table").rename(columns={name: f"{name}_paper" for name in QUANTITIES})
    ours = [("all", fits), ("concentrated", concentrated)]
    pairs = [part.assign(facts=facts).merge(theirs, on=key) for facts, part in ours if part is not None]
    both = pd.concat(pairs, ignore_index=True)
    if both.empty:
        raise RowsMissing("none of these fits has a number in the study to compare with")
    columns = [f"{name}{end}" for name in QUANTITIES for end in ("", "_paper")]
    ordered = in_paper_order(both[[*key, *columns]])
    return ordered.sort_values("outcome", key=lambda c: c.map(list(SCORES).index), kind="stable", ignore_index=True)


def with_paper_layers(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with layers counted from 1, as the paper prints them."""
    return frame.assign(layer=frame["layer"] + 1).rename(columns={"layer": "Layer (from 1)"})


def write_table(table: pd.DataFrame, folder: Path | str, name: str) -> list[Path]:
    """Writes a table as `name.csv` (full precision), `name.tex` and `name.md` (rounded); returns the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = rounded(table)
    alignment = "".join("r" if pd.api.types.is_numeric_dtype(table[column]) else "l" for column in table)
    texts = {
        "csv": table.to_csv(index=False, lineterminator="\n"),
        "tex": shown.to_latex(index=False, escape=True, column_format=alignment),
        "md": markdown(shown),
    }
    for ending, text in texts.items():
        (folder / f"{name}.{ending}").write_text(text, encoding="utf-8")
    return [folder / f"{name}.{ending}" for ending in texts]


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: three decimals, small p-values as powers of ten, a dash for NaN."""
    return pd.DataFrame({name: [_show(value, str(name)) for value in table[name]] for name in table}, dtype=object)


def markdown(shown: pd.DataFrame) -> str:
    """A Markdown table of a frame of texts."""
    cells = [[str(name) for name in shown.columns], ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in cells)


def _show(value: object, name: str) -> str:
    if not isinstance(value, float):
        return str(value)
    if pd.isna(value):
        return "-"
    if name.startswith("df_"):
        return f"{value:.0f}"
    if name.split("_")[0] == "p" and value < 1e-3:
        return "<.001" if value >= 1e-4 else f"{value:.0e}"
    return f"{value:.3f}"


def _degrees(numerator: float, denominator: float) -> str:
    return "-" if pd.isna(numerator) or pd.isna(denominator) else f"{numerator:.0f}, {denominator:.0f}"
