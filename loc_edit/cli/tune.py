"""`loc-edit tune`: the settings of the methods, chosen from a grid."""

import tomllib
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.markup import escape
from rich.table import Table

from loc_edit.cli.show import out, progress
from loc_edit.experiment.config import BadConfig, ExperimentConfig
from loc_edit.names import method_label, parse_method, problem_label

if TYPE_CHECKING:
    from loc_edit.experiment import tuning


def tune(
    methods: tuple[str, ...] = ("rome", "memit", "finetune-1", "finetune-5"),
    problems: tuple[str, ...] = ("error_injection",),
    facts: Annotated[int | None, tyro.conf.arg(name="facts")] = 20,
    layer: int | None = None,
    floor: float = 0.7,
    grid: str = "auto",
    model: str = "builtin",
    data: str = "builtin",
    preset: str = "auto",
    noise: str = "s3",
    seed: int = 0,
    workers: int | None = None,
    folder: Path = Path("runs/tuning"),
) -> None:
    """Choose settings: try a grid of them on the first facts at one layer, as the study did, and write the best.

    The best has the highest rewrite score, counted up to .99, of those whose neighborhood is at least the floor.
    Writes `chosen.toml`, whose lines belong into a configuration, and `tried.csv`, all that was tried.

    Args:
        methods: rome, memit, finetune-1, finetune-5.
        problems: each gets its own settings.
        facts: how many facts.
        layer: where to edit; a third of the way up by default.
        floor: the lowest neighborhood score that is good enough.
        grid: a TOML file (`[rome]`, then `clamp = [4.0, 8.0]`); builtin, paper, or auto.
        model: the built-in model, a hub name, or a local Hugging Face directory.
        data: the built-in facts, or a file of facts.
        preset: settings that the grid does not name: builtin, gpt-j, gpt2-xl, none, or auto.
        noise: subject noise, for tracing_reversal and fact_forcing.
        seed: start of the random draws.
        workers: processes; by default one per core for a small model.
        folder: where the files go; the same command goes on from there.
    """
    from loc_edit.experiment import tuning

    config = ExperimentConfig.from_values(
        {
            "methods": methods,
            "problems": problems,
            "facts": facts,
            "layers": None if layer is None else [layer],
            "model": model,
            "data": data,
            "preset": preset,
            "noise": noise,
            "seed": seed,
            "workers": workers,
            "out": str(folder),
            "essence": False,
            "chunk": 10,
        },
        "options",
    )
    wanted = tuning.Tuning(config, _grid(grid, model))
    with progress() as advance:
        run = wanted.run(progress=advance, workers=wanted.default_workers())
    tried, paths = tuning.write(wanted, run, floor)
    table = Table(title=f"chosen of {len(tried)} at layer {wanted.layers[0]}", title_justify="left")
    scores = ["rewrite", "paraphrase", "neighborhood"]
    for name in ("problem", "method", "settings", *scores, "n"):
        table.add_column(name)
    settings = list(dict.fromkeys(name for one in wanted.candidates.values() for some in one for name in some))
    for row in tried[tried["chosen"]].to_dict("records"):
        values = ", ".join(f"{name} {row[name]:g}" for name in settings if not isnan(row[name]))
        label = method_label(*parse_method(row["method"]))
        table.add_row(problem_label(row["problem"]), label, values, *(f"{row[s]:.2f}" for s in scores), str(row["n"]))
    out.print(table)
    out.print("written: " + ", ".join(escape(str(path)) for path in paths))


def _grid(name: str, model: str) -> "tuning.Grid":
    """A grid of the package by name, or of a file."""
    from loc_edit.experiment import tuning

    known = tuning.grids()
    if name == "auto":
        name = "builtin" if model == "builtin" else "paper"
    if name in known:
        return known[name]
    path = Path(name)
    if not path.is_file():
        raise BadConfig(f"grid {name!r}: no such file, and not one of auto, {', '.join(known)}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: no TOML: {error}") from error
