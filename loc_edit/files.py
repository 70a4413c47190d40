"""Files: written whole or not at all, checked when read, the cache folder, names that stay in a folder, origins."""

import errno
import hashlib
import inspect
import json
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

DATA = Path(__file__).parent / "data"
"""The files that ship with the package."""

TEMPORARY_SUFFIX = ".tmp"

CHECKSUM = "checksum"
"""The key under which a file holds the checksum of its other values."""

ASIDE = ".corrupt"
"""The end of the names of files that were found damaged and set aside."""

_ADVICE = {
    errno.ENOSPC: "free some space and run it again",
    errno.EDQUOT: "your quota is used up: free some space and run it again",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
}


_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{kind}{n}" for kind in ("COM", "LPT") for n in range(1, 10))}
"""Names that Windows takes for a device in every folder, whatever their ending."""


class StoreError(OSError):
    """The disk refused an operation; the message names the file, and `errno` gives the reason."""


class Damaged(StoreError):
    """A file does not hold what was written to it; the message names it."""


def cache_folder(name: str, given: str | Path | None = None) -> Path:
    """The folder `name` in `given`, else in `LOC_EDIT_CACHE`, else in `~/.cache/loc_edit`; it may not exist yet."""
    return Path(given or os.environ.get("LOC_EDIT_CACHE") or Path.home() / ".cache" / "loc_edit") / name


