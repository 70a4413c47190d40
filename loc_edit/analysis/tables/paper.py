"""The paper's tables, for readers: from fits to CSV, LaTeX and Markdown."""

from pathlib import Path

import pandas as pd

from loc_edit.analysis.tables.rows import RowsMissing, in_paper_order
from loc_edit.files import DATA
from loc_edit.names import SCORES, method_label, problem_label


def r2_table(fits: pd.DataFrame) -> pd.DataFrame:
    """R^2 of layer, tracing effect and both, with the F-test, one row per problem x method.

    Args:
        fits: what `regress.fits` returns.
    """
    if fits.empty:
        raise RowsMissing("there are no fits")
    fits = in_paper_order(fits)
    labels = [method_label(m, w) for m, w in zip(fits["method"], fits["window"], strict=True)]
    return pd.DataFrame(
        {
            "Problem": fits["problem"].map(problem_label),
            "Method": labels,
            "Layer": fits["r2_layer"],
            "Tracing effect": fits["r2_trace"],
            "Both": fits["r2_both"],
            "Difference": fits["r2_added"],
            "F": fits["f"],
            "df": [_degrees(a, b) for a, b in zip(fits["df_num"], fits["df_den"], strict=True)],
            "p": fits["p"],
            "n": fits["n"],
        }
    )


def table_1(fits: pd.DataFrame) -> pd.DataFrame:
    """Table 1: R^2 of the rewrite score of ROME, per problem.

    Args:
        fits: what `regress.fits` returns for the rewrite score.
    """
    rows = fits[(fits["method"] == "rome") & (fits["window"] == 1)]
    if "outcome" in rows:
        rows = rows[rows["outcome"] == "rewrite"]
    if rows.empty:
        raise RowsMissing("Table 1 needs the rewrite scores of ROME")
    return r2_table(rows)


def paper_numbers() -> pd.DataFrame:
    """Numbers printed in the study: source, model, problem, method, window, layer, outcome, quantity, value.

    A quantity that ends in `_concentrated` is of the facts with concentrated tracing effects (Table 2).
    """
    return pd.read_csv(DATA / "paper_numbers.csv")


def compare_paper(fits: pd.DataFrame, concentrated: pd.DataFrame | None = None) -> pd.DataFrame:
    """Our R^2 beside the study's, where the study's is known.

    Args:
        fits: what `regress.fits` returns, of one outcome or several stacked.
        concentrated: the same of the facts with a concentrated tracing effect, for Table 2.

    Returns:
        problem, method, window, outcome, facts (`all`, `concentrated`), r2_layer, r2_trace, r2_both, r2_added, with
        `_paper` beside each (NaN where the study's number is not at hand).
    """
    key = ["problem", "method", "window", "outcome"]
    known = paper_numbers()
    quantities = ["r2_layer", "r2_trace", "r2_both"]
    parts = []
    for facts, ours, ending in (("all", fits, ""), ("concentrated", concentrated, "_concentrated")):
        if ours is None:
            continue
        theirs = known[known["quantity"].isin([f"{name}{ending}" for name in quantities])]
        theirs = theirs.assign(quantity=theirs["quantity"].str.removesuffix("_concentrated"))
        theirs = theirs.pivot(index=key, columns="quantity", values="value")
        theirs["r2_added"] = theirs["r2_both"] - theirs["r2_layer"]
        found = ours.merge(theirs.add_suffix("_paper").reset_index(), on=key, how="inner")
        parts.append(found.assign(facts=facts))
    both = pd.concat(parts, ignore_index=True)
    if both.empty:
        raise RowsMissing("none of these fits has a number in the study to compare with")
    pairs = [f"{name}{end}" for name in (*quantities, "r2_added") for end in ("", "_paper")]
    ordered = in_paper_order(both[[*key, "facts", *pairs]])
    return ordered.sort_values("outcome", key=lambda c: c.map(SCORES.index), kind="stable", ignore_index=True)


def with_paper_layers(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame with layers counted from 1, as the paper prints them."""
    return frame.assign(layer=frame["layer"] + 1).rename(columns={"layer": "Layer (from 1)"})


def write(table: pd.DataFrame, folder: Path | str, name: str) -> list[Path]:
    """Write a table as `name.csv` (full precision), `name.tex` and `name.md` (rounded); return the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = rounded(table)
    texts = {
        "csv": table.to_csv(index=False, lineterminator="\n"),
        "tex": shown.to_latex(index=False, escape=True, column_format=_alignment(table)),
        "md": markdown(shown),
    }
    paths = []
    for ending, text in texts.items():
        path = folder / f"{name}.{ending}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: three decimals, small p-values as such, a dash for NaN."""
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


def _alignment(table: pd.DataFrame) -> str:
    return "".join("r" if pd.api.types.is_numeric_dtype(table[name]) else "l" for name in table)
