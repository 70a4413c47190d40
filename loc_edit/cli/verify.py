"""The command that checks what loc-edit has written."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

import loc_edit
from loc_edit.cli.show import out

COLORS = {"whole": "green", "no checksum": "yellow", "set aside": "yellow", "damaged": "bold red"}


def verify(
    path: tyro.conf.Positional[Path],
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Check a run folder, a cache, an edit, a report or a model directory: what is whole, what is not, what to do.

    Nothing is written or computed.  The exit status is 1 if something is damaged.

    Args:
        path: The file or folder; subfolders are searched.
        as_json: Print one JSON list and nothing else.
    """
    findings = loc_edit.verify(path)
    if as_json:
        print(json.dumps([asdict(finding) | {"path": str(finding.path)} for finding in findings], indent=1))
    else:
        for finding in findings:
            state = f"[{COLORS[finding.state]}]{finding.state:<11}[/]"
            advice = f": {finding.advice}" if finding.advice else ""
            out.print(f"{state}  {escape(f'{finding.path}  ({finding.kind}){advice}')}", soft_wrap=True)
    if broken := sum(finding.is_broken for finding in findings):
        raise ValueError(f"{path}: {broken} of {len(findings)} things are damaged")
