"""Texts sampled from the model: contexts for the editors, essence texts for the scores.

Every text has its own random generator and its numbers are drawn beforehand, so it does not depend on what is
sampled beside it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.models import logits_at, new_past, run_layers, takes_past, tokenizer
from loc_edit.noise import generator
from loc_edit.prompts import tokenize

TOP_K = 5
ROME_LENGTHS = ((10, 5), (10, 10))
MEMIT_STARTS = ("The", "Therefore", "Because", "I", "You")
MEMIT_LENGTH = 10
ESSENCE_TEXTS = 5
ESSENCE_LENGTH = 100


def sample_contexts(
    model: HookedTransformer, style: Literal["rome", "memit"] = "rome", *, seed: int = 0
) -> tuple[str, ...]:
    """Texts for the editors, the bare `"{}"` first; each ends with `". {}"`, the prompt's place.

    `rome`: 10 texts of 5 tokens and 10 of 10, from EOS.  `memit`: 5 of 10 tokens, from five start words.  Lengths
    count the start (token or word).  Sampled with top-k 5.  Source: spec section 2.
    """
    if style == "rome":
        start = torch.tensor([tokenizer(model).eos_token_id], device=model.cfg.device)
        jobs = [(start, length - 1) for count, length in ROME_LENGTHS for _ in range(count)]
    elif style == "memit":
        jobs = [(tokenize(model, word), MEMIT_LENGTH - 1) for word in MEMIT_STARTS]
    else:
        raise ValueError(f"contexts of style {style!r}: 'rome' or 'memit' is wanted")
    draws = [torch.rand(n, generator=generator("contexts", style, seed, i)) for i, (_, n) in enumerate(jobs)]
    sampled = sample_tokens(model, [start for start, _ in jobs], draws)
    return ("{}", *(f"{_clean_text(model, tokens)}. {{}}" for tokens in sampled))


def sample_essences(
    model: HookedTransformer, subjects: Sequence[str], fact_ids: Sequence[int], *, seed: int = 0
) -> list[list[Int[Tensor, " _"]]]:
    """For each subject, 5 texts that continue "{subject} is a" to 100 tokens (or the context), as token ids."""
    prompts = [tokenize(model, f"{subject} is a") for subject in subjects]
    length = min(ESSENCE_LENGTH, model.cfg.n_ctx)
    draws = []
    for prompt, fact_id in zip(prompts, fact_ids, strict=True):
        one = generator("essence", seed, fact_id)
        draws += list(torch.rand(ESSENCE_TEXTS, max(0, length - len(prompt)), generator=one))
    sampled = sample_tokens(model, [p for p in prompts for _ in range(ESSENCE_TEXTS)], draws)
    return [sampled[i : i + ESSENCE_TEXTS] for i in range(0, len(sampled), ESSENCE_TEXTS)]


@torch.inference_mode()
def sample_tokens(
    model: HookedTransformer,
    prompts: Sequence[Int[Tensor, " _"]],
    draws: Sequence[Float[Tensor, " _"]],
    *,
    top_k: int = TOP_K,
    batch_size: int = 256,
) -> list[Int[Tensor, " _"]]:
    """Each prompt continued by as many tokens as it has `draws`, numbers in [0, 1) that choose among the top k."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (prompt, draw) in enumerate(zip(prompts, draws, strict=True)):
        groups[len(prompt), len(draw)].append(i)
    result: list[Tensor] = list(prompts)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            some = members[start : start + batch_size]
            tokens = _continue(
                model, torch.stack([prompts[i] for i in some]), torch.stack([draws[i] for i in some]), top_k
            )
            for i, row in zip(some, tokens, strict=True):
                result[i] = row
    return result


def _continue(
    model: HookedTransformer, tokens: Int[Tensor, "row pos"], draws: Float[Tensor, "row new"], top_k: int
) -> Int[Tensor, "row longer"]:
    """Rows of one length, continued with cached attention keys and values where the model takes them."""
    past = new_past(model, len(tokens)) if takes_past(model) else None
    new = tokens
    for draw in draws.to(model.cfg.device).T:
        given = tokens if past is None else new
        # An explicit mask: by itself the model would take an EOS in the text for padding.
        mask = None if past is None else torch.ones_like(new)
        residual = run_layers(model, given, stop=model.cfg.n_layers, past=past, mask=mask)
        top, ids = logits_at(model, residual[:, -1:])[:, 0].float().topk(min(top_k, model.cfg.d_vocab_out))
        chosen = (draw[:, None] >= top.softmax(-1).cumsum(-1)).sum(-1).clamp(max=top.shape[1] - 1)
        new = ids.gather(1, chosen[:, None])
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def _clean_text(model: HookedTransformer, tokens: Int[Tensor, " pos"]) -> str:
    """The text on one line, without special tokens."""
    return " ".join(tokenizer(model).decode(tokens.tolist(), skip_special_tokens=True).split())
