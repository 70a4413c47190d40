"""Edits in sequence on the grid: their order, their rows against a slow loop, their undoing, resuming and counting."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from edit_requests import p

import loc_edit
from loc_edit.analysis.run import load_run
from loc_edit.analysis.status import run_progress
from loc_edit.editing.problems import NotEligible
from loc_edit.editing.registry import EDITORS
from loc_edit.editing.value import EditFailed
from loc_edit.experiment import sequence
from loc_edit.experiment.batch import Batch
from loc_edit.experiment.sequence import SequenceCell, checkpoints, sequence_of
from loc_edit.facts.loading import save_facts
from loc_edit.models.adapter import VERSION
from loc_edit.scoring.scores import share_of_change

METHODS = ("rome", "memit-2", "alphaedit-2", "finetune-1")
FEW = ("rome", "memit-2")
VALUE = {"steps": 8, "kl": 0.0, "decay": 0.0}
LAYER = 0
"""Not the last one of the two, where an edit at the subject reaches no other position."""
SETTINGS = {"rome": VALUE, "memit": VALUE | {"moment_weight": 0.1}, "alphaedit": VALUE | {"null_space": 2.0}}
SETTINGS |= {"finetune": {"steps": 4, "lr": 1e-2, "eps": 1e-1}}


@pytest.fixture
def grid(lab, monkeypatch):
    """(**options) -> an experiment of three facts in sequence at one layer; few texts are held out."""
    monkeypatch.setattr(sequence, "N_HELD_OUT", 3)

    def make(**options):
        defaults = {"methods": METHODS, "layers": (LAYER,), "localizers": (), "sequence": 3, "settings": SETTINGS}
        return lab(**defaults | options)

    return make


def in_order(experiment):
    return [experiment.facts[index] for index in sequence_of(experiment.setup, experiment.facts)]


def rows_of(cell, experiment):
    return cell.rows(Batch(experiment.setup, in_order(experiment)))


def find(experiment, method, way="alone"):
    return next(cell for cell in experiment.sequence_cells if (cell.method, cell.way) == (method, way))


def test_it_is_looked_at_after_1_3_10_30_and_at_the_end():
    assert [checkpoints(n) for n in (1, 3, 4, 20)] == [[1], [1, 3], [1, 3, 4], [1, 3, 10, 20]]
    assert checkpoints(300) == [1, 3, 10, 30, 100, 300]


def test_the_order_of_facts_is_drawn_and_does_not_depend_on_the_file(grid, facts, tmp_path):
    many = [replace(fact, fact_id=4 * n + fact.fact_id, relation=str(n)) for n in range(5) for fact in facts]
    orders = []
    for name, listed in (("a", many), ("b", many[::-1])):
        save_facts(listed, tmp_path / f"{name}.jsonl")
        options = {"data": str(tmp_path / f"{name}.jsonl"), "facts": 20}
        orders.append([fact.fact_id for fact in in_order(grid(**options, sequence=20))])
        assert [fact.fact_id for fact in in_order(grid(**options, sequence=7))] == orders[-1][:7]
    assert orders[0] == orders[1] != sorted(orders[0])
    other_seed = [fact.fact_id for fact in in_order(grid(**options, sequence=20, seed=1))]
    assert other_seed != orders[0]


def test_a_cell_is_named_by_its_facts_in_order_and_its_way(grid):
    names = {cell.name(grid().setup): cell for cell in grid().sequence_cells}
    assert [(cell.method, cell.way) for cell in names.values()] == [
        ("rome", "alone"),
        *(("memit", way) for way in ("alone", "kept", "joint")),
        *(("alphaedit", way) for way in ("alone", "kept")),
        ("finetune", "alone"),
    ]
    assert names.keys().isdisjoint(cell.name(grid().setup) for cell in grid().cells)
    for change in ({"sequence": 2}, {"seed": 1}, {"settings": SETTINGS | {"rome": {"steps": 4}}}):
        other = grid(**change)
        assert find(other, "rome").name(other.setup) != find(grid(), "rome").name(grid().setup)
    assert grid(sequence=0).sequence_cells == []


@pytest.mark.parametrize("method", ["rome", "finetune"])
def test_rows_equal_a_slow_loop_over_single_edits(grid, method):
    experiment = grid()
    cell, model = find(experiment, method), experiment.model
    rows = rows_of(cell, experiment)
    assert rows["n_edits"].tolist() == [1, 3]
    weight = model.blocks[LAYER].mlp.W_out
    facts, unedited, wanted = in_order(experiment), weight.detach().clone(), []
    requests = [experiment.setup.pose(fact, "error_injection", None) for fact in facts]
    before = [p(model, request) for request in requests]
    texts = {"stats": experiment.setup.stats, "contexts": experiment.setup.contexts["rome"]} if method == "rome" else {}
    total = loc_edit.Edit(())
    for n, request in enumerate(requests, 1):
        with total.applied(model):
            [edit] = EDITORS[method](model, [request], [LAYER], settings=cell.settings, **texts)
        total = total + edit
        with total.applied(model):
            after = [p(model, posed) for posed in requests]
            scores = [share_of_change(*pair, "raise") for pair in zip(before, after, strict=True)][:n]
            norms = weight.norm() / unedited.norm(), (weight - unedited).norm() / unedited.norm()
            wanted.append([scores[-1], scores[0], sum(scores) / n, *map(float, norms)])
    assert torch.equal(weight, unedited)
    columns = ["rewrite_last", "rewrite_first", "rewrite", "norm", "change"]
    got = rows[columns].to_numpy().tolist()
    assert got[1][1] != got[0][1], "later edits changed the first"
    for row, numbers in zip(got, [wanted[0], wanted[2]], strict=True):
        assert row == pytest.approx(numbers, rel=1e-3, abs=1e-5)
    assert rows["perplexity_before"].nunique() == 1
    assert (rows["perplexity"] != rows["perplexity_before"]).all()
    assert rows["fact_id"].tolist() == [facts[0].fact_id, facts[2].fact_id]


def test_the_ways_agree_on_the_first_edit_and_part_afterwards(grid):
    experiment = grid()
    alone, kept, joint = (rows_of(find(experiment, "memit", way), experiment) for way in ("alone", "kept", "joint"))
    for other in (kept, joint):
        assert other["change"][0] == pytest.approx(alone["change"][0], rel=1e-4)
        assert abs(other["change"][1] / alone["change"][1] - 1) > 1e-4
    assert kept["change"][1] != joint["change"][1]


def test_the_weights_come_back_exactly_also_after_an_error(grid, monkeypatch):
    experiment = grid()
    before = [parameter.clone() for parameter in experiment.model.parameters()]
    cell = find(experiment, "memit", "kept")
    rows_of(cell, experiment)
    assert all(map(torch.equal, experiment.model.parameters(), before))
    seen = []

    def broken(*given):
        seen.append([torch.equal(*pair) for pair in zip(experiment.model.parameters(), before, strict=True)])
        raise KeyboardInterrupt

    monkeypatch.setattr(sequence._SequenceMeter, "row", broken)
    with pytest.raises(KeyboardInterrupt):
        rows_of(cell, experiment)
    assert not all(seen[0]), "there were edits to take back"
    assert all(map(torch.equal, experiment.model.parameters(), before))


def test_a_failed_edit_is_counted_and_the_next_one_follows(grid, monkeypatch):
    experiment = grid()
    second, rome = in_order(experiment)[1], EDITORS["rome"]

    def at_times(model, requests, *given, **options):
        if requests[0].fact_id == second.fact_id:
            raise EditFailed(f"fact {second.fact_id}: not finite")
        return rome(model, requests, *given, **options)

    whole = rows_of(find(experiment, "rome"), experiment)
    monkeypatch.setitem(EDITORS, "rome", at_times)
    rows = rows_of(find(experiment, "rome"), experiment)
    assert rows["failed"].tolist() == [0, 1]
    assert rows["reason"].tolist() == ["", f"fact {second.fact_id}: not finite"]
    assert rows["rewrite_last"].notna().all()
    assert VERSION >= 4 or rows["rewrite_last"][1] > 0  # with the random weights of version 3
    assert rows["change"][0] == whole["change"][0] < rows["change"][1] != whole["change"][1]


def test_a_problem_that_suits_no_fact_has_one_row_with_the_reason(grid, monkeypatch):
    experiment = grid()

    def refuse(*given):
        raise NotEligible("no false object")

    monkeypatch.setattr(type(experiment.setup), "pose", refuse)
    run = experiment.run()
    assert run.sequences["n_edits"].tolist() == [0] * 7
    assert set(run.sequences["reason"]) == {"no fact can be edited: no false object"}


def test_neighbors_that_are_edited_themselves_are_not_counted(grid, facts, tmp_path):
    """The only neighbor of a fact is about another fact's subject, or about nobody's."""
    about_other = facts[1].template.format(facts[1].subject)
    for neighbor, counted in ((about_other, False), ("The old bridge is located in the city of", True)):
        listed = [replace(facts[0], neighbors=(neighbor,)), *(replace(fact, neighbors=()) for fact in facts[1:])]
        save_facts(listed, tmp_path / "few.jsonl")
        experiment = grid(data=str(tmp_path / "few.jsonl"), sequence=4)
        assert rows_of(find(experiment, "rome"), experiment)["neighborhood"].notna().iloc[-1] == counted


# Runs


@pytest.mark.slow
def test_a_run_has_the_rows_of_each_cell_and_computes_none_twice(grid, tmp_path, monkeypatch):
    experiment = grid(methods=FEW)
    run = experiment.run()
    cells = {cell.name(experiment.setup): cell for cell in experiment.sequence_cells}
    assert sorted(run.sequences["cell"].unique()) == sorted(cells)
    for name, rows in run.sequences.groupby("cell"):
        plain = rows_of(cells[name], experiment)
        same = [column for column in plain if column != "seconds"]
        pd.testing.assert_frame_equal(rows[same].reset_index(drop=True), plain[same], check_dtype=False)
    progress = run_progress(load_run(tmp_path / "run"))
    assert (progress.sequences, progress.remaining) == ((4, 4), 0)
    assert grid(methods=FEW).plan().sequences_missing == 0
    monkeypatch.setattr(SequenceCell, "rows", None)
    assert len(grid(methods=FEW).run().sequences) == 8


@pytest.mark.slow
def test_a_stopped_run_loses_at_most_the_sequence_it_was_at(grid, tmp_path, monkeypatch):
    computed, rows = [], SequenceCell.rows
    monkeypatch.setattr(SequenceCell, "rows", lambda cell, batch: computed.append(str(cell)) or rows(cell, batch))
    at_work = grid(methods=FEW).rows()
    while len(computed) < 3:
        next(at_work)
    at_work.close()
    progress = run_progress(load_run(tmp_path / "run"))
    assert progress.sequences == (3, 4)
    assert progress.remaining == 1
    plan = grid(methods=FEW).plan()
    assert (plan.sequences, plan.sequences_missing) == (4 * 3, 1 * 3)
    assert plan.work > 0
    computed.clear()
    grid(methods=FEW).run()
    assert len(computed) == 1


@pytest.mark.slow
def test_an_earlier_run_gets_sequences_and_loses_nothing(grid):
    before = grid(sequence=0).run()
    edits = before.edits
    assert before.sequences.empty
    extended = grid().run()
    pd.testing.assert_frame_equal(extended.edits, edits)
    assert len(extended.sequences) == 14
    again = grid(sequence=2).run()
    assert again.sequences["n_edits"].unique().tolist() == [1, 2]
    assert len(again.read("sequences", cells="all")) == 28


@pytest.mark.slow
def test_workers_and_the_command_line_know_sequences(grid, tmp_path, capsys):
    from loc_edit.cli.main import main

    grid(methods=FEW).run()
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "sequences  4 of 4" in capsys.readouterr().out
    found = loc_edit.analyze(load_run(tmp_path / "run"), draws=0)
    assert {path.name for path in found.written["sequences"]} == {
        f"sequences.{ending}" for ending in ("csv", "md", "tex", "pdf", "png")
    }
    page = loc_edit.write_report(load_run(tmp_path / "run"), draws=0).read_text()
    assert "any edits in one model" in page


def test_a_sequence_longer_than_the_facts_is_refused(grid, tmp_path):
    with pytest.raises(ValueError, match="sequence 3: expected at most as many as facts, 2"):
        grid(facts=2)
    with pytest.raises(loc_edit.BadFact, match="sequence 9 needs as many facts, and there are 4"):
        grid(sequence=9).run()
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="at least 0, got -1"):
        grid(sequence=-1)
