"""What every grid is compared with: no edit at all, and an edit at a layer drawn by lot."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from loc_edit.experiment.units import Chunk, Rows, request_columns, scored, skipped_rows
from loc_edit.experiment.workbench import Cell, Workbench
from loc_edit.names import NO_LAYER
from loc_edit.prompts.randomness import generator
from loc_edit.scoring.scores import compare
from loc_edit.store.settings import cell_key


def unedited_rows(chunk: Chunk, problem: str) -> Rows:
    """One row per fact, with method `none`: the unedited model scored against itself, which nothing should beat."""
    posed = chunk.posed(problem)
    common = {"problem": problem, "method": "none", "window": 0, "layer": NO_LAYER}
    common |= {"seed": chunk.bench.config.seed, "cell": chunk.bench.unedited_cell(problem)}
    again = posed.meter.measure([None] * len(posed.requests))
    rows = skipped_rows(common, posed)
    for before, after, request in zip(posed.meter.before, again, posed.requests, strict=True):
        rows.append({**common, **request_columns(chunk, request), **scored(compare(before, after, request))})
    return rows


def random_layer_cell(bench: Workbench, cells: Sequence[Cell]) -> str:
    """Names all that the rows depend on which draw among `cells`, but for the fact."""
    return cell_key({"control": "random_layer", "among": [bench.edit_cell(cell) for cell in cells]})


def random_layer(layers: Sequence[int], seed: int, fact_id: int) -> int:
    """The layer drawn for a fact, the same for every method and problem."""
    draws = generator("random_layer", seed, fact_id)
    return layers[int(torch.randint(len(layers), (1,), generator=draws))]


def random_layer_rows(chunk: Chunk, cells: Sequence[Cell], finished: pd.DataFrame) -> Rows:
    """One row per fact, with method `random_layer_rome` (or another): its edit at a layer drawn by lot.

    Args:
        chunk: the facts.
        cells: those of one method and problem, at every layer.
        finished: edit rows with their lists; those of these facts in these cells are among them.
    """
    bench, layers = chunk.bench, [cell.layer for cell in cells]
    keys = {cell.layer: bench.edit_cell(cell) for cell in cells}
    mine = finished[finished["fact_id"].isin(set(chunk.contents))].to_dict("records")
    by_place = {(row["cell"], row["fact_content"]): row for row in mine}
    rows: list[dict[str, Any]] = []
    for fact in chunk.facts:
        drawn = random_layer(layers, bench.config.seed, fact.fact_id)
        row = {str(name): value for name, value in by_place[keys[drawn], fact.content].items()}
        rows.append({**row, "method": f"random_layer_{cells[0].method}", "cell": random_layer_cell(bench, cells)})
    return rows
