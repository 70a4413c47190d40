"""A trace as circuitsvis' coloured tokens, one colouring per layer."""

from html import escape

import torch
from circuitsvis.utils.render import RenderedHTML, render

from loc_edit.tracing.result import Trace


def colored_tokens(trace: Trace) -> RenderedHTML:
    """The prompt's tokens coloured by the tracing effect at each layer, on one scale: blue above 0, red below.

    circuitsvis' `colored_tokens_multi` with the same bounds for all layers, which that function does not take.
    circuitsvis sets a token's text as HTML and inside a script, so it is escaped first.

    Raises:
        ValueError: the trace has cells without a number, which cannot be coloured.
    """
    effect = trace.effect.detach().double().cpu()
    if not effect.isfinite().all():
        raise ValueError(
            f"fact {trace.prompt.fact_id}: the trace has cells without a number; there is no colour for them"
        )
    most = max(effect.abs().max().item(), 1e-6) if effect.numel() else 1.0
    n_layers, n_pos = effect.shape
    texts = trace.token_texts or tuple(f"token {pos}" for pos in range(n_pos))
    return render(
        "ColoredTokensMulti",
        tokens=[escape(text) for text in texts],
        values=torch.round(effect.T, decimals=6),
        labels=[f"layer {layer}" for layer in range(n_layers)],
        positiveBounds=[most] * n_layers,
        negativeBounds=[-most] * n_layers,
    )
