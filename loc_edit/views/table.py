"""Small HTML tables, which notebooks show in the place of a text."""

from collections.abc import Iterable, Sequence
from html import escape

LEFT = 'style="text-align: left; vertical-align: top"'


def html_table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = (), title: str = "") -> str:
    """A table whose texts stay texts.

    Args:
        rows: the cells; the first of a row is its name.  A float is rounded to three digits, and NaN is a dash.
        header: the names of the columns.
        title: a line above.
    """
    above = f"<p>{escape(title)}</p>" if title else ""
    lines = [f"<tr>{''.join(map(_name, header))}</tr>"] if header else []
    for name, *cells in rows:
        columns = "".join(f"<td {LEFT}>{escape(_spelled(cell))}</td>" for cell in cells)
        lines.append(f"<tr>{_name(name)}{columns}</tr>")
    return f"{above}<table>{''.join(lines)}</table>"


def _name(name: object) -> str:
    return f"<th {LEFT}>{escape(str(name))}</th>"


def _spelled(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}" if cell == cell else "\u2013"
    return str(cell)
