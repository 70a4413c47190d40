"""A computation beside the page: it reports its steps, and stops at the next one when it is told to."""

import time
from collections.abc import Callable, Iterator
from threading import Event as Flag, Thread
from typing import Generic, TypeVar

from loc_edit.events import STEP, Event, duration, listening

T = TypeVar("T")
PAUSE = 0.25
"""Seconds between two looks at a job."""


class Cancelled(BaseException):
    """The reader stopped the computation.  Like KeyboardInterrupt, no handler of errors may take it for one."""


class Job(Generic[T]):
    """One computation in a thread of its own.

    Args:
        title: what it does, in words: `tracing`.
        work: the computation.
    """

    def __init__(self, title: str, work: Callable[[], T]) -> None:
        self.title, self.work = title, work
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._told = Flag()
        self._at = ""

    def cancel(self) -> None:
        """Stop at the next step; a finished job stays finished."""
        self._told.set()

    def progress(self) -> Iterator[str]:
        """Run the computation, and yield how far it is until it ends; if the iterator is closed, the job is cancelled.

        Raises:
            Cancelled: `cancel` was called.
            Exception: whatever the computation raised.
        """
        start, thread = time.monotonic(), Thread(target=self._run, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                yield f"{self.title} {self._at}({duration(time.monotonic() - start)})"
                thread.join(PAUSE)
        finally:
            self.cancel()
            thread.join()
        if self._errors:
            raise self._errors[0]

    @property
    def result(self) -> T:
        """What the computation returned, after `progress` has ended without an error."""
        return self._results[0]

    def _run(self) -> None:
        try:
            with listening(self._hear):
                self._results.append(self.work())
        except BaseException as error:  # it is raised where the job is watched
            self._errors.append(error)

    def _hear(self, event: Event) -> None:
        if self._told.is_set():
            raise Cancelled(self.title)
        if event.name in (STEP, "progress") and event.fields["total"]:
            self._at = f"{event.fields['done']:,} of {event.fields['total']:,} {event.fields['task']} "
