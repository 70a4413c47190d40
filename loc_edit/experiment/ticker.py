"""What is told of a run while it is at work: to a progress bar, and to the run's log."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loc_edit.experiment.run_log import event
from loc_edit.experiment.worker import Outcome

Progress = Callable[[str, int, int], None]
"""Called with a few words, the number of units done, and the number of units in all."""


class Ticker:
    """Counts units, and tells of each.

    Args:
        progress: told too, if given.
        total: units of the experiment.
        found: of which so many are on disk from before.
    """

    def __init__(self, progress: Progress | None, total: int, found: int) -> None:
        self.progress, self.total, self.found = progress, total, found
        self.done, self.working = found, 0.0
        self._start = time.monotonic()

    @contextmanager
    def told(self, **about: Any) -> Iterator[None]:
        """Within, the run is at work: its log has a line when it starts, and one when and how it ends."""
        event("start", units=self.total, found=self.found, **about)
        if self.found and self.progress:
            self.progress("found on disk", self.found, self.total)
        try:
            yield
        except GeneratorExit:
            self._end("left")
            raise
        except KeyboardInterrupt:
            self._end("stopped")
            raise
        except BaseException as error:
            self._end("failed", reason=f"{type(error).__name__}: {error}")
            raise
        self._end("finished")

    def unit(self, words: str, chunk: str, outcome: Outcome) -> None:
        """A unit is on disk."""
        self.done += 1
        self.working += outcome.seconds
        for name, level, message in outcome.said:
            logging.getLogger(name).log(level, "%s", message)
        failed = [] if hasattr(outcome.rows, "columns") else [r for r in outcome.rows if r["status"] == "failed"]
        event(
            "unit",
            what=words,
            chunk=chunk,
            rows=len(outcome.rows),
            failed=len(failed) or None,
            reason=str(failed[0]["reason"]) if failed else None,
            seconds=round(outcome.seconds, 4),
            done=self.done,
            to_go=self._to_go(),
        )
        if self.progress:
            self.progress(words, self.done, self.total)

    def _to_go(self) -> float:
        """Seconds until the end at the rate so far."""
        elapsed, computed = time.monotonic() - self._start, self.done - self.found
        return round(elapsed / computed * (self.total - self.done), 1)

    def _end(self, how: str, **about: Any) -> None:
        elapsed, computed = time.monotonic() - self._start, self.done - self.found
        event(
            "end",
            how=how,
            done=self.done,
            units=self.total,
            computed=computed,
            seconds=round(elapsed, 3),
            working=round(self.working, 3),
            units_per_second=round(computed / elapsed, 4) if elapsed else None,
            **about,
        )
