"""Batches are halved when memory runs out: every item is computed once, in order, and the size that fits is kept."""

import pytest
import torch

from loc_edit.models.memory import Budget, halving


class Memory:
    """Work that fails for more than `size` items at a time."""

    def __init__(self, size, error):
        self.size, self.error, self.tried, self.done = size, error, [], []

    def __call__(self, part):
        items = list(range(100))[part]
        self.tried.append(len(items))
        if len(items) > self.size:
            raise self.error
        self.done += items


OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory: 2 GB"), MemoryError()]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
def test_batches_are_halved_until_they_fit_and_stay_small(error, caplog):
    memory = Memory(2, error)
    assert halving(5, 5, memory, unit="facts") == 2
    assert memory.tried == [5, 2, 2, 1]
    assert memory.done == list(range(5))
    assert "out of memory: going on with 2 facts at a time" in caplog.text


def test_the_size_that_fits_is_returned_and_a_short_batch_is_halved_from_its_own_length():
    memory = Memory(8, MemoryError())
    assert halving(20, 8, memory) == 8
    assert memory.tried == [8, 8, 4]
    assert halving(0, 8, memory) == 8
    memory = Memory(2, MemoryError())
    assert halving(4, 64, memory) == 2
    assert memory.tried == [4, 2, 2]


def test_one_item_that_does_not_fit_and_other_errors_are_raised():
    with pytest.raises(torch.OutOfMemoryError):
        halving(3, 2, Memory(0, torch.OutOfMemoryError("CUDA")))
    memory = Memory(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        halving(3, 2, memory)
    assert memory.tried == [2]


def test_a_budget_remembers_the_positions_that_fit(tiny):
    budget, memory = Budget(tiny, 40), Memory(3, MemoryError())
    budget.spend(10, 5, memory)
    assert memory.tried == [8, 4, 2, 2, 2, 2, 2]
    assert budget.positions == 10
    budget.spend(4, 5, memory)
    assert memory.tried[-2:] == [2, 2]
