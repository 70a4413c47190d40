"""Requests of similar length grouped, such that padding them to one length and calling layers together cost least."""

from collections.abc import Sequence
from functools import cache

from loc_edit.models.model import Model

MEASURED_WEIGHTS = 231_168
"""Weights in a layer of the built-in model, with which the cost of calls was measured."""
LEAST_CALL = 16
"""Positions that take as long as reading the weights of a layer, however large."""


def call_cost(model: Model, measured: int) -> int:
    """What calling a layer once costs, in positions computed in it.

    Args:
        model: in a larger layer a position takes longer, and so a call costs fewer of them.
        measured: the cost with the built-in model.
    """
    block = model.blocks[0]
    n_weights = sum(weight.numel() for weight in block.parameters())
    return max(LEAST_CALL, measured * MEASURED_WEIGHTS // n_weights)


def group_by_length(lengths: Sequence[int], rows: int, call: int) -> list[list[int]]:
    """Groups of requests, each padded to the length of its longest.

    Args:
        lengths: for each request, the length of its rows as far as they are computed.
        rows: how many rows each request has.
        call: what calling a layer once costs, in positions computed in it.

    Returns:
        Groups of indices; lengths ascend.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)

    @cache
    def best(n: int) -> tuple[float, int]:
        """The cost of the `n` shortest, and where their last group begins."""
        costs = ((best(i)[0] + call + rows * (n - i) * lengths[order[n - 1]], i) for i in range(n))
        return min(costs, default=(0.0, 0))

    groups, end = [], len(order)
    for n in range(end):  # from the shortest on, so that the recursion is never deep
        best(n)
    while end:
        start = best(end)[1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]
