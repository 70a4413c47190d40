"""A run's edits made once more, for what its rows do not hold: the next tokens before and after.

The same settings, contexts and seeds give the same edits; each cell's name, a digest of all that its numbers depend
on, is compared with the rows'.
"""

from collections.abc import Iterable, Iterator

from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.rows import without_controls
from loc_edit.editing.update import Edit
from loc_edit.events import progress
from loc_edit.experiment.batch import Batch
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.edits import edit_batch
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.study import EditCell
from loc_edit.models.identity import fingerprint
from loc_edit.prompts.encoding import encode
from loc_edit.prompts.recall import NextTokens, next_tokens
from loc_edit.store.folder import RunMismatch

Key = tuple[str, str, int]
"""Problem, method, window."""


def replay(
    run: Run,
    ids: Iterable[int],
    model: str | None = None,
) -> tuple[dict[int, NextTokens], dict[int, dict[Key, tuple[int, NextTokens]]]]:
    """Next tokens before, and after each method's and problem's edit at the layer where it did best for the fact.

    Args:
        run: a run of an experiment, finished or not.
        ids: the facts; those that the run has no finished edit of are left out.
        model: where its model is now; by default as the run's configuration names it.

    Returns:
        Tokens before, by fact; and by fact and (problem, method, window) the layer and the tokens after.

    Raises:
        RunMismatch: the model is not the run's, or a cell's settings cannot be had again.
        BadConfig: the run is not one of an experiment.
    """
    experiment = again(run, model)
    facts, net = {fact.fact_id: fact for fact in experiment.facts}, experiment.model
    groups = list(_best(run, set(ids) & set(facts)))
    setup = experiment.setup_for(run.path)
    cells = {(c.problem, c.method, c.window, c.layer): c for c in experiment.cells if isinstance(c, EditCell)}
    edited = sorted({fact_id for *_, some in groups for fact_id in some})
    before = {i: next_tokens(net, encode(net, facts[i])) for i in edited}
    after: dict[int, dict[Key, tuple[int, NextTokens]]] = {i: {} for i in edited}
    for done, (place, name, some) in enumerate(groups):
        cell = cells.get(place)
        if cell is None or cell.name(setup) != name:
            what = cell or f"{place[0]}, {place[1]}-{place[2]}, layer {place[3]}"
            raise RunMismatch(f"{run.path}: {what}: its edits cannot be made again, this version computes others")
        for start in range(0, len(some), experiment.config.chunk):
            batch = Batch(setup, [facts[i] for i in some[start : start + experiment.config.chunk]])
            for fact_id, tokens in _edited(batch, cell):
                after[fact_id][cell.problem, cell.method, cell.window] = (cell.layer, tokens)
        progress("cells made again", done + 1, len(groups))
    return before, after


def again(run: Run, model: str | None = None) -> Experiment:
    """The experiment of a run's resolved configuration, its model compared with the run's.

    Raises:
        RunMismatch: the model is another one.
        BadConfig: the configuration is not that of an experiment.
    """
    values = {name: value for name, value in run.config.items() if name in ExperimentConfig.model_fields}
    values |= {"preset": "none", "out": str(run.path)} | ({"model": model} if model else {})
    experiment = Experiment(ExperimentConfig.from_values(values, str(run.path)))
    made_with, is_here = run.provenance.get("model_fingerprint"), fingerprint(experiment.model)
    if made_with != is_here:
        raise RunMismatch(f"{run.path} is of model {made_with}, and {experiment.config.model} is {is_here}")
    return experiment


def _best(run: Run, ids: set[int]) -> Iterator[tuple[tuple[str, str, int, int], str, list[int]]]:
    """Each cell in which some fact did best, its name, and these facts."""
    keys = ["problem", "method", "window"]
    rows = without_controls(run.read("edits", [*keys, "layer", "fact_id", "status", "rewrite", "cell"]))
    rows = rows[(rows["status"] == "done") & rows["fact_id"].isin(ids)]
    if rows.empty:
        return
    best = rows.loc[rows.groupby([*keys, "fact_id"])["rewrite"].idxmax()]
    for (problem, method, window, layer, name), part in best.groupby([*keys, "layer", "cell"], sort=True):
        yield (str(problem), str(method), int(str(window)), int(str(layer))), str(name), part["fact_id"].tolist()


def _edited(batch: Batch, cell: EditCell) -> Iterator[tuple[int, NextTokens]]:
    """Each fact of a batch with the next tokens after its edit; facts that cannot be edited are left out."""
    setup = batch.setup
    requests = [setup.pose(fact, cell.problem, noise) for fact, noise in zip(batch.facts, batch.noise, strict=True)]
    edits = edit_batch(setup, requests, cell.method, cell.window, cell.layer, cell.settings)
    for request, edit in zip(requests, edits, strict=True):
        if isinstance(edit, Edit):
            with edit.applied(setup.model):
                yield request.fact_id, next_tokens(setup.model, request.prompt)
