"""The control of an edit at a layer drawn by lot: copies of finished rows, so it is made after all of them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from loc_edit.experiment.batch import Batch
from loc_edit.experiment.cell import Cell
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import EditCell
from loc_edit.prompts.randomness import generator
from loc_edit.store.settings import cell_key


@dataclass(frozen=True)
class RandomLayerCell(Cell):
    """For each fact the edit of one method and problem at a layer drawn by lot.

    Attributes:
        among: the cells that it draws from, one per layer.
    """

    among: tuple[EditCell, ...]
    kind = "edits"

    def identity(self, setup: Setup) -> dict[str, Any]:
        """The names of the cells that it draws from."""
        return {"control": "random_layer", "among": [cell.name(setup) for cell in self.among]}

    def name(self, setup: Setup) -> str:
        """The cell's name; the names of `among` hold the model and the seed already."""
        return cell_key(self.identity(setup))

    def describe(self) -> dict[str, Any]:
        """The problem, the method and the layers that it draws from."""
        first = self.among[0]
        method = f"random_layer_{first.method}"
        layers = [cell.layer for cell in self.among]
        return {"problem": first.problem, "method": method, "window": first.window, "layers": layers}

    def rows(self, batch: Batch) -> pd.DataFrame:
        """Refused: its rows are copies of finished rows, see `copied_rows`."""
        raise NotImplementedError(f"{self}: its rows are copied from finished rows")

    def copied_rows(self, batch: Batch, finished: pd.DataFrame) -> pd.DataFrame:
        """One row per fact, with method `random_layer_rome` (or another): a copy of the row at the layer drawn.

        Args:
            batch: the facts.
            finished: edit rows with their lists, among them the rows of these facts in the cells of `among`.
        """
        setup, layers = batch.setup, [cell.layer for cell in self.among]
        names = {cell.layer: cell.name(setup) for cell in self.among}
        keys = pd.DataFrame(
            {
                "cell": [names[random_layer(layers, setup.config.seed, fact.fact_id)] for fact in batch.facts],
                "fact_id": [fact.fact_id for fact in batch.facts],
                "fact_content": [fact.content for fact in batch.facts],
            }
        )
        copies = keys.merge(finished, how="left", validate="one_to_one")
        return copies.assign(method=self.describe()["method"], cell=self.name(setup))

    def __str__(self) -> str:
        return f"{self.among[0].problem}, random-layer control"


def random_layer_cells(cells: Sequence[Cell]) -> list[RandomLayerCell]:
    """The control of every problem and method among the cells."""
    groups: dict[tuple[str, str, int], list[EditCell]] = defaultdict(list)
    for cell in cells:
        if isinstance(cell, EditCell):
            groups[cell.problem, cell.method, cell.window].append(cell)
    return [RandomLayerCell(tuple(sorted(group, key=lambda cell: cell.layer))) for group in groups.values()]


def random_layer(layers: Sequence[int], seed: int, fact_id: int) -> int:
    """The layer drawn for a fact, the same for every method and problem."""
    draws = generator("random_layer", seed, fact_id)
    return layers[int(torch.randint(len(layers), (1,), generator=draws))]
