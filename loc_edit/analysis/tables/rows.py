"""Trace rows and edit rows become the rows of the regression."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

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
from loc_edit.names import CONTROLS, METHODS, PROBLEMS, TRACING, in_order

log = logging.getLogger(__name__)


DEFAULT_WINDOW = 5

EDIT_KEY = ["problem", "method", "window", "layer", "fact_id"]
CELL_KEY = ["fact_id", "layer", "pos", "window", "site"]
TRACE_COLUMNS = [*CELL_KEY, "p_restored", "p_clean", "p_corrupted", "subject_begin", "subject_end"]


class RowsMissing(ValueError):
    """The rows that a table, a figure or a join needs are not there; the message says which."""


@dataclass(frozen=True)
class Rows:
    """What the paper's tables and figures are made from: a run's rows, and the main restoration window.

    Attributes:
        traces: trace rows of Causal Tracing, which is what the paper's tables and figures are about.
        edits: edit rows.
        window: the main restoration window.
        site: the restored site.
        localized: trace rows of every localiser of the run.
    """

    traces: pd.DataFrame
    edits: pd.DataFrame
    window: int | None = None
    site: str = "mlp_out"
    localized: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    @classmethod
    def of(cls, traces: pd.DataFrame, edits: pd.DataFrame, window: int | None = None) -> "Rows":
        """The rows of a run.

        The main site is `mlp_out` if that was traced, else the first; the main window is by default the only one, or 5,
        or else the smallest.
        """
        traced = of_localizer(traces)
        sites = sorted(traces["site"].unique()) if len(traces) else []
        site = "mlp_out" if "mlp_out" in sites or not sites else sites[0]
        if window is None and not traced.empty:
            there = sorted(int(one) for one in traced.loc[traced["site"] == site, "window"].unique())
            window = DEFAULT_WINDOW if DEFAULT_WINDOW in there else there[0]
            if len(there) > 1:
                log.warning("traces with windows %s: taking window %d", there, window)
        return cls(traced, edits, window, site, localized=traces)

    def joined(self, window: int | None = None, regressor: Regressor = "max") -> pd.DataFrame:
        """The rows of the regression, for the main window or another one."""
        return join(self.edits, self.traces, window=window or self.window, site=self.site, regressor=regressor)

    def joined_by_localizer(self) -> dict[str, pd.DataFrame]:
        """The rows of the regression by localiser: see `join_by_localizer`.

        Raises:
            RowsMissing: there is none but Causal Tracing.
        """
        names = localizers_in(self.localized)
        if set(names) <= {TRACING}:
            raise RowsMissing(f"traces of other localisers are needed (--localizers); there are {names}")
        return join_by_localizer(self.edits, self.localized, window=self.window, site=self.site)


def effects(
    traces: pd.DataFrame,
    window: int | None = None,
    site: str = "mlp_out",
    denominator: Denominator = "clean",
    localizer: str = TRACING,
) -> pd.DataFrame:
    """The tracing effect of every cell: the rows of one window and site, with `effect` and `fraction`.

    `fraction` is the effect over `p_clean - p_corrupted`; with `denominator="max"` over
    `max(p_clean, best p_restored) - p_corrupted`, as the study's released code has it.  Where that is below
    1e-6 in size the fraction is NaN and `degenerate` is true; the number of such facts is logged and kept in
    `.attrs["n_degenerate"]`.

    Args:
        traces: trace rows, any number of localisers, windows and sites.
        window: the restoration window; `None` takes the only one there is, or 5 if there are several.
        site: the restored site.
        denominator: "clean" or "max".
        localizer: whose rows; those of others are left out.
    """
    check_choice(denominator=denominator)
    cells = _one_window(traces, window, site, localizer)
    numbers = [cells[name].to_numpy(float) for name in ("p_restored", "p_clean", "p_corrupted")]
    best = cells.groupby("fact_id")["p_restored"].transform("max").to_numpy() if denominator == "max" else -np.inf
    fraction = fractional_effect(*numbers, best)
    degenerate = np.isnan(fraction)
    cells = cells.assign(effect=numbers[0] - numbers[2], fraction=fraction, degenerate=degenerate)
    n_degenerate = int(cells.loc[degenerate, "fact_id"].nunique())
    if n_degenerate:
        log.warning("%d facts have no tracing fraction: clean and corrupted run agree", n_degenerate)
    cells.attrs["n_degenerate"] = n_degenerate
    return cells


def by_layer(
    traces: pd.DataFrame,
    window: int | None = None,
    site: str = "mlp_out",
    regressor: Regressor = "max",
    denominator: Denominator = "clean",
    localizer: str = TRACING,
) -> pd.DataFrame:
    """One number per fact and layer: `fact_id, layer, trace, trace_absolute`.

    `trace` is the largest fraction over the positions from the subject on, floored at 0
    (`regressor="max"`), or the fraction at the last subject token, not floored (`"last_subject"`).
    `trace_absolute` is the same of the effect, in probability.
    """
    check_choice(regressor)
    cells = effects(traces, window, site, denominator, localizer)
    columns = [cells[name].to_numpy() for name in ("pos", "subject_begin", "subject_end")]
    used = cells[positions_that_count(*columns, regressor)]
    groups = used.groupby(["fact_id", "layer"])
    layers = groups.size().index.to_frame(index=False)
    place = groups.ngroup().to_numpy()
    for name, column in (("trace", "fraction"), ("trace_absolute", "effect")):
        layers[name] = effect_by_layer(used[column].to_numpy(), place, regressor)
    layers.attrs["n_degenerate"] = cells.attrs["n_degenerate"]
    return layers


def join(
    edits: pd.DataFrame,
    traces: pd.DataFrame,
    *,
    window: int | None = None,
    site: str = "mlp_out",
    regressor: Regressor = "max",
    denominator: Denominator = "clean",
    localizer: str = TRACING,
) -> pd.DataFrame:
    """The rows of the regression: every edit row with its fact's tracing effect at the edited layer.

    Controls (no edit, random layer) are left out.  Skipped and failed rows stay, with NaN scores, so that
    later steps can count them.

    Args:
        edits: edit rows; `window` there is the editor's.
        traces: trace rows.
        window: the restoration window; `None` takes the only one there is, or 5 if there are several.
        site: the restored site.
        regressor: "max" or "last_subject", see `by_layer`.
        denominator: "clean" or "max", see `effects`.
        localizer: whose effect; rows of others are left out, so that no frame mixes localisers.

    Raises:
        RowsMissing: a finished edit has no trace; the message names fact and layer.
        ValueError: a row occurs twice, or a column is missing.
    """
    rows = without_controls(edits)
    if rows.empty:
        raise RowsMissing("there are no edit rows (controls not counted)")
    require(edits, [*EDIT_KEY, "rewrite"], "edit rows")
    refuse_duplicates(rows, EDIT_KEY, "edit rows")
    layers = by_layer(traces, window, site, regressor, denominator, localizer)
    rows = rows.drop(columns=["trace", "trace_absolute"], errors="ignore").assign(layer=rows["layer"].astype("int64"))
    joined = rows.merge(layers, on=["fact_id", "layer"], how="left", validate="many_to_one", indicator="_found")
    _refuse_untraced(joined, layers)
    joined = joined.drop(columns="_found")
    joined.attrs["n_degenerate"] = layers.attrs["n_degenerate"]
    return joined


def join_by_localizer(
    edits: pd.DataFrame, traces: pd.DataFrame, *, window: int | None = None, site: str = "mlp_out"
) -> dict[str, pd.DataFrame]:
    """`join` for every localiser, all at one window; those without it, or not finished, are left out and logged.

    Args:
        edits: see `join`.
        traces: see `join`.
        window: see `join`; by default that of the first localiser.
        site: see `join`.

    Raises:
        RowsMissing: none is left but Causal Tracing, beside which there are others; or there are no traces.
    """
    names = localizers_in(traces)
    if not names:
        raise RowsMissing("there are no trace rows")
    if window is None:
        window = int(_one_window(traces, None, site, names[0])["window"].iloc[0])
    found: dict[str, pd.DataFrame] = {}
    lost: list[str] = []
    for name in names:
        try:
            found[name] = join(edits, traces, window=window, site=site, localizer=name)
        except RowsMissing as error:
            lost.append(f"{name}: {error}")
    if lost and set(found) <= {TRACING}:
        raise RowsMissing("; ".join(lost))
    for reason in lost:
        log.warning("a localizer is left out: %s", reason)
    return found


def without_controls(edits: pd.DataFrame) -> pd.DataFrame:
    """The edit rows that are edits at a chosen layer: no controls."""
    return edits[~is_control(edits)] if "method" in edits else edits


def is_control(edits: pd.DataFrame) -> pd.Series:
    """Whether a row is a control: no edit, or an edit at a layer drawn by lot."""
    return edits["method"].str.startswith(CONTROLS)


def combinations(frame: pd.DataFrame) -> list[str]:
    """The columns that tell one method x problem from another, as far as the frame has them."""
    return [name for name in ("problem", "method", "window") if name in frame]


def in_paper_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort rows as the paper does: problems, then methods, windows and layers."""
    columns = [name for name in ("problem", "method", "window", "layer") if name in frame]
    return frame.sort_values(columns, key=_rank, kind="stable", ignore_index=True)


