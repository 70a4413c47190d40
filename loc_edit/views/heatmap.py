"""The heatmap of one prompt: the effect of every layer and token."""

from collections.abc import Sequence

import numpy as np

from loc_edit.views.style import SIGNED, SINGLE, Figure, printable, round_step, sheet, styled

METRICS = {"probability": "p(object)", "log_probability": "log p(object)", "logit_difference": "logit difference"}
SITES = {"mlp_out": "MLP output", "attn_out": "attention output", "resid_post": "residual stream"}


def heatmap(
    effect: np.ndarray,
    *,
    tokens: Sequence[str],
    subject: tuple[int, int],
    layers: Sequence[int] | None = None,
    metric: str = "probability",
    window: int | None = None,
    site: str | None = None,
    ends: tuple[float, float] | None = None,
) -> Figure:
    """The effect by token and layer, with a star at each subject token (Figure 2 of the study).

    Args:
        effect: the numbers, of shape [layer, pos]; NaN cells stay empty.
        tokens: the text of each position.
        subject: the subject's half-open range of positions.
        layers: the number of each row of `effect`; 0, 1, ... by default.
        metric: the metric that the effect is a change of.
        window: the number of layers restored together, named under the figure.
        site: the restored hook point, named under the figure.
        ends: the metric of the clean and the corrupted run, named above the figure.
    """
    name, (begin, end) = METRICS.get(metric, metric), subject
    numbers = list(range(len(effect))) if layers is None else list(layers)
    with styled():
        figure = sheet(SINGLE, max(1.6, 0.15 * effect.shape[1] + 0.9))
        ax = figure.subplots()
        largest = float(np.nanmax(np.abs(effect), initial=0.0)) or 1.0
        image = ax.imshow(effect.T, aspect="auto", cmap=SIGNED, vmin=-largest, vmax=largest, interpolation="nearest")
        labels = [printable(token.strip() or repr(token)) for token in tokens]
        starred = [label + "*" * (begin <= pos < end) for pos, label in enumerate(labels)]
        ax.set_yticks(np.arange(len(starred)), starred, parse_math=False)
        ticks = np.arange(len(numbers))[:: round_step(len(numbers) / 10)]
        ax.set_xticks(ticks, [str(numbers[i]) for i in ticks])
        ax.set_xlabel("Layer restored" + _window_note(window, site))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=ax, pad=0.02, fraction=0.06, aspect=max(10, 1.5 * len(labels)))
        bar.set_label(f"Effect on {name}")
        bar.outline.set_visible(False)
        if ends is not None:
            clean, corrupted = ends
            title = f"{name}: clean {clean:.2f}, corrupted (*) {corrupted:.2f}"
            figure.suptitle(title.replace("-", "\u2212"), x=0.01, ha="left")
    return figure


def _window_note(window: int | None, site: str | None) -> str:
    if window is None or site is None:
        return ""
    place = SITES.get(site, site)
    return f" ({place})" if window == 1 else f"\n({place}, {window} layers around it)"
