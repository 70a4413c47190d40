"""The commands about a run's folder: how far it is, and its files put together."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich import box
from rich.markup import escape
from rich.table import Table

from loc_edit.cli.show import out
from loc_edit.events import duration
from loc_edit.names import TRACING, method_label, problem_label

if TYPE_CHECKING:
    from loc_edit.analysis.status import RunProgress


def status(run: Annotated[Path, tyro.conf.Positional]) -> None:
    """Say how far a run is: rows done, skipped, failed and remaining, why, how fast, and who writes to it now.

    Args:
        run: the run's folder; it may be written to meanwhile.
    """
    from loc_edit.analysis.run import load_run
    from loc_edit.analysis.status import counted, run_progress

    loaded = load_run(run)
    found = run_progress(loaded)
    note = f" ({found.facts_note})" if found.facts_note else ""
    model, data = loaded.config["model"], loaded.config["data"]
    out.print(f"[bold]{escape(str(loaded.path))}[/]: {escape(f'{model}, {data}')}, {found.facts:,} facts{escape(note)}")
    out.print(_table(found))
    _print_rest(found)
    for row in found.reasons.to_dict("records"):
        what = counted(row["facts"], "fact")
        if row["status"] == "failed":
            what = f"{counted(row['rows'], 'edit')} of {what} ({row['methods']})"
        why = f"{row['problem']}: {what} {row['status']}: {row['reason']} (such as fact {row['example']})"
        out.print(escape(why), soft_wrap=True)
    for path in found.damaged:
        out.print(f"damaged, its rows are computed again by the next run: {escape(str(path))}", soft_wrap=True)


def compact(run: Annotated[Path, tyro.conf.Positional]) -> None:
    """Put the many small files of a run together, which makes reading it fast; it can go on and grow as before.

    Args:
        run: the run's folder; nothing may be writing to it.
    """
    from loc_edit.analysis.run import Run, load_run

    there = load_run(run)
    with Run.create(there.path, there.config, there.provenance, there.selection) as opened:
        saved = opened.compact()
        left = len(opened.shards("traces")) + len(opened.shards("edits"))
    out.print(f"{escape(str(there.path))}: {saved:,} files fewer, {left:,} left; all rows are there", soft_wrap=True)


def _table(found: "RunProgress") -> Table:
    """Rows and units, a line per problem x method."""
    table = Table(box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    for name in ("problem", "method", "done", "skipped", "failed", "remaining", "of", "units"):
        table.add_column(name, justify="left" if name in ("problem", "method") else "right", no_wrap=name == "units")
    for row in found.edits.to_dict("records"):
        names = problem_label(row["problem"]), method_label(row["method"], row["window"])
        counts = (f"{row[name]:,}" for name in ("done", "skipped", "failed", "remaining", "expected"))
        table.add_row(*names, *counts, f"{row['units']:,}/{row['units_expected']:,}")
    return table


def _print_rest(found: "RunProgress") -> None:
    for row in found.traces.to_dict("records"):
        whose = "" if row["localizer"] == TRACING else f"{row['localizer']}, "
        out.print(f"traces     {whose}window {row['window']}: {row['done']:,} of {row['expected']:,} facts")
    rows, expected = found.controls
    out.print(f"controls   {rows:,} of {expected:,} rows")
    if found.kept:
        out.print(f"kept       {found.kept:,} rows of earlier settings or facts, left out of everything here")
    if found.seconds == found.seconds:
        out.print(f"work       {_each(found.seconds)} of one process (mean of the rows' own seconds)")
    if found.rows_per_second == found.rows_per_second:
        rate = f"{found.rows_per_second * 60:,.0f} edit rows a minute"
        out.print(f"rate       {rate} (by the times of the files, pauses left out)")
    if found.remaining and found.seconds_to_go == found.seconds_to_go:
        out.print(f"to go      {duration(found.seconds_to_go)}")
    if found.last == found.last:
        out.print(f"last rows  {duration(max(0.0, time.time() - found.last))} ago")
    out.print(f"writer     {escape(found.writer or 'none now')}")


def _each(seconds: float) -> str:
    return f"{seconds:.2f} s an edit" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms an edit"
