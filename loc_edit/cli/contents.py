"""The commands in groups, each with its module, and the help of the whole program.

A command is loaded when it is called.  Until then its one line of help is read from the text of its module, so that
`loc-edit --help` takes no longer than Python itself.
"""

import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

PROGRAM = "loc-edit"
QUESTION = "Does the place where a fact seems to be stored tell us where to edit it?"

GROUPS = {
    "study": ("run.run", "run.plan", "tune.tune", "choose_layer.choose_layer", "plant.plant", "benchmark.benchmark"),
    "one fact": ("one_fact.trace", "one_fact.edit", "explore.explore", "export.export"),
    "models and data": ("models.models", "facts.facts", "stats.stats"),
    "results": ("status.status", "results.analyze", "results.report"),
    "care": ("status.compact", "verify.verify", "doctor.doctor", "completion.completion"),
}
"""The functions of the commands, as `module.function` in this folder."""

COMMANDS = {home.partition(".")[2].replace("_", "-"): home for homes in GROUPS.values() for home in homes}
"""The commands by the names that people type."""

EXAMPLES = """\
  loc-edit run                # the study on the built-in model, in minutes
  loc-edit report runs/demo   # one page with the answer and every fact
  loc-edit trace --fact 1     # where one fact seems to be stored
  loc-edit doctor             # whether everything works here"""


def load(name: str) -> Callable[..., None]:
    """The function of a command."""
    module, _, function = COMMANDS[name].partition(".")
    command: Callable[..., None] = getattr(import_module(f"loc_edit.cli.{module}"), function)
    return command


def summary(name: str) -> str:
    """The first line of a command's docstring, read without importing its module."""
    module, _, function = COMMANDS[name].partition(".")
    text = Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
    found = re.search(rf'^def {function}\(.*?^    """(.+?)(?:"""|$)', text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def help_text(width: int | None = None) -> str:
    """The help of the whole program: examples, then the commands in their groups, a line each."""
    from textwrap import fill

    width = width or min(shutil.get_terminal_size().columns, 120)
    indent = max(map(len, COMMANDS)) + 4
    groups: list[str] = []
    for title, homes in GROUPS.items():
        lines = [title]
        for name in (name for name, home in COMMANDS.items() if home in homes):
            lines.append(fill(f"  {name:<{indent - 2}}{summary(name)}", width, subsequent_indent=" " * indent))
        groups.append("\n".join(lines))
    end = f"`{PROGRAM} COMMAND --help` describes a command and its options, `{PROGRAM} --version` says the version."
    return "\n\n".join([f"usage: {PROGRAM} COMMAND [OPTIONS]", QUESTION, EXAMPLES, *groups, fill(end, width)])
