"""A run's edits made once more, for what its rows do not hold: the next tokens before and after.

The same settings, contexts and seeds give the same edits; each cell's name, a hash of all that its numbers depend on,
is compared with the name in the rows.
"""

from collections.abc import Iterable, Iterator

import pandas as pd

from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.rows import without_controls
from loc_edit.editing.update import Edit
from loc_edit.events import progress
from loc_edit.experiment.batch import Batch
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.edits import edit_batch
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.stats_record import refuse_other_key_stats
from loc_edit.experiment.study import EditCell
from loc_edit.models.identity import fingerprint
from loc_edit.prompts.encoding import encode
from loc_edit.prompts.recall import NextTokens, next_tokens
from loc_edit.store.folder import RunMismatch

Key = tuple[str, str, int]
"""Problem, method, window."""


def replay(
    run: Run, ids: Iterable[int], model: str | None = None
) -> tuple[dict[int, NextTokens], dict[int, dict[Key, tuple[int, NextTokens]]]]:
    """Next tokens before, and after each method's and problem's edit at the layer where it did best for the fact.

    Args:
        run: a run of an experiment, finished or not.
        ids: the facts; a fact without a finished edit is left out, and one that has changed since the run.
        model: where its model is now; by default as the run's configuration names it.

    Returns:
        Tokens before, by fact; and by fact and (problem, method, window) the layer and the tokens after.

    Raises:
        RunMismatch: the model or the key statistics are not the run's, or a cell's edits cannot be made again.
        BadConfig: the run is no experiment's.
    """
    experiment = again(run, model)
    setup, chunk = experiment.setup_for(run.path), experiment.config.chunk
    contents = run.selection.facts if run.selection else {}
    facts = {f.fact_id: f for f in experiment.facts if contents.get(f.fact_id, f.content) == f.content}
    cells = {cell.name(setup): cell for cell in experiment.cells if isinstance(cell, EditCell)}
    best = _best_rows(run, set(ids) & set(facts))
    for row in best[~best["cell"].isin(cells)].to_dict("records"):
        cell_in_words = "{problem}, {method}-{window}, layer {layer}".format_map(row)
        raise RunMismatch(f"{run.path}: {cell_in_words}: its edits cannot be made again, this version computes others")
    if any(cells[name].needs_stats for name in best["cell"].unique()):
        refuse_other_key_stats(run.path, setup)
    edited = sorted(int(fact_id) for fact_id in best["fact_id"].unique())
    before = {i: next_tokens(setup.model, encode(setup.model, facts[i])) for i in edited}
    after: dict[int, dict[Key, tuple[int, NextTokens]]] = {i: {} for i in edited}
    groups = best.groupby("cell")["fact_id"]
    for done, (name, fact_ids) in enumerate(groups, 1):
        cell, facts_of_cell = cells[str(name)], [facts[i] for i in fact_ids]
        for start in range(0, len(facts_of_cell), chunk):
            for fact_id, tokens in _edited(Batch(setup, facts_of_cell[start : start + chunk]), cell):
                after[fact_id][cell.problem, cell.method, cell.window] = (cell.layer, tokens)
        progress("cells made again", done, groups.ngroups)
    return before, after


def again(run: Run, model: str | None = None) -> Experiment:
    """The experiment of a run's resolved configuration, its model compared with the run's.

    Raises:
        RunMismatch: the model is another one.
        BadConfig: the configuration is not an experiment's.
    """
    values = {name: value for name, value in run.config.items() if name in ExperimentConfig.model_fields}
    values |= {"preset": "none", "out": str(run.path)} | ({"model": model} if model else {})
    experiment = Experiment(ExperimentConfig.from_values(values, str(run.path)))
    made_with, is_here = run.provenance.get("model_fingerprint"), fingerprint(experiment.model)
    if made_with != is_here:
        raise RunMismatch(f"{run.path} is of model {made_with}, and {experiment.config.model} is {is_here}")
    return experiment


def _best_rows(run: Run, ids: set[int]) -> pd.DataFrame:
    """For each fact, problem and method the finished edit that did best."""
    keys = ["problem", "method", "window", "fact_id"]
    rows = without_controls(run.read("edits", [*keys, "layer", "status", "rewrite", "cell"]))
    rows = rows[(rows["status"] == "done") & rows["fact_id"].isin(ids)]
    return rows.loc[rows.groupby(keys)["rewrite"].idxmax()]


def _edited(batch: Batch, cell: EditCell) -> Iterator[tuple[int, NextTokens]]:
    """Each fact of a batch with the next tokens after its edit; facts that cannot be edited are left out."""
    setup = batch.setup
    requests = [setup.pose(fact, cell.problem, noise) for fact, noise in zip(batch.facts, batch.noise, strict=True)]
    edits = edit_batch(setup, requests, cell.method, cell.window, cell.layer, cell.settings)
    for request, edit in zip(requests, edits, strict=True):
        if isinstance(edit, Edit):
            with edit.applied(setup.model):
                yield request.fact_id, next_tokens(setup.model, request.prompt)
