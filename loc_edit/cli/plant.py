"""The command that plants facts in chosen layers."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape
from rich.table import Table

import loc_edit
from loc_edit.cli.models import fetch
from loc_edit.cli.options import AcceptTerms, like_config
from loc_edit.cli.show import out, progress


def plant(
    model: Annotated[str, like_config("model")] = "builtin",
    data: Annotated[str, like_config("data")] = "builtin",
    layers: Annotated[
        tuple[str, ...] | None,
        tyro.conf.arg(help="The layers to plant in; 1+4 splits facts over two layers.  All of them if None."),
    ] = None,
    facts: int = 40,
    kept: int = 40,
    site: str = "mlp_out",
    steps: int = 250,
    lr: float = 2e-3,
    brake: float = 2.0,
    seed: Annotated[int, like_config("seed")] = 0,
    folder: Path = Path("runs/planted"),
    accept_terms: AcceptTerms = False,
) -> None:
    """Teach a model facts through chosen layers alone.

    Where each fact is stored is then known.  The command writes the edit and the facts, for `loc-edit run --edit`, and
    what the model says with each layer's change taken out again.

    Examples:
        loc-edit plant --layers 1 4 --facts 20
        loc-edit run --edit runs/planted/edit.safetensors --data runs/planted/facts.jsonl

    Args:
        facts: How many facts are planted in each layer.
        kept: How many other facts the model is held to.
        site: mlp_out, to change W_out, or attn_out, to change the attention's W_O.
        steps: Adam steps.
        lr: Adam's learning rate.
        brake: The weight of the divergence from the unchanged model on the facts that are kept.
        folder: The folder for the files.
    """
    from loc_edit.editing.planting import PlantSettings
    from loc_edit.experiment.planting import choose_planted_facts, make_planted_model, save_planted_model

    fetch(model, accept_terms)
    net, known = loc_edit.load_model(model), loc_edit.load_facts(data, seed=seed)
    groups = [_group(name) for name in layers] if layers else [(layer,) for layer in range(net.cfg.n_layers)]
    planting = choose_planted_facts(known, groups, facts, kept, seed)
    with progress():
        edit, recall = make_planted_model(net, planting, site, PlantSettings(steps, lr, brake), seed)
    table = Table("facts of layer", "say their object", "without it", "without another, at least", "proven")
    for group, rows in recall.groupby("group", sort=False):
        others = [name for name in recall if str(name).startswith("says_without_")]
        others = [name for name in others if str(name).rpartition("_")[2] not in ("own", *str(group).split("+"))]
        least = f"{rows[others].mean().min():.0%}" if others else ""
        shares = [f"{rows[name].mean():.0%}" for name in ("says", "says_without_own", "proven")]
        table.add_row(str(group), *shares[:2], least, shares[2])
    out.print(table)
    out.print("written: " + ", ".join(escape(str(path)) for path in save_planted_model(folder, planting, edit, recall)))


def _group(name: str) -> tuple[int, ...]:
    """The layers of a group: `3`, or `1+4`."""
    parts = name.split("+")
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"layers {name!r}: expected a layer, or several joined by +")
    return tuple(int(part) for part in parts)
