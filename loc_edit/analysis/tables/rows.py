"""Joins the trace rows and the edit rows of a run: one row per edit, with the tracing effect of its fact and layer."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from loc_edit.analysis.tables.localized import localizers_in, of_localizer
from loc_edit.effects import (
    Denominator,
    Regressor,
    check_choice,
    effect_by_layer,
    fractional_effect,
    positions_that_count,
)
from loc_edit.names import CONTROLS, METHODS, PROBLEMS, TRACING, in_order, method_label

log = logging.getLogger(__name__)

DEFAULT_WINDOW = 5

EDIT_KEY = ["problem", "method", "window", "layer", "fact_id"]
CELL_KEY = ["fact_id", "layer", "pos", "window", "site"]
TRACE_COLUMNS = [*CELL_KEY, "p_restored", "p_clean", "p_corrupted", "subject_begin", "subject_end"]

RELATION, PROMPT_LENGTH = "relation", "prompt_length"
"""What rows know of a fact besides its effects."""


class RowsMissing(ValueError):
    """A table, a figure or a join needs rows that the run does not have; the message says which."""


@dataclass(frozen=True)
class EffectDefinition:
    """Defines the tracing effect: which traces it is read from, and how they become one number per fact and layer.

    Attributes:
        window: the restoration window; `None` takes the only one in the traces, or 5 if there are several.
        site: the restored site.
        regressor: "max", the largest fraction from the subject on, or "last_subject", see `by_layer`.
        denominator: "clean" or "max", see `cell_effects`.
        localizer: the method that located the fact; the rows of other localizers are left out, so that no frame mixes
            them.

    Raises:
        ValueError: regressor or denominator do not exist.
    """

    window: int | None = None
    site: str = "mlp_out"
    regressor: Regressor = "max"
    denominator: Denominator = "clean"
    localizer: str = TRACING

    def __post_init__(self) -> None:
        check_choice(self.regressor, self.denominator)


PAPER = EffectDefinition()
"""The study's own definition."""


@dataclass(frozen=True)
class StudyRows:
    """The rows that the paper's tables and figures are made from, and the main restoration window and site.

    Attributes:
        traces: trace rows of Causal Tracing, the only localizer in the paper's tables and figures.
        edits: edit rows.
        window: the main restoration window.
        site: the restored site.
        localized: trace rows of every localizer of the run.
    """

    traces: pd.DataFrame
    edits: pd.DataFrame
    window: int | None = None
    site: str = "mlp_out"
    localized: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    @classmethod
    def of(cls, traces: pd.DataFrame, edits: pd.DataFrame, window: int | None = None) -> "StudyRows":
        """The rows of a run.

        The main site is `mlp_out` if that was traced, else the first; the main window is by default the only one, or 5,
        or else the smallest.
        """
        traced = of_localizer(traces)
        sites = sorted(traces["site"].unique()) if len(traces) else []
        site = "mlp_out" if "mlp_out" in sites or not sites else sites[0]
        if window is None and not traced.empty:
            window = _main_window(_windows(traced[traced["site"] == site]))
        return cls(traced, edits, window, site, localized=traces)

    def by_layer(self) -> pd.DataFrame:
        """The tracing effect of every fact and layer, see the function `by_layer`."""
        return by_layer(self.traces, EffectDefinition(self.window, self.site))

    def joined(self, window: int | None = None, regressor: Regressor = "max") -> pd.DataFrame:
        """The rows of the regression, for the main window or another one."""
        return join(self.edits, self.traces, EffectDefinition(window or self.window, self.site, regressor))

    def joined_by_localizer(self) -> dict[str, pd.DataFrame]:
        """The rows of the regression by localizer, see the function `join_by_localizer`.

        Raises:
            RowsMissing: Causal Tracing is the only localizer.
        """
        names = localizers_in(self.localized)
        if set(names) <= {TRACING}:
            raise RowsMissing(f"traces of other localizers are needed (--localizers); there are {names}")
        return join_by_localizer(self.edits, self.localized, EffectDefinition(self.window, self.site))


def cell_effects(traces: pd.DataFrame, definition: EffectDefinition = PAPER) -> pd.DataFrame:
    """The tracing effect of every cell: the rows of one window and site, with `effect` and `fraction`.

    `fraction` is the effect over `p_clean - p_corrupted`; with `denominator="max"` it is the effect over
    `max(p_clean, best p_restored) - p_corrupted`, as in the study's released code.  Where the denominator is below
    1e-6 in size, the fraction is NaN and `degenerate` is true; the number of such facts is logged and kept in
    `.attrs["n_degenerate"]`.

    Args:
        traces: trace rows, any number of localizers, windows and sites.
        definition: which of them, and the denominator.

    Raises:
        RowsMissing: there are no such traces.
        ValueError: a row occurs twice, a column is missing, or the traces are of several metrics.
    """
    cells = _defined_cells(traces, definition)
    p_restored, p_clean, p_corrupted = cells[["p_restored", "p_clean", "p_corrupted"]].to_numpy(float).T
    of_max = definition.denominator == "max"
    best = cells.groupby("fact_id")["p_restored"].transform("max").to_numpy() if of_max else -np.inf
    fraction = fractional_effect(p_restored, p_clean, p_corrupted, best)
    failed, degenerate = np.isnan(p_restored), np.isnan(fraction)
    cells = cells.assign(effect=p_restored - p_corrupted, fraction=fraction, degenerate=degenerate)
    n_failed, n_degenerate = (int(cells.loc[which, "fact_id"].nunique()) for which in (failed, degenerate & ~failed))
    if n_failed:
        log.warning("%d facts have no effects of localizer %s", n_failed, definition.localizer)
    if n_degenerate:
        log.warning("%d facts have no tracing fraction: clean and corrupted run agree", n_degenerate)
    cells.attrs["n_degenerate"] = n_degenerate
    return cells


