"""Batches of prompts: rows of different lengths padded on the right, their subject noise, and their forward passes.

Attention is causal, so padding on the right cannot reach a real position: a row in a batch has the same result as the
row alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from loc_edit.models.model import Hook, Model, logits_at
from loc_edit.models.passes import run_layers
from loc_edit.models.past import Past
from loc_edit.prompts.encoding import Prompt, check_fits

NO_TARGET = -1


@dataclass(frozen=True)
class Batch:
    """Prompts, each followed by its target without the target's last token, padded on the right.

    Attributes:
        prompts: the prompt of each row.
        tokens: token ids; padding repeats a token of the vocabulary that nothing attends to.
        targets: target ids by row, padded with -1.
        last_subject: position of each row's last subject token.
        noise: the noise added to the embeddings, zero outside the subjects; `None` for clean rows.
    """

    prompts: tuple[Prompt, ...]
    tokens: Int[Tensor, "row pos"]
    targets: Int[Tensor, "row target"]
    last_subject: Int[Tensor, " row"]
    noise: Float[Tensor, "row pos d_model"] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> Int[Tensor, " row"]:
        """Number of real positions of each row."""
        n_target = (self.targets != NO_TARGET).sum(1)
        return self._prompt_lengths + (n_target - 1).clamp(min=0)

    @property
    def _prompt_lengths(self) -> Int[Tensor, " row"]:
        return torch.tensor([len(prompt) for prompt in self.prompts], device=self.tokens.device)

    @property
    def answers_at(self) -> Int[Tensor, "row target"]:
        """Positions whose logits predict the target's tokens; positions beyond a row are clipped to its end."""
        steps = torch.arange(self.targets.shape[1], device=self.tokens.device)
        return (self._prompt_lengths[:, None] - 1 + steps).minimum(self.lengths[:, None] - 1)

    def answers(self, final: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row target d_model"]:
        """The final residual stream at the positions that predict the targets."""
        return final[torch.arange(len(self), device=final.device)[:, None], self.answers_at]

    def select(self, rows: Int[Tensor, " some"]) -> "Batch":
        """A batch of some of the rows, without the positions that none of them needs."""
        n_pos = int(self.lengths[rows].max())
        noise = None if self.noise is None else self.noise[rows, :n_pos]
        prompts = tuple(self.prompts[i] for i in rows.tolist())
        return Batch(prompts, self.tokens[rows, :n_pos], self.targets[rows], self.last_subject[rows], noise)


def make_batch(
    model: Model,
    prompts: Sequence[Prompt],
    targets: Sequence[Int[Tensor, " _"]] | None = None,
    noise: Sequence[Float[Tensor, "_ d_model"] | None] | None = None,
) -> Batch:
    """A batch of prompts; if given, each has a target, and subject noise that is not `None`.

    Raises:
        BadPrompt: a row is longer than the model's context.
    """
    device = model.cfg.device
    endings = list(targets or [torch.zeros(0, dtype=torch.long, device=device)] * len(prompts))
    rows = [torch.cat([prompt.tokens, target[:-1]]) for prompt, target in zip(prompts, endings, strict=True)]
    for row, prompt in zip(rows, prompts, strict=True):
        check_fits(model, prompt, len(row))
    tokens = pad_sequence(rows, batch_first=True)
    padded = pad_sequence(endings, batch_first=True, padding_value=NO_TARGET)
    last = torch.tensor([prompt.last_subject for prompt in prompts], device=device)
    return Batch(tuple(prompts), tokens, padded, last, embed_noise(model, prompts, tokens.shape[1], noise))


def embed_noise(
    model: Model, prompts: Sequence[Prompt], n_pos: int, noise: Sequence[Float[Tensor, "_ d_model"] | None] | None
) -> Float[Tensor, "row pos d_model"] | None:
    """Each row's subject noise at the positions of its subject, zero elsewhere; `None` if no row has any."""
    if noise is None or all(sample is None for sample in noise):
        return None
    full = torch.zeros(len(prompts), n_pos, model.cfg.d_model, device=model.cfg.device, dtype=model.cfg.dtype)
    for row, (prompt, sample) in enumerate(zip(prompts, noise, strict=True)):
        if sample is not None:
            full[row, prompt.subject] = sample.to(full)
    return full


def run(
    model: Model,
    batch: Batch,
    *,
    stop_at_layer: int | None = None,
    hooks: Sequence[Hook] = (),
    past: Past | None = None,
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream before `stop_at_layer` (by default after the last layer), with noise and hooks applied.

    An empty `past` is filled with the rows' attention keys and values.
    """
    stop = model.cfg.n_layers if stop_at_layer is None else stop_at_layer
    noise_hooks: list[Hook] = [] if batch.noise is None else [("hook_embed", lambda value, hook: value + batch.noise)]
    with model.hooks(fwd_hooks=[*noise_hooks, *hooks]):
        return run_layers(model, batch.tokens, stop=stop, past=past)


def resume(
    model: Model, residual: Float[Tensor, "row pos d_model"], layer: int, hooks: Sequence[Hook] = ()
) -> Float[Tensor, "row pos d_model"]:
    """The final residual stream, computed from the residual stream before `layer`."""
    with model.hooks(fwd_hooks=list(hooks)):
        return run_layers(model, residual, start=layer, stop=model.cfg.n_layers)


def target_log_probs(
    model: Model, batch: Batch, answers: Float[Tensor, "row target d_model"]
) -> Float[Tensor, "row target"]:
    """Log-probability of each target token, in float32; 0 for the padding of targets.

    `answers` is the final residual stream at `answers_at`.
    """
    logits = logits_at(model, answers).float()
    index = batch.targets.clamp(min=0)[..., None]
    log_p = logits.log_softmax(-1).gather(-1, index)[..., 0]
    return log_p.masked_fill(batch.targets == NO_TARGET, 0.0)
