"""The metric of a target, computed from the final residual stream of many rows of many facts at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from loc_edit.localization.targets import TargetedPrompt
from loc_edit.models.model import Model, logits_at
from loc_edit.names import Metric
from loc_edit.prompts.batches import NO_TARGET

LOGITS = 2**20
"""Logits in one call of the unembedding on the CPU: as many as stay in its cache."""
LOGITS_ON_DEVICE = 2**28
FEWEST = 256
"""Rows in one call at least: in half precision each call makes a float32 copy of all unembedding weights."""


@dataclass(frozen=True)
class Scorer:
    """Measures the targets of some facts.

    Attributes:
        model: whose final norm and unembedding are used.
        metric: `probability`, `log_probability` or `logit_difference`.
        targets: token ids by fact, padded with -1.
        foils: the first token of each fact's other answer, for `logit_difference`.
        n_prompt: the number of tokens of each fact's prompt.
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
            residual: the final residual stream of rows from position `start` on; padding on the right is not read.
            fact: the number of each row's fact.
            start: the position of each row's first column.
        """
        targets = self.targets[fact]
        steps = torch.arange(targets.shape[1], device=residual.device)
        columns = (self.n_prompt[fact] - 1 - start)[:, None] + steps
        rows = torch.arange(len(fact), device=residual.device)[:, None]
        answers = residual[rows, columns.clamp(max=residual.shape[1] - 1)]
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
            first = logits[:, 0]
            return (first.gather(-1, index[:, 0]) - first.gather(-1, self.foils[fact][:, None]))[:, 0]
        each = logits.log_softmax(-1).gather(-1, index)[..., 0]
        log_p = each.masked_fill(targets == NO_TARGET, 0.0).sum(1)
        return log_p if self.metric == "log_probability" else log_p.exp()


def make_scorer(model: Model, targeted: Sequence[TargetedPrompt], metric: Metric) -> Scorer:
    """The scorer of some facts' targets."""
    foils = [one.foil for one in targeted if one.foil is not None]
    answers = pad_sequence([one.answer for one in targeted], batch_first=True, padding_value=NO_TARGET)
    lengths = torch.tensor([len(one.prompt) for one in targeted], device=model.cfg.device)
    return Scorer(model, metric, answers, torch.stack(foils) if foils else None, lengths)