def short_hash(data: bytes | str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of some bytes, or of a text in UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """The `short_hash` of a file's bytes; no more than a piece of them is in memory."""
    with disk_errors("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def signed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with their checksum: for a JSON or TOML file, a line of JSON, or the header of a safetensors file.

    The checksum is a `short_hash` of the values and not of the file, so comments and spaces may change.
    """
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    return {**rest, CHECKSUM: short_hash(json.dumps(rest, sort_keys=True, separators=(",", ":")))}


def unsigned(values: Any) -> tuple[dict[str, Any], bool | None]:
    """Values without their checksum, and whether it fits them; `None` if there is none, as in files of old versions.

    Raises:
        ValueError: the values, which come from a file, are no mapping.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected a JSON object, got {type(values).__name__}")
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    return rest, values[CHECKSUM] == signed(rest)[CHECKSUM] if CHECKSUM in values else None


def write_if_changed(path: Path, data: bytes) -> None:
    """Writes a file like `write_atomic`, unless it holds just these bytes."""
    if not (path.is_file() and path.read_bytes() == data):
        write_atomic(path, data)


def write_json(path: Path, values: Mapping[str, Any], indent: int | None = 1) -> None:
    """Writes values with their checksum as a JSON file, whole or not at all; a file that holds just that stays."""
    write_if_changed(path, (json.dumps(signed(values), indent=indent, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The values of a file that `write_json` wrote, or that an old version wrote without a checksum.

    Raises:
        Damaged: the file is no JSON object, or its values do not fit its checksum.
        FileNotFoundError: there is no such file.
    """
    try:
        values, fits = unsigned(json.loads(path.read_bytes()))
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    if fits is False:
        raise Damaged(f"{path} is damaged, or was edited: its values do not fit its checksum")
    return values


def signed_page(html: str) -> str:
    """An HTML page with its checksum in a comment at its end."""
    return f"{html}<!-- {CHECKSUM} {short_hash(html)} -->\n"


def page_fits(html: str) -> bool | None:
    """Whether the checksum at the end of a page fits the rest; `None` if there is none."""
    rest, mark, end = html.rpartition(f"<!-- {CHECKSUM} ")
    return end == f"{short_hash(rest)} -->\n" if mark else None


def set_aside(path: Path) -> None:
    """Renames a damaged file or folder to `_<name>.corrupt`, where nobody looks for data, and logs a warning."""
    new_path = path.with_name(f"_{path.name}{ASIDE}")
    with disk_errors("set aside", path), suppress(FileNotFoundError):
        if new_path.is_dir():
            shutil.rmtree(new_path)
        path.replace(new_path)
        log.warning("%s does not match its checksum: set aside as %s, to be computed again", path, new_path.name)


@dataclass(frozen=True)
class Origin:
    """The file, package or notebook that defines a plug-in.

    Attributes:
        name: for readers: the file, the package's module, or "a notebook".
        module: the name of the Python module.
        content: a hash of the file, or of all Python files of the package.
        path: of the file, if there is just one.
    """

    name: str
    module: str
    content: str
    path: str = ""

    @property
    def is_loaded(self) -> bool:
        """Whether the plug-in is there, and not just a run folder's description of it."""
        return bool(self.module)

    @property
    def can_be_sent(self) -> bool:
        """Whether another process can load it: not if it is defined in a notebook or in the program that runs."""
        return self.module != "__main__"


def origin_of(function: Callable[..., Any]) -> Origin | None:
    """Where a plug-in's function comes from; `None` for the package's own.

    For a package, the content is a hash of all its Python files; for a notebook, of the text of the function alone.
    """
    function = unwrapped(function)
    name = function.__module__
    top = name.partition(".")[0]
    if top == __name__.partition(".")[0]:
        return None
    if folders := list(getattr(sys.modules.get(top), "__path__", ())):
        files = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
        return Origin(name, name, short_hash(b"".join(short_hash(path.read_bytes()).encode() for path in files)))
    file = function.__globals__.get("__file__")
    if file is None:
        return Origin("a notebook", name, short_hash(inspect.getsource(function)))
    return Origin(str(file), name, short_hash(text_of(name, file)), str(file))


def text_of(module: str, file: str) -> str:
    """The text of a module of one file: as it was sent to this process, if it was, else as the file is now."""
    sent = getattr(getattr(sys.modules.get(module), "__loader__", None), "text", None)
    return sent.decode() if sent is not None else Path(file).read_text(encoding="utf-8")


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside partials and decorators."""
    return unwrapped(function.func) if isinstance(function, partial) else inspect.unwrap(function)


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
        wrapped = StoreError(f"cannot {doing} {path}: {why}. What was finished before is kept; {advice}.")
        wrapped.errno = error.errno
        raise wrapped from error


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else uses, for a file that is renamed to `path` once it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that replaces `path` when the block ends; if the block fails, `path` stays as it was.

    Even after a kill or a power cut, `path` is either the old file or the whole new one: the bytes go to a temporary
    file in the same folder, are forced to the disk, and then the file is renamed.

    Raises:
        StoreError: the disk refused to write.
    """
    temporary = temporary_name(path)
    with disk_errors("write", path):
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all: see `writing`."""
    with writing(path) as file:
        file.write(data)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A new folder that becomes `folder` when the block ends; if the block fails, there is neither.

    `folder` must not exist, and only one process may build it at a time: what a killed one has left is removed.
    """
    for left in folder.parent.glob(f".{folder.name}.*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = temporary_name(folder)
    with disk_errors("write", folder):
        try:
            temporary.mkdir()
            yield temporary
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Forces the folder's list of names to the disk, if the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot; the rename still holds
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, name: str = "", older_than: float = 0.0) -> None:
    """Removes the temporary files of writers that were killed.

    Args:
        folder: the folder to clean; give `older_than` if others may be writing there.
        name: the beginning of the names of the files that were being written; all files by default.
        older_than: the number of seconds since the last write; younger files stay.
    """
    with disk_errors("clean", folder):
        for path in folder.glob(f".{name}*{TEMPORARY_SUFFIX}"):
            with suppress(FileNotFoundError):
                if not older_than or time.time() - path.stat().st_mtime > older_than:
                    path.unlink(missing_ok=True)


def join_inside(folder: Path, name: str, *, links: bool = False) -> Path:
    """Returns the path of `name` in `folder`, where `name` comes from untrusted data.

    Args:
        folder: the folder.
        name: a relative path.
        links: whether links in the folder may lead outside.

    Raises:
        ValueError: the name is empty or absolute, contains `..`, NUL, a colon or the name of a device of
            Windows, or leads outside by a link.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    devices = [part for part in parts.parts if part.partition(".")[0].rstrip().upper() in _DEVICES]
    wrong = not parts.parts or parts.is_absolute() or ".." in parts.parts or devices
    if wrong or any(character in name for character in "\0:"):
        raise ValueError(f"file name {name!r}: expected a name inside {folder}")
    path = folder / parts
    if not links and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"file name {name!r} leads outside {folder}")
    return path
