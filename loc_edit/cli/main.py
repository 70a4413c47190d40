"""The program `loc-edit`: it reads the command line, runs one command and reports errors in one line."""

import argparse
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import tyro
from pydantic import ValidationError
from rich.markup import escape

from loc_edit.cli.benchmark import benchmark
from loc_edit.cli.choose_layer import choose_layer
from loc_edit.cli.commands import edit, trace
from loc_edit.cli.explore import explore
from loc_edit.cli.export import export
from loc_edit.cli.facts import facts
from loc_edit.cli.models import models
from loc_edit.cli.plant import plant
from loc_edit.cli.results import analyze, report
from loc_edit.cli.run import CellsFailed, plan, run
from loc_edit.cli.show import err
from loc_edit.cli.stats import stats
from loc_edit.cli.status import compact, status
from loc_edit.cli.tune import tune
from loc_edit.cli.verify import verify
from loc_edit.experiment.config import ExperimentConfig, first_error

COMMANDS = (
    run, plan, status, compact, trace, edit, explore, tune, choose_layer, plant, benchmark, export, stats, analyze,
    report, facts, models, verify,
)  # fmt: skip
LISTS = (
    *("--layers", "--windows", "--localizer-windows", "--methods", "--problems", "--localizers", "--scores"),
    *("--plugin", "--plugins"),
)
"""Options whose values may also be separated by commas."""


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error that a user can correct takes one line and no traceback.

    Returns:
        The exit status: 0, 1 after an error, 3 if a run has ended and every edit of some cell has failed, 130 after
        Ctrl-C, 143 or another number above 128 after a signal.  (tyro exits with 2 when an option does not parse.)
    """
    stop_on_signals()
    args = _split_lists(list(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.filterwarnings("ignore", message=".*Model.*", category=DeprecationWarning)
    try:
        commands: dict[str, Callable[..., None]] = {command.__name__.replace("_", "-"): command for command in COMMANDS}
        experiment = _experiment(args)
        tyro.extras.subcommand_cli_from_dict(
            commands | {name: partial(commands[name], experiment=experiment) for name in ("run", "plan")},
            prog="loc-edit",
            description="Does the place where a fact seems to be stored tell us where to edit it?",
            args=args,
        )
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        by = f" by {signal.Signals(number).name}" * isinstance(stop, Stopped)
        err.print(f"\nstopped{by}; finished rows are kept, and the same command continues from there")
        return 128 + number
    except (ValueError, OSError, RuntimeError) as error:
        # `ExperimentConfig.from_toml` describes the errors of a file; those of options come as pydantic raises them.
        message = first_error(error) if isinstance(error, ValidationError) else str(error)
        err.print(f"[bold red]loc-edit:[/] {escape(message)}", soft_wrap=True)
        return 3 if isinstance(error, CellsFailed) else 1
    return 0


def stop_on_signals() -> None:
    """Let the signals by which clusters stop a program end it like Ctrl-C, but those that `nohup` has it ignore."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP", "SIGUSR1"):
            number = getattr(signal, name, None)  # Windows has only the first
            if number and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)


def _split_lists(args: list[str]) -> list[str]:
    """Turns `--layers 2,4` into `--layers 2 4`: both ways of writing a list are common."""
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
    """The defaults of `run` and `plan`, which the file or name after `--config` gives."""
    if not args or args[0] not in ("run", "plan"):
        return ExperimentConfig()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="default")
    return ExperimentConfig.from_toml(parser.parse_known_args(args)[0].config)
