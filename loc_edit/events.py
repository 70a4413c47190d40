"""Progress and log events: whoever works emits them, and a progress bar or a run's log listens."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

FIRST_PAUSE = 2.0
"""Seconds until the first line of progress; each pause is twice the one before."""
LONGEST_PAUSE = 60.0
"""Seconds of the longest pause between two lines."""


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        name: `progress`, or an event of a run's log such as `start`, `shard` and `end`.
        fields: what is known about it, as plain values.
    """

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], object]

_listeners: list[Listener] = []


def emit(name: str, **fields: Any) -> None:
    """Tell everybody who listens; nothing happens if nobody does."""
    for listener in list(_listeners):
        listener(Event(name, fields))


def progress(task: str, done: int, total: int, *, found: int = 0, detail: str = "") -> None:
    """Tell how far a task is.

    Args:
        task: what is counted, such as `answers`, `tokens` or `cells`.
        done: how many are done, those found included.
        total: how many there are.
        found: how many were there before the task began, so that a listener can tell the speed.
        detail: what the last one was.
    """
    emit("progress", task=task, done=done, total=total, found=found, detail=detail)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside the block, `listener` is called with every event.

    `with loc_edit.listening(loc_edit.ProgressLines()): experiment.run()`.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class ProgressLines:
    """Prints a line of progress now and then: for logs, notebooks and whatever else is no terminal.

    Args:
        say: takes a line.
    """

    def __init__(self, say: Callable[[str], object] = print) -> None:
        self.say = say
        self._task = ""
        self._start = self._last = self._pause = 0.0

    def __call__(self, event: Event) -> None:
        """Print how much is done, how fast it goes and how long it will take, if it is time for a line."""
        if event.name != "progress":
            return
        task, done, total = event.fields["task"], event.fields["done"], event.fields["total"]
        found, detail, now = event.fields["found"], event.fields["detail"], time.monotonic()
        if task != self._task:
            self._task, self._start, self._last, self._pause = task, now, now, FIRST_PAUSE
            if done and done == found:
                self.say(f"{done:,} of {total:,} {task} found on disk")
                return
        if done < total and now - self._last < self._pause:
            return
        self._pause, self._last = min(2 * self._pause, LONGEST_PAUSE), now
        rate = (done - found) / max(now - self._start, 1e-9)
        pace = f", {rate:.2g} a second, {duration((total - done) / rate)} to go" if rate > 0 and done < total else ""
        last = f": {detail}" if detail else ""
        self.say(f"{done:,} of {total:,} {task} after {duration(now - self._start)}{pace}{last}")


def duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `12 min`, `3.1 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
