"""Safetensors files with checksums: written one tensor at a time, and checked whenever a tensor is read."""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loc_edit.files import Damaged, remove_temporaries, signed, unsigned, writing

STALE = 600.0
"""Seconds without a write after which the process that wrote a temporary file must have been killed."""
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
CHECKSUMS = "checksums"
"""The key in a file's metadata under which the checksum of each tensor stands, as JSON."""

Kinds = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""The dtype and the shape of each tensor, by name."""


class TensorFile:
    """A safetensors file, open for reading; every tensor is compared with its checksum whenever it is read.

    The file stays open, because a new file may take its name.

    Args:
        path: a file that `write_tensors` wrote, or that an old version wrote without checksums.

    Attributes:
        path: the file.
        metadata: the texts stored beside the tensors, without the checksums.
        names: the names of the tensors.
        checksums: by the tensor's name; empty in a file of an old version.

    Raises:
        Damaged: it is no safetensors file, or its header does not fit its checksum.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file: Any = safe_open(path, framework="pt")
            self.names = list(self._file.keys())
            self.metadata, fits = unsigned(self._file.metadata() or {})
            self.checksums: dict[str, str] = dict(json.loads(self.metadata.pop(CHECKSUMS, "{}")))
        except (SafetensorError, ValueError) as error:
            raise Damaged(f"{path} is damaged, or no safetensors file: {error}") from error
        if fits is False or set(self.checksums) != set(self.names if fits else ()):
            raise Damaged(f"{path} is damaged: its header does not fit its checksum")

    def read(self, name: str) -> Tensor:
        """Returns a tensor.

        Raises:
            Damaged: it cannot be read, or does not fit its checksum.
        """
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise Damaged(f"{self.path} is damaged: {name} cannot be read ({error})") from error
        if self.checksums and tensor_checksum(tensor) != self.checksums[name]:
            raise Damaged(f"{self.path} is damaged: {name} does not fit its checksum")
        return tensor


def tensor_checksum(tensor: Tensor) -> str:
    """A hash of a tensor's dtype, shape and bytes, 16 hexadecimal digits."""
    own = tensor.detach().cpu().contiguous()
    digest = sha256(f"{own.dtype} {list(own.shape)}".encode())
    digest.update(own.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def kinds_of(tensors: Iterable[tuple[str, Tensor]]) -> Kinds:
    """The dtype and the shape of tensors that come with their names; none of them is kept."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors}


def write_tensors(path: Path, kinds: Kinds, make: Callable[[str], Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors to `path`, whole or not at all; each is made, written and dropped before the next.

    (`safetensors.torch.save_file` needs all of them at once: 30 GB for GPT-J.)  The format is eight bytes with the
    header's length, the header as JSON, and the bytes of the tensors in the header's order.  The checksums of the
    tensors stand in the header, which is written once more, at the same length, when they are known.

    Args:
        path: the file; its old content stays until the new content is on the disk.
        kinds: the dtype and the shape of each tensor, by name.
        make: returns the tensor of a name.
        metadata: texts to store beside the tensors.

    Raises:
        StoreError: the disk refused.
    """
    checksums = dict.fromkeys(kinds, "0" * 16)
    with writing(path) as file:
        _write_header(file, kinds, checksums, metadata)
        for name, (dtype, shape) in kinds.items():
            tensor = make(name).detach().to("cpu", dtype).contiguous()
            assert tensor.shape == shape, f"{name}: expected shape {shape}, got {tuple(tensor.shape)}"
            tensor.reshape(-1).view(torch.uint8).numpy().tofile(file)
            checksums[name] = tensor_checksum(tensor)
        file.seek(0)
        _write_header(file, kinds, checksums, metadata)


def _write_header(file: BinaryIO, kinds: Kinds, checksums: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    header: dict[str, object] = {"__metadata__": signed({**metadata, CHECKSUMS: json.dumps(checksums)})}
    start = 0
    for name, (dtype, shape) in kinds.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def remove_stale(path: Path) -> None:
    """Removes temporary files that killed writers of `path` left behind, where the disk allows it."""
    with suppress(OSError):
        remove_temporaries(path.parent, path.name, older_than=STALE)
