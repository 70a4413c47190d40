"""How far a run is: told by its folder alone, also while it is being written.  No torch, and no model, here."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.localized import windows_of
from loc_edit.analysis.tables.rows import without_controls
from loc_edit.facts.loading import load_facts
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.names import STATUSES, TRACING, method_label, parse_method
from loc_edit.store.folder import BadRun
from loc_edit.store.lock import lock_holder
from loc_edit.store.shards import Shard, aside

GROUP = ["problem", "method", "window"]
PAUSE = 60.0
"""Seconds between two shards that may be a pause; it is one where they are also 20 times the usual."""
MOST_PROCESSES = 256
"""Where the rows took more seconds of work than so many processes could do, the shards' times are not of writing."""

_FACT = re.compile(r"^fact -?\d+: ")
_VARIABLE = re.compile(
    r"""((?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|(?<!\w)"(?:[^"\\]|\\.)*"(?!\w)|(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w))"""
)
"""A quoted text or a number, as messages have them; an apostrophe inside a word opens no quotation."""


@dataclass(frozen=True)
class RunProgress:
    """What a run has, and what it lacks of what its configuration asks for.

    Attributes:
        edits: a row per problem x method (`problem, method, window`), controls not counted: edit rows that are
            `done`, `skipped`, `failed`, `expected` and `remaining`, and units (one file each) `units`,
            `units_expected`.
        traces: a row per localizer x window: facts that are traced (`done`), `expected` and `remaining`.
        controls: rows of the controls on disk, and how many are expected.
        reasons: see `grouped_reasons`.
        facts: how many facts the run is about.
        facts_note: why that number is not certain; empty where it is.
        seconds: mean of the finished rows' own `seconds`: one process computing one edit.  NaN without any.
        rows_per_second: edit rows a second by the times of the shards' files, pauses left out; NaN where these do
            not tell.
        last: when the last shard was written, seconds since the epoch; NaN without any.
        writer: who holds the folder's lock now, in words; `None` if nobody does.
        damaged: shards that do not match their checksum, and those set aside for that before.
        kept: rows in the folder of earlier settings or facts, which are left out of all else.
    """

    edits: pd.DataFrame
    traces: pd.DataFrame
    controls: tuple[int, int]
    reasons: pd.DataFrame
    facts: int
    facts_note: str
    seconds: float
    rows_per_second: float
    last: float
    writer: str | None
    damaged: list[Path]
    kept: int

    @property
    def remaining(self) -> int:
        """Edit rows and traced facts still to be computed, controls not counted."""
        return int(self.edits["remaining"].sum() + self.traces["remaining"].sum())

    @property
    def seconds_to_go(self) -> float:
        """Time for the edit rows that remain: at the rate of the files' times, else at that of the rows' `seconds`."""
        n = int(self.edits["remaining"].sum())
        if not n:
            return 0.0
        return n / self.rows_per_second if math.isfinite(self.rows_per_second) else n * self.seconds


def run_progress(run: Run) -> RunProgress:
    """How far `run` is; reads its rows' scalar columns and its configuration, and nothing else but its facts' file.

    Raises:
        BadRun: its configuration is not that of an experiment.
        BadRows: a shard cannot be read with this version.
    """
    shards = run.shards("edits")
    rows = run.read("edits", [*GROUP, "layer", "fact_id", "status", "reason", "seconds", "cell"])
    traced = run.read("traces", ["fact_id", "localizer", "window"]).drop_duplicates()
    edits = without_controls(rows)
    try:
        seen = {*rows["fact_id"].unique().tolist(), *traced["fact_id"].unique().tolist()}
        n_facts, note = (len(run.selection.facts), "") if run.selection else _count_facts(run.config, seen)
        counted = _count_edits(run.config, n_facts, edits, shards)
        traces = _count_traces(run.config, n_facts, traced)
    except KeyError as error:
        raise BadRun(f"{run.path}: its config.toml has no key {error}, so it is not of an experiment") from error
    per_fact = 0 if "grid" in run.config else len(run.config["problems"]) + len(counted)
    cells = set(edits["cell"].unique())
    times, sizes = _times([shard for shard in shards if shard.cell in cells])
    working = float(edits["seconds"].sum())
    return RunProgress(
        edits=counted,
        traces=traces,
        controls=(len(rows) - len(edits), per_fact * n_facts),
        reasons=grouped_reasons(edits),
        facts=n_facts,
        facts_note=note,
        seconds=float(edits["seconds"].mean()),
        rows_per_second=_rate(times, sizes, working),
        last=float(max(_times([*shards, *run.shards("traces")])[0], default=math.nan)),
        writer=lock_holder(run.path),
        damaged=[*run.damaged, *aside(run.path / "traces"), *aside(run.path / "edits")],
        kept=run.kept(),
    )


