"""Files that are written whole or not at all, and the disk's errors in words."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"

_ADVICE = {
    errno.ENOSPC: "free some space and run it again",
    errno.EDQUOT: "your quota is used up: free some space and run it again",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}


class StoreError(OSError):
    """The disk refused; the message names the file, `errno` says why, and finished rows are kept."""


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an `OSError` inside the block into a `StoreError` that says what was being done to which file."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        number = error.errno or 0
        why = os.strerror(number) if number else str(error)
        advice = _ADVICE.get(number, "mend that and run it again")
        wrapped = StoreError(f"cannot {doing} {path}: {why}. All rows finished before are kept; {advice}.")
        wrapped.errno = error.errno
        raise wrapped from error


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that at every moment, kill or power cut, `path` is its old self or whole.

    The bytes go to a temporary file in the same folder, are forced to the disk, and are then renamed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    with disk_errors("write", path):
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Forces the folder's list of names to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network disks cannot; the rename still holds
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Removes what killed writers left half-written; only for the holder of the run's lock."""
    with disk_errors("clean", folder):
        for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)
