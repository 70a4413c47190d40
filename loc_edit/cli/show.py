"""What the commands print: progress bars, and tables of rows and scores."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, ProgressColumn, Task, TaskID, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from loc_edit.events import Event, ProgressLines, listening
from loc_edit.names import method_label, problem_label

if TYPE_CHECKING:
    from loc_edit.analysis.analyze import Analysis

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


Json = Annotated[
    bool, tyro.conf.arg(name="json", help="Print one JSON document on standard output, and nothing else there.")
]

_documents: list[TextIO] = []
"""Standard output, while everything but a JSON document goes to standard error."""


@contextmanager
def json_only(wanted: bool) -> Iterator[None]:
    """Keeps standard output for `print_json` if a document is wanted; all other printing goes to standard error."""
    if not wanted:
        yield
        return
    _documents.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _documents.pop()


def print_json(document: Any) -> None:
    """Prints a JSON document: records as objects, frames as lists of objects, NaN and infinity as null."""
    text = json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False)
    print(text, file=_documents[-1] if _documents else sys.stdout)


def plain(value: Any) -> Any:
    """A value as JSON knows it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    elif hasattr(value, "to_dict"):  # a frame
        value = value.to_dict("records")
    elif hasattr(value, "tolist"):  # a tensor, an array, a number of numpy
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def size(n: int) -> str:
    """A number of bytes in words: `3.1 MB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n} B"


@contextmanager
def progress() -> Iterator[None]:
    """Shows the progress of every task in the block: a bar each on a terminal, elsewhere a line now and then."""
    if not err.is_terminal:
        with listening(ProgressLines(lambda line: err.print(line, markup=False, soft_wrap=True))):
            yield
        return
    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), _Count())
    with Progress(*columns, console=err, speed_estimate_period=120) as bars, listening(_Bars(bars)):
        yield


class _Count(ProgressColumn):
    """How many of how many are done, how many a second, and what the last one was."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        speed = task.speed or 0.0
        pace = f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s" if speed else ""
        return Text(f"{task.completed:,.0f}/{task.total:,.0f}  {pace}  {task.fields['detail']}")


class _Bars:
    """Listens to events and shows each task as a bar."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.preparing = bars.add_task("preparing", total=None)
        self.running: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        """Moves the bar of the event's task forward."""
        if event.name != "progress":
            return
        task, done, total = event.fields["task"], event.fields["done"], event.fields["total"]
        self.bars.update(self.preparing, visible=False)
        if task not in self.running:  # starts at what was there before, which is no part of the speed
            self.running[task] = self.bars.add_task(task, completed=event.fields["found"], detail="")
        self.bars.update(self.running[task], completed=done, total=total, detail=event.fields["detail"])
        if done >= total:
            del self.running[task]


def numbers(*names: str) -> list[Column]:
    """Columns of numbers, which are aligned to the right."""
    return [Column(name, justify="right") for name in names]


def plain_table(*columns: str | Column, title: str | None = None) -> Table:
    """A table without a frame and with little space between its columns."""
    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE, collapse_padding=True, pad_edge=False)


def print_analysis(analysis: "Analysis") -> None:
    """Prints the R² and the mean scores of a run, as far as it has them."""
    if not analysis.fits.empty:
        out.print(_r2_table(analysis))
    if not analysis.scores.empty:
        out.print(_score_table(analysis))


def _r2_table(analysis: "Analysis") -> Table:
    """R² of layer, tracing effect and both, with a row for each problem and method."""
    names = ("R² layer", "R² tracing", "R² both", "added", "p (naive)", "n")
    table = plain_table("problem", "method", *numbers(*names), title="variance of the rewrite score explained")
    for row in analysis.fits.to_dict("records"):
        shares = (f"{row[k]:.3f}" for k in ("r2_layer", "r2_trace", "r2_both", "r2_added"))
        label = method_label(row["method"], row["window"])
        table.add_row(problem_label(row["problem"]), label, *shares, f"{row['p']:.2g}", str(row["n"]))
    if reasons := [reason for reason in analysis.fits["reason"].unique() if reason]:
        table.caption, table.caption_justify = "nan: " + escape("; ".join(reasons)), "left"
    return table


def _score_table(analysis: "Analysis") -> Table:
    """Mean scores, with a column for each layer and a section for each problem and method."""
    layers = sorted(analysis.scores["layer"].unique())
    columns = [Column("", no_wrap=True), *(Column(str(layer), justify="right", no_wrap=True) for layer in layers)]
    table = plain_table(*columns, title="mean scores by edited layer (0-based)")
    for keys, rows in analysis.scores.groupby(["problem", "method", "window"], sort=False):
        problem, method, window = str(keys[0]), str(keys[1]), int(str(keys[2]))
        table.add_row(f"{problem_label(problem)}, {method_label(method, window)}", style="bold")
        for outcome, scores in rows.groupby("outcome", sort=False):
            means = scores.set_index("layer")["mean"]
            table.add_row(f"  {outcome}", *(f"{means[layer]:.2f}" if layer in means else "" for layer in layers))
        table.add_section()
    return table
