"""A second home of a run's files, at an S3-like address: for machines whose disks go when they do.

The folder on the disk stays the run: it has the lock, and files there appear by renames, which object stores do not
know.  Every file that is finished is copied to the address, as one upload.  A machine that starts on an empty folder
fetches what is there.  Shards are named by their content, so that copies of two machines can only add up.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loc_edit.files import StoreError, write_atomic
from loc_edit.store.folder import CONFIG
from loc_edit.store.shards import shard_names

log = logging.getLogger(__name__)

KINDS = ("traces", "edits")


class Mirror:
    """The files of a run at an address that fsspec knows: `s3://bucket/run`, `gs://...`, `file:///...`.

    Args:
        address: where; for S3 the package s3fs must be there, for others theirs.
        folder: the run's folder.

    Raises:
        ValueError: fsspec does not know the address, or its package is missing.
    """

    def __init__(self, address: str, folder: Path) -> None:
        from fsspec.core import url_to_fs

        try:
            self._files, root = url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise ValueError(f"mirror {address!r}: {error}") from error
        self.address, self.folder, self._root = address, folder, root.rstrip("/")
        self._failed: set[Path] = set()

    def fetch(self) -> int:
        """Bring what the folder lacks: missing shards, and all else where there is no run in it yet; how many files."""
        there = self._there()
        begun = (self.folder / CONFIG).exists()
        wanted = [name for name in there if self._is_shard(name) or not begun]
        wanted = [name for name in wanted if not (self.folder / name).exists()]
        for name in sorted(
            wanted, key=lambda name: name == CONFIG
        ):  # the configuration last: it makes the folder a run
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / name, self._asked("read", self._files.cat_file, f"{self._root}/{name}"))
        return len(wanted)

    def copy(self, path: Path) -> None:
        """Copy a finished file; where that fails, a warning is logged, and `finish` tries again."""
        try:
            self._put(path)
        except StoreError as error:
            if not self._failed:
                log.warning("%s; it is tried again at the end", error)
            self._failed.add(path)

    def finish(self) -> None:
        """Copy all that is not there, and the files that change.

        Raises:
            StoreError: the address refuses; the rows are in the folder, and the next start copies them.
        """
        there = set(self._there())
        for path in self._here():
            if not self._is_shard(self._name(path)) or self._name(path) not in there:
                self._put(path)
        self._failed.clear()

    def _put(self, path: Path) -> None:
        place = f"{self._root}/{self._name(path)}"
        self._asked("make folder for", self._files.makedirs, place.rpartition("/")[0], exist_ok=True)
        self._asked("write", self._files.pipe_file, place, path.read_bytes())

    def _there(self) -> list[str]:
        try:
            found = self._asked("list", self._files.find, self._root)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        return [str(name).removeprefix(f"{self._root}/") for name in found]

    def _here(self) -> Iterator[Path]:
        """The run's own files; tables and figures are made from them."""
        for kind in KINDS:
            for name in shard_names(self.folder / kind):
                yield self.folder / kind / name
        for place in (self.folder, self.folder / "history"):
            if place.is_dir():
                yield from (path for path in sorted(place.iterdir()) if path.is_file() and path.name[0] != ".")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    @staticmethod
    def _is_shard(name: str) -> bool:
        return name.partition("/")[0] in KINDS

    def _asked(self, doing: str, what: Any, place: str, *args: Any, **options: Any) -> Any:
        """Do something at the address; whatever it raises names the address."""
        try:
            return what(place, *args, **options)
        except Exception as error:  # every kind of store has errors of its own
            raise StoreError(f"mirror: cannot {doing} {place} of {self.address}: {error}") from error
