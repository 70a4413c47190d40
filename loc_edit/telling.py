"""Progress as lines of text: for logs, notebooks and whatever else is no terminal.  No torch here."""

import time
from collections.abc import Callable

FIRST = 2.0
"""Seconds until the first line; each pause is twice the one before."""
LONGEST = 60.0
"""Seconds of the longest pause."""


class ProgressLines:
    """Told of every unit, it says a line now and then, and one at the end: how much is done, how fast, how long still.

    `Experiment.run(progress=ProgressLines())`.

    Args:
        say: what takes a line.
    """

    def __init__(self, say: Callable[[str], object] = print) -> None:
        self.say = say
        self._pause, self._start = FIRST, time.monotonic()
        self._last, self._found = self._start, 0

    def __call__(self, words: str, done: int, total: int) -> None:
        """So many units of so many are done; the last was this."""
        now = time.monotonic()
        if words == "found on disk":
            self._found = done
        elif done < total and now - self._last < self._pause:
            return
        else:
            self._pause = min(2 * self._pause, LONGEST)
        self._last = now
        rate = (done - self._found) / max(now - self._start, 1e-9)
        pace = f", {rate:.2g} units a second, {duration((total - done) / rate)} to go" if rate and done < total else ""
        self.say(f"{done:,} of {total:,} units after {duration(now - self._start)}{pace}: {words}")


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
