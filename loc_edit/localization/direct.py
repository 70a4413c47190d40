"""Localisers without patches: direct logit attribution, and a control that knows nothing."""

from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loc_edit.localization.question import Question
from loc_edit.prompts.randomness import generator


def direct(question: Question) -> Float[Tensor, "layer pos"]:
    """Direct logit attribution: what the site adds to the target's logit difference by itself, clean less corrupted.

    Only the position that predicts the target counts, as nothing else is unembedded.  The final norm is held at its
    clean scale, and a soft cap of the logits is left out.  The metric is `logit_difference`; the outputs of a window
    add up.

    Cost: the clean and the corrupted run.  Source: Elhage et al. 2021; nostalgebraist 2020.
    """
    if question.scorer.metric != "logit_difference":
        raise ValueError("direct logit attribution is of metric='logit_difference', with a foil")
    if question.site not in ("mlp_out", "attn_out"):
        raise ValueError(f"site {question.site!r}: what mlp_out or attn_out add to the residual stream is attributed")
    last, model = len(question.prompt) - 1, question.model
    direction = _direction(question)
    outputs = [clean - corrupted for clean, corrupted in _pairs(question)]
    alone = torch.stack([einsum(out[:, last].double(), direction, "sample d, d -> sample").mean() for out in outputs])
    effect = torch.zeros(model.cfg.n_layers, len(question.prompt), dtype=torch.float64)
    for center, layers in enumerate(question.windows):
        effect[center, last] = alone[list(layers)].sum()
    return effect


def random(question: Question, seed: int = 0) -> Float[Tensor, "layer pos"]:
    """A control: uniform shares of what the noise took away, drawn per (seed, fact); none before the subject.

    What it adds to a regression is what chance adds.  Cost: the clean and the corrupted run.
    """
    shape = question.model.cfg.n_layers, len(question.prompt)
    shares = torch.rand(shape, generator=generator("random", seed, question.prompt.fact_id), dtype=torch.float64)
    shares[:, : question.prompt.subject.start] = 0
    return shares * (question.p_clean - question.p_corrupted)


def _pairs(question: Question) -> list[tuple[Tensor, Tensor]]:
    return list(zip(question.clean.site, question.corrupted.site, strict=True))


def _direction(question: Question) -> Float[Tensor, " d_model"]:
    """The gradient of the logit difference in the final residual stream, the norm's scale held."""
    model, scorer = question.model, question.scorer
    assert scorer.foils is not None
    last = question.clean.residual[-1][0, len(question.prompt) - 1].double()
    unembed = model.unembed.W_U.double()
    wanted = unembed[:, question.answer[0]] - unembed[:, scorer.foils[0]]
    kind = model.cfg.normalization_type
    if kind is None:
        return wanted
    norm: Any = model.ln_final
    if hasattr(norm, "w"):
        wanted = wanted * norm.w.double()
    if kind.startswith("LN"):
        centred = last - last.mean()
        return (wanted - wanted.mean()) / (centred.square().mean() + model.cfg.eps).sqrt()
    return wanted / (last.square().mean() + model.cfg.eps).sqrt()
