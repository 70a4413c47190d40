"""Small HTML tables, which notebooks show in the place of a text."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = (), title: str = "") -> str:
    """A table whose texts stay texts.

    Args:
        rows: the cells; the first of a row is its name.  A float is rounded to three digits, and NaN is a dash.
        header: the names of the columns.
        title: a line above.
    """
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = [f"<tr>{head}</tr>"] if header else []
    for name, *cells in rows:
        columns = "".join(f"<td>{escape(_spelled(cell))}</td>" for cell in cells)
        lines.append(f"<tr><th>{escape(str(name))}</th>{columns}</tr>")
    return f"<table>{caption}{''.join(lines)}</table>"


def _spelled(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}" if cell == cell else "\u2013"
    return str(cell)
