"""One writer per run folder, by an advisory lock that ends with its process."""

import logging
import os
import socket
import time
import weakref
from pathlib import Path

from loc_edit.files import disk_errors

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"


class RunLocked(ValueError):
    """Another writer has the run folder; the message names the folder and the writer."""


class FolderLock:
    """Holds the lock of `folder` from construction to `release` or the end of the process.

    The kernel keeps the lock (`flock`), so a killed writer leaves none behind, and the file itself is never
    removed.  Where the system or the disk knows no such locks, a warning is logged and the run goes on.

    Raises:
        RunLocked: another writer, in this process or another, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        path = folder / LOCK_NAME
        with disk_errors("open", path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        _live.add(self)
        try:
            self._acquire(folder)
        except BaseException:
            self.release()
            raise

    def _acquire(self, folder: Path) -> None:
        assert self._descriptor is not None
        if fcntl is None:
            log.warning("%s: no file locks on this system; do not start a second writer on it", folder)
            return
        try:
            _take(self._descriptor)
        except BlockingIOError:
            owner = os.read(self._descriptor, 200).decode(errors="replace").strip() or "unknown"
            here = ", this one: close its Run first" if owner == _name_of_this_process() else ""
            raise RunLocked(
                f"{folder} is in use by another writer ({owner}{here}); wait for it to end, or choose another folder"
            ) from None
        except OSError as error:
            log.warning("%s: this disk has no file locks (%s); do not start a second writer on it", folder, error)
            return
        with disk_errors("write", folder / LOCK_NAME):
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, _name_of_this_process().encode())

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()


def lock_holder(folder: Path) -> str | None:
    """Who writes to the run in `folder` now, in words; `None` if nobody does.

    It takes the lock for an instant to tell, shared with others who ask; nothing in the folder is changed.
    """
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unknown: the lock cannot be read ({error.strerror})"
    try:
        if fcntl is None:
            return "unknown: no file locks on this system"
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
    except OSError as error:
        return f"unknown: no file locks on this disk ({error.strerror})"
    finally:
        os.close(descriptor)
    return None


def _take(descriptor: int) -> None:
    """Takes the lock, or says `BlockingIOError`; tried twice, as `lock_holder` has it for an instant."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.05)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _name_of_this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


_live: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _release_in_child() -> None:
    """Closes a forked worker's copy: a dead parent's lock must not live on; a living parent's does."""
    for lock in list(_live):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
