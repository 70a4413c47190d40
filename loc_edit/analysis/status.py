"""Counts what a run has finished and what it still lacks, from its folder alone, also while it is being written.

Neither torch nor a model is loaded.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.rows import method_labels, without_controls
from loc_edit.facts.loading import load_facts
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.names import STATUSES, TRACING, method_label, parse_method, problem_label, windows_of
from loc_edit.store.layout import BadRun
from loc_edit.store.lock import lock_holder
from loc_edit.store.rows import KINDS
from loc_edit.store.shards import Shard, aside

GROUP = ["problem", "method", "window"]
PAUSE = 60.0
"""A longer time between two shards, in seconds, is a pause if it is also 20 times the usual."""
MOST_PROCESSES = 256
"""If the rows took more seconds of work than so many processes could do, the files' times do not date from writing."""

_FACT = re.compile(r"^fact -?\d+: ")
_VARIABLE = re.compile(
    r"""((?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|(?<!\w)"(?:[^"\\]|\\.)*"(?!\w)|(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w))"""
)
"""A quoted text or a number in a message; an apostrophe inside a word opens no quotation."""


@dataclass(frozen=True)
class RunProgress:
    """The rows that a run has, and the rows of its configuration that it still lacks.

    Attributes:
        edits: a row per problem x method (`problem, method, window`), controls not counted: the numbers of edit rows
            `done`, `skipped`, `failed`, `expected` and `remaining`, and of shards as they are written (`units`) and
            expected (`units_expected`).
        traces: a row per localizer x window: the numbers of traced facts (`done`), `expected` and `remaining`.
        controls: the number of control rows on disk, and the number expected.
        sequences: the number of finished sequences of edits, and the number expected.
        reasons: see `grouped_reasons`.
        facts: the number of facts in the run.
        facts_note: why that number is not certain; empty where it is.
        seconds: mean of the finished rows' own `seconds`: one process computing one edit.  NaN without any.
        rows_per_second: edit rows a second by the times of the shards' files, pauses left out; NaN where the times
            give no rate.
        last: when the last shard was written, seconds since the epoch; NaN without any.
        writer: the process that holds the folder's lock now, in words; `None` if there is none.
        damaged: shards that do not match their checksum, and shards set aside for that before.
        kept: rows of earlier settings or facts in the folder, which all other numbers leave out.
    """

    edits: pd.DataFrame
    traces: pd.DataFrame
    controls: tuple[int, int]
    sequences: tuple[int, int]
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
        """Edit rows, traced facts and sequences still to be computed, controls not counted."""
        rows = int(self.edits["remaining"].sum() + self.traces["remaining"].sum())
        return rows + self.sequences[1] - self.sequences[0]

    @property
    def seconds_to_go(self) -> float:
        """Time for the remaining edit rows, at the rate of the files' times, else at the rows' own `seconds`.

        Sequences are not counted.
        """
        n = int(self.edits["remaining"].sum())
        if not n:
            return 0.0
        return n / self.rows_per_second if math.isfinite(self.rows_per_second) else n * self.seconds


def run_progress(run: Run) -> RunProgress:
    """The progress of `run`; reads only its configuration, its rows' scalar columns and its file of facts.

    Raises:
        BadRun: its configuration is not an experiment's.
        BadRows: this version cannot read a shard.
    """
    rows = run.read("edits", [*GROUP, "layer", "fact_id", "status", "reason", "seconds", "cell"])
    traced = run.read("traces", ["fact_id", "localizer", "window"]).drop_duplicates()
    edits = without_controls(rows)
    try:
        fact_ids = {*rows["fact_id"], *traced["fact_id"]}
        n_facts, note = (len(run.selection.facts), "") if run.selection else _count_facts(run.config, len(fact_ids))
        edit_counts = _count_edits(run.config, n_facts, edits)
        trace_counts = _count_traces(run.config, n_facts, traced)
        n_controls = 0 if is_tuning(run.config) else n_facts * (len(run.config["problems"]) + len(edit_counts))
    except KeyError as error:
        raise BadRun(f"{run.path}: its config.toml has no key {error}, so it is not of an experiment") from error
    cells, shards = set(edits["cell"]), run.shards("edits")
    times, _ = _write_times([shard for kind in KINDS for shard in run.shards(kind)])
    sequences = set(run.selection.sequences) if run.selection else set()
    finished = sequences & {shard.cell for shard in run.shards("sequences")}
    return RunProgress(
        edits=edit_counts,
        traces=trace_counts,
        controls=(len(rows) - len(edits), n_controls),
        sequences=(len(finished), len(sequences)),
        reasons=grouped_reasons(edits),
        facts=n_facts,
        facts_note=note,
        seconds=float(edits["seconds"].mean()),
        rows_per_second=_rate([shard for shard in shards if shard.cell in cells], float(edits["seconds"].sum())),
        last=float(max(times, default=math.nan)),
        writer=lock_holder(run.path),
        damaged=[*run.damaged, *(path for kind in KINDS for path in aside(run.path / kind))],
        kept=run.kept(),
    )


