"""Constrained fine-tuning: Adam on `W_out` and `b_out` inside an L-infinity box (Zhu et al. 2020)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, overload

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rome import describe
from loc_edit.editing.rows import draw_noise
from loc_edit.editing.settings import FinetuneSettings
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.editing.value import EditFailed, share
from loc_edit.models.checks import check_editable, check_layers
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Hook, Model, W_out, has_output_bias
from loc_edit.models.passes import answers_alone, run_answers
from loc_edit.prompts.batches import embed_noise, make_batch, run, target_log_probs
from loc_edit.prompts.randomness import generator

SMALL_LOSS = 1e-2
PATIENCE = 5
STATE_BYTES = 2**33
"""Most memory for what is trained together, where how much is free cannot be asked for (on a GPU: half of that)."""
CALL = 30
"""What calling a layer once costs, in positions computed in it (measured with the built-in model on the CPU)."""


@overload
def finetune(
    model: Model,
    request: EditRequest,
    layers: Sequence[int],
    *,
    settings: FinetuneSettings | None = ...,
) -> Edit: ...
@overload
def finetune(
    model: Model,
    request: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    settings: FinetuneSettings | None = ...,
) -> list[Edit]: ...
def finetune(
    model: Model,
    request: EditRequest | Sequence[EditRequest],
    layers: Sequence[int],
    *,
    settings: FinetuneSettings | None = None,
) -> Edit | list[Edit]:
    """One edit a request; many requests are batched, each with its own weights and Adam state.

    Args:
        model: pre-norm.
        request: from `pose`; or several.
        layers: whose `W_out` (and `b_out`) are trained.
        settings: see `FinetuneSettings`.

    Returns:
        Edits with whole updates, every entry within `eps`.

    Raises:
        BadModel, ValueError: the model or a layer cannot be edited.
        EditFailed: a loss is not finite; names the fact.
    """
    requests = [request] if isinstance(request, EditRequest) else list(request)
    if not requests:
        return []
    settings, layers = settings or FinetuneSettings(), sorted(layers)
    check_editable(model)
    check_layers(model, layers)
    updates: dict[int, tuple[WeightUpdate, ...]] = {}
    for group in _groups(model, requests, layers):
        training = _Training(model, [requests[i] for i in group], layers, settings)
        with model.hooks(fwd_hooks=training.hooks()):
            _train(training, training.requests, settings.steps)
        updates |= zip(group, training.updates(), strict=True)
    about = {
        "method": "finetune",
        "settings": asdict(settings),
        "model": fingerprint(model),
        "layers": list(layers),
    }
    edits = [Edit(updates[i], {**about, **describe(r)}) for i, r in enumerate(requests)]
    return edits[0] if isinstance(request, EditRequest) else edits


def _groups(model: Model, requests: Sequence[EditRequest], layers: Sequence[int]) -> list[list[int]]:
    """Requests of like length, such that padding and calls together cost least; those with noise by themselves.

    No more in a group than there is memory for: each has weights, gradients and Adam's two moments of its own.
    """
    each = 4 * 4 * sum(W_out(model, layer).numel() for layer in layers)
    device, groups = model.W_E.device, []
    free = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else STATE_BYTES
    most = max(1, free // each)
    for noised in (False, True):
        mine = [i for i, r in enumerate(requests) if (r.noise is not None) == noised]
        copies = max([1, *(len(r.noise) for r in requests if noised and r.noise is not None)])
        lengths = [len(requests[i].prompt) + len(requests[i].target_tokens) - 1 for i in mine]
        for some in share(lengths, copies, CALL):
            groups += [[mine[i] for i in some[k : k + most]] for k in range(0, len(some), most)]
    return groups


def _train(training: "_Training", requests: Sequence[EditRequest], steps: int) -> int:
    """Up to `steps` updates of each request, with the training's hooks on the model; how many steps were computed."""
    small = torch.zeros(len(requests), dtype=torch.long)
    for step in range(steps):
        active = [bool(small[f] < PATIENCE) or r.objective == "lower" for f, r in enumerate(requests)]
        if not any(active):
            return step
        loss = training.loss()
        if not torch.isfinite(loss).all():
            bad = [r.fact_id for r, one in zip(requests, loss, strict=True) if not torch.isfinite(one)]
            raise EditFailed(f"fact {', '.join(map(str, bad))}: the loss of fine-tuning is not finite")
        large = (loss.detach() >= SMALL_LOSS).cpu()
        small = torch.where(large & torch.tensor(active), 0, small + 1)  # what has stopped stays stopped
        training.step(loss, large & torch.tensor(active))
    return steps


