"""A layer's weight matrices, and how long one position takes in each of them when `torch.mm` is at its best."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformer_lens import HookedTransformer

from benching.timing import Clock

ROWS = tuple(2**n for n in range(4, 13))
"""Numbers of rows that are tried: 16 to 4,096."""
LONGEST = 0.5
"""Seconds of one product from which on no larger number of rows is tried."""
LARGEST = 2**28
"""Bytes of a product's result from which on no larger number of rows is tried."""
LONG_ENOUGH = 4e-3
"""Seconds that the clock can measure well; shorter products are repeated."""


def matrices(model: HookedTransformer, layer: int) -> dict[str, Tensor]:
    """The weights of one layer and the unembedding by name, each `[in, out]`; `gate` only where the MLP is gated."""
    attn, mlp = model.blocks[layer].attn, model.blocks[layer].mlp
    keys, values = (getattr(attn, f"_W_{name}", getattr(attn, f"W_{name}")) for name in "KV")  # grouped heads, or all
    weights = {
        "q": rearrange(attn.W_Q, "head d d_head -> d (head d_head)"),
        "k": rearrange(keys, "head d d_head -> d (head d_head)"),
        "v": rearrange(values, "head d d_head -> d (head d_head)"),
        "o": rearrange(attn.W_O, "head d_head d -> (head d_head) d"),
        "up": mlp.W_in,
        "down": mlp.W_out,
        "unembed": model.unembed.W_U,
    }
    return weights | ({"gate": mlp.W_gate} if model.cfg.gated_mlp else {})


class Products:
    """The best throughput of `torch.mm` on each matrix of one layer, over numbers of rows and both memory layouts.

    Attributes:
        flops: by matrix, of one row: two for each weight.
        best: by matrix, the number of rows and the layout (whether its columns are contiguous) that are the fastest.
        throughput: by matrix, FLOPs per second when `best` was found.
    """

    def __init__(self, model: HookedTransformer, clock: Clock) -> None:
        self.clock, self.flops, self.best, self.throughput = clock, {}, {}, {}
        self._runs: dict[str, Callable[[], object]] = {}
        for name, weight in matrices(model, model.cfg.n_layers // 2).items():
            self.flops[name] = 2 * weight.numel()
            self._choose(name, weight.detach())

    def seconds(self) -> dict[str, float]:
        """Seconds of one row by matrix, measured now at the best number of rows."""
        return {name: self._least(run) / self.best[name][0] for name, run in self._runs.items()}

    def total(self, count: "Counter[str]") -> float:
        """The FLOPs of a count of rows by matrix."""
        return sum(n * self.flops.get(name, 0) for name, n in count.items())

    def _choose(self, name: str, weight: Tensor) -> None:
        fastest = 0.0
        for transposed in (False, True):
            laid_out = weight.T.contiguous().T if transposed else weight.contiguous()
            for rows in ROWS:
                if rows > ROWS[0] and rows * weight.shape[1] * weight.element_size() > LARGEST:
                    break
                run = _product(laid_out, rows)
                taken = self._least(run)
                speed = rows * self.flops[name] / taken
                if speed > fastest:
                    fastest, self.best[name], self._runs[name] = speed, (rows, transposed), run
                if taken > LONGEST:
                    break
        self.throughput[name] = fastest

    def _least(self, run: Callable[[], object], repeats: int = 4) -> float:
        """The least seconds of one call."""
        start = time.perf_counter()
        once = self.clock.seconds(run)
        n = max(1, int(LONG_ENOUGH / max(once, 1e-7)))
        if n == 1 and time.perf_counter() - start > LONGEST / 2:
            repeats = 1
        return min(once, *(self.clock.seconds(lambda: [run() for _ in range(n)]) / n for _ in range(repeats)))


def _product(weight: Tensor, rows: int) -> Callable[[], Any]:
    with torch.inference_mode():
        x = torch.randn(rows, weight.shape[0], device=weight.device).to(weight.dtype)
        out = x.new_empty(rows, weight.shape[1])

    def run() -> None:
        with torch.inference_mode():
            torch.mm(x, weight, out=out)

    return run


def floor_seconds(count: "Counter[str]", seconds: dict[str, float]) -> float:
    """The seconds of a count of rows by matrix; matrices that the model does not have cost nothing."""
    return sum(n * seconds.get(name, 0.0) for name, n in count.items())
