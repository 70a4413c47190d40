"""The commands about a run's folder: report its progress, and merge its files."""

import time
from math import isfinite
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column

import loc_edit
from loc_edit.cli.options import RunFolder
from loc_edit.cli.show import Json, numbers, out, plain, plain_table, print_json
from loc_edit.events import duration
from loc_edit.names import TRACING, method_label, problem_label

if TYPE_CHECKING:
    from loc_edit.analysis.status import RunProgress

PAIR = ("done", "expected")
"""The two numbers of controls, and of sequences."""


def status(run: RunFolder, as_json: Json = False) -> None:
    """Report the progress of a run, also while it is at work.

    It says how many rows are done, skipped, failed and remaining, and why, how fast they come, and who writes.

    Examples:
        loc-edit status runs/demo
        loc-edit status runs/demo --json
    """
    from loc_edit.analysis.status import counted, run_progress

    loaded = loc_edit.load_run(run)
    progress = run_progress(loaded)
    if as_json:
        origin = {"run": loaded.path, "model": loaded.config["model"], "data": loaded.config["data"]}
        pairs = {name: dict(zip(PAIR, getattr(progress, name), strict=True)) for name in ("controls", "sequences")}
        more = {"remaining": progress.remaining, "seconds_to_go": progress.seconds_to_go}
        print_json({**origin, **plain(progress), **pairs, **more})
        return
    note = f" ({progress.facts_note})" if progress.facts_note else ""
    about = f"{loaded.config['model']}, {loaded.config['data']}"
    out.print(
        f"[bold]{escape(str(loaded.path))}[/]: {escape(about)}, {progress.facts:,} facts{escape(note)}", soft_wrap=True
    )
    _print_edits(progress)
    _print_rest(progress)
    for row in progress.reasons.to_dict("records"):
        count = counted(row["facts"], "fact")
        if row["status"] == "failed":
            count = f"{counted(row['rows'], 'edit')} of {count} ({row['methods']})"
        reason = f"{row['problem']}: {count} {row['status']}: {row['reason']} (such as fact {row['example']})"
        out.print(escape(reason), soft_wrap=True)
    for path in progress.damaged:
        out.print(f"damaged; the next run computes its rows again: {escape(str(path))}", soft_wrap=True)


def compact(run: RunFolder) -> None:
    """Merge the many small files of a run, so that it is read fast.

    The run can continue and grow as before.  Nothing may be writing to it meanwhile.

    Examples:
        loc-edit compact runs/demo
    """
    from loc_edit.store.rows import KINDS

    loaded = loc_edit.load_run(run)
    with loc_edit.Run.create(loaded.path, loaded.config, loaded.provenance, loaded.selection) as opened:
        saved = opened.compact()
        left = sum(len(opened.shards(kind)) for kind in KINDS)
    path = escape(str(loaded.path))
    out.print(f"{path}: {saved:,} files fewer, {left:,} left, with the same rows", soft_wrap=True)


def _print_edits(progress: "RunProgress") -> None:
    """Prints the rows and units of each problem and method."""
    names = ("done", "skipped", "failed", "remaining", "of")
    table = plain_table("problem", "method", *numbers(*names), Column("units", justify="right", no_wrap=True))
    for row in progress.edits.to_dict("records"):
        labels = problem_label(row["problem"]), method_label(row["method"], row["window"])
        counts = (f"{row[name]:,}" for name in ("done", "skipped", "failed", "remaining", "expected"))
        table.add_row(*labels, *counts, f"{row['units']:,}/{row['units_expected']:,}")
    out.print(table)


def _print_rest(progress: "RunProgress") -> None:
    """Prints the progress of traces and controls, and the speed."""
    for row in progress.traces.to_dict("records"):
        localizer = "" if row["localizer"] == TRACING else f"{row['localizer']}, "
        out.print(f"traces     {localizer}window {row['window']}: {row['done']:,} of {row['expected']:,} facts")
    rows, expected = progress.controls
    out.print(f"controls   {rows:,} of {expected:,} rows")
    if progress.sequences[1]:
        out.print(f"sequences  {progress.sequences[0]:,} of {progress.sequences[1]:,}")
    if progress.kept:
        out.print(f"kept       {progress.kept:,} rows of earlier settings or facts, which nothing here counts")
    if isfinite(progress.seconds):
        out.print(f"work       {_per_edit(progress.seconds)} of one process (mean of the rows' own seconds)")
    if isfinite(progress.rows_per_second):
        rate = f"{progress.rows_per_second * 60:,.0f} edit rows a minute"
        out.print(f"rate       {rate} (from the times of the files, without pauses)")
    if progress.seconds_to_go and isfinite(progress.seconds_to_go):
        out.print(f"to go      {duration(progress.seconds_to_go)}")
    if isfinite(progress.last):
        out.print(f"last rows  {duration(max(0.0, time.time() - progress.last))} ago")
    out.print(f"writer     {escape(progress.writer or 'none now')}")


def _per_edit(seconds: float) -> str:
    return f"{seconds:.2f} s an edit" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms an edit"
