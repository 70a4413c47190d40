"""What tests of runs look at: all rows, and all files."""

from pathlib import Path

import pandas as pd

from loc_edit.analysis.tables.rows import without_controls


def rows(run):
    """All rows of a run but for the time they took."""
    return run.read("traces"), run.read("edits", lists=True).drop(columns="seconds")


def assert_same_rows(one, other, **tolerance):
    for left, right in zip(rows(one), rows(other), strict=True):
        assert len(left)
        pd.testing.assert_frame_equal(left, right, check_exact=not tolerance, **tolerance)


def edited(run):
    """The edit rows without the controls."""
    return without_controls(run.edits)


def files(folder):
    return {
        p.relative_to(folder): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file() and p.name != "log.jsonl"
    }