def is_tuning(config: Mapping[str, Any]) -> bool:
    """Whether a run's configuration is a tuning's, which has a grid of settings, and neither traces nor controls."""
    return "grid" in config


def grouped_reasons(edits: pd.DataFrame) -> pd.DataFrame:
    """Why edits were skipped or failed: a row per problem, status and kind of reason, the commonest first.

    Args:
        edits: edit rows with `problem, method, window, fact_id, status, reason`, controls left out.

    Returns:
        `problem, status, reason, facts, rows, methods, example`: the reason, with `...` for the quoted texts and
        numbers in which the group's reasons differ; the numbers of facts and rows; the methods; the first fact's id.
    """
    unfinished = edits[edits["status"] != "done"]
    kinds = {reason: _VARIABLE.sub("...", _FACT.sub("", reason)) for reason in unfinished["reason"].unique()}
    groups = unfinished.assign(kind=unfinished["reason"].map(kinds)).groupby(["problem", "status", "kind"], sort=False)
    table = [
        {
            "problem": problem,
            "status": status,
            "reason": _joint_reason(rows["reason"].unique()) or "no reason given",
            "facts": rows["fact_id"].nunique(),
            "rows": len(rows),
            "methods": ", ".join(method_labels(rows[["method", "window"]].drop_duplicates())),
            "example": int(rows["fact_id"].min()),
        }
        for (problem, status, _), rows in groups
    ]
    frame = pd.DataFrame(table, columns=["problem", "status", "reason", "facts", "rows", "methods", "example"])
    return frame.sort_values(["facts", "rows"], ascending=False, kind="stable", ignore_index=True)


def failed_cells(edits: pd.DataFrame) -> list[str]:
    """The cells in which edits have failed and none is done, in words.

    Args:
        edits: edit rows with `problem, method, window, layer, status`, controls left out.
    """
    names = []
    for _, rows in edits.groupby([*GROUP, "layer"], sort=False):
        first, statuses = rows.iloc[0], set(rows["status"])
        if "failed" in statuses and "done" not in statuses:
            label = method_label(first["method"], int(first["window"]))
            names.append(f"{problem_label(first['problem'])}, {label}, layer {first['layer']}")
    return names


def reason_lines(reasons: pd.DataFrame) -> list[str]:
    """`grouped_reasons` as text, a line per problem and status: how many facts, and why."""
    lines = []
    for (problem, status), rows in reasons.groupby(["problem", "status"], sort=False):
        count = counted(int(rows["facts"].sum()), "fact")
        if status != "skipped":
            count = f"{counted(int(rows['rows'].sum()), 'edit')} of {count}"
        pairs = zip(rows["facts"], rows["reason"], strict=True)
        texts = rows["reason"] if len(rows) == 1 else [f"{n} x {reason}" for n, reason in pairs]
        lines.append(f"{problem}: {count} {status}: {'; '.join(texts)}")
    return lines


def counted(n: int, noun: str) -> str:
    """`1 fact`, `2 facts`."""
    return f"{n:,} {noun}" + ("s" if n != 1 else "")


def _joint_reason(reasons: Iterable[str]) -> str:
    """Reasons of one kind as one: the text that they share stays, the rest becomes `...`."""
    parts = [_VARIABLE.split(_FACT.sub("", reason)) for reason in reasons]
    return "".join(texts[0] if len(set(texts)) == 1 else "..." for texts in zip(*parts, strict=True))


