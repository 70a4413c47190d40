"""The command that says whether everything works here."""

from rich.markup import escape

from loc_edit.cli.exits import Exit
from loc_edit.cli.show import Json, out, print_json

COLORS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


class Unwell(RuntimeError):
    """Something will not work here."""

    exit_status = Exit.UNWELL


def doctor(self_test: bool = True, as_json: Json = False) -> None:
    """Say whether everything works here, and what to do if not.

    Looked at are versions, devices, the cache, disk and memory; then a fact of the built-in model is traced and edited,
    which takes about ten seconds, and the numbers are compared with stored ones.  The exit status is 4 if there is a
    problem; a warning leaves it at 0.

    Examples:
        loc-edit doctor
        loc-edit doctor --no-self-test
        loc-edit doctor --json

    Args:
        self_test: Trace and edit a fact of the built-in model, too.
    """
    from loc_edit.experiment.checkup import checkup

    checks = []
    for check in checkup(self_test):
        checks.append(check)
        if not as_json:
            advice = f"\n{'':<29}-> {check.advice}" if check.advice else ""
            state = f"[{COLORS[check.state]}]{check.state:<8}[/]"
            out.print(f"{state} {check.name:<19} {escape(check.found + advice)}", soft_wrap=True)
    problems = [check.name for check in checks if check.state == "problem"]
    if as_json:
        print_json({"ok": not problems, "checks": checks})
    if problems:
        raise Unwell(f"{len(problems)} of {len(checks)} checks found a problem: {', '.join(problems)}")
    if not as_json:
        out.print("everything works here")
