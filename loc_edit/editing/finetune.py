"""Constrained fine-tuning: Adam on `W_out` and `b_out` inside an L-infinity box (Zhu et al. 2020)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from loc_edit import events
from loc_edit.editing.editor import EditJob, one_or_many
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import draw_noise
from loc_edit.editing.settings import FinetuneSettings
from loc_edit.editing.update import Edit, WeightUpdate, mlp_hooks
from loc_edit.editing.value import check_finite
from loc_edit.models.model import Hook, Model, W_out, has_output_bias
from loc_edit.models.norms import output_change
from loc_edit.models.passes import answers_alone, run_answers
from loc_edit.prompts.batches import embed_noise, make_batch, run, target_log_probs
from loc_edit.prompts.grouping import call_cost, group_by_length
from loc_edit.prompts.randomness import generator

SMALL_LOSS = 1e-2
PATIENCE = 5
STATE_BYTES = 2**33
"""Most memory for what is trained together, where how much is free cannot be asked for (on a GPU: half of that)."""
CALL = 30
"""What calling a layer once costs, in positions computed in it (measured with the built-in model on the CPU)."""


@one_or_many
def finetune(  # noqa: D417 (the decorator names `request`)
    model: Model, requests: list[EditRequest], layers: Sequence[int], *, settings: FinetuneSettings | None = None
) -> list[Edit]:
    """An edit of each request; many requests are computed together, each with its own weights and Adam state.

    Args:
        model: any that `check_editable` takes.
        request: from `pose`; one, or several.
        layers: whose `W_out` (and `b_out`) are trained.
        settings: see `FinetuneSettings`.

    Returns:
        An edit with whole updates, every entry within `eps`; for several requests, a list of edits.

    Raises:
        BadModel, ValueError: the model or a layer cannot be edited.
        EditFailed: a loss is not finite; names the fact.
    """
    job = EditJob("finetune", model, requests, sorted(layers), settings or FinetuneSettings())
    updates: dict[int, list[WeightUpdate]] = {}
    for group in _groups(model, requests, job.layers):
        training = Training(model, [requests[i] for i in group], job.layers, job.settings)
        with model.hooks(fwd_hooks=training.hooks()):
            _train(training, job.settings.steps)
        updates |= zip(group, training.updates(), strict=True)
    return job.edits(updates[i] for i in range(len(requests)))


def _groups(model: Model, requests: Sequence[EditRequest], layers: Sequence[int]) -> list[list[int]]:
    """Requests of similar length, such that padding and calls together cost least; noised requests by themselves.

    No more in a group than memory suffices for: each has weights, gradients and Adam's two moments of its own.
    """
    bytes_per_request = 4 * 4 * sum(W_out(model, layer).numel() for layer in layers)
    device, groups = model.W_E.device, []
    free = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else STATE_BYTES
    most = max(1, free // bytes_per_request)
    for noised in (False, True):
        numbers = [i for i, request in enumerate(requests) if (request.noise is not None) == noised]
        copies = max((_copies(requests[i]) for i in numbers), default=1)
        lengths = [len(requests[i].prompt) + len(requests[i].target_tokens) - 1 for i in numbers]
        for group in group_by_length(lengths, copies, call_cost(model, CALL)):
            groups += [[numbers[i] for i in group[k : k + most]] for k in range(0, len(group), most)]
    return groups


def _copies(request: EditRequest) -> int:
    """How many rows a request is trained on: one for each sample of its noise."""
    return 1 if request.noise is None else len(request.noise)


def _train(training: "Training", steps: int) -> int:
    """Up to `steps` updates of each request, with the training's hooks on the model; how many steps were computed."""
    requests = training.requests
    small_losses = torch.zeros(len(requests), dtype=torch.long)
    lower = torch.tensor([request.objective == "lower" for request in requests])
    for step in range(steps):
        events.step("steps of fine-tuning", step, steps)
        active = (small_losses < PATIENCE) | lower
        if not active.any():
            return step
        loss = training.loss()
        check_finite(requests, loss[:, None], "the loss of fine-tuning")
        updating = (loss.detach() >= SMALL_LOSS).cpu() & active
        small_losses = torch.where(updating, 0, small_losses + 1)  # a request that has stopped stays stopped
        training.step(loss, updating)
    return steps


