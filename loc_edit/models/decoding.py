"""Decoding: continuing texts token by token, with cached attention keys and values."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.models.model import Model, logits_at
from loc_edit.models.passes import new_past, run_layers, takes_past

TOP_K = 5


@torch.inference_mode()
def sample_tokens(
    model: Model,
    prompts: Sequence[Int[Tensor, " _"]],
    draws: Sequence[Float[Tensor, " _"]],
    *,
    top_k: int = TOP_K,
    batch_size: int = 256,
) -> list[Int[Tensor, " _"]]:
    """Each prompt, continued by one token for each of its `draws`.

    Args:
        model: any.
        prompts: token ids; prompts of one length, with equally many draws, share a batch.
        draws: numbers in [0, 1); each chooses among the top k tokens by their cumulative probabilities.
        top_k: the number of likeliest tokens to choose among; 1 decodes greedily.
        batch_size: the largest number of prompts in a batch.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (prompt, draw) in enumerate(zip(prompts, draws, strict=True)):
        groups[len(prompt), len(draw)].append(i)
    result: list[Tensor] = list(prompts)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            tokens, chances = (torch.stack([values[i] for i in batch]) for values in (prompts, draws))
            for i, row in zip(batch, _continue(model, tokens, chances, top_k), strict=True):
                result[i] = row
    return result


def _continue(
    model: Model, tokens: Int[Tensor, "row pos"], draws: Float[Tensor, "row new"], top_k: int
) -> Int[Tensor, "row longer"]:
    """Rows of one length, continued; with cached attention keys and values if the model takes them."""
    past = new_past(model, len(tokens)) if takes_past(model) else None
    new = tokens
    for draw in draws.to(model.cfg.device).T:
        given = tokens if past is None else new
        # Without an explicit mask, the model would take an EOS in the text for padding.
        mask = None if past is None else torch.ones_like(new)
        residual = run_layers(model, given, stop=model.cfg.n_layers, past=past, mask=mask)
        top, ids = logits_at(model, residual[:, -1:])[:, 0].float().topk(min(top_k, model.cfg.d_vocab_out))
        chosen = (draw[:, None] >= top.softmax(-1).cumsum(-1)).sum(-1).clamp(max=top.shape[1] - 1)
        new = ids.gather(1, chosen[:, None])
        tokens = torch.cat([tokens, new], dim=1)
    return tokens
