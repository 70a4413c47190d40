"""The metric of a target, computed from the final residual stream of many rows of many facts at once."""

from collections.abc import Sequence

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


class Scorer:
    """Measures the targets of some facts.

    Args:
        model: whose final norm and unembedding are used.
        facts: the facts' prompts and targets, and for `logit_difference` their foils.
        metric: `probability`, `log_probability` or `logit_difference`.
    """

    def __init__(self, model: Model, facts: Sequence[TargetedPrompt], metric: Metric) -> None:
        self.model, self.metric = model, metric
        self.targets = pad_sequence([fact.answer for fact in facts], batch_first=True, padding_value=NO_TARGET)
        self.n_prompt = torch.tensor([len(fact.prompt) for fact in facts], device=model.cfg.device)
        foils = [fact.foil for fact in facts if fact.foil is not None]
        self.foils = torch.stack(foils) if foils else None

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
        return self._in_parts(residual[rows, columns.clamp(max=residual.shape[1] - 1)], targets, fact)

    def first(self, residual: Float[Tensor, "row d_model"], fact: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The metric of the target's first token, read off any residual stream as if it were a final one."""
        return self._in_parts(residual[:, None], self.targets[fact, :1], fact)

    def _in_parts(
        self,
        answers: Float[Tensor, "row target d_model"],
        targets: Int[Tensor, "row target"],
        fact: Int[Tensor, " row"],
    ) -> Float[Tensor, " row"]:
        most = LOGITS if answers.device.type == "cpu" else LOGITS_ON_DEVICE
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
