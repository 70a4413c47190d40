"""A prompt together with its target and its noise, checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.models.model import Model, token_texts
from loc_edit.names import Metric
from loc_edit.prompts.encoding import BadPrompt, Prompt, target_tokens
from loc_edit.prompts.noise import check_noise


@dataclass(frozen=True)
class TargetedPrompt:
    """A prompt, the target that is measured after it, and the noise that corrupts its subject.

    Attributes:
        prompt: from `encode`.
        target: the target as text.
        answer: the target's tokens.
        noise: added to the subject's embeddings in the corrupted run, one row per sample.
        foil: the first token of the other answer, for the metric `logit_difference`; else `None`.
        reference: other prompts, from which mean and resample ablation take outputs.
    """

    prompt: Prompt
    target: str
    answer: Int[Tensor, " target"]
    noise: Float[Tensor, "sample subject d_model"]
    foil: Int[Tensor, ""] | None
    reference: Sequence[Prompt] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        """The number of positions that are computed: the prompt and its target, without the target's last token."""
        return len(self.prompt) + len(self.answer) - 1


def targeted_prompt(
    model: Model,
    prompt: Prompt,
    target: str | Int[Tensor, " target"],
    noise: Float[Tensor, "sample subject d_model"],
    metric: str,
    foil: str | None,
    reference: Sequence[Prompt] = (),
) -> TargetedPrompt:
    """A prompt with its target, which may be text or tokens; the errors name the fact.

    Raises:
        ValueError: noise of another length than the subject, an unknown metric, or no foil for `logit_difference`.
        BadPrompt: the prompt and its target are longer than the model's context.
    """
    check_noise(prompt, noise, model.cfg.d_model)
    if metric not in get_args(Metric):
        raise ValueError(f"metric {metric!r}: expected probability, log_probability or logit_difference")
    other = None
    if metric == "logit_difference":
        if foil is None:
            raise ValueError(f"fact {prompt.fact_id}: metric 'logit_difference' needs a foil, the other answer")
        other = target_tokens(model, prompt.text, foil)[0]
    if isinstance(target, str):
        answer = target_tokens(model, prompt.text, target)
    else:
        answer = target.to(model.cfg.device)
        if not len(answer) or int(answer.min()) < 0 or int(answer.max()) >= model.cfg.d_vocab:
            raise ValueError(
                f"fact {prompt.fact_id}: expected target tokens below {model.cfg.d_vocab}, got {answer.tolist()}"
            )
        target = "".join(token_texts(model, answer)).strip()
    targeted = TargetedPrompt(prompt, target, answer, noise, other, reference=reference)
    if len(targeted) > model.cfg.n_ctx:
        raise BadPrompt(
            f"fact {prompt.fact_id}: {prompt.text!r} and its target exceed the context: {len(targeted)} tokens, "
            f"expected at most {model.cfg.n_ctx}"
        )
    return targeted
