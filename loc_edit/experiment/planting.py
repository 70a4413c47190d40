"""Models with planted facts: which facts learn what through which layers, and what shows that they are stored there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from loc_edit.analysis.regression.planted import group_name
from loc_edit.editing.planting import PlantSettings, plant, tells
from loc_edit.editing.update import Edit
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.facts.loading import save_facts
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.files import write_atomic
from loc_edit.models.model import Model
from loc_edit.prompts.randomness import generator

EDIT, FACTS, TOLD = "edit.safetensors", "facts.jsonl", "told.csv"
"""The files of a planted model: the edit, the facts as it knows them, and what it says with and without each layer."""


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


def choose(data: Sequence[Fact], groups: Sequence[Sequence[int]], each: int, n_kept: int, seed: int) -> Planting:
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


def make(model: Model, planting: Planting, site: str, settings: PlantSettings, seed: int) -> tuple[Edit, pd.DataFrame]:
    """The edit that plants, and what the model says with it, and with each layer of it taken out again.

    Returns:
        The edit; and a row per fact, planted or kept: fact_id, layers, group; p and says, the probability of its object
        with the edit and whether its first token is the likeliest; says_before, of the unedited model; says_without_L
        for each layer L of the edit.
    """
    taught = [replace(fact, target_new=fact.target_true) for fact in planting.facts]
    edit = plant(model, taught, planting.layers, kept=planting.kept, site=site, settings=settings)
    edit = replace(edit, about={**edit.about, "seed": seed})
    facts = [*planting.facts, *planting.kept]
    objects = [fact.target_true for fact in facts]
    groups = [group_name(layers) for layers in planting.layers] + ["kept"] * len(planting.kept)
    columns = {"fact_id": [fact.fact_id for fact in facts], "group": groups}
    columns["says_before"] = tells(model, facts, objects)[1].tolist()
    with edit.applied(model):
        p, says = tells(model, facts, objects)
    columns |= {"p": p.tolist(), "says": says.tolist()}
    for layer in sorted({layer for layers in planting.layers for layer in layers}):
        with without(edit, layer).applied(model):
            columns[f"says_without_{layer}"] = tells(model, facts, objects)[1].tolist()
    return edit, pd.DataFrame(columns)


def without(edit: Edit, layer: int) -> Edit:
    """The edit without its changes of one layer."""
    updates = tuple(update for update in edit.updates if update.layer != layer)
    others = tuple(update for update in edit.others if not update.name.startswith(f"blocks.{layer}."))
    return replace(edit, updates=updates, others=others)


def save(folder: Path, planting: Planting, edit: Edit, told: pd.DataFrame) -> list[Path]:
    """Write a planted model's files: what `--edit` and `--data` of a run take, and what the model says."""
    folder.mkdir(parents=True, exist_ok=True)
    edit.save(folder / EDIT)
    save_facts(planting.facts, folder / FACTS)
    write_atomic(folder / TOLD, told.to_csv(index=False).encode())
    return [folder / name for name in (EDIT, FACTS, TOLD)]


def planted_layers(path: str) -> dict[str, list[int]] | None:
    """By the id of each fact that a saved edit plants, its layers; `None` for another edit."""
    about = Edit.load(path).about
    if about.get("method") != "plant":
        return None
    return {str(fact_id): list(layers) for fact_id, layers in zip(about["facts"], about["layers"], strict=True)}