class _Training:
    """The changes of many requests, trained together: a row runs with its own request's weights.

    Up to the first trained layer's keys nothing changes, so every step begins with them and the stream after that
    layer.  A weight's gradient is (keys)^T @ (gradient of what the change adds to the MLP's output), written into a
    tensor that all steps share: so large a tensor, allocated anew at each step, took longer than its product.
    """

    def __init__(
        self,
        model: Model,
        requests: list[EditRequest],
        layers: list[int],
        settings: FinetuneSettings,
    ) -> None:
        self.model, self.requests, self.layers, self.settings = model, requests, layers, settings
        self.bias = settings.bias and has_output_bias(model)
        copies = [1 if r.noise is None else len(r.noise) for r in requests]
        self.copies = max(copies)
        self.batch = make_batch(
            model,
            [r.prompt for r in requests for _ in range(self.copies)],
            [r.target_tokens for r in requests for _ in range(self.copies)],
        )
        own = torch.arange(self.copies) < torch.tensor(copies)[:, None]
        self.weight = own.to(model.cfg.device, torch.float32)  # 0 for rows that only fill the batch
        self.lower = torch.tensor([r.objective == "lower" for r in requests], device=model.cfg.device)
        self.draws = [generator("fresh", r.seed, r.fact_id, "finetune", layers) for r in requests]
        # One row a request: Adam leaves alone what has no gradient, and counts each row's steps apart.
        shapes = [W_out(model, layer).shape for layer in layers] + [(model.cfg.d_model,)] * len(layers) * self.bias
        size = sum(map(math.prod, shapes))
        self.rows, self.slopes = (torch.zeros(len(requests), size, device=model.cfg.device) for _ in range(2))
        self.changes, self.gradients = (_parts(rows, shapes) for rows in (self.rows, self.slopes))
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
        stream = stream + self._added(0, key).to(stream)
        at, lengths, first = self.batch.answers_at, self.batch.lengths, self.layers[0]
        final = run_answers(self.model, stream, at, lengths, start=first + 1, alone=self.alone)
        log_p = target_log_probs(self.model, self.batch, final).sum(1)
        log_p = rearrange(log_p, "(request copy) -> request copy", copy=self.copies)
        loss = torch.where(self.lower[:, None], log_p.exp(), -log_p)
        return reduce(self.weight * loss, "request copy -> request", "sum")

    def _added(self, i: int, key: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_model"]:
        """What the changes add to the MLP's output in the i-th trained layer; kept for `step`."""
        key = rearrange(key.float(), "(request copy) pos d -> request (copy pos) d", copy=self.copies)
        out = key @ self.changes[i]
        if self.bias:
            out = out + self.changes[len(self.layers) + i][:, None]
        if not out.requires_grad:
            out.requires_grad_()
        self.added.append((key.detach(), out))
        return rearrange(out, "request (copy pos) d -> (request copy) pos d", copy=self.copies)

    def hooks(self) -> list[Hook]:
        """What makes every row run with its request's changed weights, in the layers after the first trained one."""
        return [hook for i in range(1, len(self.layers)) for hook in self._layer_hooks(i)]

    def _layer_hooks(self, i: int) -> list[Hook]:
        layer = self.layers[i]
        held: list[Tensor] = []

        def hold(key: Tensor, hook: Any) -> Tensor:
            held[:] = [key]
            return key

        def add(value: Tensor, hook: Any) -> Tensor:
            return value + self._added(i, held.pop()).to(value)

        return [(f"blocks.{layer}.mlp.hook_post", hold), (f"blocks.{layer}.hook_mlp_out", add)]

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

    def updates(self) -> Iterator[tuple[WeightUpdate, ...]]:
        """The finished changes of each request."""
        n = len(self.layers)
        for f in range(len(self.requests)):
            whole = [change[f].clone() for change in self.changes]
            found = zip(self.layers, whole[:n], whole[n:] if self.bias else [None] * n, strict=True)
            yield tuple(WeightUpdate(layer, full=full, bias=bias) for layer, full, bias in found)


def _parts(rows: Float[Tensor, "request number"], shapes: Sequence[Sequence[int]]) -> list[Float[Tensor, "request *_"]]:
    """Views of the rows: one after another, of these shapes."""
    parts = rows.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.unflatten(1, tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]
