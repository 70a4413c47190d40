"""Events of progress and of a run's log: the code that works emits them; progress bars and the log listen."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

FIRST_PAUSE = 2.0
"""Seconds before the first line about a task; each further pause is twice as long as the one before."""
LONGEST_PAUSE = 60.0
"""Seconds of the longest pause between two lines."""
STEP = "step"
"""The name of the events of `step`."""


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        name: `progress`, `step`, or an event of a run's log such as `start`, `shard` and `end`.
        fields: its properties, as plain values.
    """

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], object]

_listeners: list[Listener] = []


def has_listeners() -> bool:
    """Whether anybody listens."""
    return bool(_listeners or _bars_of_notebook())


def emit(name: str, **fields: Any) -> None:
    """Calls every listener with an event; without listeners nothing happens, but in a notebook bars show progress."""
    for listener in list(_listeners) or _bars_of_notebook():
        listener(Event(name, fields))


def progress(task: str, done: int, total: int, *, found: int = 0, detail: str = "") -> None:
    """Reports the progress of a task to every listener.

    Args:
        task: the name of the things counted, such as `answers`, `tokens` or `cells`.
        done: how many are done, including those that were found.
        total: how many there are in all.
        found: how many were done before the task began, for example on disk; a listener needs it for the speed.
        detail: a description of the one that was done last.
    """
    emit("progress", task=task, done=done, total=total, found=found, detail=detail)


def step(task: str = "", done: int = 0, total: int = 0) -> None:
    """Reports one of the many small steps of a localizer, an editor or of decoding.

    Logs and lines of progress pass over these events.  A listener that raises an exception ends the computation here.

    Args:
        task: the name of the steps, such as `steps of v*`; empty if nobody counts them.
        done: how many are done.
        total: how many there are at most.
    """
    emit(STEP, task=task, done=done, total=total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Calls `listener` with every event that is emitted inside the block.

    `with loc_edit.listening(loc_edit.ProgressLines()): experiment.run()` prints lines of progress.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class ProgressBars:
    """Shows a bar for each task that takes more than a second: a widget in a notebook, else a line (tqdm).

    The steps of a single trace or edit have a bar too, which goes away at its end, as long as no larger task has one.
    In a notebook this listens by itself as long as nothing else does.
    """

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Moves the bar of the event's task forward, and closes it at the end."""
        if event.name not in ("progress", STEP) or not event.fields["total"]:
            return
        task, done, total = event.fields["task"], event.fields["done"], event.fields["total"]
        lasting = event.name == "progress"
        if not lasting and any(bar.leave for bar in self._bars.values()):
            return
        self.close([name for name, bar in self._bars.items() if not bar.leave and name != task])
        if task in self._bars and done < self._bars[task].n:  # it was interrupted, and begins again
            self.close([task])
        if task not in self._bars:
            from tqdm.auto import tqdm  # a tenth of a second, and only where there is something to show

            found = event.fields["found"] if lasting else 0
            self._bars[task] = tqdm(desc=task, total=total, initial=found, delay=1, leave=lasting)
        bar = self._bars[task]
        bar.set_postfix_str(event.fields.get("detail", ""), refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            self.close([task])

    def close(self, tasks: Iterable[str] | None = None) -> None:
        """Closes the bars of these tasks, by default of all: steps may stop early, and a task may be interrupted."""
        for task in list(self._bars if tasks is None else tasks):
            self._bars.pop(task).close()


@cache
def _bars_of_notebook() -> Sequence[Listener]:
    """Bars, where the package was imported in a notebook; else nobody."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not hasattr(shell, "kernel"):
        return []
    bars = ProgressBars()
    shell.events.register("post_run_cell", lambda result: bars.close())
    return [bars]


@dataclass
class _Clock:
    """The times of a task that is running: how much was done at its start, its start, its last line, the next pause."""

    first: int
    start: float
    last: float
    pause: float = FIRST_PAUSE


class ProgressLines:
    """Prints a line of progress now and then: for logs, notebooks and everything else that is not a terminal.

    Args:
        say: a function that prints one line.
    """

    def __init__(self, say: Callable[[str], object] = print) -> None:
        self.say = say
        self._clocks: dict[str, _Clock] = {}

    def __call__(self, event: Event) -> None:
        """Prints how much is done, how fast it goes and how long the rest will take, if it is time for a line."""
        if event.name != "progress":
            return
        task, done, total = event.fields["task"], event.fields["done"], event.fields["total"]
        now, begins = time.monotonic(), task not in self._clocks
        clock = self._clocks.setdefault(task, _Clock(done, now, now))
        if done >= total:
            del self._clocks[task]
        if begins and done and done == event.fields["found"]:
            self.say(f"{done:,} of {total:,} {task} found on disk")
            return
        if done < total and now - clock.last < clock.pause:
            return
        clock.last, clock.pause = now, min(2 * clock.pause, LONGEST_PAUSE)
        rate = (done - clock.first) / max(now - clock.start, 1e-9)
        pace = f", {rate:.2g} a second, {duration((total - done) / rate)} to go" if rate > 0 and done < total else ""
        detail = f": {event.fields['detail']}" if event.fields["detail"] else ""
        self.say(f"{done:,} of {total:,} {task} after {duration(now - clock.start)}{pace}{detail}")


def duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `12 min`, `3.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
