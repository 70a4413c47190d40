"""The five editing problems: the request that each makes of a fact (Hase et al. 2023, section 5)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model, logits_at, token_texts
from loc_edit.names import PROBLEMS
from loc_edit.prompts.batches import make_batch, run, target_log_probs
from loc_edit.prompts.encoding import Prompt, encode, target_tokens
from loc_edit.prompts.noise import subject_noise

MIN_ERASURE = 0.02
"""A fact is not known, so there is nothing to erase, if the model gives its object a smaller probability than this."""


class NotEligible(ValueError):
    """A fact for which a problem makes no sense; the message says why."""


@dataclass(frozen=True)
class EditRequest:
    """What an editing method is asked for.

    Attributes:
        prompt: the edit prompt.
        target: the text whose probability is to change.
        target_tokens: its token ids.
        objective: whether to raise or to lower that probability.
        noise: the fact's subject noise, if the subject is noised while editing and scoring.
        noise_scale: standard deviation of the fresh noise that is drawn while editing and scoring.
        seed: with the fact's id, the seed of fresh draws.
    """

    prompt: Prompt
    target: str
    target_tokens: Int[Tensor, " target"] = field(compare=False)
    objective: Literal["raise", "lower"]
    noise: Float[Tensor, "sample subject d_model"] | None = field(default=None, compare=False, repr=False)
    noise_scale: float | None = None
    seed: int = 0

    @property
    def fact_id(self) -> int:
        """The fact's id."""
        return self.prompt.fact_id


def pose(
    fact: Fact,
    problem: str,
    model: Model,
    *,
    noise: Float[Tensor, "sample subject d_model"] | None = None,
    noise_scale: float | None = None,
    seed: int = 0,
) -> EditRequest:
    """The request that a problem makes of a fact.

    Args:
        fact: the fact.
        problem: one of `PROBLEMS`.
        model: gives the tokens, and for erasure and reversal the answers.
        noise: the fact's subject noise, for `tracing_reversal` and `fact_forcing`; drawn from `noise_scale`
            and `seed` if not given.
        noise_scale: its standard deviation; needed by `fact_forcing`, which draws more of it.
        seed: seeds the draws.

    Raises:
        NotEligible: the fact has no false target, or it is the true one (error injection); p(o_true) < .02
            (erasure); the noised output is o_true (reversal).
        ValueError: an unknown problem; noise is needed and not given.
    """
    if problem not in PROBLEMS:
        raise ValueError(f"problem {problem!r}: expected one of {', '.join(PROBLEMS)}")
    kind, prompt = PROBLEMS[problem], encode(model, fact)
    if kind.sees_noise and noise is None:
        if noise_scale is None:
            raise ValueError(f"fact {fact.fact_id}: {problem} needs noise= or noise_scale=")
        noise = subject_noise(model, prompt, scale=noise_scale, seed=seed)
    if kind.target == "noised_output":
        assert noise is not None
        target, tokens = _noised_output(model, prompt, fact, noise)
    else:
        target = fact.target_true if kind.target == "target_true" else _target_new(fact, problem)
        tokens = target_tokens(model, prompt.text, target)
    if kind.objective == "lower":
        probability = target_probability(model, prompt, tokens)
        if not probability >= MIN_ERASURE:
            raise NotEligible(
                f"fact {fact.fact_id}: p({target!r}) = {probability:.4f} < {MIN_ERASURE}, nothing to erase"
            )
    if not kind.subject_noised:
        return EditRequest(prompt, target, tokens, kind.objective, seed=seed)
    if noise_scale is None:
        raise ValueError(f"fact {fact.fact_id}: {problem} draws fresh noise and needs noise_scale=")
    return EditRequest(prompt, target, tokens, kind.objective, noise, noise_scale, seed)


@torch.inference_mode()
def target_probability(model: Model, prompt: Prompt, tokens: Int[Tensor, " target"]) -> float:
    """p(target | prompt), the product over the target's tokens."""
    batch = make_batch(model, [prompt], [tokens])
    return target_log_probs(model, batch, batch.answers(run(model, batch))).sum().exp().item()


def _target_new(fact: Fact, problem: str) -> str:
    """The false target, which must exist and be false."""
    if not fact.target_new:
        raise NotEligible(f"fact {fact.fact_id}: {problem} needs target_new, and the fact has none")
    if fact.target_new == fact.target_true:
        raise NotEligible(f"fact {fact.fact_id}: target_new {fact.target_new!r} is also target_true")
    return fact.target_new


@torch.inference_mode()
def _noised_output(
    model: Model, prompt: Prompt, fact: Fact, noise: Float[Tensor, "sample subject d_model"]
) -> tuple[str, Int[Tensor, " target"]]:
    """o_noise: the likeliest next token of the mean distribution over noise samples, as text and as token id."""
    batch = make_batch(model, [prompt] * len(noise), noise=list(noise))
    logits = logits_at(model, run(model, batch)[:, -1:]).float()
    mean = logits.softmax(-1).mean(0)[0]
    if not mean.isfinite().all():
        raise NotEligible(f"fact {fact.fact_id}: the noised output's probabilities are not finite")
    token = mean.argmax()[None]
    text = token_texts(model, token)[0].strip()
    if token[0] == target_tokens(model, prompt.text, fact.target_true)[0]:
        raise NotEligible(f"fact {fact.fact_id}: the noised output {text!r} is the true object already")
    return text, token