def by_layer(traces: pd.DataFrame, definition: EffectDefinition = PAPER) -> pd.DataFrame:
    """The effect of each fact and layer: `fact_id, layer, trace, trace_absolute, prompt_length`, `relation` if known.

    `trace` is the largest fraction over the positions from the subject on, floored at 0 (`regressor="max"`), or the
    fraction at the last subject token, not floored (`"last_subject"`).  `trace_absolute` is the same of the effect, in
    probability; `prompt_length` is in tokens.  Arguments and errors are as in `cell_effects`.
    """
    cells = cell_effects(traces, definition)
    pos, begin, end = (cells[name].to_numpy() for name in ("pos", "subject_begin", "subject_end"))
    used = cells[positions_that_count(pos, begin, end, definition.regressor)]
    groups = used.groupby(["fact_id", "layer"])
    layers = groups.size().index.to_frame(index=False)
    place = groups.ngroup().to_numpy()
    for name, column in (("trace", "fraction"), ("trace_absolute", "effect")):
        layers[name] = effect_by_layer(used[column].to_numpy(), place, definition.regressor)
    facts = cells.groupby("fact_id")
    layers[PROMPT_LENGTH] = layers["fact_id"].map(facts["pos"].max() + 1)
    return layers.assign(**{RELATION: layers["fact_id"].map(facts[RELATION].first())} if RELATION in cells else {})


def join(edits: pd.DataFrame, traces: pd.DataFrame, definition: EffectDefinition = PAPER) -> pd.DataFrame:
    """The rows of the regression: every edit row with its fact's tracing effect at the edited layer.

    Controls (no edit, random layer) are left out.  Skipped and failed rows stay, with NaN scores, so that
    later steps can count them.

    Args:
        edits: edit rows; `window` there is the editor's.
        traces: trace rows.
        definition: the tracing effect.

    Raises:
        RowsMissing: a finished edit has no trace; the message names fact and layer.
        ValueError: a row occurs twice, or a column is missing.
    """
    rows = without_controls(edits)
    if rows.empty:
        raise RowsMissing("there are no edit rows (controls not counted)")
    require(edits, [*EDIT_KEY, "rewrite"], "edit rows")
    refuse_repeated_edits(rows, "edit rows")
    layers = by_layer(traces, definition)
    rows = rows.drop(columns=[name for name in layers if name not in ("fact_id", "layer")], errors="ignore")
    rows = rows.assign(layer=rows["layer"].astype("int64"))
    joined = rows.merge(layers, on=["fact_id", "layer"], how="left", validate="many_to_one", indicator="_traced")
    _refuse_untraced(joined, layers)
    return joined.drop(columns="_traced")


def join_by_localizer(
    edits: pd.DataFrame, traces: pd.DataFrame, definition: EffectDefinition = PAPER
) -> dict[str, pd.DataFrame]:
    """`join` for every localizer, all at one window; those without it, or not finished, are left out and logged.

    Args:
        edits: see `join`.
        traces: see `join`.
        definition: see `join`; its window is by default the first localizer's.

    Raises:
        RowsMissing: there are no traces, or every localizer but Causal Tracing had to be left out.
    """
    names = localizers_in(traces)
    if not names:
        raise RowsMissing("there are no trace rows")
    if definition.window is None:
        cells = _defined_cells(traces, replace(definition, localizer=names[0]))
        definition = replace(definition, window=int(cells["window"].iloc[0]))
    frames: dict[str, pd.DataFrame] = {}
    reasons: list[str] = []
    for name in names:
        try:
            frames[name] = join(edits, traces, replace(definition, localizer=name))
        except RowsMissing as error:
            reasons.append(f"{name}: {error}")
    if reasons and set(frames) <= {TRACING}:
        raise RowsMissing("; ".join(reasons))
    for reason in reasons:
        log.warning("a localizer is left out: %s", reason)
    return frames


def without_controls(edits: pd.DataFrame) -> pd.DataFrame:
    """The edit rows at a chosen layer: no controls."""
    return edits[~is_control(edits)] if "method" in edits else edits


def is_control(edits: pd.DataFrame) -> pd.Series:
    """Whether a row is a control: no edit, or an edit at a randomly drawn layer."""
    return edits["method"].str.startswith(CONTROLS)


