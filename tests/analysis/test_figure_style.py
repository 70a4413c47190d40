"""What a printed page asks of figures: two widths, fonts that can be read, no text cut off or over another, vectors."""

import re
import struct
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from loc_edit.analysis.redraw import drawing, drawn_numbers, redraw
from loc_edit.analysis.regression.pooling import EFFECTS, POOLED
from loc_edit.names import LOCALIZERS, METHODS, PROBLEMS, method_label
from loc_edit.views.heatmap import heatmap
from loc_edit.views.style import (
    AMOUNT,
    COLORS,
    DOUBLE,
    METHODS as METHODS_WITH_STYLE,
    SIGNED,
    SINGLE,
    SMALLEST,
    STYLE,
    TALLEST,
    series,
    styled,
)

FOLDER = Path(__file__).parents[2] / "figures"
COMMITTED = sorted(path for path in FOLDER.rglob("*.csv") if path.with_suffix(".pdf").exists())
DRAWN = [
    *(f"builtin/{name}" for name in ("figure_6", "figure_9", "figure_11", "layer_choice", "localizer_matrix")),
    *(f"smollm2/{name}" for name in ("figure_2", "figure_4", "figure_6", "figure_7", "figure_8", "figure_10")),
    *(f"smollm2/{name}" for name in ("layer_choice", "localizer_choice", "localizer_matrix")),
    *("builtin/localizer_choice", "builtin_sequence/sequences", "leaderboard_builtin"),
]
"""Of each kind of the committed figures one in each width."""
LAYERS = 8


def grid(**columns):
    """A row per combination of the values."""
    return pd.DataFrame(product(*columns.values()), columns=list(columns))


def within(frame, name="mean", width=0.1):
    """Numbers from 0 to 1 and their intervals."""
    middle = np.random.default_rng(0).uniform(0, 1, len(frame))
    return frame.assign(**{name: middle, "low": (middle - width).clip(0), "high": (middle + width).clip(0, 1)})


def of_methods(frame, n_methods=None):
    """The frame for every problem and method."""
    methods = pd.DataFrame({"method": list(METHODS), "window": [known.window for known in METHODS.values()]})
    return (
        methods.head(n_methods or len(methods))
        .merge(grid(problem=list(PROBLEMS)), how="cross")
        .merge(frame, how="cross")
    )


def forest():
    models = [f"a-model-of-size-{size}b" for size in range(6)] + [POOLED]
    data = within(of_methods(grid(effect=list(EFFECTS), model=models, run=[0]), 2))
    return data.assign(prediction_low=data["low"] - 0.1, prediction_high=data["high"] + 0.1)


def bars():
    data = within(of_methods(pd.DataFrame({"outcome": ["rewrite"]})), "r2_layer")
    return data.assign(r2_both=data["r2_layer"] + 0.012, r2_added=0.012)


def convergence():
    data = grid(layer=range(LAYERS), tokens=[2**power for power in range(12, 20)])
    return data.assign(
        rank=data["tokens"].clip(upper=400 + 16 * data["layer"]),
        condition=1e9 * (1 + data["layer"]) / data["tokens"],
        change=(1 + data["layer"]) * 100 / data["tokens"],
    )


def points():
    data = within(grid(layer=range(28), fact_id=range(5)), "rewrite").assign(r=-0.36, slope=0.1, intercept=0.5)
    return data.assign(problem="fact_amplification", method="rome", window=1, trace=data["rewrite"])


MADE_UP = {
    "figure_6": bars,
    "figure_15": points,
    "forest": forest,
    "key_convergence": convergence,
    "localizer_matrix": lambda: within(
        of_methods(grid(localizer=list(LOCALIZERS), outcome=["rewrite"])), "added_corrected"
    ).assign(p_permutation_holm=0.01),
    "planted_accuracy": lambda: within(
        grid(localizer=list(LOCALIZERS), window=[1, 3, 5], group=["all"], chance=[0.125]), "found"
    ),
    "planted_edits": lambda: within(
        grid(
            problem=list(PROBLEMS)[:2], method=["rome", "finetune"], window=[1], outcome=["rewrite"],
            group=[*map(str, range(LAYERS)), "0+3"], layer=range(LAYERS),
        )
    ).assign(planted=lambda data: data["group"] == data["layer"].astype(str)),
}  # fmt: skip
"""Figures whose numbers are not committed, and some with more methods, layers or localizers than those."""


def long_heatmap():
    effect = np.random.default_rng(0).normal(size=(48, 20))
    return heatmap(
        effect, tokens=["internationalization"] * 20, subject=(3, 6), metric="logit_difference", window=10,
        site="attn_out", ends=(12.34, -3.21),
    )  # fmt: skip


CASES = {name: lambda name=name: drawing(Path(name).name)(drawn_numbers(FOLDER / f"{name}.csv")) for name in DRAWN}
CASES |= {f"made up: {name}": lambda name=name, make=make: drawing(name)(make()) for name, make in MADE_UP.items()}
CASES["made up: heatmap"] = long_heatmap


