"""Compares stored second moments with their checksums; files of old versions, without any, must look like moments."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.files import Damaged
from loc_edit.keys.disk import TensorFile, kinds_of, write_tensors

SYMMETRY = 1e-4
"""The largest difference of C_ij and C_ji, as a share of the most that they can be, that rounding explains."""

log = logging.getLogger(__name__)


def check_moments(file: TensorFile, layers: Sequence[int]) -> None:
    """Reads the matrices of some layers, and so compares them with their checksums.

    A matrix without a checksum must look like a second moment: finite, symmetric and not zero, without a negative
    value on its diagonal.

    Raises:
        Damaged: a matrix is not what was written.
    """
    for layer in layers:
        moment = file.read(str(layer))
        if not file.checksums and (reason := _implausible(moment)):
            raise Damaged(f"{file.path} is damaged: the second moment of layer {layer} {reason}")


def _implausible(moment: Float[Tensor, "*any"]) -> str:
    """Why a matrix cannot be a second moment; empty if it can."""
    if not torch.isfinite(moment).all():
        return "has values that are not finite"
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        return f"has shape {list(moment.shape)}"
    if not (moment.diagonal() >= 0).all() or not moment.any():
        return "is zero, or has a negative value on its diagonal"
    lengths = moment.diagonal().sqrt()  # |C_ij| is at most the product of two of them
    if ((moment - moment.T).abs() > SYMMETRY * lengths[:, None] * lengths).any():
        return "is not symmetric"
    return ""


def record_checksums(path: Path) -> None:
    """Writes a file of an old version once more, with checksums; a file that has some stays as it is.

    Raises:
        Damaged: a matrix of any layer in the file is not what was written.
        StoreError: the disk refused.
    """
    file = TensorFile(path)
    if file.checksums:
        return
    check_moments(file, [int(name) for name in file.names])
    kinds = kinds_of((name, file.read(name)) for name in file.names)
    write_tensors(path, kinds, file.read, file.metadata)
    log.info("%s: its checksums are recorded from now on", path)
