"""The page to read first: its rows are what every engine writes, and it stays one page."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from runs import rows

import loc_edit.experiment.study as page
from loc_edit.experiment.batch import Batch
from loc_edit.experiment.random_layer import random_layer_cells
from loc_edit.experiment.study import EditCell, TraceCell, UneditedCell, cells, study

METHODS = ("rome", "memit-2", "finetune-1")
PROBLEMS = ("error_injection", "fact_erasure", "fact_forcing")


@pytest.fixture
def experiment(lab):
    """Several cells of each kind, two batches, and facts that a problem makes no sense for."""
    return lab(methods=METHODS, problems=PROBLEMS, windows=(1, 2), localizers=("causal_tracing", "random"))


def read_back(lab, experiment, tmp_path):
    """The rows of the plain loop, written and read as a run folder has them."""
    from loc_edit.analysis.run import Run
    from loc_edit.experiment.schedule import select

    setup, facts = experiment.setup, experiment.facts
    selection = select(cells(setup), setup, facts)
    with Run.create(tmp_path / "plain", {"plain": True}, {"model_fingerprint": "x"}, selection) as run:
        for number, (cell, frame) in enumerate(study(setup, facts)):
            run.write(cell.kind, f"{cell.name(setup)}-{number}", frame)
        return rows(run)


@pytest.mark.slow
def test_the_rows_on_disk_are_those_of_the_plain_loop(lab, experiment, tmp_path):
    run = experiment.run()
    controls = {cell.name(experiment.setup) for cell in random_layer_cells(experiment.cells)}
    traces, edits = rows(run)
    assert set(edits["cell"]) & controls, "the run has copies besides, which the study does not make"
    edits = edits[~edits["cell"].isin(controls)].reset_index(drop=True)
    plain_traces, plain_edits = read_back(lab, experiment, tmp_path)
    assert set(edits["status"]) == {"done", "skipped"}
    pd.testing.assert_frame_equal(traces, plain_traces)
    pd.testing.assert_frame_equal(edits, plain_edits[edits.columns])


def test_an_edit_is_not_charged_with_what_others_share(lab, monkeypatch):
    experiment, clock, pose = lab(), [0.0], Batch.posed

    def slowly(batch, problem):
        clock[0] += 100
        return pose(batch, problem)

    monkeypatch.setattr(Batch, "posed", slowly)
    monkeypatch.setattr(page, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    batch = Batch(experiment.setup, experiment.facts[:1])
    [cell, *_] = [cell for cell in experiment.cells if isinstance(cell, EditCell)]
    assert set(cell.rows(batch)["seconds"]) == {0.0}
    assert clock == [100]


def test_every_cell_names_and_describes_itself(experiment):
    setup = experiment.setup
    every = [*experiment.cells, *experiment.copied_cells]
    assert {type(cell).__name__ for cell in every} == {"TraceCell", "UneditedCell", "EditCell", "RandomLayerCell"}
    assert len({cell.name(setup) for cell in every}) == len({str(cell.describe()) for cell in every}) == len(every)
    assert len(set(every)) == len(every)
    for cell in every:
        assert cell.kind in ("traces", "edits")
        assert str(cell)


def test_order_is_traces_then_each_problem_from_the_unedited_model_on(experiment):
    kinds = [type(cell) for cell in experiment.cells]
    n_edits = len(METHODS) * 2
    assert kinds == [TraceCell] * 4 + [UneditedCell, *[EditCell] * n_edits] * len(PROBLEMS)


def test_a_random_layer_cell_is_copied_and_not_computed(experiment):
    with pytest.raises(NotImplementedError, match="copied"):
        experiment.copied_cells[0].rows(Batch(experiment.setup, experiment.facts))


def test_it_stays_one_page():
    source = Path(page.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 150
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert len(functions) > 10
    assert max(node.end_lineno - node.lineno + 1 for node in functions) <= 40
    imports = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    around = {"schedule", "worker", "run_log", "experiment", "engine", "estimate", "contexts"}
    assert not {name for name in imports if name.startswith("loc_edit.store") or name.split(".")[-1] in around}
    assert "loc_edit.events" not in imports
