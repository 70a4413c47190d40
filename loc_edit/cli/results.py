"""The commands that turn a run's rows into tables, figures and a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

import loc_edit
from loc_edit.cli.options import RunFolder
from loc_edit.cli.show import err, numbers, out, plain_table, print_analysis, progress, size
from loc_edit.names import method_label, problem_label


def analyze(
    run: RunFolder,
    more: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    out_folder: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    window: int | None = None,
    draws: int = 2000,
    compare_paper: bool = False,
    second: Path | None = None,
    pool: bool = False,
) -> None:
    """Write the tables and figures of a run, or of several.

    The command says which of them cannot be made, and why.

    Examples:
        loc-edit analyze runs/demo
        loc-edit analyze runs/gptj --compare-paper --second runs/gpt2-xl
        loc-edit analyze runs/a runs/b runs/c runs/d runs/e --pool --out pooled

    Args:
        more: Further runs of the same model and settings; their rows join the rows of the first run.  With --pool,
            runs of any models.
        out_folder: The folder for tables/ and figures/.  By default the run's folder.
        window: The restoration window of the main tables and figures.  By default the run's only window, or 5.
        draws: Resamples and permutations of the statistics; 0 skips these statistics.
        compare_paper: Also compare the results with the study's numbers for GPT-J.
        second: The run of another model, for Figure 13.
        pool: Instead, set the effect sizes of the runs side by side, and pool them from five models on.
    """
    runs = [loc_edit.load_run(path) for path in (run, *more)]
    for loaded in runs:
        if remaining := _remaining(loaded):
            message = f"{loaded.path} is not finished: {remaining:,} rows and traces remain"
            err.print(escape(message), soft_wrap=True)
    if pool:
        _pool(runs, out_folder or Path(), window, draws)
        return
    other = None if second is None else loc_edit.load_run(second)
    analysis = loc_edit.analyze(runs, out_folder, window=window, draws=draws, compare_paper=compare_paper, second=other)
    print_analysis(analysis)
    out.print(f"written: {', '.join(sorted(analysis.written))}")
    for name, reason in sorted(analysis.missing.items()):
        out.print(f"not made: {name}: {escape(reason)}")


def _pool(runs: "Sequence[loc_edit.Run]", folder: Path, window: int | None, draws: int) -> None:
    """Writes the table `pooled` and the figure `forest`, and prints the pooled effects."""
    from loc_edit.analysis.figures.forest import plot_forest
    from loc_edit.analysis.regression.pooling import POOLED
    from loc_edit.analysis.tables.paper import write_table
    from loc_edit.views.style import save

    table = loc_edit.pool(runs, window=window, draws=draws)
    paths = [
        *write_table(table, folder / "tables", "pooled"),
        *save(plot_forest(table), table, folder / "figures", "forest"),
    ]
    pooled = table[table["model"] == POOLED]
    shown = plain_table("problem", "method", "effect", *numbers("mean", "low", "high", "models", "I²"))
    for row in pooled.dropna(subset=["mean"]).to_dict("records"):
        ends = (f"{row[name]:.3f}" for name in ("mean", "low", "high"))
        names = (problem_label(row["problem"]), method_label(row["method"], row["window"]), row["effect"])
        shown.add_row(*names, *ends, f"{row['models']:.0f}", f"{row['i2']:.0%}")
    if shown.row_count:
        out.print(shown)
    for reason in dict.fromkeys(filter(None, pooled["reason"])):
        out.print(f"not pooled: {escape(reason)}")
    out.print("written: " + ", ".join(escape(str(path)) for path in paths), soft_wrap=True)


def report(
    run: RunFolder,
    out_file: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    facts: int = 1000,
    window: int | None = None,
    draws: int = 2000,
    model: str | None = None,
) -> None:
    """Write a run's report: one HTML file that needs nothing else.

    It has the answer in words, figures, tables, and each fact with its trace and its edits.

    Examples:
        loc-edit report runs/demo
        loc-edit report runs/demo --model builtin --facts 50 --out report.html

    Args:
        out_file: The file, or a folder for report.html.  By default report.html in the run's folder.
        facts: How many facts the report shows at most, evenly spread.
        window: The restoration window of tables and figures.  By default the run's only window, or 5.
        draws: Resamples and permutations of the statistics; 0 leaves the answer out.
        model: The run's model, such as builtin.  The best edits of each fact are then made again, to show the next
            tokens before and after.
    """
    import numpy as np

    from loc_edit.report.explorer import Continuations, thinned

    loaded, tokens = loc_edit.load_run(run), None
    if model is not None:
        from loc_edit.experiment.replay import replay

        ids = thinned(np.union1d(*(loaded.read(kind, ["fact_id"])["fact_id"] for kind in ("traces", "edits"))), facts)
        with progress():
            tokens = Continuations(*replay(loaded, ids.tolist(), model))
    with err.status("writing the report"):
        path = loc_edit.write_report(loaded, out_file, facts=facts, window=window, draws=draws, next_tokens=tokens)
    out.print(f"report: [bold]{escape(str(path))}[/] ({size(path.stat().st_size)})", soft_wrap=True)


def _remaining(run: "loc_edit.Run") -> int:
    """How many rows and traces a run lacks; 0 where its configuration does not tell."""
    from loc_edit.analysis.status import run_progress
    from loc_edit.store.layout import BadRun

    try:
        return run_progress(run).remaining
    except BadRun:
        return 0
