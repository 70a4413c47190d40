"""The commands that run an experiment, or say what it would take."""

from rich.markup import escape

import loc_edit
from loc_edit.cli.exits import Exit
from loc_edit.cli.models import fetch
from loc_edit.cli.options import AcceptTerms, Assignments
from loc_edit.cli.show import Json, out, plain, print_analysis, print_json, progress, size
from loc_edit.events import duration
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.names import first_few


class CellsFailed(RuntimeError):
    """A run that came to its end, in which every edit of some cells has failed."""

    exit_status = Exit.CELLS_FAILED


def run(
    experiment: ExperimentConfig,
    config: str = "default",
    assignments: Assignments = (),
    accept_terms: AcceptTerms = False,
    retry_failed: bool = False,
) -> None:
    """Trace, edit and score facts; write rows, tables and figures.

    A run that was stopped continues with the same command.

    Examples:
        loc-edit run
        loc-edit run --facts 20 --methods rome memit --problems fact_erasure
        loc-edit run --config my.toml --out runs/mine

    Args:
        config: A TOML file, or default, smoke or full.  Options given on the command line take precedence.
        retry_failed: Compute failed edits and traces of the folder again.

    Raises:
        CellsFailed: every edit of some cells has failed; all else is there.
    """
    from loc_edit.analysis.status import failed_cells, grouped_reasons, reason_lines
    from loc_edit.analysis.tables.rows import without_controls

    fetch(experiment.model, accept_terms)
    with progress():
        study = loc_edit.Experiment(experiment.with_settings(assignments))
        finished = study.run(workers=study.default_workers(), retry_failed=retry_failed)
    print_analysis(loc_edit.analyze(finished))
    counts = [f"{count} {status}" for status, count in finished.counts().items()]
    out.print(f"edits: {', '.join(counts) or 'none'}")
    for line in reason_lines(grouped_reasons(without_controls(finished.edits))):
        out.print(escape(line), soft_wrap=True)
    if kept := finished.kept():
        out.print(f"{kept:,} rows of earlier settings or facts stay in the folder and are left out")
    folder = escape(str(finished.path))
    out.print(f"rows, tables and figures: [bold]{folder}[/]; `loc-edit report` makes one page of them")
    if failed := failed_cells(without_controls(finished.edits)):
        names = first_few(failed, between="; ")
        cells = "cell" if len(failed) == 1 else "cells"
        raise CellsFailed(f"every edit has failed in {len(failed)} {cells}: {names} (again: --retry-failed)")


def plan(
    experiment: ExperimentConfig,
    config: str = "default",
    assignments: Assignments = (),
    accept_terms: AcceptTerms = False,
    as_json: Json = False,
) -> None:
    """Estimate what a run takes: traces, edits, time, disk, memory.

    Examples:
        loc-edit plan --config full
        loc-edit plan --config my.toml --workers 4

    Args:
        config: A TOML file, or default, smoke or full.  Options given on the command line take precedence.
    """
    fetch(experiment.model, accept_terms)
    with progress():
        plan = loc_edit.Experiment(experiment.with_settings(assignments)).plan()
    if as_json:
        print_json({**plain(plan), "seconds": plan.seconds, "memory": plan.memory, "out": experiment.out})
        return
    lines = [
        ("facts", f"{plan.facts:,}", ""),
        ("traces", f"{plan.traces:,}", "(each at every layer and position)"),
        ("edits", f"{plan.edits:,}", f"({plan.combinations} methods x problems, {plan.layers} layers)"),
    ]
    if plan.sequences:
        lines.append(("edits", f"{plan.sequences:,}", f"in sequence ({plan.sequences_missing:,} of them missing)"))
    if (plan.traces_missing, plan.edits_missing) != (plan.traces, plan.edits):
        note = f"edits and {plan.traces_missing:,} traces; the others are in {experiment.out}"
        lines.append(("missing", f"{plan.edits_missing:,}", note))
    processes = "1 process" if plan.processes == 1 else f"{plan.processes} processes, {duration(plan.work)} of work"
    if plan.statistics:
        processes += f", and {duration(plan.statistics)} for the key statistics"
    lines.append(("time", duration(plan.seconds), f"({processes}; estimated from {plan.probed} facts on this machine)"))
    lines.append(("disk", size(plan.disk), "(missing rows, measured on these facts)"))
    if plan.stats_disk:
        note = "(key statistics; `loc-edit stats --plan` says more about them)"
        lines.append(("cache", size(plan.stats_disk), note))
    statistics = f" and key statistics of {size(plan.stats_memory)}" if plan.stats_memory else ""
    note = f"({plan.processes} x a model of {size(plan.model)}{statistics}, without Python and batches)"
    lines.append(("memory", size(plan.memory), note))
    for name, number, note in lines:
        out.print(escape(f"{name:<7} {number:>9}  {note}".rstrip()), soft_wrap=True)
