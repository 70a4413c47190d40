"""The log of a run: what happened when, one JSON object a line, appended to at every start."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loc_edit.store.settings import plain

LOG = "log.jsonl"

_events = logging.getLogger("loc_edit.journal")
"""For events; its records go to the run's file alone, as nobody wants them on the screen."""
_events.propagate = False


def event(name: str, **about: Any) -> None:
    """Note an event in the log of the run that is at work; nothing happens where there is none."""
    _events.info(name, extra={"about": about})


@contextmanager
def journal(folder: Path) -> Iterator[None]:
    """Within, events and the package's warnings are appended to the run's `log.jsonl`.

    Every line has `time` (UTC), `elapsed` (seconds since this start, by a clock that does not jump) and `event`;
    warnings are events of the name `warning`, with `logger` and `message`.  A log that cannot be written stops nothing.
    """
    package = logging.getLogger("loc_edit")
    try:
        handler = _Handler(folder / LOG, encoding="utf-8")
    except OSError as error:
        package.warning("no log is written: %s", error)
        yield
        return
    warnings = logging.Filter()
    warnings.filter = lambda record: record.levelno >= logging.WARNING or record.name == _events.name  # type: ignore[method-assign]
    handler.addFilter(warnings)
    handler.setFormatter(_Lines())
    package.addHandler(handler)
    _events.addHandler(handler)
    level = _events.level
    _events.setLevel(logging.INFO)
    try:
        yield
    finally:
        _events.setLevel(level)
        _events.removeHandler(handler)
        package.removeHandler(handler)
        handler.close()


class _Handler(logging.FileHandler):
    """Says once that the disk refuses, and is silent then: the rows' own writing stops the run."""

    refused = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.refused:
            self.refused = True
            logging.getLogger("loc_edit.store").warning("the run's log cannot be written")


class _Lines(logging.Formatter):
    """Records as JSON objects."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.monotonic()

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "elapsed": round(time.monotonic() - self._start, 3),
        }
        if record.name == _events.name:
            line |= {"event": record.getMessage(), **plain(getattr(record, "about", {}))}
        else:
            level = record.levelname.lower()
            line |= {"event": level, "logger": record.name, "message": record.getMessage()}
        return json.dumps(line, ensure_ascii=False)