def combination_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that tell one combination of problem and method from another, as far as the frame has them."""
    return [name for name in ("problem", "method", "window") if name in frame]


def by_combination(frame: pd.DataFrame, *keys: str) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """The rows of each combination of problem and method, and of further keys, with their values; no controls."""
    columns = [*combination_columns(frame), *keys]
    rows = without_controls(frame)
    if not columns:
        return [({}, rows)]
    return [(dict(zip(columns, values, strict=True)), group) for values, group in rows.groupby(columns)]


def method_labels(frame: pd.DataFrame) -> list[str]:
    """The readers' name of each row's method: ROME, FT-5."""
    return [method_label(str(m), int(w)) for m, w in zip(frame["method"], frame["window"], strict=True)]


def methods_in(frame: pd.DataFrame) -> list[tuple[str, int]]:
    """The pairs of method and window in a frame, in the order in which they occur."""
    return list(dict.fromkeys(zip(frame["method"], frame["window"].astype(int), strict=True)))


def in_paper_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sorts rows as the paper does: by problem, then method, window and layer."""
    columns = [name for name in ("problem", "method", "window", "layer") if name in frame]
    return frame.sort_values(columns, key=_rank, kind="stable", ignore_index=True)


def require(frame: pd.DataFrame, columns: Iterable[str], frame_name: str) -> None:
    """Refuses a frame without these columns, and names them."""
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(
            f"{frame_name}: no column {', '.join(missing)}; there are {', '.join(map(str, frame.columns))}"
        )


def refuse_repeated_edits(edits: pd.DataFrame, frame_name: str) -> None:
    """Refuses edit rows of which two are of the same problem, method, window, layer and fact; controls may be."""
    _refuse_duplicates(without_controls(edits), [name for name in EDIT_KEY if name in edits], frame_name)


def _refuse_duplicates(frame: pd.DataFrame, key: list[str], frame_name: str) -> None:
    """Refuses a frame in which a key occurs twice, and names the first few."""
    repeated = frame.loc[frame.duplicated(key), key]
    if len(repeated):
        raise ValueError(f"{frame_name}: {len(repeated)} rows occur twice: {_name_rows(repeated)}")


def _defined_cells(traces: pd.DataFrame, definition: EffectDefinition) -> pd.DataFrame:
    """The trace rows of the definition's localizer, site and window."""
    if traces.empty:
        raise RowsMissing("there are no trace rows")
    require(traces, TRACE_COLUMNS, "trace rows")
    located = of_localizer(traces, definition.localizer)
    if located.empty:
        raise RowsMissing(f"no traces of localizer {definition.localizer!r}; there are {localizers_in(traces)}")
    at_site = located[located["site"] == definition.site]
    if at_site.empty:
        raise RowsMissing(f"no traces at site {definition.site!r}; there are {sorted(located['site'].unique())}")
    window, windows = definition.window, _windows(at_site)
    if window is None:
        if len(windows) > 1 and DEFAULT_WINDOW not in windows:
            raise RowsMissing(f"traces with windows {windows}: say which one (window=)")
        window = _main_window(windows)
    cells = at_site[at_site["window"] == window]
    if cells.empty:
        raise RowsMissing(f"no traces with window {window} at site {definition.site!r}; there are {windows}")
    if "metric" in cells and cells["metric"].nunique() > 1:
        raise ValueError(f"traces of several metrics ({', '.join(sorted(cells['metric'].unique()))}): keep one")
    _refuse_duplicates(cells, CELL_KEY, "trace rows")
    return cells


def _windows(traces: pd.DataFrame) -> list[int]:
    return sorted(int(window) for window in traces["window"].unique())


def _main_window(windows: list[int]) -> int:
    """The window 5 where it was traced, else the smallest."""
    window = DEFAULT_WINDOW if DEFAULT_WINDOW in windows else windows[0]
    if len(windows) > 1:
        log.warning("traces with windows %s: taking window %d", windows, window)
    return window


def _refuse_untraced(joined: pd.DataFrame, layers: pd.DataFrame) -> None:
    finished = joined["status"] == "done" if "status" in joined else joined["rewrite"].notna()
    untraced = joined.loc[finished & (joined["_traced"] == "left_only"), ["fact_id", "layer"]].drop_duplicates()
    if not untraced.empty:
        raise RowsMissing(
            f"{len(untraced)} edited cells have no trace: {_name_rows(untraced)}; there are traces of "
            f"{layers['fact_id'].nunique()} facts at layers {sorted(layers['layer'].unique().tolist())}"
        )


def _name_rows(rows: pd.DataFrame, most: int = 5) -> str:
    named = ["(" + ", ".join(f"{k} {v}" for k, v in row.items()) + ")" for row in rows.head(most).to_dict("records")]
    return ", ".join(named) + (f" and {len(rows) - most} more" if len(rows) > most else "")


def _rank(column: pd.Series) -> pd.Series:
    orders: dict[Any, Iterable[str]] = {"problem": PROBLEMS, "method": METHODS}
    if column.name not in orders:
        return column
    return column.map({name: place for place, name in enumerate(in_order(column.dropna(), orders[column.name]))})
