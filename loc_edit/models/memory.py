"""Batch sizes that fit into memory: the one place that halves a batch when memory runs out."""

import logging
from collections.abc import Callable

import torch

from loc_edit import events
from loc_edit.models.model import Model

log = logging.getLogger(__name__)

POSITIONS = 1024
"""Token positions in one call of a layer on the CPU: more of them do not stay in its cache."""
POSITIONS_ON_DEVICE = 2**15
KEPT_WIDTHS, KEPT_MLPS = 24, 8
"""What a layer keeps per position for its backward pass: about so many times d_model and d_mlp numbers."""


class Budget:
    """How many token positions a layer computes in one call: a limit that is lowered when memory runs out.

    Attributes:
        positions: the limit on the number of rows times their length.
    """

    def __init__(self, model: Model, positions: int | None = None, *, backward: bool = False) -> None:
        device, cfg = model.W_E.device, model.cfg
        self.positions = positions or (POSITIONS if device.type == "cpu" else POSITIONS_ON_DEVICE)
        if backward and device.type == "cuda":
            kept = cfg.n_layers * (KEPT_WIDTHS * cfg.d_model + KEPT_MLPS * (cfg.d_mlp or 0)) * cfg.dtype.itemsize
            self.positions = max(1, min(self.positions, torch.cuda.mem_get_info(device)[0] // kept))
        elif backward:
            self.positions *= 2

    def spend(self, n: int, cost: int, work: Callable[[slice], object], most: int | None = None) -> None:
        """Call `work` on slices that make up `range(n)`, each as long as the budget allows, at least 1.

        Args:
            n: the number of items.
            cost: the number of token positions that one item takes.
            work: computes a slice of the items; it is called again with fewer items when memory runs out.
            most: the largest number of items in one slice, whatever the budget.

        Raises:
            RuntimeError: memory does not suffice for one item.
        """
        size = min(max(1, self.positions // cost), most or n)

        def work_of_step(part: slice) -> None:
            events.step()
            work(part)

        fitting = halving(n, size, work_of_step, unit=f"rows of {cost} token positions")
        if fitting < size:
            self.positions = min(self.positions, fitting * cost)


def halving(n: int, size: int, work: Callable[[slice], object], *, unit: str = "rows") -> int:
    """Call `work` on slices that make up `range(n)`, in order; each time memory runs out, go on with half the size.

    Args:
        n: the number of items.
        size: the number of items in a slice, at least 1.
        work: computes a slice of the items; it is called again with fewer items when memory runs out.
        unit: what the items are, for the warning in the log.

    Returns:
        The size that fits: `size`, or what was left of it; the caller's next batch can start from there.

    Raises:
        RuntimeError: memory does not suffice for one item.
    """
    done = 0
    while done < n:
        end = min(n, done + size)
        try:
            work(slice(done, end))
        except (RuntimeError, MemoryError) as error:
            if end - done == 1 or not out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        else:
            done = end
            continue
        # Not in the `except` clause, where the error holds on to the memory of the frames that it came through.
        size = (end - done) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory: going on with %d %s at a time (%s)", size, unit, reason)
    return size


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice; only CUDA has an error class for this."""
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text or "allocate memory" in text
    )
