"""Rows of different lengths and of many facts in one right-padded batch.

Attention is causal: what is padded on the right cannot reach a real position, so a row in a batch
computes what it computes alone.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.models import logits_at, run_layers
from loc_edit.prompts import BadPrompt, Prompt

log = logging.getLogger(__name__)

Hook = tuple[str | Callable[..., Any], Callable[..., Any]]
"""A hook point's name and a function, as TransformerLens takes them."""
NO_TARGET = -1

POSITIONS = 1024
"""Token positions in one call of a layer on the CPU: more do not stay in its cache."""
POSITIONS_ON_DEVICE = 2**15
KEPT_WIDTHS, KEPT_MLPS = 24, 8
"""What a layer keeps for its backward pass, a position, about: so many times d_model and d_mlp."""


class Budget:
    """How many token positions a layer is given in one call; halved where memory does not suffice.

    Attributes:
        positions: rows times their length.
    """

    def __init__(self, model: HookedTransformer, positions: int | None = None, *, backward: bool = False) -> None:
        device, cfg = model.W_E.device, model.cfg
        self.positions = positions or (POSITIONS if device.type == "cpu" else POSITIONS_ON_DEVICE)
        if backward and device.type == "cuda":
            kept = cfg.n_layers * (KEPT_WIDTHS * cfg.d_model + KEPT_MLPS * (cfg.d_mlp or 0)) * cfg.dtype.itemsize
            self.positions = max(1, min(self.positions, torch.cuda.mem_get_info(device)[0] // kept))
        elif backward:
            self.positions *= 2

    def spend(self, n: int, cost: int, work: Callable[[slice], None], most: int | None = None) -> None:
        """Call `work` on slices that make up `range(n)`, each as long as the budget allows, at least 1.

        Args:
            n: number of items.
            cost: token positions that one of them takes.
            work: what to do with some; done again with fewer where memory does not suffice.
            most: the most items in one slice, whatever the budget.

        Raises:
            RuntimeError: memory does not suffice for one item.
        """
        done = 0
        while done < n:
            some = min(max(1, self.positions // cost), most or n)
            try:
                work(slice(done, min(n, done + some)))
            except (RuntimeError, MemoryError) as error:
                if some == 1 or not out_of_memory(error):
                    raise
                refused = str(error).partition("\n")[0]
            else:
                done += some
                continue
            # Not in the `except` clause: the error holds on to the memory of the frames that it came through.
            self.positions = min(self.positions, some // 2 * cost)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("out of memory: going on with %d token positions at a time (%s)", self.positions, refused)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice; only CUDA's has a class of its own."""
    said = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in said or "allocate memory" in said
    )


@dataclass(frozen=True)
class Batch:
    """Prompts, each followed by its target (but for the target's last token), padded on the right.

    Attributes:
        prompts: one a row.
        tokens: token ids; padding repeats a token of the vocabulary that nothing attends to.
        targets: target ids by row, padded with -1.
        last_subject: position of each row's last subject token.
        noise: added to the embeddings, zero outside the subjects; `None` for clean rows.
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
        prompts = torch.tensor([len(p) for p in self.prompts], device=self.tokens.device)
        return prompts + (n_target - 1).clamp(min=0)

    @property
    def answers_at(self) -> Int[Tensor, "row target"]:
        """Positions whose logits predict the target's tokens; those of padding are clipped to the row."""
        lengths = torch.tensor([len(p) for p in self.prompts], device=self.tokens.device)
        steps = torch.arange(self.targets.shape[1], device=self.tokens.device)
        return (lengths[:, None] - 1 + steps).minimum(self.lengths[:, None] - 1)

    def answers(self, final: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row target d_model"]:
        """The final residual stream where the targets are predicted."""
        return final[torch.arange(len(self), device=final.device)[:, None], self.answers_at]

    def select(self, rows: Int[Tensor, " some"]) -> "Batch":
        """Some of its rows, as long as the longest of them."""
        n_pos = int(self.lengths[rows].max())
        noise = None if self.noise is None else self.noise[rows, :n_pos]
        prompts = tuple(self.prompts[i] for i in rows.tolist())
        return Batch(prompts, self.tokens[rows, :n_pos], self.targets[rows], self.last_subject[rows], noise)


def make_batch(
    model: HookedTransformer,
    prompts: Sequence[Prompt],
    targets: Sequence[Int[Tensor, " _"]] | None = None,
    noise: Sequence[Float[Tensor, "_ d_model"] | None] | None = None,
) -> Batch:
    """A batch of `prompts`, with a target each if given, and subject noise each where it is not `None`.

    Raises:
        BadPrompt: a row is longer than the model's context.
    """
    device = model.cfg.device
    empty = torch.zeros(0, dtype=torch.long, device=device)
    rows = [
        torch.cat([prompt.tokens, target[:-1]])
        for prompt, target in zip(prompts, targets or [empty] * len(prompts), strict=True)
    ]
    for row, prompt in zip(rows, prompts, strict=True):
        if len(row) > model.cfg.n_ctx:
            raise BadPrompt(
                f"fact {prompt.fact_id}: {len(row)} tokens do not fit the context of {model.cfg.n_ctx}: {prompt.text!r}"
            )
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    padded = torch.nn.utils.rnn.pad_sequence(
        list(targets or [empty] * len(prompts)), batch_first=True, padding_value=NO_TARGET
    )
    last = torch.tensor([prompt.last_subject for prompt in prompts], device=device)
    return Batch(tuple(prompts), tokens, padded, last, embed_noise(model, prompts, tokens.shape[1], noise))


def embed_noise(
    model: HookedTransformer,
    prompts: Sequence[Prompt],
    n_pos: int,
    noise: Sequence[Float[Tensor, "_ d_model"] | None] | None,
) -> Float[Tensor, "row pos d_model"] | None:
    """Each row's subject noise at its own subject's positions, zero elsewhere; `None` if no row has any."""
    if noise is None or all(one is None for one in noise):
        return None
    full = torch.zeros(len(prompts), n_pos, model.cfg.d_model, device=model.cfg.device, dtype=model.cfg.dtype)
    for row, (prompt, one) in enumerate(zip(prompts, noise, strict=True)):
        if one is not None:
            full[row, prompt.subject] = one.to(full)
    return full


def noise_hooks(noise: Float[Tensor, "row pos d_model"] | None) -> list[Hook]:
    """The hook that adds a batch's noise to its embeddings."""
    return [] if noise is None else [("hook_embed", lambda value, hook: value + noise)]


def run(
    model: HookedTransformer,
    batch: Batch,
    *,
    stop_at_layer: int | None = None,
    hooks: Sequence[Hook] = (),
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream before `stop_at_layer` (by default after the last), noise and hooks applied."""
    stop = model.cfg.n_layers if stop_at_layer is None else stop_at_layer
    with model.hooks(fwd_hooks=[*noise_hooks(batch.noise), *hooks]):
        return run_layers(model, batch.tokens, stop=stop)


def resume(
    model: HookedTransformer,
    residual: Float[Tensor, "row pos d_model"],
    layer: int,
    hooks: Sequence[Hook] = (),
) -> Float[Tensor, "row pos d_model"]:
    """The final residual stream from the one before `layer` (after the last block: the same one)."""
    with model.hooks(fwd_hooks=list(hooks)):
        return run_layers(model, residual, start=layer, stop=model.cfg.n_layers)


def target_log_probs(
    model: HookedTransformer, batch: Batch, answers: Float[Tensor, "row target d_model"]
) -> Float[Tensor, "row target"]:
    """Log-probability of each target token, in float32, from the final stream where it is predicted (`answers_at`).

    0 where a row's target is padded.
    """
    logits = logits_at(model, answers).float()
    index = batch.targets.clamp(min=0)[..., None]
    log_p = logits.log_softmax(-1).gather(-1, index)[..., 0]
    return log_p.masked_fill(batch.targets == NO_TARGET, 0.0)
