"""How far C^-1 k is from what it comes to, seen at shares of the sample, for some keys of the corpus."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.keys.moments import BadKeyStats, rounding, spectrum

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the sample at which one looks."""
LARGE = 4096
"""d_mlp beyond which only half and full sample are looked at."""
EXACT = 1024
"""d_mlp up to which all eigenvalues are computed; beyond, the outermost ones are estimated in a second."""
N_KEYS = 16
ITERATIONS = 12


class Probes:
    """Keeps C^-1 k of a few keys per layer at shares of the sample.

    The keys are spread evenly over those of the first batch.
    """

    def __init__(self, size: int, products: torch.dtype) -> None:
        self.products = products
        self.marks: tuple[float, ...] = SHARES if size <= LARGE else SHARES[-2:]
        self.shares: list[dict[str, int | float]] = []
        self._keys: dict[int, Tensor] = {}
        self._solved: dict[str, Tensor] = {}

    def keep(self, layer: int, keys: Float[Tensor, "row d_mlp"]) -> None:
        """Choose a layer's keys among those of the first batch; later batches change nothing."""
        if layer not in self._keys:
            chosen = torch.linspace(0, len(keys) - 1, min(N_KEYS, len(keys)), dtype=torch.float64).round().long()
            self._keys[layer] = keys[chosen.to(keys.device)].double().cpu()

    def look(self, sums: Mapping[int, Tensor], before: int, seen: int, total: int) -> None:
        """Solve, where the last batch, which brought the tokens from `before` to `seen`, reached a share.

        Raises:
            BadKeyStats: a key was not finite; better now than after the last one.
        """
        if not any(before < mark * total <= seen for mark in self.marks):
            return
        for layer, summed in sums.items():
            moment = summed / seen
            if not torch.isfinite(moment).all():
                raise BadKeyStats(f"layer {layer}: a key is not finite; load the model in float32")
            factor, failed = torch.linalg.cholesky_ex(moment)
            if len(moment) <= EXACT:
                found: tuple[int | float, float] = spectrum(moment, self.products)
            else:
                found = _estimate(moment, None if failed else factor, self.products)
            self.shares.append({"layer": layer, "tokens": seen, "rank": found[0], "condition": found[1]})
            keys = self._keys[layer].T.to(moment.device)
            solved = torch.full_like(keys, float("nan")) if failed else torch.cholesky_solve(keys, factor)
            self._solved[f"solved.{layer}.{seen}"] = solved.cpu().contiguous()

    def convergence(self) -> tuple[dict[str, int | float], ...]:
        """Rows of `KeyStats.convergence`: each share's solutions against those of the whole sample."""
        if not self.shares:
            return ()
        whole = max(row["tokens"] for row in self.shares)
        rows = []
        for row in self.shares:
            now = self._solved[f"solved.{row['layer']}.{row['tokens']}"]
            last = self._solved[f"solved.{row['layer']}.{whole}"]
            change = ((now - last).norm(dim=0) / last.norm(dim=0)).mean().item()
            cosine = torch.nn.functional.cosine_similarity(now, last, dim=0).mean().item()
            rows.append({**row, "change": change, "cosine": cosine})
        return tuple(sorted(rows, key=lambda row: (row["layer"], row["tokens"])))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, beside `shares`."""
        return {f"key.{layer}": keys for layer, keys in self._keys.items()} | self._solved

    def restore(self, file: Any, shares: list[dict[str, int | float]]) -> None:
        """Take over the keys and solutions of an open checkpoint."""
        names = list(file.keys())
        self.shares = shares
        self._keys = {int(n.removeprefix("key.")): file.get_tensor(n) for n in names if n.startswith("key.")}
        self._solved = {n: file.get_tensor(n) for n in names if n.startswith("solved.")}


def _estimate(
    moment: Float[Tensor, "d_mlp d_mlp"], factor: Float[Tensor, "d_mlp d_mlp"] | None, products: torch.dtype
) -> tuple[int | float, float]:
    """Rank and condition number by subspace iteration: the condition number from below, to some percent.

    The rank is d_mlp where C has a Cholesky factor and its smallest eigenvalue is more than rounding, else unknown
    (NaN).
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
