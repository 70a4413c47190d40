"""A prompt's tokens in color, one coloring per layer, drawn by circuitsvis."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from circuitsvis.utils.render import RenderedHTML


def colored_tokens(effect: np.ndarray, tokens: Sequence[str]) -> "RenderedHTML":
    """The tokens colored by a number per layer and token, on one scale: blue above 0, red below.

    Like `colored_tokens_multi` of circuitsvis, but with the same bounds for all layers, which that function cannot do.
    circuitsvis puts a token's text into HTML and into a script, so the text is escaped first.

    Args:
        effect: finite numbers of shape [layer, pos].
        tokens: the text of each position.
    """
    from circuitsvis.utils.render import render  # it imports torch, which this room does without

    largest = float(np.abs(effect).max(initial=1e-6)) if effect.size else 1.0
    n_layers = len(effect)
    return render(
        "ColoredTokensMulti",
        tokens=[escape(token) for token in tokens],
        values=np.round(effect.T, 6),
        labels=[f"layer {layer}" for layer in range(n_layers)],
        positiveBounds=[largest] * n_layers,
        negativeBounds=[-largest] * n_layers,
    )
