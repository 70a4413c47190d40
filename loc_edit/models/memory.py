"""Batch sizes that fit the memory: the one place that halves a batch when memory runs out."""

import logging
from collections.abc import Callable

import torch

from loc_edit.models.model import Model

log = logging.getLogger(__name__)

POSITIONS = 1024
"""Token positions in one call of a layer on the CPU: more do not stay in its cache."""
POSITIONS_ON_DEVICE = 2**15
KEPT_WIDTHS, KEPT_MLPS = 24, 8
"""What a layer keeps for its backward pass, a position, about: so many times d_model and d_mlp."""


class Budget:
    """How many token positions a layer is given in one call; halved where memory does not suffice.

    Attributes:
        positions: rows times their length.
    """

    def __init__(self, model: Model, positions: int | None = None, *, backward: bool = False) -> None:
        device, cfg = model.W_E.device, model.cfg
        self.positions = positions or (POSITIONS if device.type == "cpu" else POSITIONS_ON_DEVICE)
        if backward and device.type == "cuda":
            kept = cfg.n_layers * (KEPT_WIDTHS * cfg.d_model + KEPT_MLPS * (cfg.d_mlp or 0)) * cfg.dtype.itemsize
            self.positions = max(1, min(self.positions, torch.cuda.mem_get_info(device)[0] // kept))
        elif backward:
            self.positions *= 2

    def spend(self, n: int, cost: int, work: Callable[[slice], None], most: int | None = None) -> None:
        """Call `work` on slices that make up `range(n)`, each as long as the budget allows, at least 1.

        Args:
            n: number of items.
            cost: token positions that one of them takes.
            work: what to do with some; done again with fewer where memory does not suffice.
            most: the most items in one slice, whatever the budget.

        Raises:
            RuntimeError: memory does not suffice for one item.
        """
        done = 0
        while done < n:
            some = min(max(1, self.positions // cost), most or n)
            try:
                work(slice(done, min(n, done + some)))
            except (RuntimeError, MemoryError) as error:
                if some == 1 or not out_of_memory(error):
                    raise
                refused = str(error).partition("\n")[0]
            else:
                done += some
                continue
            # Not in the `except` clause: the error holds on to the memory of the frames that it came through.
            self.positions = min(self.positions, some // 2 * cost)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("out of memory: going on with %d token positions at a time (%s)", self.positions, refused)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice; only CUDA's has a class of its own."""
    said = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in said or "allocate memory" in said
    )
