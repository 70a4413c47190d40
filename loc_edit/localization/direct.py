"""Localizers that patch nothing: direct logit attribution, and a random control."""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loc_edit.localization.question import Question
from loc_edit.models.adapter import lens
from loc_edit.prompts.randomness import generator


def direct(question: Question) -> Float[Tensor, "layer pos"]:
    """Direct logit attribution: what the site itself adds to the target's logit difference, clean minus corrupted.

    Only the position that predicts the target has an effect, as no other position is unembedded.  The scale of the
    final norm is held at its clean value, and a soft cap of the logits is left out.  The metric is
    `logit_difference`; the contributions of a window's layers add up.

    Cost: the clean and the corrupted run.  Source: Elhage et al. 2021; nostalgebraist 2020.
    """
    if question.metric != "logit_difference":
        raise ValueError(
            f"metric {question.metric!r}: direct logit attribution needs metric='logit_difference' and a foil"
        )
    if question.site not in ("mlp_out", "attn_out"):
        raise ValueError(f"site {question.site!r}: direct logit attribution needs mlp_out or attn_out")
    last, direction = len(question.prompt) - 1, _direction(question)
    changes = [difference[:, last].double() for difference in question.differences]
    alone = torch.stack([einsum(change, direction, "sample d, d -> sample").mean() for change in changes])
    effect = torch.zeros(len(changes), len(question.prompt), dtype=torch.float64)
    effect[:, last] = torch.stack([alone[list(layers)].sum() for layers in question.windows])
    return effect


def random(question: Question, seed: int = 0) -> Float[Tensor, "layer pos"]:
    """A control: uniform random shares of what the noise took away, drawn per (seed, fact); 0 before the subject.

    It adds to a regression what any regressor adds by chance.  Cost: the clean and the corrupted run.
    """
    shape = question.model.cfg.n_layers, len(question.prompt)
    shares = torch.rand(shape, generator=generator("random", seed, question.prompt.fact_id), dtype=torch.float64)
    shares[:, : question.prompt.subject.start] = 0
    return shares * (question.p_clean - question.p_corrupted)


def _direction(question: Question) -> Float[Tensor, " d_model"]:
    """The gradient of the logit difference in the final residual stream, with the scale of the norm held fixed."""
    model = question.model
    assert question.foil is not None
    last = question.clean.final[0, len(question.prompt) - 1].double()
    target, foil = model.unembed.W_U[:, torch.stack([question.answer[0], question.foil])].double().T
    direction = target - foil
    kind = model.cfg.normalization_type
    if kind is None:
        return direction
    weight = lens.final_scale(model)
    if weight is not None:
        direction = direction * weight.double()
    if kind.startswith("LN"):
        last, direction = last - last.mean(), direction - direction.mean()
    return direction / (last.square().mean() + model.cfg.eps).sqrt()
