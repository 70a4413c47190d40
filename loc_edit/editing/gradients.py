"""What an edit could gain at each layer to first order: the gradient of its objective, in place of trial edits."""

from collections.abc import Sequence
from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.arguments import checked
from loc_edit.editing.problems import EditRequest
from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model, W_out
from loc_edit.prompts.encoding import Prompt, encode_text, target_tokens

Row = tuple[Prompt, Int[Tensor, " target"]]


@checked
def gradient_gains(model: Model, fact: Fact, request: EditRequest) -> Float[Tensor, " layer"]:
    """How fast the loss on a fact's paraphrases falls when one layer's `W_out` follows the gradient of the edit's loss.

    The loss is -log p(target), or its negative where the edit lowers p; the gain is per unit of the Frobenius norm of
    the change.  A fact without paraphrases gets the norm of the gradient.  No subject is noised.

    Source: in the manner of Datta et al. 2026 (arXiv 2602.20207), who choose a layer by gradients and not by trial
    edits; which gradients are compared, and that only `W_out` moves, is ours.
    """
    own = _gradients(model, [(request.prompt, request.target_tokens)])
    norms = torch.stack([gradient.norm() for gradient in own])
    if not fact.paraphrases:
        return norms
    texts = [encode_text(model, text, fact_id=fact.fact_id) for text in fact.paraphrases]
    others = _gradients(model, [(text, target_tokens(model, text.text, request.target)) for text in texts])
    products = torch.stack([(a * b).sum() for a, b in zip(own, others, strict=True)])
    return products / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def _gradients(model: Model, rows: Sequence[Row]) -> list[Tensor]:
    """The gradient of the mean loss of some prompts and targets in each layer's `W_out`, one graph at a time."""
    weights = [W_out(model, layer) for layer in range(model.cfg.n_layers)]
    needed = [weight.requires_grad for weight in weights]
    try:
        with torch.enable_grad():
            for weight in weights:
                weight.requires_grad_()
            parts = (torch.autograd.grad(_loss(model, *row) / len(rows), weights) for row in rows)
            total = reduce(lambda sums, new: tuple(map(torch.add, sums, new)), parts)
            return [gradient.float() for gradient in total]
    finally:
        for weight, before in zip(weights, needed, strict=True):
            weight.requires_grad_(before)


def _loss(model: Model, prompt: Prompt, target: Int[Tensor, " target"]) -> Float[Tensor, ""]:
    tokens, target = torch.cat([prompt.tokens, target[:-1]]), target.clone()  # either may come from inference mode
    logits = model(tokens[None])[0, len(prompt) - 1 :]
    return -logits.float().log_softmax(-1).gather(1, target[:, None]).sum()
