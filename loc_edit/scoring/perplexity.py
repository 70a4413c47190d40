"""The perplexity of texts: how surprised a model is, whatever was edited into it."""

from collections.abc import Sequence
from math import exp, inf, isnan, nan

import torch
from jaxtyping import Int
from torch import Tensor

from loc_edit.models.memory import Budget
from loc_edit.models.model import Model
from loc_edit.prompts.batches import make_batch, run, target_log_probs
from loc_edit.prompts.encoding import Prompt


@torch.inference_mode()
def perplexity(model: Model, texts: Sequence[Int[Tensor, " _"]]) -> float:
    """The exponential of the mean loss of all tokens of all texts together, but for each text's first token.

    Args:
        model: as its weights are now.
        texts: token ids; texts of one token count nothing, and texts longer than the model's context end there.

    Returns:
        At least 1; infinite where the loss exceeds 700 nats, NaN without any token.
    """
    texts = sorted((text[: model.cfg.n_ctx] for text in texts if len(text) > 1), key=len)
    losses = [0.0] * len(texts)

    def measure(part: slice) -> None:
        prompts = [Prompt(0, "", "", "", text[:1], slice(0, 0)) for text in texts[part]]
        batch = make_batch(model, prompts, [text[1:] for text in texts[part]])
        log_probs = target_log_probs(model, batch, batch.answers(run(model, batch)))
        losses[part] = (-log_probs.double().sum(1)).tolist()

    if not texts:
        return nan
    Budget(model).spend(len(texts), len(texts[-1]), measure)
    loss = sum(losses) / sum(len(text) - 1 for text in texts)
    return exp(loss) if loss < 700 or isnan(loss) else inf
