"""The command that chooses the methods' settings from a grid."""

import tomllib
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape
from rich.table import Table

from loc_edit.cli.models import fetch
from loc_edit.cli.options import AcceptTerms, Assignments, Source, like_config
from loc_edit.cli.show import out, progress
from loc_edit.editing.settings import named_after
from loc_edit.experiment.config import BadConfig, ExperimentConfig, FactCount
from loc_edit.names import method_label, parse_method, problem_label

if TYPE_CHECKING:
    import pandas as pd

    from loc_edit.experiment.tuning import Grid


def tune(
    source: Source,
    methods: Annotated[tuple[str, ...], like_config("methods")] = ("rome", "memit", "finetune-1", "finetune-5"),
    problems: Annotated[tuple[str, ...], like_config("problems")] = ("error_injection",),
    known: Annotated[bool, like_config("known")] = False,
    min_probability: Annotated[float, like_config("min_probability")] = 0.0,
    facts: Annotated[FactCount, like_config("facts")] = 20,
    skip_facts: Annotated[int, like_config("skip_facts")] = 0,
    layer: int | None = None,
    floor: float = 0.7,
    grid: str = "auto",
    preset: Annotated[str, like_config("preset")] = "auto",
    assignments: Assignments = (),
    workers: Annotated[int | None, like_config("workers")] = None,
    folder: Path = Path("runs/tuning"),
    accept_terms: AcceptTerms = False,
) -> None:
    """Choose the settings of methods from a grid.

    Each is tried on some facts at one layer, as the study did.  The best settings have the highest rewrite score,
    counted up to .99, among those whose neighborhood score reaches the floor.  The command writes `chosen.toml`, to be
    copied into a configuration, and `tried.csv` with all settings.

    Examples:
        loc-edit tune --model smollm2 --methods rome memit
        loc-edit tune --methods finetune-1 --facts 10 --layer 3 --grid my.toml

    Args:
        layer: The layer to edit.  By default a third of the way up.
        floor: The lowest neighborhood score that is good enough.
        grid: A TOML file (`[rome]`, then `clamp = [4.0, 8.0]`); builtin, smollm2, paper, or auto (by the model's
            name, else paper).
        folder: The folder for the files.  The same command continues from there.
    """
    from loc_edit.experiment.tuning import Tuning, write

    of_facts = {"known": known, "min_probability": min_probability, "facts": facts, "skip_facts": skip_facts}
    chosen = {**of_facts, "methods": methods, "problems": problems, "layers": None if layer is None else [layer]}
    fixed = {"preset": preset, "workers": workers, "out": str(folder), "essence": False, "chunk": 10}
    config = ExperimentConfig.from_values({**asdict(source), **chosen, **fixed}, "options").with_settings(assignments)
    fetch(source.model, accept_terms)
    tuning = Tuning(config, _grid(grid, source.model))
    with progress():
        run = tuning.run(workers=tuning.default_workers())
    tried, paths = write(tuning, run, floor)
    tuned = list(dict.fromkeys(name for named in tuning.candidates.values() for values in named for name in values))
    _print_chosen(tried, tuned, title=f"chosen of {len(tried)} at layer {tuning.setup.layers[0]}")
    out.print("written: " + ", ".join(escape(str(path)) for path in paths))


def _print_chosen(tried: "pd.DataFrame", settings: list[str], title: str) -> None:
    """Prints the chosen settings of each problem and method, with their scores."""
    scores = ["rewrite", "paraphrase", "neighborhood"]
    table = Table("problem", "method", "settings", *scores, "n", title=title, title_justify="left")
    for row in tried[tried["chosen"]].to_dict("records"):
        values = ", ".join(f"{name} {row[name]:g}" for name in settings if not isnan(row[name]))
        label = method_label(*parse_method(row["method"]))
        table.add_row(problem_label(row["problem"]), label, values, *(f"{row[s]:.2f}" for s in scores), str(row["n"]))
    out.print(table)


def _grid(name: str, model: str) -> "Grid":
    """A grid of the package by name, or of a file."""
    from loc_edit.experiment.tuning import grids

    shipped = grids()
    if name == "auto":
        name = named_after(model, shipped) or "paper"
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if not path.is_file():
        raise BadConfig(f"grid {name!r}: expected a file, or one of auto, {', '.join(shipped)}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: this is no TOML: {error}") from error
