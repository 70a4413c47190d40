"""The commands that run an experiment, or say what it would take."""

from typing import Annotated

import tyro
from rich.markup import escape

import loc_edit
from loc_edit.cli.models import fetch
from loc_edit.cli.options import AcceptTerms, Assignments
from loc_edit.cli.show import out, print_analysis, progress, size
from loc_edit.events import duration
from loc_edit.experiment.config import ExperimentConfig

Options = Annotated[ExperimentConfig, tyro.conf.arg(name="")]


def run(
    experiment: Options, config: str = "default", settings: Assignments = (), accept_terms: AcceptTerms = False
) -> None:
    """Run an experiment: trace, edit and score facts; write rows, tables and figures.  A stopped run continues.

    Args:
        experiment: the options of the experiment; `config` has set their defaults.
        config: A TOML file, or default, smoke or full.  Options given on the command line take precedence.
    """
    from loc_edit.analysis.status import grouped_reasons, reason_lines
    from loc_edit.analysis.tables.rows import without_controls

    fetch(experiment.model, accept_terms)
    with progress():
        study = loc_edit.Experiment(experiment.with_settings(settings))
        finished = study.run(workers=study.default_workers())
    print_analysis(loc_edit.analyze(finished))
    counts = [f"{count} {status}" for status, count in finished.counts().items()]
    out.print(f"edits: {', '.join(counts) or 'none'}")
    for line in reason_lines(grouped_reasons(without_controls(finished.edits))):
        out.print(escape(line), soft_wrap=True)
    if kept := finished.kept():
        out.print(f"{kept:,} rows of earlier settings or facts stay in the folder and are left out")
    folder = escape(str(finished.path))
    out.print(f"rows, tables and figures: [bold]{folder}[/]; `loc-edit report` makes one page of them")


def plan(
    experiment: Options, config: str = "default", settings: Assignments = (), accept_terms: AcceptTerms = False
) -> None:
    """Count the traces and edits of an experiment, and estimate the time, disk and memory that they take.

    Args:
        experiment: the options of the experiment; `config` has set their defaults.
        config: A TOML file, or default, smoke or full.  Options given on the command line take precedence.
    """
    fetch(experiment.model, accept_terms)
    plan = loc_edit.Experiment(experiment.with_settings(settings)).plan()
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
    lines.append(("time", duration(plan.seconds), f"({processes}; estimated from 4 facts on this machine)"))
    lines.append(("disk", size(plan.disk), "(rows, measured on these facts)"))
    if plan.stats_disk:
        note = "(key statistics; `loc-edit stats --plan` says more about them)"
        lines.append(("cache", size(plan.stats_disk), note))
    statistics = f" and key statistics of {size(plan.stats_memory)}" if plan.stats_memory else ""
    note = f"({plan.processes} x a model of {size(plan.model)}{statistics}, without Python and batches)"
    lines.append(("memory", size(plan.memory), note))
    for name, number, note in lines:
        out.print(escape(f"{name:<7} {number:>9}  {note}".rstrip()), soft_wrap=True)
