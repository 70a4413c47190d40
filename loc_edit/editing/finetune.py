"""Constrained fine-tuning: Adam on `W_out` and `b_out` inside an L-infinity box (Zhu et al. 2020)."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, overload

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.batching import Hook, embed_noise, make_batch, run, target_log_probs
from loc_edit.editing.rome import describe
from loc_edit.editing.rows import draw_noise
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.editing.value import EditFailed
from loc_edit.models import W_out, check_editable, check_layers, fingerprint, has_output_bias, run_layers
from loc_edit.noise import generator
from loc_edit.problems import EditRequest
from loc_edit.settings import FinetuneSettings

SMALL_LOSS = 1e-2
PATIENCE = 5


@overload
def finetune(
    model: HookedTransformer,
    request: EditRequest,
    layers: Sequence[int],
    *,
    settings: FinetuneSettings | None = ...,
) -> Edit: ...
@overload
def finetune(
    model: HookedTransformer,
    request: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    settings: FinetuneSettings | None = ...,
) -> list[Edit]: ...
def finetune(
    model: HookedTransformer,
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
    training = _Training(model, requests, layers, settings)
    with model.hooks(fwd_hooks=training.hooks()):
        _train(training, requests, settings.steps)
    about = {
        "method": "finetune",
        "settings": asdict(settings),
        "model": fingerprint(model),
        "layers": list(layers),
    }
    edits = [Edit(training.updates(f), {**about, **describe(r)}) for f, r in enumerate(requests)]
    return edits[0] if isinstance(request, EditRequest) else edits


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
    """The changes of many requests, trained together: a row runs with its own request's weights."""

    def __init__(
        self,
        model: HookedTransformer,
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
        noised = torch.tensor([r.noise is not None for r in requests], device=model.cfg.device)
        own = torch.arange(self.copies) < torch.tensor(copies)[:, None]
        self.weight = own.to(model.cfg.device, torch.float32)  # 0 for rows that only fill the batch
        self.lower = torch.tensor([r.objective == "lower" for r in requests], device=model.cfg.device)
        self.draws = [generator("fresh", r.seed, r.fact_id, "finetune", layers) for r in requests]
        self.delta = [self._zeros(len(requests), *W_out(model, layer).shape) for layer in layers]
        self.bias_delta = [self._zeros(len(requests), model.cfg.d_model) for _ in layers] if self.bias else []
        # Each request's parameters are views: Adam leaves alone what has no gradient, and counts its steps apart.
        self.views = [[p.detach()[f] for p in self._parameters()] for f in range(len(requests))]
        views = [view for mine in self.views for view in mine]
        self.adam = torch.optim.Adam(views, lr=settings.lr, weight_decay=2 * settings.weight_decay, fused=True)
        self.residual = None if noised.any() else self._prefix()

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, device=self.model.cfg.device, dtype=torch.float32, requires_grad=True)

    def _parameters(self) -> list[Tensor]:
        return [*self.delta, *self.bias_delta]

    @torch.no_grad()
    def _prefix(self) -> Float[Tensor, "row pos d_model"]:
        """The residual stream before the first trained layer, noised requests under fresh noise."""
        prompts = self.batch.prompts
        fresh = [
            draw_noise(self.requests[i // self.copies], prompt, self.draws[i // self.copies]) if own else None
            for i, (prompt, own) in enumerate(zip(prompts, self.weight.flatten().tolist(), strict=True))
        ]
        noise = embed_noise(self.model, prompts, self.batch.tokens.shape[1], fresh)
        return run(self.model, replace(self.batch, noise=noise), stop_at_layer=self.layers[0])

    def loss(self) -> Float[Tensor, " request"]:
        """NLL of the target, summed over its tokens and the noised copies; p(target) for objective `lower`."""
        start = self._prefix() if self.residual is None else self.residual
        final = run_layers(self.model, start, start=self.layers[0], stop=self.model.cfg.n_layers)
        log_p = target_log_probs(self.model, self.batch, final).sum(1)
        log_p = rearrange(log_p, "(request copy) -> request copy", copy=self.copies)
        loss = torch.where(self.lower[:, None], log_p.exp(), -log_p)
        return reduce(self.weight * loss, "request copy -> request", "sum")

    def hooks(self) -> list[Hook]:
        """What makes every row run with its request's changed weights."""
        return [hook for i in range(len(self.layers)) for hook in self._layer_hooks(i)]

    def _layer_hooks(self, i: int) -> list[Hook]:
        layer = self.layers[i]
        held: list[Tensor] = []

        def hold(key: Tensor, hook: Any) -> Tensor:
            held[:] = [key]
            return key

        def add(value: Tensor, hook: Any) -> Tensor:
            key = rearrange(held.pop().float(), "(request copy) pos d -> request copy pos d", copy=self.copies)
            out = einsum(key, self.delta[i], "request copy pos m, request m d -> request copy pos d")
            if self.bias:
                out = out + rearrange(self.bias_delta[i], "request d -> request 1 1 d")
            return value + rearrange(out, "request copy pos d -> (request copy) pos d").to(value)

        return [(f"blocks.{layer}.mlp.hook_post", hold), (f"blocks.{layer}.hook_mlp_out", add)]

    def step(self, loss: Float[Tensor, " request"], updating: Bool[Tensor, " request"]) -> None:
        """One Adam step of the requests that update, then every entry back into its box."""
        if not updating.any():
            return
        parameters = self._parameters()
        gradients = torch.autograd.grad(loss[updating.to(loss.device)].sum(), parameters)
        for f, (mine, updates) in enumerate(zip(self.views, updating.tolist(), strict=True)):
            for view, gradient in zip(mine, gradients, strict=True):
                view.grad = gradient[f] if updates else None
        self.adam.step()
        with torch.no_grad():
            for p in parameters:
                p.clamp_(-self.settings.eps, self.settings.eps)

    def updates(self, f: int) -> tuple[WeightUpdate, ...]:
        """The finished changes of one request."""
        return tuple(
            WeightUpdate(
                layer,
                full=self.delta[i][f].detach().clone(),
                bias=self.bias_delta[i][f].detach().clone() if self.bias else None,
            )
            for i, layer in enumerate(self.layers)
        )
