"""Writes a safetensors file one tensor at a time, so that memory for the largest tensor is enough."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from loc_edit.files import remove_temporaries, writing

STALE = 600.0
"""Seconds without a write after which the process that wrote a temporary file must have been killed."""
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_tensors(
    path: Path,
    kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Writes tensors to `path`, whole or not at all; each is made, written and dropped before the next.

    (`safetensors.torch.save_file` needs all of them at once: 30 GB for GPT-J.)  The format is eight bytes with the
    header's length, the header as JSON, and the bytes of the tensors in the header's order.

    Args:
        path: the file; its old content stays until the new content is on the disk.
        kinds: the dtype and the shape of each tensor, by name.
        make: returns the tensor of a name.
        metadata: texts to store beside the tensors.

    Raises:
        StoreError: the disk refused.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, (dtype, shape) in kinds.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in kinds.items():
            tensor = make(name).detach().to("cpu", dtype).contiguous()
            assert tensor.shape == shape, f"{name}: expected shape {shape}, got {tuple(tensor.shape)}"
            tensor.reshape(-1).view(torch.uint8).numpy().tofile(file)


def remove_stale(path: Path) -> None:
    """Removes temporary files that killed writers of `path` left behind, where the disk allows it."""
    with suppress(OSError):
        remove_temporaries(path.parent, path.name, older_than=STALE)
