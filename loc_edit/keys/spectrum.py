"""The rank and the condition number of a second moment, with regard to the rounding of its entries."""

import torch
from jaxtyping import Float
from torch import Tensor


def spectrum(moment: Float[Tensor, "d_mlp d_mlp"], entries: torch.dtype | None = None) -> tuple[int, float]:
    """Returns the rank and the condition number of a second moment, in float64; see `rounding`.

    Args:
        moment: C.
        entries: the dtype to which the entries of C were rounded, if it is not the dtype of `moment`.
    """
    eigenvalues = torch.linalg.eigvalsh(moment.double())
    rank = int((eigenvalues > rounding(len(moment), entries or moment.dtype) * eigenvalues.norm()).sum())
    return rank, (eigenvalues[-1] / eigenvalues[0]).abs().item()


def rounding(size: int, entries: torch.dtype) -> float:
    """Returns the share of C's Frobenius norm up to which an eigenvalue may be nothing but rounding.

    Independent rounding of the entries adds a random matrix of norm 0.6 eps ||C|| / sqrt(size); the threshold is
    several times as large.  The eigenvalue solver itself rounds in float64.
    """
    return float(max(4 * torch.finfo(entries).eps / size**0.5, torch.finfo(torch.float64).eps * size**0.5))
