"""The program `loc-edit`: it reads the command line, runs one command and reports errors in one line."""

import logging
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from loc_edit.cli.contents import COMMANDS, PROGRAM, help_text, load
from loc_edit.cli.exits import Exit

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
        The exit status: see `Exit`.  (tyro itself exits with `Exit.USAGE` when an option does not parse.)
    """
    stop_on_signals()
    args = _split_lists(list(sys.argv[1:] if argv is None else argv))
    if not args or args[0] in ("-h", "--help"):
        print(help_text(), file=sys.stdout if args else sys.stderr)
        return Exit.DONE if args else Exit.USAGE
    if args[0] == "--version":
        import loc_edit

        print(f"{PROGRAM} {loc_edit.__version__}")
        return Exit.DONE
    if args[0] not in COMMANDS:
        from loc_edit.names import nearest

        print(f"{PROGRAM}: command {args[0]!r}: {nearest(args[0], COMMANDS)}", file=sys.stderr)
        return Exit.USAGE
    handler = logging.StreamHandler()
    handler.addFilter(_NewOnly())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[handler])
    warnings.filterwarnings("ignore", message=".*Model.*", category=DeprecationWarning)
    try:
        return _run(*args)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        by = f" by {signal.Signals(number).name}" * isinstance(stop, Stopped)
        _say(f"stopped{by}; finished rows are kept, and this goes on from there: {PROGRAM} {shlex.join(args)}", "\n")
        return Exit.STOPPED + number
    except (ValueError, OSError, RuntimeError) as error:
        _say(str(error))
        return getattr(error, "exit_status", Exit.ERROR)
    except ImportError as error:  # without rich, which may be missing
        print(f"{PROGRAM}: {error}; `{PROGRAM} doctor` says what is not installed", file=sys.stderr)
        return Exit.ERROR


class _NewOnly(logging.Filter):
    """Lets each message through once: several tables and figures of a run warn of the same facts."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is new."""
        message = record.getMessage()
        is_new = message not in self.said
        self.said.add(message)
        return is_new


def _run(name: str, *args: str) -> int:
    """Runs a command and returns its exit status."""
    from loc_edit.cli.parsing import parse
    from loc_edit.cli.show import json_only

    command = load(name)
    values = parse(command, name, args, _defaults(name, args))
    with json_only(values.get("as_json", False)):
        command(**values)
    return Exit.DONE


def _say(message: str, before: str = "") -> None:
    """Prints the one line of an error."""
    from rich.markup import escape

    from loc_edit.cli.show import err

    err.print(f"{before}[bold red]{PROGRAM}:[/] {escape(message)}", soft_wrap=True)


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


def _defaults(name: str, args: Sequence[str]) -> dict[str, Any]:
    """The defaults of the options of `run` and `plan`, which the file or name after `--config` gives."""
    if name not in ("run", "plan"):
        return {}
    from argparse import ArgumentParser

    from loc_edit.experiment.config import ExperimentConfig

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="default")
    return {"experiment": ExperimentConfig.from_toml(parser.parse_known_args(args)[0].config)}
