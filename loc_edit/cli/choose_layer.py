"""The command that chooses the layer to edit from a few facts."""

from typing import Annotated

import tyro
from rich.markup import escape

import loc_edit
from loc_edit.cli.models import fetch
from loc_edit.cli.options import PLUGINS, AcceptTerms, like_config
from loc_edit.cli.show import numbers, out, plain_table, progress
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.plugins import load_plugins


def choose_layer(
    model: Annotated[str, tyro.conf.Positional, like_config("model")] = "builtin",
    data: Annotated[str, like_config("data")] = "builtin",
    facts: int = 10,
    rule: str = "pilot",
    method: str = "rome",
    problem: str = "error_injection",
    outcome: str = "overall",
    layers: Annotated[tuple[int, ...] | None, like_config("layers")] = None,
    window: int = 5,
    min_probability: Annotated[float, like_config("min_probability")] = 0.0,
    noise: Annotated[str, like_config("noise")] = "s3",
    seed: Annotated[int, like_config("seed")] = 0,
    plugins: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--plugin"], help=PLUGINS)] = (),
    accept_terms: AcceptTerms = False,
) -> None:
    """Choose the layer to edit from a few facts, and say how sure.

    Examples:
        loc-edit choose-layer smollm2
        loc-edit choose-layer builtin --rule gradient --facts 40

    Args:
        facts: How many facts, spread evenly over the relations.
        rule: pilot (edit these facts at every layer), gradient (of the edit's objective), or a localizer.
        method: What the pilot edits with; memit-3 names a window.
        problem: What is asked of the facts.
        outcome: The score that the pilot looks at.
        window: The number of layers that a localizer takes together.
    """
    load_plugins(plugins)
    fetch(model, accept_terms)
    names = {"model": model, "data": data, "noise": noise, "seed": seed, "layers": layers}
    which = {"facts": facts, "min_probability": min_probability}
    with progress():
        experiment = loc_edit.Experiment(ExperimentConfig.from_values({**names, **which}))
        chosen = loc_edit.choose_layer(
            model, experiment.facts, rule=rule, method=method, problem=problem, outcome=outcome, window=window,
            noise=noise, seed=seed, layers=layers,
        )  # fmt: skip
    table = plain_table(*numbers("layer", "mean", "best in"), title=f"{escape(rule)}, {chosen.n_facts} facts")
    for row in chosen.by_layer.to_dict("records"):
        table.add_row(str(row["layer"]), f"{row['mean']:.3f}", f"{row['votes']:.0%}")
    out.print(table)
    out.print(f"layer [bold]{chosen.layer}[/]: the best one in {chosen.sure:.0%} of resamples of the facts")
    if chosen.worth:
        worth = {name: f"{value:.3f}" for name, value in chosen.worth.items()}
        out.print(
            f"mean {escape(outcome)} score at the layer that the other facts choose {worth['chosen']}, at any layer "
            f"{worth['any']}, at each fact's best layer {worth['oracle']} (part of it luck)",
            soft_wrap=True,
        )