def grouped_reasons(edits: pd.DataFrame) -> pd.DataFrame:
    """Why edits were skipped or failed: a row per problem, status and kind of reason, the commonest first.

    Args:
        edits: edit rows with `problem, method, window, fact_id, status, reason`, controls left out.

    Returns:
        `problem, status, reason, facts, rows, methods, example`: the reason with `...` for the quoted texts and
        numbers in which those of the group differ; how many facts and rows; which methods; the first fact's id.
    """
    columns = ["problem", "status", "reason", "facts", "rows", "methods", "example"]
    bad = edits[edits["status"] != "done"]
    if bad.empty:
        return pd.DataFrame(columns=columns)
    texts = bad["reason"].unique()
    bad = bad.assign(kind=bad["reason"].map({text: _kind(text) for text in texts}))
    found = []
    for (problem, status, _), rows in bad.groupby(["problem", "status", "kind"], sort=False):
        methods = rows[["method", "window"]].drop_duplicates()
        labels = [method_label(str(m), int(w)) for m, w in zip(methods["method"], methods["window"], strict=True)]
        found.append(
            {
                "problem": problem,
                "status": status,
                "reason": _joint(rows["reason"].unique()) or "no reason given",
                "facts": rows["fact_id"].nunique(),
                "rows": len(rows),
                "methods": ", ".join(labels),
                "example": int(rows["fact_id"].min()),
            }
        )
    frame = pd.DataFrame(found, columns=columns)
    return frame.sort_values(["facts", "rows"], ascending=False, kind="stable", ignore_index=True)


def reason_lines(reasons: pd.DataFrame) -> list[str]:
    """`grouped_reasons` as text, a line per problem and status: how many facts, and why."""
    lines = []
    for (problem, status), rows in reasons.groupby(["problem", "status"], sort=False):
        n_facts, n_rows = int(rows["facts"].sum()), int(rows["rows"].sum())
        what = (
            counted(n_facts, "fact")
            if status == "skipped"
            else f"{counted(n_rows, 'edit')} of {counted(n_facts, 'fact')}"
        )
        if len(rows) == 1:
            why = str(rows["reason"].iloc[0])
        else:
            why = "; ".join(f"{n} x {reason}" for n, reason in zip(rows["facts"], rows["reason"], strict=True))
        lines.append(f"{problem}: {what} {status}: {why}")
    return lines


def counted(n: int, noun: str) -> str:
    """`1 fact`, `2 facts`."""
    return f"{n:,} {noun}" + ("s" if n != 1 else "")


def _kind(reason: str) -> str:
    return _VARIABLE.sub("...", _FACT.sub("", reason))


def _joint(reasons: Iterable[str]) -> str:
    """Reasons of one kind as one: what they have in common stays, the rest is `...`."""
    parts = [_VARIABLE.split(_FACT.sub("", reason)) for reason in reasons]
    return "".join(same[0] if len(set(same)) == 1 else "..." for same in zip(*parts, strict=True))


