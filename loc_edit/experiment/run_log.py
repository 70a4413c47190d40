"""The log of a run: what happened when, one JSON object per line, appended to at every start."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loc_edit.events import STEP, Event, emit, listening, progress
from loc_edit.experiment.worker import Computed
from loc_edit.store.layout import LOG
from loc_edit.store.settings import plain


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Within, events (but for progress) and the package's warnings are appended to the run's `log.jsonl`.

    Every line has `time` (UTC), `elapsed` (seconds since this start, by a clock that does not jump) and `event`;
    warnings are events of the name `warning`, with `logger` and `message`.  A log that cannot be written stops nothing.
    """
    package = logging.getLogger("loc_edit")
    try:
        handler = _LogFile(folder / LOG, encoding="utf-8")
    except OSError as error:
        package.warning("no log is written: %s", error)
        yield
        return
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Lines())
    package.addHandler(handler)
    try:
        with listening(handler.write_event):
            yield
    finally:
        package.removeHandler(handler)
        handler.close()


class _LogFile(logging.FileHandler):
    """Says once that the disk refuses, and is silent then: the rows' own writing stops the run."""

    refused = False

    def write_event(self, event: Event) -> None:
        """Append an event of the run."""
        if event.name not in ("progress", STEP):
            record = logging.LogRecord("loc_edit.events", logging.INFO, "", 0, event.name, None, None)
            record.fields = event.fields
            self.handle(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.refused:
            self.refused = True
            logging.getLogger("loc_edit.experiment").warning("the run's log cannot be written")


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
        if hasattr(record, "fields"):
            line |= {"event": record.getMessage(), **plain(record.fields)}
        else:
            line |= {"event": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        return json.dumps(line, ensure_ascii=False)


class Tally:
    """Counts the shards of a run as they are written, and emits an event for each.

    Args:
        total: shards of the experiment.
        found: how many of them were on disk before.
    """

    def __init__(self, total: int, found: int) -> None:
        self.total, self.found = total, found
        self.done, self.working_seconds = found, 0.0
        self._start = time.monotonic()

    @contextmanager
    def counting(self, **fields: Any) -> Iterator[None]:
        """Within, the run is at work: an event when it starts, and one when and how it ends."""
        emit("start", shards=self.total, found=self.found, **fields)
        if self.found:
            progress("shards", self.found, self.total, found=self.found)
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

    def count(self, cell: str, shard: str, computed: Computed) -> None:
        """A shard is on disk.

        Args:
            cell: what its rows are, in words.
            shard: its name.
            computed: its rows.
        """
        self.done += 1
        self.working_seconds += computed.seconds
        for message in computed.warnings:
            message.repeat()
        statuses = computed.rows.get("status")
        failed = computed.rows[:0] if statuses is None else computed.rows[statuses == "failed"]
        emit(
            "shard",
            cell=cell,
            shard=shard,
            rows=len(computed.rows),
            failed=len(failed) or None,
            reason=str(failed["reason"].iloc[0]) if len(failed) else None,
            seconds=round(computed.seconds, 4),
            done=self.done,
            to_go=self._seconds_to_go(),
        )
        progress("shards", self.done, self.total, found=self.found, detail=cell)

    def _seconds_to_go(self) -> float:
        """Seconds until the end at the rate so far."""
        elapsed, computed = time.monotonic() - self._start, self.done - self.found
        return round(elapsed / computed * (self.total - self.done), 1)

    def _end(self, how: str, **fields: Any) -> None:
        elapsed, computed = time.monotonic() - self._start, self.done - self.found
        emit(
            "end",
            how=how,
            done=self.done,
            shards=self.total,
            computed=computed,
            seconds=round(elapsed, 3),
            working=round(self.working_seconds, 3),
            shards_per_second=round(computed / elapsed, 4) if elapsed else None,
            **fields,
        )
