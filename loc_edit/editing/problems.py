"""Editing problems: the request that each makes of a fact.  The study's five (Hase et al. 2023), and yours."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.arguments import NonNegative, checked
from loc_edit.contract import BadPlugin, describe_plugin, first_sentence, named_in, spelled_out
from loc_edit.facts.fact import Fact
from loc_edit.files import origin_of
from loc_edit.models.checks import ends_run, left_alone
from loc_edit.models.model import Model, logits_at, token_texts
from loc_edit.names import PROBLEMS, Problem, nearest
from loc_edit.prompts.batches import make_batch, run, target_log_probs
from loc_edit.prompts.encoding import Prompt, encode, target_tokens
from loc_edit.prompts.noise import check_noise, subject_noise

ChooseTarget = TypeVar("ChooseTarget", bound=Callable[..., Any])

TARGETS: dict[str, Callable[..., str | Int[Tensor, " target"]]] = {}
"""By problem, the function that says whose probability is to change: a text, or token ids."""

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


def problem(
    name: str,
    *,
    objective: Literal["raise", "lower"] = "raise",
    subject_noised: bool = False,
    label: str = "",
    meaning: str = "",
) -> Callable[[ChooseTarget], ChooseTarget]:
    """Register a problem: a function from a fact to the target of its edit, a text or token ids.

    Besides the fact, it gets what its signature names: `model`; `prompt`, the encoded edit prompt; `noise`, the fact's
    subject noise; `facts`, the whole data set; `seed`.  It raises `NotEligible` for a fact that it makes no sense for.

    Args:
        name: lower-case letters, digits and _.
        objective: whether edits raise or lower the probability of the target.
        subject_noised: whether the subject is noised while editing and scoring.
        label: for tables and figures; by default made of the name.
        meaning: one line; by default the first sentence of the docstring.

    Raises:
        BadPlugin: the name is taken, or does not suit.
    """

    def register(choose_target: ChooseTarget) -> ChooseTarget:
        if origin := origin_of(choose_target):
            named = named_in(choose_target, {"noise": True, "facts": True})
            about = meaning or first_sentence(choose_target)
            shown = label or name.replace("_", " ").capitalize()
            description = Problem(shown, about, objective, subject_noised, "noise" in named, "facts" in named, origin)
            describe_plugin("problem", PROBLEMS, name, description)
        TARGETS[name] = choose_target
        return choose_target

    return register


@checked
def pose(
    fact: Fact,
    problem: str,
    model: Model,
    *,
    noise: Float[Tensor, "sample subject d_model"] | None = None,
    noise_scale: NonNegative | None = None,
    seed: int = 0,
    facts: Sequence[Fact] = (),
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
        facts: the whole data set, for problems of yours that look at it.

    Raises:
        NotEligible: the fact has no false target, or it is the true one (error injection); p(o_true) < .02
            (erasure); the noised output is o_true (reversal); a problem of yours failed.
        ValueError: an unknown problem; noise is needed and not given.
    """
    if problem not in TARGETS:
        raise ValueError(f"problem {problem!r}: {nearest(problem, PROBLEMS)}")
    kind, prompt = PROBLEMS[problem], encode(model, fact)
    if kind.sees_noise and noise is None:
        if noise_scale is None:
            raise ValueError(f"fact {fact.fact_id}: {problem} needs noise= or noise_scale=")
        noise = subject_noise(model, prompt, scale=noise_scale, seed=seed)
    if noise is not None:
        check_noise(prompt, noise, model.cfg.d_model)
    given = {"model": model, "prompt": prompt, "noise": noise, "facts": facts, "seed": seed}
    target, tokens = _target(problem, fact, given)
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


def _target(problem: str, fact: Fact, given: dict[str, Any]) -> tuple[str, Int[Tensor, " target"]]:
    """The target of a problem as text and as token ids; the errors of a plug-in name the problem and the fact."""
    model, prompt, choose_target = given["model"], given["prompt"], TARGETS[problem]
    try:
        with left_alone(model, f"problem {problem!r}") if PROBLEMS[problem].origin else nullcontext():
            target = choose_target(fact, **named_in(choose_target, given))
        if isinstance(target, str) and target:
            return target, target_tokens(model, prompt.text, target)
        if isinstance(target, Tensor) and target.ndim == 1 and len(target) and not target.is_floating_point():
            return "".join(token_texts(model, target)).strip(), target
        raise BadPlugin(f"expected a text or a tensor of token ids, got {target!r}")
    except Exception as error:
        if PROBLEMS[problem].origin is None or isinstance(error, NotEligible) or ends_run(error):
            raise
        raise NotEligible(f"problem {problem!r}, fact {fact.fact_id}: {spelled_out(error)}") from error


@torch.inference_mode()
def target_probability(model: Model, prompt: Prompt, tokens: Int[Tensor, " target"]) -> float:
    """p(target | prompt), the product over the target's tokens."""
    batch = make_batch(model, [prompt], [tokens])
    return target_log_probs(model, batch, batch.answers(run(model, batch))).sum().exp().item()


@problem("error_injection")
def target_new(fact: Fact) -> str:
    """The false target, which must exist and be false."""
    if not fact.target_new:
        raise NotEligible(f"fact {fact.fact_id}: error_injection needs target_new, and the fact has none")
    if fact.target_new == fact.target_true:
        raise NotEligible(f"fact {fact.fact_id}: target_new {fact.target_new!r} is also target_true")
    return fact.target_new


@problem("fact_erasure")
@problem("fact_amplification")
@problem("fact_forcing")
def target_true(fact: Fact) -> str:
    """The true object."""
    return fact.target_true


@problem("tracing_reversal")
@torch.inference_mode()
def noised_output(
    fact: Fact, model: Model, prompt: Prompt, noise: Float[Tensor, "sample subject d_model"]
) -> Int[Tensor, " target"]:
    """o_noise: the likeliest next token of the mean distribution over noise samples."""
    batch = make_batch(model, [prompt] * len(noise), noise=list(noise))
    logits = logits_at(model, run(model, batch)[:, -1:]).float()
    mean = logits.softmax(-1).mean(0)[0]
    if not mean.isfinite().all():
        raise NotEligible(f"fact {fact.fact_id}: the noised output's probabilities are not finite")
    token = mean.argmax()[None]
    if token[0] == target_tokens(model, prompt.text, fact.target_true)[0]:
        text = token_texts(model, token)[0].strip()
        raise NotEligible(f"fact {fact.fact_id}: the noised output {text!r} is the true object already")
    return token
