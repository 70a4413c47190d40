"""Models with planted facts: which facts learn what through which layers, and what shows that they are stored there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from loc_edit.analysis.regression.planted import group_name
from loc_edit.editing.planting import PlantSettings, plant, recalls
from loc_edit.editing.update import Edit
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.facts.loading import save_facts
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.files import write_atomic
from loc_edit.models.model import Model
from loc_edit.prompts.randomness import generator

EDIT, FACTS, RELEARN, RECALL = "edit.safetensors", "facts.jsonl", "relearn.jsonl", "recall.csv"
"""The files of a planted model: the edit; the proven facts, with a third object as `target_new`; the same with the
object from before the planting; and what the model says with and without each layer."""


@dataclass(frozen=True)
class Planting:
    """Facts that are to be planted, and the layers that learn each.

    Attributes:
        facts: as the model is to know them: `target_true` is the planted object, and `target_new` a third one.
        layers: of each fact.
        old: the object that each fact had before.
        kept: facts that are to stay as they are.
    """

    facts: list[Fact]
    layers: list[tuple[int, ...]]
    old: list[str]
    kept: list[Fact]


def choose_planted_facts(
    data: Sequence[Fact], groups: Sequence[Sequence[int]], each: int, n_kept: int, seed: int
) -> Planting:
    """Which facts learn which object through which layers: the groups take turns, so that each has all relations.

    A fact's new object is its `target_new`.  Its third object, for edits, is drawn per (seed, fact) among the objects
    of its relation.

    Args:
        data: facts of which some are chosen, by the seed.
        groups: the layers of each group.
        each: facts of a group.
        n_kept: other facts that are kept.
        seed: of the choice.

    Raises:
        BadFact: there are too few facts with a `target_new` and a third object in their relation.
    """
    objects: dict[str, set[str]] = {}
    for fact in data:
        objects.setdefault(fact.relation, set()).add(fact.target_true)
    usable = [f for f in data if f.target_new and len(objects[f.relation] - {f.target_true, f.target_new}) > 0]
    order = torch.randperm(len(usable), generator=generator("plant", seed)).tolist()
    pool = sample_by_relation([usable[i] for i in order])
    n = each * len(groups)
    if len(pool) < n + n_kept:
        raise BadFact(f"expected {n} facts to plant and {n_kept} to keep, got {len(pool)} that suit")
    planted = []
    for fact in pool[:n]:
        others = sorted(objects[fact.relation] - {fact.target_true, str(fact.target_new)})
        third = int(torch.randint(len(others), (1,), generator=generator("third object", seed, fact.fact_id)))
        planted.append(replace(fact, target_true=str(fact.target_new), target_new=others[third]))
    layers = [tuple(groups[i % len(groups)]) for i in range(n)]
    return Planting(planted, layers, [fact.target_true for fact in pool[:n]], pool[n : n + n_kept])


def make_planted_model(
    model: Model, planting: Planting, site: str, settings: PlantSettings, seed: int
) -> tuple[Edit, pd.DataFrame]:
    """The edit that plants, and what the model says with it, and with each layer of it taken out again.

    A planted fact is *proven* if the model says it with the edit, still says it without the change of any one layer
    that is not the fact's own, and does not say it without the changes of the fact's own layers.

    Returns:
        The edit, whose `about` has the ids of the proven facts; and a row per fact, planted or kept: fact_id, layers,
        group; p and says, the probability of its object with the edit and whether its first token is the likeliest;
        says_before, of the unedited model; says_without_L for each layer L of the edit; says_without_own; proven.
    """
    taught = [replace(fact, target_new=fact.target_true) for fact in planting.facts]
    edit = plant(model, taught, planting.layers, kept=planting.kept, site=site, settings=settings, seed=seed)
    facts = [*planting.facts, *planting.kept]
    objects = [fact.target_true for fact in facts]
    own_layers = [*planting.layers, *[()] * len(planting.kept)]

    def recalled(*left_out: int) -> list[bool]:
        with without(edit, *left_out).applied(model):
            return recalls(model, facts, objects)[1].tolist()

    columns: dict[str, list[Any]] = {
        "fact_id": [fact.fact_id for fact in facts],
        "group": [group_name(own) or "kept" for own in own_layers],
    }
    columns["says_before"] = recalls(model, facts, objects)[1].tolist()
    with edit.applied(model):
        p, says = recalls(model, facts, objects)
    columns |= {"p": p.tolist(), "says": says.tolist()}
    layers = sorted({layer for own in planting.layers for layer in own})
    of_layer = {layer: recalled(layer) for layer in layers}
    of_group = {own: recalled(*own) for own in dict.fromkeys(own_layers)}
    columns |= {f"says_without_{layer}": values for layer, values in of_layer.items()}
    columns["says_without_own"] = [of_group[own][i] for i, own in enumerate(own_layers)]
    columns["proven"] = [
        bool(own)
        and columns["says"][i]
        and not of_group[own][i]
        and all(of_layer[layer][i] for layer in layers if layer not in own)
        for i, own in enumerate(own_layers)
    ]
    rows = pd.DataFrame(columns)
    proven = rows.loc[rows["proven"], "fact_id"].tolist()
    return replace(edit, about={**edit.about, "proven": proven}), rows


def without(edit: Edit, *layers: int) -> Edit:
    """The edit without its changes of some layers."""
    updates = tuple(update for update in edit.updates if update.layer not in layers)
    names = tuple(f"blocks.{layer}." for layer in layers)
    others = tuple(update for update in edit.others if not update.name.startswith(names))
    return replace(edit, updates=updates, others=others)


def save_planted_model(folder: Path, planting: Planting, edit: Edit, recall: pd.DataFrame) -> list[Path]:
    """Write a planted model's files: what `--edit` and `--data` of a run take, and what the model says.

    Raises:
        BadFact: no fact is proven, so there is nothing to study.
    """
    proven = set(edit.about["proven"])
    if not proven:
        raise BadFact(
            "no planted fact is proven: none is said with the edit, lost without its own layer and kept without any "
            "other; more steps, or fewer facts, may help"
        )
    folder.mkdir(parents=True, exist_ok=True)
    edit.save(folder / EDIT)
    old = [replace(fact, target_new=before) for fact, before in zip(planting.facts, planting.old, strict=True)]
    for name, facts in ((FACTS, planting.facts), (RELEARN, old)):
        save_facts([fact for fact in facts if fact.fact_id in proven], folder / name)
    write_atomic(folder / RECALL, recall.to_csv(index=False).encode())
    return [folder / name for name in (EDIT, FACTS, RELEARN, RECALL)]


def planted_layers(edit: str | Edit) -> dict[str, list[int]] | None:
    """By the id of each proven fact that an edit, or the file of one, plants, its layers; `None` for another edit."""
    about = (edit if isinstance(edit, Edit) else Edit.load(edit)).about
    if about.get("method") != "plant":
        return None
    proven = about.get("proven", about["facts"])
    pairs = zip(about["facts"], about["layers"], strict=True)
    return {str(fact_id): list(layers) for fact_id, layers in pairs if fact_id in proven}
