"""The command that grades a localizer or an editor on the fixed grid."""

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from loc_edit.cli.models import fetch
from loc_edit.cli.options import PLUGINS, AcceptTerms, like_config
from loc_edit.cli.show import out, progress
from loc_edit.experiment.plugins import load_plugins
from loc_edit.files import write_atomic


def benchmark(
    localizer: str | None = None,
    editor: str | None = None,
    plugins: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--plugin"], help=PLUGINS)] = (),
    model: str = "builtin",
    split: Literal["public", "held_out"] = "public",
    facts: int = 40,
    draws: int = 2000,
    submit: Path | None = None,
    runs: Path = Path("runs/benchmark"),
    workers: Annotated[int | None, like_config("workers")] = None,
    accept_terms: AcceptTerms = False,
) -> None:
    """Grade a localizer or an editor on a fixed grid.

    Does the localizer find planted facts, and does it inform editing?  The grid's edits ship with the package, so a
    localizer needs only its own traces.

    Examples:
        loc-edit benchmark --localizer attribution
        loc-edit benchmark --plugin my_file.py --editor mine --submit mine.json

    Args:
        localizer: The localizer.
        editor: The editing method.
        model: A model that the package has a grid of.
        split: The half of the facts: public, to develop on, or held_out, for the numbers that are reported.
        facts: How many facts an editor edits, of both halves.
        draws: Resamples and permutations of the statistics.
        submit: A JSON file for the row of the leaderboard, with the numbers that it is made of.
        runs: The folder of traces and edits; the same command continues from there.
    """
    from loc_edit.experiment.benchmark import Benchmark

    if (localizer is None) == (editor is None):
        raise ValueError("expected --localizer NAME or --editor NAME, one of the two")
    load_plugins(plugins)
    grid = Benchmark(model, split, runs, workers)
    fetch(model, accept_terms)
    with progress():
        grade = grid.localizer(localizer, draws=draws) if localizer else grid.editor(str(editor), facts=facts)
    table = Table(show_header=False)
    for name, value in grade.summary.items():
        table.add_row(name.replace("_", " "), escape(f"{value:.3g}" if isinstance(value, float) else str(value)))
    out.print(table)
    if submit:
        submit.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(submit, (json.dumps(grade.submission(), indent=1, default=float) + "\n").encode())
        out.print(f"written: {escape(str(submit))}")
