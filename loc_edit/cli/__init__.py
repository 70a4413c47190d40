"""The command line: one command, one library call."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from pydantic import ValidationError
from rich.markup import escape

from loc_edit.cli.commands import analyze, edit, trace
from loc_edit.cli.export import export
from loc_edit.cli.facts import facts
from loc_edit.cli.report import report
from loc_edit.cli.show import err, out, progress, r2_table, score_table, size
from loc_edit.cli.stats import stats
from loc_edit.cli.status import compact, status
from loc_edit.cli.tune import tune
from loc_edit.events import duration
from loc_edit.experiment.config import ExperimentConfig, first_error

LISTS = ("--layers", "--windows", "--localizer-windows", "--methods", "--problems", "--localizers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors that a user can mend take one line and no traceback."""
    args = _split_lists(list(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.filterwarnings("ignore", message=".*Model.*", category=DeprecationWarning)
    try:
        commands = {
            "run": _run_with_default(_experiment(args)),
            "plan": _plan_with_default(_experiment(args)),
            "status": status,
            "compact": compact,
            "trace": trace,
            "edit": edit,
            "tune": tune,
            "export": export,
            "stats": stats,
            "analyze": analyze,
            "report": report,
            "facts": facts,
        }
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="loc-edit",
            description="Does the place where a fact seems to be stored tell us where to edit it?",
            args=args,
        )
    except KeyboardInterrupt:
        err.print("\nstopped; finished rows are kept, and the same command goes on from there")
        return 130
    except ValidationError as error:  # of options; `ExperimentConfig.from_toml` words those of a file
        err.print(f"[bold red]loc-edit:[/] {escape(first_error(error))}", soft_wrap=True)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        err.print(f"[bold red]loc-edit:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    return 0


def _split_lists(args: list[str]) -> list[str]:
    """`--layers 2,4` as `--layers 2 4`: both ways of writing a list are common."""
    result: list[str] = []
    option = ""
    for arg in args:
        option = arg if arg.startswith("--") else option
        name, equals, values = arg.partition("=")
        if equals and name in LISTS:
            result += [name, *values.split(",")]
        else:
            result += arg.split(",") if option in LISTS else [arg]
    return result


def _experiment(args: Sequence[str]) -> ExperimentConfig:
    """The defaults of `run` and `plan`: those of the file or name after `--config`."""
    if not args or args[0] not in ("run", "plan"):
        return ExperimentConfig()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="default")
    return ExperimentConfig.from_toml(parser.parse_known_args(args)[0].config)


def _run_with_default(default: ExperimentConfig) -> Any:
    def run(experiment: Annotated[ExperimentConfig, tyro.conf.arg(name="")] = default, config: str = "default") -> None:
        """Run an experiment: trace, edit, score, write rows, tables and figures; go on if it was stopped.

        Args:
            experiment: its options.
            config: a TOML file, or default, smoke or full; options given beside it win.
        """
        from loc_edit.analysis.analyze import analyze
        from loc_edit.analysis.status import grouped_reasons, reason_lines
        from loc_edit.analysis.tables.rows import without_controls
        from loc_edit.experiment.experiment import Experiment

        with progress() as advance:
            wanted = Experiment(experiment)
            done = wanted.run(progress=advance, workers=wanted.default_workers())
        found = analyze(done)
        out.print(r2_table(found))
        out.print(score_table(found))
        counts = ", ".join(f"{n} {status}" for status, n in done.counts().items())
        out.print(f"edits: {counts}")
        for line in reason_lines(grouped_reasons(without_controls(done.edits))):
            out.print(escape(line), soft_wrap=True)
        if kept := done.kept():
            out.print(f"{kept:,} rows of earlier settings or facts are kept in the folder, and left out")
        out.print(
            f"rows, tables and figures: [bold]{escape(str(done.path))}[/]; `loc-edit report` makes a page of them"
        )

    return run


def _plan_with_default(default: ExperimentConfig) -> Any:
    def plan(
        experiment: Annotated[ExperimentConfig, tyro.conf.arg(name="")] = default, config: str = "default"
    ) -> None:
        """Say how many traces and edits an experiment means, and about what time, disk and memory it takes.

        Args:
            experiment: its options.
            config: a TOML file, or default, smoke or full; options given beside it win.
        """
        from loc_edit.experiment.experiment import Experiment

        plan = Experiment(experiment).plan()
        out.print(f"facts   {plan.facts:>9,}")
        out.print(f"traces  {plan.traces:>9,}  (each at every layer and position)")
        out.print(f"edits   {plan.edits:>9,}  ({plan.combinations} methods x problems, {plan.layers} layers)")
        if (plan.traces_missing, plan.edits_missing) != (plan.traces, plan.edits):
            out.print(
                f"missing {plan.edits_missing:>9,}  edits, and {plan.traces_missing:,} traces; the others are in "
                f"{escape(experiment.out)}",
                soft_wrap=True,
            )
        each = (
            "of one process" if plan.processes == 1 else f"of {plan.processes} processes, {duration(plan.work)} of work"
        )
        out.print(f"time    {duration(plan.seconds):>9}  ({each}, estimated from 4 facts on this machine)")
        out.print(f"disk    {size(plan.disk):>9}  (rows, measured on those facts)")
        if plan.stats_disk:
            out.print(
                f"cache   {size(plan.stats_disk):>9}  (key statistics; `loc-edit stats --plan` says what they take)"
            )
        each = f"model {size(plan.model)}" + (f", key statistics {size(plan.stats_memory)}" * bool(plan.stats_memory))
        out.print(
            f"memory  {size(plan.memory):>9}  ({plan.processes} x ({each}); Python and batches on top)", soft_wrap=True
        )

    return plan