def require(frame: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Refuse a frame without these columns, naming them."""
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(f"{what}: no column {', '.join(missing)}; there are {', '.join(map(str, frame.columns))}")


def refuse_duplicates(frame: pd.DataFrame, key: Sequence[str], what: str) -> None:
    """Refuse a frame in which a key occurs twice, naming the first few."""
    twice = frame.duplicated(list(key))
    if twice.any():
        raise ValueError(f"{what}: {int(twice.sum())} rows occur twice: {_name_rows(frame.loc[twice, list(key)])}")


def _one_window(traces: pd.DataFrame, window: int | None, site: str, localizer: str = TRACING) -> pd.DataFrame:
    if traces.empty:
        raise RowsMissing("there are no trace rows")
    require(traces, TRACE_COLUMNS, "trace rows")
    mine = of_localizer(traces, localizer)
    if mine.empty:
        raise RowsMissing(f"no traces of localizer {localizer!r}; there are {localizers_in(traces)}")
    at_site = mine[mine["site"] == site]
    if at_site.empty:
        raise RowsMissing(f"no traces at site {site!r}; there are {sorted(mine['site'].unique())}")
    windows = sorted(int(w) for w in at_site["window"].unique())
    if window is None:
        window = _default_window(windows)
    cells = at_site[at_site["window"] == window]
    if cells.empty:
        raise RowsMissing(f"no traces with window {window} at site {site!r}; there are {windows}")
    if "metric" in cells and cells["metric"].nunique() > 1:
        raise ValueError(f"traces of several metrics ({', '.join(sorted(cells['metric'].unique()))}): keep one")
    refuse_duplicates(cells, CELL_KEY, "trace rows")
    return cells


def _default_window(windows: Sequence[int]) -> int:
    if len(windows) == 1:
        return windows[0]
    if DEFAULT_WINDOW not in windows:
        raise RowsMissing(f"traces with windows {list(windows)}: say which one (window=)")
    log.warning("traces with windows %s: taking window %d", list(windows), DEFAULT_WINDOW)
    return DEFAULT_WINDOW


def _refuse_untraced(joined: pd.DataFrame, layers: pd.DataFrame) -> None:
    finished = joined["status"] == "done" if "status" in joined else joined["rewrite"].notna()
    lost = joined.loc[finished & (joined["_found"] == "left_only"), ["fact_id", "layer"]].drop_duplicates()
    if not lost.empty:
        raise RowsMissing(
            f"{len(lost)} edited cells have no trace: {_name_rows(lost)}; there are traces of "
            f"{layers['fact_id'].nunique()} facts at layers {sorted(layers['layer'].unique().tolist())}"
        )


def _name_rows(rows: pd.DataFrame, most: int = 5) -> str:
    named = ["(" + ", ".join(f"{k} {v}" for k, v in row.items()) + ")" for row in rows.head(most).to_dict("records")]
    return ", ".join(named) + (f" and {len(rows) - most} more" if len(rows) > most else "")


def _rank(column: pd.Series) -> pd.Series:
    order = {"problem": tuple(PROBLEMS), "method": tuple(METHODS)}.get(str(column.name))
    if order is None:
        return column
    return column.map({name: place for place, name in enumerate(in_order(column.dropna(), order))})
