"""Decoding: continuing texts token by token, with cached attention keys and values."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from loc_edit import events
from loc_edit.models.adapter import lens
from loc_edit.models.model import Model, logits_at
from loc_edit.models.passes import run_layers
from loc_edit.models.past import PastEntry, new_past

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
        prompts: token ids; prompts of all lengths share a batch.
        draws: numbers in [0, 1); each chooses among the top k tokens by their cumulative probabilities.
        top_k: the number of likeliest tokens to choose among; 1 decodes greedily.
        batch_size: the largest number of prompts in a batch.
    """
    result: list[Tensor] = list(prompts)
    continued = [i for i, of_row in enumerate(draws) if len(of_row)]
    for shared in share_batches(model, [len(prompts[i]) for i in continued], batch_size):
        batch = [continued[k] for k in shared]
        of_batch = [prompts[i] for i in batch]
        lengths = torch.tensor([len(prompt) for prompt in of_batch], device=model.cfg.device)
        tokens, past = pad_sequence(of_batch, batch_first=True), None
        if lens.takes_past(model):
            past = new_past(model, tokens.shape[1] + max(len(draws[i]) for i in batch))
        final = run_layers(model, tokens, stop=model.cfg.n_layers, past=past)
        last = final[torch.arange(len(batch), device=final.device), lengths - 1]
        chances = [draws[i] for i in batch]
        for i, row in zip(batch, continue_rows(model, tokens, lengths, last, past, chances, top_k), strict=True):
            result[i] = row
    return result


def share_batches(model: Model, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The numbers of the rows that are decoded together, similar lengths first.

    A hook that a user put on the model may count positions, so while there are any, rows of one length share a batch.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    by_length = lens.watched(model)
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        groups[lengths[i] if by_length else 0].append(i)
    return [group[k : k + batch_size] for group in groups.values() for k in range(0, len(group), batch_size)]


@torch.inference_mode()
def continue_rows(
    model: Model,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"],
    last: Float[Tensor, "row d_model"],
    past: list[PastEntry] | None,
    draws: Sequence[Float[Tensor, " _"]],
    top_k: int,
) -> list[Int[Tensor, " _"]]:
    """Rows that were run once, continued; a row that has all its tokens leaves the batch.

    New positions stand behind the padding of their row, which is masked: positions are counted without it.

    Args:
        model: any.
        tokens: the rows, padded on the right.
        lengths: the number of tokens of each row that are continued; those after them are padding.
        last: the final residual stream at each row's last token.
        past: keys and values of all of `tokens`; it grows.  Without one, whole rows are computed at every step.
        draws: see `sample_tokens`.
        top_k: see `sample_tokens`.
    """
    rows = [row[:length] for row, length in zip(tokens, lengths.tolist(), strict=True)]
    wanted = [len(of_row) for of_row in draws]
    draws_at = pad_sequence([of_row.to(tokens.device) for of_row in draws], batch_first=True)
    n_pos, longest = tokens.shape[1], max(wanted, default=0)
    mask = (torch.arange(n_pos + longest, device=tokens.device) < lengths[:, None]).long()
    mask[:, n_pos:] = 1
    new = tokens.new_zeros(len(rows), longest)
    alive = list(range(len(rows)))
    for step in range(longest):
        events.step("decoded tokens", step, longest)
        staying = [k for k, i in enumerate(alive) if wanted[i] > step]
        if len(staying) < len(alive):
            alive, last, mask = [alive[k] for k in staying], last[staying], mask[staying]
            for entry in past or []:
                entry.select(torch.tensor(staying, device=tokens.device))
        top, ids = logits_at(model, last[:, None])[:, 0].float().topk(min(top_k, model.cfg.d_vocab_out))
        chosen = (draws_at[alive, step, None] >= top.softmax(-1).cumsum(-1)).sum(-1).clamp(max=top.shape[1] - 1)
        token = ids.gather(1, chosen[:, None])
        new[alive, step] = token[:, 0]
        if step + 1 == longest:
            break
        if past is None:
            last = _whole_rows(model, [torch.cat([rows[i], new[i, : step + 1]]) for i in alive])
        else:
            seen = mask[:, : n_pos + step + 1]
            last = run_layers(model, token, stop=model.cfg.n_layers, past=past, mask=seen)[:, -1]
    return [torch.cat([row, new[i, : wanted[i]]]) for i, row in enumerate(rows)]


def _whole_rows(model: Model, rows: Sequence[Int[Tensor, " _"]]) -> Float[Tensor, "row d_model"]:
    """The final residual stream at the last token of each row."""
    at = torch.tensor([len(row) - 1 for row in rows], device=model.cfg.device)
    final = run_layers(model, pad_sequence(list(rows), batch_first=True), stop=model.cfg.n_layers)
    return final[torch.arange(len(rows), device=at.device), at]
