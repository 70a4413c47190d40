"""Copies the files of a run to an S3-like address: for machines that lose their disks when they are given back.

The folder on the disk stays the run: it has the lock, and files there appear by renames, which object stores do not
know.  Every finished file is copied to the address by one upload.  A machine that starts with an empty folder fetches
the files from there.  Shards are named by their content, so copies of two machines can only add rows.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loc_edit.files import StoreError, join_inside, write_atomic
from loc_edit.store.layout import CONFIG, HISTORY
from loc_edit.store.rows import KINDS
from loc_edit.store.shards import shard_names

log = logging.getLogger(__name__)


class Mirror:
    """The files of a run at an address that fsspec knows: `s3://bucket/run`, `gs://...`, `file:///...`.

    Args:
        address: the address; S3 needs the package s3fs, other stores need their own packages.
        folder: the run folder.

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
        self._warned = False

    def fetch(self) -> int:
        """Fetches missing shards and, if the folder holds no run yet, all other files; returns the number of files.

        Raises:
            StoreError: the address or the disk refused.
            ValueError: a name at the address would lead outside the folder.
        """
        new_run = not (self.folder / CONFIG).exists()
        names = [name for name in self._names() if new_run or self._is_shard(name)]
        paths = {name: join_inside(self.folder, name) for name in names}
        missing = [name for name, path in paths.items() if not path.exists()]
        for name in sorted(missing, key=CONFIG.__eq__):  # the configuration last: it makes the folder a run
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            write_atomic(paths[name], self._ask("read", self._files.cat_file, f"{self._root}/{name}"))
        return len(missing)

    def copy(self, path: Path) -> None:
        """Copies a finished file; if that fails, a warning is logged, and `finish` tries again."""
        try:
            self._put(path)
        except StoreError as error:
            if not self._warned:
                log.warning("%s; it is tried again at the end", error)
            self._warned = True

    def finish(self) -> None:
        """Copies all shards that the address lacks, and all files that are not shards, as these change.

        Raises:
            StoreError: the address refused; the rows are in the folder, and the next start copies them.
        """
        copied = set(self._names())
        for path in self._local_files():
            if not self._is_shard(self._name(path)) or self._name(path) not in copied:
                self._put(path)
        self._warned = False

    def _put(self, path: Path) -> None:
        place = f"{self._root}/{self._name(path)}"
        self._ask("make folder for", self._files.makedirs, place.rpartition("/")[0], exist_ok=True)
        self._ask("write", self._files.pipe_file, place, path.read_bytes())

    def _names(self) -> list[str]:
        """The names of the files at the address."""
        try:
            places = self._ask("list", self._files.find, self._root)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        return [str(place).removeprefix(f"{self._root}/") for place in places]

    def _local_files(self) -> Iterator[Path]:
        """The files of the run itself, without the tables and figures that are made from them."""
        for kind in KINDS:
            yield from (self.folder / kind / name for name in shard_names(self.folder / kind))
        for place in (self.folder, self.folder / HISTORY):
            if place.is_dir():
                yield from (path for path in sorted(place.iterdir()) if path.is_file() and path.name[0] != ".")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    @staticmethod
    def _is_shard(name: str) -> bool:
        return name.partition("/")[0] in KINDS

    def _ask(self, doing: str, action: Callable[..., Any], place: str, *args: Any, **options: Any) -> Any:
        """Does something at the address; the message of every error names the address."""
        try:
            return action(place, *args, **options)
        except Exception as error:  # every kind of store has errors of its own
            raise StoreError(f"mirror: cannot {doing} {place} of {self.address}: {error}") from error
