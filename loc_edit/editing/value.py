"""v*: the change of the residual stream at the subject that brings the target about (Meng et al. 2022a, eq. 4).

ROME adds it to the MLP output of its layer, MEMIT to the residual stream after its last layer.  On pre-norm
blocks these are the same place, so one optimiser serves both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.batching import (
    Batch,
    Hook,
    Tails,
    activations,
    embed_noise,
    make_batch,
    make_tails,
    resume_tails,
    run,
    target_log_probs,
)
from loc_edit.models import logits_at
from loc_edit.noise import generator
from loc_edit.problems import EditRequest
from loc_edit.prompts import BadPrompt, Prompt, encode_context, encode_template
from loc_edit.settings import ValueSettings

ESSENCE = "{} is a"


class EditFailed(RuntimeError):
    """An edit whose numbers are not finite; the message names the fact."""


@dataclass(frozen=True)
class Rows:
    """The rows of many requests that the value is optimised on, and their fixed noise.

    Attributes:
        requests: the requests.
        contexts: number of contexts; the first is the bare prompt.
        prompts: of every request, of every context.
        essence: one prompt a request.
        noise: one fixed draw per prompt, request by request, `None` for clean requests.
        essence_noise: likewise.
    """

    requests: tuple[EditRequest, ...]
    contexts: int
    prompts: tuple[Prompt, ...]
    essence: tuple[Prompt, ...]
    noise: tuple[Tensor | None, ...]
    essence_noise: tuple[Tensor | None, ...]

    def by_tail_length(self) -> list[list[int]]:
        """The requests in groups that are equally long from the subject's last token to the target."""
        groups: dict[int, list[int]] = {}
        for i, request in enumerate(self.requests):
            length = len(request.prompt) + len(request.target_tokens) - request.prompt.last_subject
            groups.setdefault(length, []).append(i)
        return list(groups.values())

    def select(self, some: Sequence[int]) -> "Rows":
        """The rows of some requests."""
        members = [i * self.contexts + c for i in some for c in range(self.contexts)]
        return Rows(
            tuple(self.requests[i] for i in some),
            self.contexts,
            tuple(self.prompts[i] for i in members),
            tuple(self.essence[i] for i in some),
            tuple(self.noise[i] for i in members),
            tuple(self.essence_noise[i] for i in some),
        )


def make_rows(model: HookedTransformer, requests: Sequence[EditRequest], contexts: Sequence[str], method: str) -> Rows:
    """Every request in every context.

    Raises:
        BadPrompt: the first context is not the bare `{}`, or a row is too long.
    """
    if not contexts or contexts[0] != "{}":
        raise BadPrompt(f"contexts {list(contexts[:2])!r}: the first must be the bare '{{}}'")
    prompts, essence, noise, essence_noise = [], [], [], []
    for request in requests:
        mine = [encode_context(model, context, request.prompt) for context in contexts]
        last = encode_template(model, ESSENCE, request.prompt.subject_text, fact_id=request.fact_id)
        last = replace(last, tokens=last.tokens[: last.subject.stop])  # what follows the subject cannot matter
        draws = generator("fixed", request.seed, request.fact_id, method)
        bare = [] if request.noise is None else [request.noise[0]]
        noise += bare + [draw_noise(request, prompt, draws) for prompt in mine[len(bare) :]]
        essence_noise.append(draw_noise(request, last, draws))
        prompts += mine
        essence.append(last)
    return Rows(tuple(requests), len(contexts), tuple(prompts), tuple(essence), tuple(noise), tuple(essence_noise))


def draw_noise(request: EditRequest, prompt: Prompt, draws: torch.Generator) -> Float[Tensor, "subject d_model"] | None:
    """One draw of the request's noise for a row, at the length of that row's own subject."""
    if request.noise is None or request.noise_scale is None:
        return None
    size = (prompt.subject.stop - prompt.subject.start, request.noise.shape[-1])
    return request.noise_scale * torch.randn(size, generator=draws).to(request.noise)


@torch.inference_mode()
def context_activations(
    model: HookedTransformer, rows: Rows, names: Sequence[str], layer: int, hooks_of: "HooksOf | None" = None
) -> dict[str, Float[Tensor, "request context width"]]:
    """Activations at the last subject token of every row, up to `layer`, without targets."""
    batch = make_batch(model, rows.prompts, noise=rows.noise)
    owner = torch.arange(len(batch), device=batch.tokens.device) // rows.contexts
    found = activations(model, batch, names, stop_at_layer=layer + 1, hooks=hooks_of(owner) if hooks_of else ())
    return {
        name: rearrange(value.float(), "(request context) width -> request context width", context=rows.contexts)
        for name, value in found.items()
    }


class HooksOf(Protocol):
    """Hooks for a batch whose row i belongs to request `owner[i]`."""

    def __call__(self, owner: Tensor) -> list[Hook]:
        """The hooks."""