def _count_facts(config: Mapping[str, Any], seen: set[int]) -> tuple[int, str]:
    """How many facts the run is about, and why that is not certain."""
    wanted, data = config.get("facts"), str(config["data"])
    try:
        if data != "builtin" and not Path(data).is_file():  # a public data set would be fetched: not for a look
            raise FileNotFoundError
        skip, limit = bool(config.get("skip_invalid", False)), config.get("data_limit")
        facts = load_facts(data, seed=config["seed"], limit=limit, skip_invalid=skip)
    except (OSError, ValueError):
        if wanted is None:
            return len(seen), f"those with rows so far: {data} is not there to count all"
        return wanted, "" if len(seen) == wanted else f"at most: {data} is not there to count them"
    n = len(facts if wanted is None else sample_by_relation(facts, wanted))
    if config.get("known") and len(seen) < n:
        return n, "at most: only those that the model knows are used"
    return n, ""


def _count_edits(config: Mapping[str, Any], n_facts: int, edits: pd.DataFrame, shards: Sequence[Shard]) -> pd.DataFrame:
    """A row per problem x method; see `RunProgress`."""
    sizes = edits.groupby([*GROUP, "status"]).size()
    places = edits.drop_duplicates("cell").set_index("cell")[GROUP].apply(tuple, axis=1).to_dict()
    facts: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for shard in shards:
        facts[shard.cell].update(shard.facts)
    units: Counter[Any] = Counter()
    for cell, some in facts.items():
        units[places.get(cell)] += math.ceil(len(some) / config["chunk"])
    n_chunks = math.ceil(n_facts / config["chunk"])
    found = []
    for problem in config["problems"]:
        for name in config["methods"]:
            method, window = parse_method(name)
            n_cells = len(config["layers"]) * _candidates(config.get("grid", {}), method, window)
            counts = {status: int(sizes.get((problem, method, window, status), 0)) for status in STATUSES}
            expected = n_facts * n_cells
            found.append(
                {
                    "problem": problem,
                    "method": method,
                    "window": window,
                    **counts,
                    "expected": expected,
                    "remaining": max(0, expected - sum(counts.values())),
                    "units": int(units.get((problem, method, window), 0)),
                    "units_expected": n_chunks * n_cells,
                }
            )
    return pd.DataFrame(found)


def _candidates(grid: Mapping[str, Any], method: str, window: int) -> int:
    """How many settings of a method a tuning tries; 1 in any other run."""
    return math.prod(len(values) for values in grid.get(f"{method}-{window}", grid.get(method, {})).values())


def _count_traces(config: Mapping[str, Any], n_facts: int, traced: pd.DataFrame) -> pd.DataFrame:
    windows = [] if "grid" in config else config["windows"]  # a tuning traces nothing
    done = traced.groupby(["localizer", "window"]).size()
    found = [
        {"localizer": name, "window": w, "done": int(done.get((name, w), 0)), "expected": n_facts}
        for name in config.get("localizers", [TRACING])
        for w in (windows and windows_of(name, windows, config.get("localizer_windows")))
    ]
    frame = pd.DataFrame(found, columns=["localizer", "window", "done", "expected"])
    return frame.assign(remaining=(frame["expected"] - frame["done"]).clip(lower=0))


def _times(shards: Sequence[Shard]) -> tuple[np.ndarray, np.ndarray]:
    """When the files were written, in ascending order, and their numbers of rows; files gone meanwhile left out."""
    found = []
    for shard in shards:
        try:
            found.append((shard.path.stat().st_mtime, shard.n_rows))
        except FileNotFoundError:  # its writer wrote that unit again
            continue
    ordered = np.array(sorted(found), dtype=float).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def _rate(times: np.ndarray, sizes: np.ndarray, working: float) -> float:
    """Rows a second between the first and the last of the files; NaN for a folder whose times are those of a copy."""
    if len(times) < 2:
        return math.nan
    gaps = np.diff(times)
    kept = gaps <= max(PAUSE, 20 * float(np.median(gaps)))
    seconds = float(gaps[kept].sum())
    if seconds <= 0 or working > MOST_PROCESSES * seconds:
        return math.nan
    return float(sizes[1:][kept].sum()) / seconds
