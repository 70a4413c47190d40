"""Runs commands of the command line in this process."""

import io
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from loc_edit.cli import show
from loc_edit.cli.main import main


def call(*args):
    """The exit status of one command, and what it printed as output and as errors."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(show.out, "width", 200)
        patch.setattr(show.err, "width", 200)
        try:
            status = main([str(arg) for arg in args])
        except SystemExit as stop:  # tyro's own refusals and --help
            status = stop.code or 0
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def message(result):
    """The one line of an error: after whatever a progress bar left."""
    assert result.status == 1, result.out + result.err
    assert "Traceback" not in result.err
    [line] = [line for line in result.err.splitlines() if line.startswith("loc-edit:")]
    assert result.err.rstrip().endswith(line)
    return line


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
