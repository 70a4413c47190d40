"""Shows whether the sample is large enough: solves C^-1 k for a few keys at growing shares of the sample."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.keys.disk import TensorFile
from loc_edit.keys.moments import BadKeyStats
from loc_edit.keys.spectrum import rounding, spectrum

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the sample at which C^-1 k is solved."""
LARGE = 4096
"""d_mlp beyond which C^-1 k is solved at the last two shares only."""
EXACT = 1024
"""d_mlp up to which all eigenvalues are computed; beyond, the outermost ones are estimated in a second."""
N_KEYS = 16
ITERATIONS = 12


class ConvergenceSamples:
    """A few keys of each layer, and C^-1 k for each of them at shares of the sample.

    The keys are spread evenly over the first batch.

    Args:
        size: d_mlp.
        products: the dtype of the products k k^T.
    """

    def __init__(self, size: int, products: torch.dtype) -> None:
        self.products = products
        self.marks: tuple[float, ...] = SHARES if size <= LARGE else SHARES[-2:]
        self.shares: list[dict[str, int | float]] = []
        self._keys: dict[int, Tensor] = {}
        self._solved: dict[str, Tensor] = {}

    def keep(self, layer: int, keys: Float[Tensor, "row d_mlp"]) -> None:
        """Chooses a layer's keys from the first batch; later batches change nothing."""
        if layer not in self._keys:
            chosen = torch.linspace(0, len(keys) - 1, min(N_KEYS, len(keys)), dtype=torch.float64).round().long()
            self._keys[layer] = keys[chosen.to(keys.device)].double().cpu()

    def solve(self, sums: Mapping[int, Tensor], before: int, seen: int, total: int) -> None:
        """Solves C^-1 k for the kept keys if the last batch reached one of the shares.

        Args:
            sums: the sums of k k^T by layer.
            before: tokens in the sums before the last batch.
            seen: tokens in the sums now.
            total: tokens of the whole sample.

        Raises:
            BadKeyStats: a key was not finite; it is better to say so now than after the last batch.
        """
        if not any(before < mark * total <= seen for mark in self.marks):
            return
        for layer, summed in sums.items():
            moment = summed / seen
            if not torch.isfinite(moment).all():
                raise BadKeyStats(f"layer {layer}: a key is not finite; load the model in float32")
            factor, failed = torch.linalg.cholesky_ex(moment)
            rank: float
            if len(moment) <= EXACT:
                rank, condition = spectrum(moment, self.products)
            else:
                rank, condition = _estimate(moment, None if failed else factor, self.products)
            self.shares.append({"layer": layer, "tokens": seen, "rank": rank, "condition": condition})
            keys = self._keys[layer].T.to(moment.device)
            solved = torch.full_like(keys, float("nan")) if failed else torch.cholesky_solve(keys, factor)
            self._solved[f"solved.{layer}.{seen}"] = solved.cpu().contiguous()

    def rows(self) -> tuple[dict[str, int | float], ...]:
        """Returns the rows of `KeyStats.convergence`: each share's solutions compared with the whole sample's."""
        whole = max((row["tokens"] for row in self.shares), default=0)
        rows = []
        for row in self.shares:
            now, last = (self._solved[f"solved.{row['layer']}.{tokens}"] for tokens in (row["tokens"], whole))
            change = ((now - last).norm(dim=0) / last.norm(dim=0)).mean().item()
            cosine = torch.nn.functional.cosine_similarity(now, last, dim=0).mean().item()
            rows.append({**row, "change": change, "cosine": cosine})
        return tuple(sorted(rows, key=lambda row: (row["layer"], row["tokens"])))

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that a checkpoint must hold, beside `shares`."""
        return {f"key.{layer}": keys for layer, keys in self._keys.items()} | self._solved

    def restore(self, file: TensorFile, shares: list[dict[str, int | float]]) -> None:
        """Takes over the keys and solutions of an open checkpoint.

        Args:
            file: the checkpoint.
            shares: `shares` as it was when the checkpoint was written.
        """
        self.shares = shares
        self._keys = {int(name.removeprefix("key.")): file.read(name) for name in file.names if name.startswith("key.")}
        self._solved = {name: file.read(name) for name in file.names if name.startswith("solved.")}


def _estimate(
    moment: Float[Tensor, "d_mlp d_mlp"], factor: Float[Tensor, "d_mlp d_mlp"] | None, products: torch.dtype
) -> tuple[float, float]:
    """Returns the rank and the condition number by subspace iteration; the latter is too low by some percent at most.

    The rank is d_mlp if C has a Cholesky factor and its smallest eigenvalue is larger than rounding explains;
    otherwise it is unknown (NaN).
    """
    if factor is None:
        return float("nan"), float("inf")
    outermost = []
    for step in (lambda x: moment @ x, lambda x: torch.cholesky_solve(x, factor)):
        draws = torch.Generator().manual_seed(0)
        basis = torch.randn(len(moment), N_KEYS, generator=draws, dtype=torch.float64).to(moment.device)
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(step(basis))[0]
        outermost.append(torch.linalg.eigvalsh(basis.T @ step(basis))[-1].item())
    full = 1 / outermost[1] > rounding(len(moment), products) * moment.norm().item()
    return float(len(moment)) if full else float("nan"), outermost[0] * outermost[1]