def _count_facts(config: Mapping[str, Any], n_present: int) -> tuple[int, str]:
    """The number of facts in the run, of which `n_present` have rows, and why that number is not certain."""
    asked, data = config.get("facts"), str(config["data"])
    try:
        if data != "builtin" and not Path(data).is_file():  # looking at a run must not download a public data set
            raise FileNotFoundError
        skip, limit = bool(config.get("skip_invalid", False)), config.get("data_limit")
        facts = load_facts(data, seed=config["seed"], limit=limit, skip_invalid=skip)
    except (OSError, ValueError):
        if asked is None:
            return n_present, f"only facts with rows so far: {data} is not available to count all"
        return asked, "" if n_present == asked else f"at most: {data} is not available to count them"
    n = len(facts if asked is None else sample_by_relation(facts, asked))
    if config.get("known") and n_present < n:
        return n, "at most: only facts that the model knows are used"
    return n, ""


def _count_edits(config: Mapping[str, Any], n_facts: int, edits: pd.DataFrame) -> pd.DataFrame:
    """A row per problem x method; see `RunProgress`."""
    sizes = edits.groupby([*GROUP, "status"]).size()
    facts_per_cell = edits.groupby([*GROUP, "cell"])["fact_id"].nunique()
    shards = np.ceil(facts_per_cell / config["chunk"]).groupby(GROUP).sum()
    table = []
    for problem in config["problems"]:
        for method, window in map(parse_method, config["methods"]):
            n_cells = len(config["layers"]) * _candidates(config.get("grid", {}), method, window)
            counts = {status: int(sizes.get((problem, method, window, status), 0)) for status in STATUSES}
            expected = n_facts * n_cells
            table.append(
                {"problem": problem, "method": method, "window": window}
                | counts
                | {"expected": expected, "remaining": max(0, expected - sum(counts.values()))}
                | {"units": int(shards.get((problem, method, window), 0))}
                | {"units_expected": math.ceil(n_facts / config["chunk"]) * n_cells}
            )
    return pd.DataFrame(table)


def _candidates(grid: Mapping[str, Any], method: str, window: int) -> int:
    """The number of settings of a method that a tuning tries; 1 in any other run."""
    return math.prod(len(values) for values in grid.get(f"{method}-{window}", grid.get(method, {})).values())


def _count_traces(config: Mapping[str, Any], n_facts: int, traced: pd.DataFrame) -> pd.DataFrame:
    """A row per localizer x window; see `RunProgress`."""
    names = [] if is_tuning(config) else config.get("localizers", [TRACING])
    done = traced.groupby(["localizer", "window"]).size()
    table = [
        {"localizer": name, "window": window, "done": int(done.get((name, window), 0)), "expected": n_facts}
        for name in names
        for window in windows_of(name, config["windows"], config.get("localizer_windows"))
    ]
    frame = pd.DataFrame(table, columns=["localizer", "window", "done", "expected"])
    return frame.assign(remaining=(frame["expected"] - frame["done"]).clip(lower=0))


def _write_times(shards: Sequence[Shard]) -> tuple[np.ndarray, np.ndarray]:
    """When the files were written, in ascending order, and their numbers of rows; removed files are left out."""
    pairs = []
    for shard in shards:
        try:
            pairs.append((shard.path.stat().st_mtime, shard.n_rows))
        except FileNotFoundError:  # the run has written that shard again in the meantime
            continue
    ordered = np.array(sorted(pairs), dtype=float).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def _rate(shards: Sequence[Shard], work_seconds: float) -> float:
    """Rows a second between the first and the last of the files; NaN where a copy has given the files new times."""
    times, sizes = _write_times(shards)
    if len(times) < 2:
        return math.nan
    gaps = np.diff(times)
    working = gaps <= max(PAUSE, 20 * float(np.median(gaps)))
    seconds = float(gaps[working].sum())
    if seconds <= 0 or work_seconds > MOST_PROCESSES * seconds:
        return math.nan
    return float(sizes[1:][working].sum()) / seconds
