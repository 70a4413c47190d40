"""The command that writes a run's report."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from loc_edit.cli.show import err, out, progress, size


def report(
    run: Annotated[Path, tyro.conf.Positional],
    out_file: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    facts: int = 1000,
    window: int | None = None,
    draws: int = 2000,
    model: str | None = None,
) -> None:
    """Write a run's report: one HTML file with the answer, figures, tables and every fact; it loads nothing.

    Args:
        run: the run's folder, finished or not.
        out_file: the file, or a folder for report.html; by default report.html in the run's folder.
        facts: how many facts the explorer holds at most, evenly spread.
        window: the restoration window of tables and figures; by default the only one, or 5.
        draws: resamples and permutations of the statistics; 0 leaves the answer out.
        model: where the run's model is, such as builtin; each fact's best edits are then made again, to show the
            next tokens before and after.
    """
    import numpy as np

    from loc_edit.analysis.run import load_run
    from loc_edit.report.explorer import Continuations, thinned
    from loc_edit.report.write import write_report

    loaded, found = load_run(run), None
    if model is not None:
        from loc_edit.experiment.replay import replay

        ids = thinned(np.union1d(*(loaded.read(kind, ["fact_id"])["fact_id"] for kind in ("traces", "edits"))), facts)
        with progress() as advance:
            found = Continuations(*replay(loaded, ids.tolist(), model, advance))
    with err.status("writing the report"):
        path = write_report(loaded, out_file, facts=facts, window=window, draws=draws, next_tokens=found)
    out.print(f"report: [bold]{escape(str(path))}[/] ({size(path.stat().st_size)})", soft_wrap=True)