def texts(figure):
    """What is drawn at the resolution of a PNG: the size in pixels, and of each text its content, font size and box."""
    found = []
    plain = Text.draw

    def recorded(self, renderer):
        plain(self, renderer)
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self.get_fontsize(), self.get_window_extent(renderer).extents))

    with styled(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", recorded)
        figure.set_dpi(STYLE["savefig.dpi"])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return canvas.get_width_height(), found


def pdf(figure):
    out = BytesIO()
    with styled():
        figure.savefig(out, format="pdf", metadata={"CreationDate": None})
    return out.getvalue()


def width_and_height(content):
    """Of a page of a PDF, in inches."""
    return [float(size) / 72 for size in re.search(rb"/MediaBox \[ 0 0 (\S+) (\S+) \]", content).groups()]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_figure_can_be_printed_as_it_is(name):
    figure = CASES[name]()
    (width, height), found = texts(figure)
    assert width / STYLE["savefig.dpi"] in (SINGLE, DOUBLE)
    assert height / STYLE["savefig.dpi"] <= TALLEST
    if "made up" not in name:
        assert (width, height) == size_of_png(FOLDER / f"{name}.png"), "the committed picture is an old one"

    assert found
    sizes = {content: size for content, size, _ in found}
    assert min(sizes.values()) >= SMALLEST, sizes
    assert max(sizes.values()) <= STYLE["axes.titlesize"], sizes

    left, bottom, right, top = np.array([box for *_, box in found]).T
    cut = (left < -0.5) | (bottom < -0.5) | (right > width + 0.5) | (top > height + 0.5)
    assert not cut.any(), f"beyond the edge: {[found[i][0] for i in np.flatnonzero(cut)]}"
    across = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    up = np.minimum(top[:, None], top) - np.maximum(bottom[:, None], bottom)
    over = np.argwhere(np.triu((across > -3) & (up > 1.5), 1))
    assert not len(over), f"one over the other: {[(found[i][0], found[j][0]) for i, j in over[:5]]}"

    content = pdf(figure)
    assert width_and_height(content)[0] in (SINGLE, DOUBLE)
    assert b"/FontFile2" in content  # TrueType
    assert b"/Subtype /Type3" not in content
    is_heatmap = any(ax.images or ax.get_label() == "<colorbar>" for ax in figure.axes)
    assert is_heatmap or b"/Subtype /Image" not in content


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2/figure_2", "smollm2/figure_6", "smollm2/figure_8", "leaderboard_builtin"])
def test_the_same_numbers_give_the_same_bytes(name):
    assert pdf(CASES[name]()) == pdf(CASES[name]())


def size_of_png(path):
    return struct.unpack(">II", path.read_bytes()[16:24])


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_committed_pictures_have_their_width_and_numbers(path):
    assert size_of_png(path.with_suffix(".png"))[0] / STYLE["savefig.dpi"] in (SINGLE, DOUBLE)
    width, height = width_and_height(path.with_suffix(".pdf").read_bytes())
    assert width in (SINGLE, DOUBLE)
    assert height <= TALLEST
    assert drawing(path.stem) is not None
    assert drawn_numbers(path).to_csv(index=False, lineterminator="\n").encode() == path.read_bytes()


def test_figures_are_drawn_again_from_their_numbers(tmp_path):
    numbers = FOLDER / "smollm2" / "figure_1.csv"
    for name in ("figure_1", "layer_choices"):  # a figure; and a table, which no picture belongs to
        (tmp_path / f"{name}.csv").write_bytes((numbers.parent / f"{name}.csv").read_bytes())
    assert redraw(tmp_path) == []
    (tmp_path / "figure_1.pdf").touch()
    assert [path.name for path in redraw(tmp_path)] == ["figure_1.pdf", "figure_1.png"]
    assert (tmp_path / "figure_1.csv").read_bytes() == numbers.read_bytes()
    assert (tmp_path / "figure_1.pdf").stat().st_size


def linear(color):
    rgb = np.asarray(color)[..., :3]
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(color):
    return linear(color) @ np.array([0.2126, 0.7152, 0.0722])


def test_series_differ_in_color_and_marker_and_a_method_always_looks_the_same():
    assert set(METHODS_WITH_STYLE) <= {method_label(name, window) for name in METHODS for window in (1, 5)}
    names = [*(f"plug-in {i}" for i in range(30)), *METHODS_WITH_STYLE]
    styles = series(names)
    looks = {(style["color"], style["marker"]) for style in styles.values()}
    assert list(styles) == names
    assert len(looks) == len(names)
    assert len({style["marker"] for style in series(names[:10]).values()}) == 10
    for name in METHODS_WITH_STYLE:
        assert series([name]) == {name: styles[name]}
    assert all(1.05 / (luminance(to_rgb(color)) + 0.05) > 2 for color in COLORS)  # contrast with white


def test_equal_steps_of_a_heatmap_are_equal_steps_of_lightness():
    amount = 116 * np.cbrt(luminance(AMOUNT(np.linspace(0, 1, 33)))) - 16
    assert amount[0] == pytest.approx(100)
    assert (np.diff(amount) < 0).all()
    assert np.abs(amount - np.linspace(amount[0], amount[-1], 33)).max() < 4
    below, above = (116 * np.cbrt(luminance(SIGNED(0.5 + side * np.linspace(0, 0.5, 33)))) - 16 for side in (-1, 1))
    assert np.abs(below - above).max() < 4
    assert np.abs(above - amount).max() < 4
