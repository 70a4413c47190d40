"""v*: the change of the residual stream at the subject that brings the target about (Meng et al. 2022a, eq. 4).

ROME adds it to the MLP output of its layer, MEMIT to the residual stream after its last layer.  These are the same
place, so one optimizer serves both.

Where a norm follows the MLP, the change is added before the norm, to the output u of `W_out` in that layer, as only
this can be edited.  The norm ignores the length of u, so everything is measured in units of rms(u0), the bare prompt's:
learning rate, decay and clamp then mean the same whatever the scale of `W_out`.

Each step computes only what the change reaches: the layers above, from the subject's last token on (`Tails`), the
context rows and the essence rows of many requests in one batch, and logits where a target or the essence is read.
In the last layer, only these positions get an output; the others give their keys and values (`run_answers`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit import events
from loc_edit.editing.editor import EditJob
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import Prefix, draw_noise
from loc_edit.editing.settings import ValueSettings
from loc_edit.editing.tails import Tails, make_tails
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook, logits_at
from loc_edit.models.norms import output_change, output_norm
from loc_edit.models.passes import answers_alone, run_answers, run_layers
from loc_edit.prompts.batches import NO_TARGET, embed_noise, run
from loc_edit.prompts.grouping import call_cost, group_by_length
from loc_edit.prompts.randomness import generator

CALL = 128
"""What calling a layer once costs, forward and backward, in positions computed in it: so much padding is worth one
call less.  (Measured on the CPU with the built-in model; more on a GPU.)"""


class EditFailed(RuntimeError):
    """An edit whose numbers are not finite; the message names the fact."""


def check_finite(requests: Sequence[EditRequest], numbers: Float[Tensor, "request *_"], name: str) -> None:
    """Refuse numbers of requests that are not finite: `name` says what they are."""
    finite = numbers.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        facts = ", ".join(str(request.fact_id) for request, good in zip(requests, finite, strict=True) if not good)
        raise EditFailed(f"fact {facts}: {name} is not finite")


def optimize_values(
    job: EditJob[ValueSettings],
    prefix: Prefix,
    reference: Float[Tensor, "request d_model"],
    *,
    last_updates_when_lowering: bool,
) -> Float[Tensor, "request d_model"]:
    """The delta of each request: what to add to the residual stream before `prefix.layer` at the subject's last token.

    Where a norm follows the MLP of the layer below, delta is what to add before that norm.

    Requests with tails of similar length (from the subject's last token to the target) share a batch.  Nothing mixes
    them, as the sum of their losses has separate gradients and Adam works entry by entry.

    Args:
        job: its settings give steps, lr, kl, decay and clamp; its method seeds the fresh noise of noised requests.
        prefix: from `run_prefix`, of the layer after the one that is changed; with its keys, where a norm follows.
        reference: v0 (ROME) or z0 (MEMIT), or u0 where a norm follows: clamp and decay are relative to its norm.
        last_updates_when_lowering: whether the last forward pass also updates, for objective `lower`.

    Raises:
        EditFailed: a loss is not finite.
    """
    rows, delta, budget = prefix.rows, torch.zeros_like(reference), Budget(job.model, backward=True)
    unit = torch.ones_like(reference[:, :1])
    if output_norm(job.model, prefix.layer - 1):
        unit = reference.square().mean(-1, keepdim=True).sqrt()
    lengths = (prefix.batch.lengths - prefix.batch.last_subject).view(len(rows.requests), -1).amax(1).tolist()
    for group in group_by_length(lengths, rows.contexts + 1, call_cost(job.model, CALL)):

        def work(part: slice, group: list[int] = group) -> None:
            chosen = group[part]
            objective = _Objective(job, prefix.select(chosen), reference[chosen] / unit[chosen], unit[chosen])
            delta[chosen] = unit[chosen] * _optimize(objective, last_updates_when_lowering)

        budget.spend(len(group), (rows.contexts + 1) * lengths[group[-1]], work)
    check_finite(rows.requests, delta, f"the value below layer {prefix.layer}")
    return delta


def _optimize(objective: "_Objective", last_updates_when_lowering: bool) -> Float[Tensor, "request d_model"]:
    """Adam with a projection after each step, all requests at once; a request that has stopped stays as it is."""
    settings, reference, lower = objective.settings, objective.reference, objective.lower[:, None]
    delta = torch.zeros_like(reference).requires_grad_()
    adam = torch.optim.Adam([delta], lr=settings.lr)
    limit = settings.clamp * reference.norm(dim=-1, keepdim=True)
    stopped = torch.zeros_like(lower)
    for step in range(settings.steps):
        events.step("steps of v*", step, settings.steps)
        last = step == settings.steps - 1
        if last and not (last_updates_when_lowering and lower.any()):
            break
        before = delta.detach().clone()
        loss = objective(delta)
        stopped |= loss.detach()[:, None] < settings.early_stop
        if stopped.all():
            break
        (delta.grad,) = torch.autograd.grad(loss.sum(), delta)  # no weight gets a gradient, even if it asks for one
        adam.step()
        with torch.no_grad():
            norm = delta.norm(dim=-1, keepdim=True)
            delta.mul_(torch.where(norm > limit, limit / norm, torch.ones_like(norm)))
            kept = (stopped | ~lower) if last else stopped
            delta.copy_(torch.where(kept, before, delta))
    return delta.detach()


class _Objective:
    """delta -> the loss of each request; what does not depend on delta is computed once.

    `reference` and delta are in units of `unit`.
    """

    def __init__(
        self,
        job: EditJob[ValueSettings],
        prefix: Prefix,
        reference: Float[Tensor, "request d_model"],
        unit: Float[Tensor, "request 1"],
    ) -> None:
        self.model, self.settings, self.prefix = job.model, job.settings, prefix
        self.reference, self.unit = reference, unit
        self.normed = output_norm(job.model, prefix.layer - 1) is not None
        self.key_name = f"blocks.{prefix.layer - 1}.mlp.hook_post"
        rows, batch, device = prefix.rows, prefix.batch, reference.device
        self.owner = rows.owner.to(device)
        self.lower = torch.tensor([request.objective == "lower" for request in rows.requests], device=device)
        self.decay = job.settings.decay / reference.norm(dim=-1) ** 2
        # Logits are read at the positions that predict a target's tokens, and after those at the essence rows' last.
        is_target = batch.targets != NO_TARGET
        essence = torch.arange(rows.contexts, len(batch), rows.contexts + 1, device=device)
        essence_at = torch.stack([essence, torch.zeros_like(essence)], 1)
        self.row, self.column = torch.cat([is_target.nonzero(), essence_at]).T
        self.alone, self.at, self.lengths = answers_alone(self.model), batch.answers_at, batch.lengths
        self.targets = batch.targets[is_target]
        self.target_row = self.row[: len(self.targets)]
        self.weight = (1 / (is_target.sum(1) * rows.contexts))[self.target_row]
        requests, layer = rows.requests, prefix.layer
        self.draws = [generator("fresh", r.seed, r.fact_id, job.method, layer - 1) for r in requests]
        noised = any(request.noise is not None for request in requests)
        with torch.no_grad():
            if noised:
                fixed = self._tails_under(rows.noise)
            else:
                fixed = make_tails(self.model, prefix.residual, layer, batch.last_subject, batch.lengths)
                if self.normed:
                    fixed = replace(fixed, key_below=prefix.activations[self.key_name].flatten(0, 1))
            self.tails = None if noised else fixed
            _, self.initial = self._log_probs(fixed, torch.zeros_like(reference))

    def __call__(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, " request"]:
        targets, now = self._log_probs(self._fresh_tails() if self.tails is None else self.tails, delta)
        owner = self.owner[self.target_row]
        nll = torch.zeros_like(self.decay).index_add(0, owner, -targets * self.weight)
        # The gradient of KL is p (log p - log q) but for a term that the softmax takes away.  Without that term it is
        # exactly 0 where nothing has changed, as above the last layer, and Adam has no rounding to follow.
        slope = (now.exp() * (now - self.initial)).detach()
        kl = slope.sum(-1) + (slope * (now - now.detach())).sum(-1)
        fit = torch.where(self.lower, (-nll).exp(), nll)
        return fit + self.settings.kl * kl + self.decay * delta.norm(dim=-1)

    def _log_probs(
        self, tails: Tails, delta: Float[Tensor, "request d_model"]
    ) -> tuple[Float[Tensor, " target"], Float[Tensor, "request d_vocab"]]:
        """For each token of the targets, and for every next token after the subject in the essence rows."""
        at, lengths = self.at - tails.start[:, None], self.lengths - tails.start
        added = (self.unit * delta)[self.owner]
        if tails.key_below is not None:
            added = output_change(self.model, tails.layer - 1, tails.key_below, added)
        residual = tails.add(added)
        final = run_answers(
            self.model, residual, at, lengths, start=tails.layer, alone=self.alone, past=tails.past, mask=tails.mask
        )
        log_p = logits_at(self.model, final[self.row, self.column][None])[0].float().log_softmax(-1)
        n = len(self.targets)
        return log_p[:n].gather(-1, self.targets[:, None])[:, 0], log_p[n:]

    @torch.no_grad()
    def _fresh_tails(self) -> Tails:
        """The rows under one fresh draw of noise each; the essence rows keep theirs."""
        rows = self.prefix.rows
        noise = list(rows.noise)
        for i, prompt in enumerate(rows.prompts):
            request, row = divmod(i, rows.contexts + 1)
            if row < rows.contexts:
                noise[i] = draw_noise(rows.requests[request], prompt, self.draws[request])
        return self._tails_under(noise)

    def _tails_under(self, noise: Sequence[Tensor | None]) -> Tails:
        """The rows, each under its own noise."""
        rows, batch, layer = self.prefix.rows, self.prefix.batch, self.prefix.layer
        fresh = replace(batch, noise=embed_noise(self.model, rows.prompts, batch.tokens.shape[1], noise))
        embedded = run(self.model, fresh, stop_at_layer=0)
        noised = self._noised
        at = noised.start[:, None] + torch.arange(noised.residual.shape[1], device=embedded.device)
        tails = embedded[torch.arange(len(at), device=at.device)[:, None], at.clamp(max=embedded.shape[1] - 1)]
        keys: list[Tensor] = []
        hooks: list[Hook] = [(self.key_name, lambda key, hook: keys.append(key))] if self.normed else []
        with self.model.hooks(fwd_hooks=hooks):
            stream = run_layers(self.model, tails, start=0, stop=layer, past=noised.past, mask=noised.mask)
        key_below = (
            keys[0][torch.arange(len(at), device=at.device), batch.last_subject - noised.start] if keys else None
        )
        made = make_tails(self.model, stream, layer, batch.last_subject, batch.lengths, noised)
        return replace(made, key_below=key_below)

    @cached_property
    def _noised(self) -> Tails:
        """The rows from their subject's first token on: noise changes nothing before it."""
        batch = self.prefix.batch
        start = torch.tensor([prompt.subject.start for prompt in self.prefix.rows.prompts], device=batch.tokens.device)
        clean = run(self.model, replace(batch, noise=None), stop_at_layer=0)
        return make_tails(self.model, clean, 0, start, batch.lengths)
