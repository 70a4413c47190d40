"""Options that several commands have, each described in one place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from loc_edit.experiment.config import ExperimentConfig


def like_config(field: str) -> Any:
    """Describes an option by the description of a field of `ExperimentConfig`, whose meaning it has."""
    return tyro.conf.arg(help=description(field))


def description(field: str) -> str:
    """The description of a field of `ExperimentConfig`, on one line."""
    return " ".join((ExperimentConfig.model_fields[field].description or "").split())


PLUGINS = description("plugins")

AcceptTerms = Annotated[
    bool, tyro.conf.arg(help="Accept the terms of a named model: see `loc-edit models`.  Its first download needs it.")
]

Assignments = Annotated[
    tuple[str, ...],
    tyro.conf.arg(
        name="set", help="Settings of methods: rome.clamp=6, finetune-5.fact_forcing.lr=1e-3, mine.rate=0.1."
    ),
]

RunFolder = Annotated[
    Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="The run's folder, finished or not.")
]


@dataclass(frozen=True)
class Source:
    """Where facts, model and random draws come from."""

    model: Annotated[str, like_config("model")] = "builtin"
    data: Annotated[str, like_config("data")] = "builtin"
    noise: Annotated[str, like_config("noise")] = "s3"
    seed: Annotated[int, like_config("seed")] = 0
    plugins: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--plugin"], help=PLUGINS)] = ()
