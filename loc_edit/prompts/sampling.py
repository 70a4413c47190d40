"""Texts sampled from the model: contexts for the editors, and essence texts for the scores.

Random numbers come from a generator for each text or fact and are drawn before the sampling, so that no text depends
on the other texts in its batch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from loc_edit.arguments import checked
from loc_edit.models.decoding import sample_tokens
from loc_edit.models.model import Model, tokenizer
from loc_edit.prompts.encoding import tokenize
from loc_edit.prompts.randomness import generator

ROME_LENGTHS = ((10, 5), (10, 10))
MEMIT_STARTS = ("The", "Therefore", "Because", "I", "You")
MEMIT_LENGTH = 10
ESSENCE_TEXTS = 5
ESSENCE_LENGTH = 100


@checked
def sample_contexts(model: Model, style: Literal["rome", "memit"] = "rome", *, seed: int = 0) -> tuple[str, ...]:
    """Contexts for the editors: the bare `"{}"`, then sampled texts that end with `". {}"`, the prompt's place.

    `rome`: 10 texts of 5 tokens and 10 texts of 10 tokens, from EOS, or from BOS if the tokenizer has no EOS.
    `memit`: 5 texts of 10 tokens, from five start words.  Lengths include the start (token or word).  Tokens are
    sampled among the 5 likeliest.

    Source: spec section 2.

    Raises:
        ValueError: the tokenizer has neither token, so contexts must be given.
    """
    if style == "rome":
        known = tokenizer(model)
        first = known.bos_token_id if known.eos_token_id is None else known.eos_token_id
        if first is None:
            raise ValueError("the tokenizer has no EOS and no BOS token for texts to start from: give contexts")
        start = torch.tensor([first], device=model.cfg.device)
        jobs = [(start, length - 1) for count, length in ROME_LENGTHS for _ in range(count)]
    elif style == "memit":
        jobs = [(tokenize(model, word), MEMIT_LENGTH - 1) for word in MEMIT_STARTS]
    else:
        raise ValueError(f"expected contexts of style 'rome' or 'memit', got {style!r}")
    draws = [torch.rand(n, generator=generator("contexts", style, seed, i)) for i, (_, n) in enumerate(jobs)]
    sampled = sample_tokens(model, [start for start, _ in jobs], draws)
    return ("{}", *(f"{_clean_text(model, tokens)}. {{}}" for tokens in sampled))


def sample_essences(
    model: Model, subjects: Sequence[str], fact_ids: Sequence[int], *, seed: int = 0
) -> list[list[Int[Tensor, " _"]]]:
    """For each subject, token ids of 5 texts that continue "{subject} is a" to 100 tokens, or to the context's end."""
    prompts = [tokenize(model, f"{subject} is a") for subject in subjects]
    length = min(ESSENCE_LENGTH, model.cfg.n_ctx)
    draws = []
    for prompt, fact_id in zip(prompts, fact_ids, strict=True):
        numbers = generator("essence", seed, fact_id)
        draws += list(torch.rand(ESSENCE_TEXTS, max(0, length - len(prompt)), generator=numbers))
    sampled = sample_tokens(model, [prompt for prompt in prompts for _ in range(ESSENCE_TEXTS)], draws)
    return [sampled[i : i + ESSENCE_TEXTS] for i in range(0, len(sampled), ESSENCE_TEXTS)]


def _clean_text(model: Model, tokens: Int[Tensor, " pos"]) -> str:
    """The text on one line, without special tokens."""
    return " ".join(tokenizer(model).decode(tokens.tolist(), skip_special_tokens=True).split())
