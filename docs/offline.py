"""What the site shows without a network: formulas as MathML, which browsers know, and the picture of the rooms as SVG.

Sphinx's own ways, MathJax and Mermaid, load their programs from other sites.  GitHub draws both kinds of text itself.
"""

import re
from itertools import pairwise

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.docutils import SphinxDirective

WIDTH, HEIGHT, STEP = 104, 28, 74
"""Of a box, and from one row of boxes to the next, in pixels."""
GAP = 16
"""Between two boxes, or between a box and an arrow that passes it."""


def visit_math(writer, node):
    """An inline formula."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_displaymath(writer, node):
    """A formula in a line of its own."""
    writer.body.append(f'<div class="math-block">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


class Flowchart(SphinxDirective):
    """The lines `a --> b` of a Mermaid flowchart, drawn from the bottom up."""

    has_content = True

    def run(self):
        """The drawing."""
        arrows = re.findall(r"(\w+) --> (\w+)", "\n".join(self.content))
        return [nodes.raw("", drawing(arrows), format="html")]


def drawing(arrows):
    """An SVG of boxes in rows: each box above all boxes from which an arrow leads to it."""
    row = {name: 0 for arrow in arrows for name in arrow}
    for lower, upper in arrows * len(row):
        row[upper] = max(row[upper], row[lower] + 1)
    # An arrow that passes rows has a point in each of them, so that it goes around their boxes.
    paths = [[lower, *((lower, upper, r) for r in range(row[lower] + 1, row[upper])), upper] for lower, upper in arrows]
    row |= {point: point[2] for path in paths for point in path[1:-1]}
    steps = [step for path in paths for step in pairwise(path)]
    x = placed(row, steps)
    top = max(row.values())
    y = {name: STEP * (top - r) + HEIGHT for name, r in row.items()}
    lines = "".join(f'<path d="{curve([(x[name], y[name]) for name in path])}"/>' for path in paths)
    boxes = "".join(
        f'<rect x="{x[name] - WIDTH / 2:.0f}" y="{y[name] - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>'
        f'<text x="{x[name]:.0f}" y="{y[name] + 5:.0f}">{name}</text>'
        for name in row
        if isinstance(name, str)
    )
    left, right = min(x.values()) - WIDTH / 2 - 4, max(x.values()) + WIDTH / 2 + 4
    size = f"{left:.0f} 0 {right - left:.0f} {STEP * top + 2 * HEIGHT}"
    head = '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    head += '<path d="M0 0L8 4L0 8z"/></marker>'
    return (
        f'<svg class="rooms" viewBox="{size}" role="img" aria-label="The rooms, each above those that it imports from">'
        f"<defs>{head}</defs><g>{lines}</g>{boxes}</svg>"
    )


def placed(row, steps):
    """The x of each name: near the names that its arrows lead to and come from, none over another."""
    neighbors = {name: [] for name in row}
    for lower, upper in steps:
        neighbors[lower].append(upper)
        neighbors[upper].append(lower)
    rows = [[name for name in row if row[name] == r] for r in range(max(row.values()) + 1)]
    x = {name: 100.0 * i for names in rows for i, name in enumerate(names)}
    for sweep in range(60):
        upward = sweep % 2 == 0
        for names in rows if upward else rows[::-1]:
            for name in names:
                near = [x[other] for other in neighbors[name] if sweep > 40 or (row[other] < row[name]) == upward]
                x[name] = sum(near) / len(near) if near else x[name]
            names.sort(key=x.get)
            spread(names, x)
    return x


def spread(names, x):
    """Move the names of one row apart, in their order, about their common middle."""
    middle = sum(x[name] for name in names) / len(names)
    for left, right in pairwise(names):
        widths = sum(WIDTH / 2 if isinstance(name, str) else 0 for name in (left, right))
        x[right] = max(x[right], x[left] + widths + GAP)
    moved = sum(x[name] for name in names) / len(names) - middle
    x |= {name: x[name] - moved for name in names}


def curve(points):
    """A smooth line upward from the top of the first box to the bottom of the last, through all points."""
    (x0, y0), *_, (x1, y1) = points
    points = [(x0, y0 - HEIGHT / 2), *points[1:-1], (x1, y1 + HEIGHT / 2)]
    d = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for (xa, ya), (xb, yb) in pairwise(points):
        middle = (ya + yb) / 2
        d += f"C{xa:.0f} {middle:.0f} {xb:.0f} {middle:.0f} {xb:.0f} {yb:.0f}"
    return d


def setup(app):
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    app.add_directive("mermaid", Flowchart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
