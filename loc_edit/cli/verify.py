"""The command that checks what loc-edit has written."""

from pathlib import Path

import tyro
from rich.markup import escape

import loc_edit
from loc_edit.cli.show import Json, out, print_json

COLORS = {"whole": "green", "no checksum": "yellow", "set aside": "yellow", "damaged": "bold red"}


def verify(
    path: tyro.conf.Positional[Path],
    as_json: Json = False,
) -> None:
    """Check that files are whole: a run, a cache, an edit, a report.

    A model directory will do, too, and a folder of such things.  The command says what is whole, what is not, and what
    to do.  Nothing is written or computed.  The exit status is 1 if something is damaged.

    Examples:
        loc-edit verify runs/demo
        loc-edit verify ~/.cache/loc_edit --json

    Args:
        path: The file or folder; subfolders are searched.
    """
    findings = loc_edit.verify(path)
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            state = f"[{COLORS[finding.state]}]{finding.state:<11}[/]"
            advice = f": {finding.advice}" if finding.advice else ""
            out.print(f"{state}  {escape(f'{finding.path}  ({finding.kind}){advice}')}", soft_wrap=True)
    if broken := sum(finding.is_broken for finding in findings):
        raise ValueError(f"{path}: {broken} of {len(findings)} things are damaged")
