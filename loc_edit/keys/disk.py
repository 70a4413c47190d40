"""Tensors written to a safetensors file one at a time: memory for one is enough, whatever the file's size."""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

STALE = 600.0
"""Seconds without a write after which a temporary file is a killed writer's."""
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_tensors(
    path: str | Path,
    kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors to `path`, whole or not at all; each is made, written and let go before the next.

    (`safetensors.torch.save_file` wants all of them at once: 30 GB for GPT-J.)  The format is eight bytes with the
    header's length, the header as JSON, and the bytes of the tensors in the header's order.

    Args:
        path: the file; what was there before stays until the new one is on the disk.
        kinds: dtype and shape of each tensor by name.
        make: the tensor of a name.
        metadata: texts to keep beside them.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, (dtype, shape) in kinds.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, (dtype, shape) in kinds.items():
                tensor = make(name).detach().to("cpu", dtype).contiguous()
                assert tensor.shape == shape, f"{name}: {tuple(tensor.shape)} is not {shape}"
                tensor.reshape(-1).view(torch.uint8).numpy().tofile(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def remove_stale(path: Path) -> None:
    """Remove what killed writers of `path` left half-written."""
    with suppress(OSError):
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink(missing_ok=True)
