"""The header of a GGUF file, read within the bounds of the file, so that sizes that lie cost nothing."""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import gguf

from loc_edit.models.checks import BadModel

_SCALARS = dict(zip(range(8), "BbHhIif?", strict=True)) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_KEPT = 2**20  # bytes of a text in the header; a chat template has some thousands


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself.

    Attributes:
        metadata: numbers and texts by name; an array is its length.
        shapes: by tensor, its shape, as torch orders it.
        types: by tensor, its type of number.
    """

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, gguf.GGMLQuantizationType]

    @property
    def architecture(self) -> str:
        """The architecture, as GGUF calls it."""
        return str(self.metadata.get("general.architecture"))

    @property
    def fields(self) -> dict[str, Any]:
        """The architecture's own metadata, such as `block_count`, by names without the architecture."""
        prefix = f"{self.architecture}."
        return {name.removeprefix(prefix): value for name, value in self.metadata.items() if name.startswith(prefix)}


def read_header(path: Path) -> Header:
    """Read a file's header, and check that every size in it fits into the file.

    Raises:
        BadModel: it does not begin as a GGUF file, ends too early, or claims sizes that cannot be.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            refuse_file(path, "expected a GGUF file, which begins with the letters GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()


class _Reader:
    """Reads a header from its beginning to its end; no step leaves the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4

    def header(self) -> Header:
        version, n_tensors, n_fields = self.numbers("<IQQ")
        if version not in (2, 3):
            big = " (or written on a big-endian machine)" if version % 2**16 == 0 else ""
            self.refuse(f"expected GGUF version 2 or 3, got {version}{big}")
        self.expect(n_fields, 13, "fields")
        metadata: dict[str, Any] = {}
        for _ in range(n_fields):
            name, (kind,) = self.text(), self.numbers("<I")
            if name in metadata:
                self.refuse(f"field {name} appears twice")
            metadata[name] = self.value(name, kind)
        self.expect(n_tensors, 24, "tensors")
        entries = {}
        for _ in range(n_tensors):
            name, (n_dims,) = self.text(), self.numbers("<I")
            if name in entries or not 1 <= n_dims <= 4:
                self.refuse(f"tensor {name} appears twice, or has {n_dims} dimensions")
            entries[name] = (self.numbers(f"<{n_dims}Q")[::-1], *self.numbers("<IQ"))
        return self.locate(metadata, entries)

    def locate(self, metadata: dict[str, Any], entries: dict[str, tuple[tuple[int, ...], int, int]]) -> Header:
        """The header, after a check that every tensor lies inside the file."""
        alignment = metadata.get("general.alignment", 32)
        if not (isinstance(alignment, int) and 0 < alignment <= 2**20 and alignment & (alignment - 1) == 0):
            self.refuse(f"expected an alignment that is a power of two, got {alignment}")
        start = -(-self.at // alignment) * alignment
        shapes, types = {}, {}
        for name, (shape, kind, offset) in entries.items():
            if kind not in gguf.GGML_QUANT_SIZES:
                self.refuse(f"tensor {name} is of type {kind}, which the installed gguf package does not know")
            types[name], shapes[name] = gguf.GGMLQuantizationType(kind), shape
            block, width = gguf.GGML_QUANT_SIZES[types[name]]
            if min(shape) < 1 or shape[-1] % block:
                self.refuse(f"tensor {name} has shape {list(shape)}, but {types[name].name} holds blocks of {block}")
            end = start + offset + prod(shape) // block * width
            if offset % alignment or end > len(self.data):
                self.refuse(
                    f"tensor {name} ends at byte {end:,} of a file of {len(self.data):,}: it is truncated or damaged"
                )
        return Header(metadata, shapes, types)

    def value(self, name: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self.numbers("<" + _SCALARS[kind])[0]
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            self.refuse(f"field {name} is of an unknown kind, {kind}")
        inner, count = self.numbers("<IQ")
        if inner in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[inner]))
        elif inner == _STRING:
            self.expect(count, 8, f"entries of {name}")
            for _ in range(count):
                self.skip(self.numbers("<Q")[0])
        else:
            self.refuse(f"field {name} is an array of an unsupported kind, {inner}")
        return count

    def text(self) -> str:
        (length,) = self.numbers("<Q")
        start = self.at
        self.skip(length)
        if length > _LONGEST_KEPT:
            self.refuse(f"it has a text of {length:,} bytes in its header")
        return self.data[start : self.at].decode(errors="replace")

    def numbers(self, form: str) -> tuple[Any, ...]:
        start = self.at
        self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self.data, start)

    def skip(self, length: int) -> None:
        if length > len(self.data) - self.at:
            self.refuse(
                f"its header goes on for {length:,} bytes at byte {self.at:,} of a file of {len(self.data):,}: "
                "it is truncated or damaged"
            )
        self.at += length

    def expect(self, count: int, least: int, things: str) -> None:
        """Refuse a count of things, of at least so many bytes each, that the file has no room for."""
        if count * least > len(self.data) - self.at:
            self.refuse(f"it claims {count:,} {things}, which do not fit into a file of {len(self.data):,} bytes")

    def refuse(self, reason: str) -> NoReturn:
        refuse_file(self.path, reason)


def refuse_file(path: Path, reason: str) -> NoReturn:
    """Refuse a file for a reason."""
    raise BadModel(f"model file {path}: {reason}")
