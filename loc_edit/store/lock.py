"""Lets one process at a time write to a run folder.

The system keeps the lock (`filelock`), so it ends with its process, however the process ends, and the locked file stays
where it is.  Some versions of `filelock` empty the file that they lock: the writer's name is in a file beside it.
"""

import errno
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from loc_edit.files import disk_errors, write_atomic
from loc_edit.store.layout import LOCK, WRITER

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds for which a writer that starts waits for the lock: `lock_holder` has it for an instant."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class RunLocked(ValueError):
    """Another writer has the run folder; the message names the folder and the writer."""


class FolderLock:
    """Holds the lock of `folder` from construction to `release` or the end of the process.

    A forked child does not hold it, whatever becomes of its parent.  On a disk without file locks a warning is logged
    and the run goes on.

    Raises:
        RunLocked: another writer, in this process or another, holds the lock.
        StoreError: the disk refused.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK, timeout=PATIENCE, thread_local=False, fallback_to_soft=False)
        with disk_errors("lock", folder):
            try:
                self._lock.acquire()
            except Timeout:
                writer = _writer(folder)
                here = ", this one: close its Run first" if writer == _this_process() else ""
                raise RunLocked(
                    f"{folder} is in use by another writer ({writer}{here}); "
                    "wait for it to end, or choose another folder"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                log.warning("%s: this disk has no file locks (%s); do not start a second writer on it", folder, error)
                return
        try:
            write_atomic(folder / WRITER, _this_process().encode())
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._lock.is_locked:
            with suppress(OSError):
                (self._folder / WRITER).unlink()
            self._lock.release()


def lock_holder(folder: Path) -> str | None:
    """Returns the name of the process that writes to the run in `folder` now, or `None` if there is none.

    The folder need not be writable.  To find out, this function shares the lock for an instant with all others who ask;
    a writer that starts at that instant waits.
    """
    if fcntl is None:
        return "unknown: this system does not tell who holds a lock"
    try:
        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _writer(folder)
    except OSError as error:
        return f"unknown: the lock cannot be read ({error.strerror})"
    return None


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _writer(folder: Path) -> str:
    try:
        return (folder / WRITER).read_text(encoding="utf-8")
    except OSError:
        return "unknown"