class Training:
    """The changes of many requests, trained together: a row runs with its own request's weights.

    Up to the first trained layer's keys nothing changes, so every step begins with them and the stream after that
    layer.  A weight's gradient is (keys)^T @ (gradient of what the change adds to the output of `W_out`), written into
    a tensor that all steps share: so large a tensor, allocated anew at each step, took longer than its product.
    """

    def __init__(
        self, model: Model, requests: list[EditRequest], layers: list[int], settings: FinetuneSettings
    ) -> None:
        self.model, self.requests, self.layers, self.settings = model, requests, layers, settings
        self.bias = settings.bias and has_output_bias(model)
        copies = [_copies(request) for request in requests]
        self.copies = max(copies)
        rows = [request for request in requests for _ in range(self.copies)]
        self.batch = make_batch(model, [row.prompt for row in rows], [row.target_tokens for row in rows])
        is_own = torch.arange(self.copies) < torch.tensor(copies)[:, None]
        self.weight = is_own.to(model.cfg.device, torch.float32)  # 0 for rows that only fill the batch
        self.lower = torch.tensor([r.objective == "lower" for r in requests], device=model.cfg.device)
        self.draws = [generator("fresh", r.seed, r.fact_id, "finetune", layers) for r in requests]
        # One row for each request: Adam leaves rows without a gradient alone, and counts each row's steps apart.
        shapes = [W_out(model, layer).shape for layer in layers] + [(model.cfg.d_model,)] * len(layers) * self.bias
        size = sum(map(math.prod, shapes))
        self.rows, self.slopes = (torch.zeros(len(requests), size, device=model.cfg.device) for _ in range(2))
        self.changes, self.gradients = _parts(self.rows, shapes), _parts(self.slopes, shapes)
        self.params = list(self.rows)
        decay = 2 * settings.weight_decay
        self.adam = torch.optim.Adam(self.params, lr=settings.lr, weight_decay=decay, fused=True)
        self.alone = answers_alone(model)
        self.added: list[tuple[Tensor, Tensor]] = []
        self.start = None if any(r.noise is not None for r in requests) else self._start()

    @torch.no_grad()
    def _start(self) -> tuple[Float[Tensor, "row pos d_mlp"], Float[Tensor, "row pos d_model"]]:
        """Keys of the first trained layer and the stream after it; noised requests under fresh noise."""
        prompts, first, keys = self.batch.prompts, self.layers[0], []
        fresh = [
            draw_noise(self.requests[i // self.copies], prompt, self.draws[i // self.copies]) if own else None
            for i, (prompt, own) in enumerate(zip(prompts, self.weight.flatten().tolist(), strict=True))
        ]
        noise = embed_noise(self.model, prompts, self.batch.tokens.shape[1], fresh)
        hook = (f"blocks.{first}.mlp.hook_post", lambda key, hook: keys.append(key))
        stream = run(self.model, replace(self.batch, noise=noise), stop_at_layer=first + 1, hooks=[hook])
        return keys[0], stream

    def loss(self) -> Float[Tensor, " request"]:
        """NLL of the target, summed over its tokens and the noised copies; p(target) for objective `lower`."""
        key, stream = self._start() if self.start is None else self.start
        self.added.clear()
        stream = stream + self._change(0, key).to(stream)
        at, lengths, first = self.batch.answers_at, self.batch.lengths, self.layers[0]
        final = run_answers(self.model, stream, at, lengths, start=first + 1, alone=self.alone)
        log_p = target_log_probs(self.model, self.batch, final).sum(1)
        log_p = rearrange(log_p, "(request copy) -> request copy", copy=self.copies)
        loss = torch.where(self.lower[:, None], log_p.exp(), -log_p)
        return reduce(self.weight * loss, "request copy -> request", "sum")

    def _change(self, i: int, key: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_model"]:
        """What the MLP's output changes by in the i-th trained layer; what `W_out` adds is recorded for `step`."""
        keys = rearrange(key.float(), "(request copy) pos d -> request (copy pos) d", copy=self.copies)
        out = keys @ self.changes[i]
        if self.bias:
            out = out + self.changes[len(self.layers) + i][:, None]
        if not out.requires_grad:
            out.requires_grad_()
        self.added.append((keys.detach(), out))
        added = rearrange(out, "request (copy pos) d -> (request copy) pos d", copy=self.copies)
        return output_change(self.model, self.layers[i], key, added)

    def hooks(self) -> list[Hook]:
        """Hooks that let every row run with its request's changed weights, above the first trained layer."""

        def add(i: int, key: Tensor, output: Tensor) -> Tensor:
            return output + self._change(i, key).to(output)

        return [hook for i, layer in enumerate(self.layers) if i > 0 for hook in mlp_hooks(layer, partial(add, i))]

    @torch.no_grad()
    def step(self, loss: Float[Tensor, " request"], updating: Bool[Tensor, " request"]) -> None:
        """One Adam step of the requests that update, then every entry back into its box."""
        if not updating.any():
            return
        outs = [out for _, out in self.added]
        for i, gradient in enumerate(torch.autograd.grad(loss, outs, updating.to(loss))):
            torch.bmm(self.added[i][0].mT, gradient, out=self.gradients[i])
            if self.bias:
                torch.sum(gradient, 1, out=self.gradients[len(self.layers) + i])
        for param, slope, updates in zip(self.params, self.slopes, updating.tolist(), strict=True):
            param.grad = slope if updates else None
        self.adam.step()
        self.rows.clamp_(-self.settings.eps, self.settings.eps)

    def updates(self) -> Iterator[list[WeightUpdate]]:
        """The finished changes of each request."""
        n = len(self.layers)
        for request in range(len(self.requests)):
            weights, biases = (
                [change[request].clone() for change in part] for part in (self.changes[:n], self.changes[n:])
            )
            parts = zip_longest(self.layers, weights, biases)
            yield [WeightUpdate(layer, full=full, bias=bias) for layer, full, bias in parts]


def _parts(rows: Float[Tensor, "request number"], shapes: Sequence[Sequence[int]]) -> list[Float[Tensor, "request *_"]]:
    """Views of the rows: one after another, of these shapes."""
    parts = rows.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.unflatten(1, tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]
