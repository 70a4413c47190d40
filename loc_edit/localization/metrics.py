"""What is read off the final residual stream: the metric of a target, for many rows of many facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.models.model import Model, logits_at
from loc_edit.names import Metric
from loc_edit.prompts.batches import NO_TARGET
from loc_edit.prompts.encoding import Prompt, target_tokens

LOGITS = 2**20
"""Logits per call of the unembedding on the CPU: what stays in its cache."""
LOGITS_ON_DEVICE = 2**28
FEWEST = 256
"""Rows in one call all the same: `Unembed` copies its weights at every call."""


@dataclass(frozen=True)
class Scorer:
    """The metric of some facts' targets.

    Attributes:
        model: whose final norm and unembedding are used.
        metric: `probability`, `log_probability` or `logit_difference`.
        targets: token ids by fact, padded with -1.
        foils: the first token of each fact's other answer, for `logit_difference`.
        n_prompt: each prompt's number of tokens.
    """

    model: Model
    metric: Metric
    targets: Int[Tensor, "fact target"]
    foils: Int[Tensor, " fact"] | None
    n_prompt: Int[Tensor, " fact"]

    def __call__(
        self,
        residual: Float[Tensor, "row pos d_model"],
        fact: Int[Tensor, " row"],
        start: Int[Tensor, " row"],
    ) -> Float[Tensor, " row"]:
        """The metric of each row, in float32.

        Only the positions that predict the target are unembedded.

        Args:
            residual: final residual stream of rows from position `start` on; padding on the right is not read.
            fact: which fact a row is about.
            start: position of a row's first column.
        """
        targets = self.targets[fact]
        steps = torch.arange(targets.shape[1], device=residual.device)
        at = (self.n_prompt[fact] - 1 - start)[:, None] + steps
        answers = residual[
            torch.arange(len(fact), device=residual.device)[:, None], at.clamp(max=residual.shape[1] - 1)
        ]
        most = LOGITS if residual.device.type == "cpu" else LOGITS_ON_DEVICE
        size = max(FEWEST, most // (targets.shape[1] * self.model.cfg.d_vocab_out))
        parts = zip(answers.split(size), targets.split(size), fact.split(size), strict=True)
        return torch.cat([self._score(*part) for part in parts])

    def _score(
        self,
        answers: Float[Tensor, "row target d_model"],
        targets: Int[Tensor, "row target"],
        fact: Int[Tensor, " row"],
    ) -> Float[Tensor, " row"]:
        logits = logits_at(self.model, answers).float()
        index = targets.clamp(min=0)[..., None]
        if self.foils is not None:
            return (logits[:, 0].gather(-1, index[:, 0]) - logits[:, 0].gather(-1, self.foils[fact][:, None]))[:, 0]
        each = logits.log_softmax(-1).gather(-1, index)[..., 0]
        log_p = each.masked_fill(targets == NO_TARGET, 0.0).sum(1)
        return log_p if self.metric == "log_probability" else log_p.exp()


def make_scorer(
    model: Model,
    prompts: Sequence[Prompt],
    targets: Sequence[Int[Tensor, " _"]],
    metric: Metric,
    foils: Sequence[str | None],
) -> Scorer:
    """The scorer of some facts' targets; `check_metric` has seen them."""
    device, others = model.cfg.device, None
    if metric == "logit_difference":
        pairs = zip(prompts, foils, strict=True)
        others = torch.stack([target_tokens(model, prompt.text, foil or "")[0] for prompt, foil in pairs])
    padded = torch.nn.utils.rnn.pad_sequence(list(targets), batch_first=True, padding_value=NO_TARGET)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return Scorer(model, metric, padded, others, lengths)


def check_metric(metric: str, prompts: Sequence[Prompt], foils: Sequence[str | None]) -> None:
    """Refuse an unknown metric, and `logit_difference` without a foil for each prompt."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric {metric!r}: probability, log_probability or logit_difference is wanted")
    for prompt, foil in zip(prompts, foils, strict=True):
        if metric == "logit_difference" and foil is None:
            raise ValueError(f"fact {prompt.fact_id}: metric 'logit_difference' needs a foil, the other answer")