def optimize_values(
    model: HookedTransformer,
    rows: Rows,
    layer: int,
    reference: Float[Tensor, "request d_model"],
    settings: ValueSettings,
    *,
    method: str,
    last_updates_when_lowering: bool,
) -> Float[Tensor, "request d_model"]:
    """The delta of each request: what to add after `layer` at the subject's last token.

    Requests whose tails are of one length (from the subject's last token to the target) share a batch without
    padding.  Nothing mixes them, as the sum of their losses has separate gradients and Adam works entry by entry.

    Args:
        model: parameters without gradients.
        rows: from `make_rows`.
        layer: whose output is changed.
        reference: v0 (ROME) or z0 (MEMIT): clamp and decay are relative to its norm.
        settings: steps, lr, kl, decay, clamp.
        method: seeds the fresh noise of noised requests.
        last_updates_when_lowering: whether the last forward pass also updates, for objective `lower`.

    Raises:
        EditFailed: a loss is not finite.
    """
    delta = torch.zeros_like(reference)
    for some in rows.by_tail_length():
        delta[some] = _optimize(
            model, rows.select(some), layer, reference[some], settings, method, last_updates_when_lowering
        )
    if not torch.isfinite(delta).all():
        bad = [r.fact_id for r, d in zip(rows.requests, delta, strict=True) if not torch.isfinite(d).all()]
        raise EditFailed(f"fact {', '.join(map(str, bad))}: the value at layer {layer} is not finite")
    return delta


def _optimize(
    model: HookedTransformer,
    rows: Rows,
    layer: int,
    reference: Float[Tensor, "request d_model"],
    settings: ValueSettings,
    method: str,
    last_updates_when_lowering: bool,
) -> Float[Tensor, "request d_model"]:
    """Adam with a projection after each step, all requests at once; a request that has stopped stays as it is."""
    objective = _Objective(model, rows, layer, settings, reference, method)
    delta = torch.zeros_like(reference).requires_grad_()
    adam = torch.optim.Adam([delta], lr=settings.lr)
    limit = settings.clamp * reference.norm(dim=-1, keepdim=True)
    lower = torch.tensor([r.objective == "lower" for r in rows.requests], device=reference.device)[:, None]
    stopped = torch.zeros_like(lower)
    for step in range(settings.steps):
        last = step == settings.steps - 1
        if last and not (last_updates_when_lowering and lower.any()):
            break
        before = delta.detach().clone()
        adam.zero_grad()
        loss = objective(delta)
        stopped |= loss.detach()[:, None] < settings.early_stop
        if stopped.all():
            break
        loss.sum().backward()
        adam.step()
        with torch.no_grad():
            norm = delta.norm(dim=-1, keepdim=True)
            delta.mul_(torch.where(norm > limit, limit / norm, torch.ones_like(norm)))
            kept = (stopped | ~lower) if last else stopped
            delta.copy_(torch.where(kept, before, delta))
    return delta.detach()


class _Objective:
    """delta -> loss of each request; what does not depend on delta is computed once."""

    def __init__(
        self,
        model: HookedTransformer,
        rows: Rows,
        layer: int,
        settings: ValueSettings,
        reference: Float[Tensor, "request d_model"],
        method: str,
    ) -> None:
        self.model, self.rows, self.layer, self.settings = model, rows, layer, settings
        n, device = len(rows.requests), reference.device
        targets = [r.target_tokens for r in rows.requests for _ in range(rows.contexts)]
        self.batch = make_batch(model, rows.prompts, targets, rows.noise)
        self.essence = make_batch(model, rows.essence, noise=rows.essence_noise)
        self.n_target = (self.batch.targets >= 0).sum(1)
        self.owner = torch.arange(n, device=device).repeat_interleave(rows.contexts)
        self.lower = torch.tensor([r.objective == "lower" for r in rows.requests], device=device)
        self.decay = settings.decay / reference.norm(dim=-1) ** 2
        self.noisy = self.batch.noise is not None
        self.draws = [generator("fresh", r.seed, r.fact_id, method, layer) for r in rows.requests]
        with torch.no_grad():
            self.tails = None if self.noisy else self._tails(self.batch)
            self.essence_tails = self._tails(self.essence)
            self.initial = self._essence_log_probs(torch.zeros_like(reference))

    def __call__(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, " request"]:
        tails = self._fresh_tails() if self.tails is None else self.tails
        final = self._continue(tails, delta[self.owner])
        log_p = target_log_probs(self.model, self.batch, final, tails.start).sum(1) / self.n_target
        nll = -reduce(log_p, "(request context) -> request", "mean", context=self.rows.contexts)
        now = self._essence_log_probs(delta)
        kl = (now.exp() * (now - self.initial)).sum(-1)
        fit = torch.where(self.lower, (-nll).exp(), nll)
        return fit + self.settings.kl * kl + self.decay * delta.norm(dim=-1)

    def _tails(self, batch: Batch) -> Tails:
        """The rows from their last subject token on: what comes before never changes."""
        residual = run(self.model, batch, stop_at_layer=self.layer + 1)
        return make_tails(self.model, residual, self.layer + 1, batch.last_subject, batch.lengths)

    def _continue(self, tails: Tails, delta: Float[Tensor, "row d_model"]) -> Float[Tensor, "row tail d_model"]:
        """The final residual stream with `delta` added after the layer at each row's last subject token."""
        return resume_tails(self.model, tails, tails.add(delta))

    def _essence_log_probs(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, "request d_vocab"]:
        """Next-token log-probabilities at the subject's last token of the essence row."""
        tails = self.essence_tails
        rows = torch.arange(len(delta), device=delta.device)
        final = self._continue(tails, delta)[rows, tails.first]
        return logits_at(self.model, final[:, None])[:, 0].float().log_softmax(-1)

    @torch.no_grad()
    def _fresh_tails(self) -> Tails:
        """The rows under one fresh draw of noise each."""
        pairs = zip(self.owner.tolist(), self.rows.prompts, strict=True)
        fresh = [draw_noise(self.rows.requests[i], prompt, self.draws[i]) for i, prompt in pairs]
        noise = embed_noise(self.model, self.rows.prompts, self.batch.tokens.shape[1], fresh)
        return self._tails(replace(self.batch, noise=noise))
