"""v*: the change of the residual stream at the subject that brings the target about (Meng et al. 2022a, eq. 4).

ROME adds it to the MLP output of its layer, MEMIT to the residual stream after its last layer.  On pre-norm
blocks these are the same place, so one optimiser serves both.

What is computed at each step is what the change reaches: the layers above, from the subject's last token on (`Tails`),
the context rows and the essence rows of many requests in one batch, and logits where a target or the essence is read.
Of the last layer, these positions are computed, and keys and values of the others (`run_answers`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.rows import Prefix, draw_noise
from loc_edit.editing.settings import ValueSettings
from loc_edit.editing.tails import Tails, make_tails, resume_tails
from loc_edit.models.memory import Budget
from loc_edit.models.model import Model, logits_at
from loc_edit.models.passes import answers_alone, run_layers
from loc_edit.prompts.batches import NO_TARGET, embed_noise, run
from loc_edit.prompts.randomness import generator

CALL = 128
"""What calling a layer once costs, forward and backward, in positions computed in it: so many of padding are worth one
call less.  (Measured on the CPU with the built-in model; more on a GPU.)"""


class EditFailed(RuntimeError):
    """An edit whose numbers are not finite; the message names the fact."""


def optimize_values(
    model: Model,
    prefix: Prefix,
    reference: Float[Tensor, "request d_model"],
    settings: ValueSettings,
    *,
    method: str,
    last_updates_when_lowering: bool,
) -> Float[Tensor, "request d_model"]:
    """The delta of each request: what to add to the residual stream before `prefix.layer` at the subject's last token.

    Requests with tails of like length (from the subject's last token to the target) share a batch.  Nothing mixes
    them, as the sum of their losses has separate gradients and Adam works entry by entry.

    Args:
        model: parameters without gradients.
        prefix: from `run_prefix`, of the layer after the one that is changed.
        reference: v0 (ROME) or z0 (MEMIT): clamp and decay are relative to its norm.
        settings: steps, lr, kl, decay, clamp.
        method: seeds the fresh noise of noised requests.
        last_updates_when_lowering: whether the last forward pass also updates, for objective `lower`.

    Raises:
        EditFailed: a loss is not finite.
    """
    rows, delta, budget = prefix.rows, torch.zeros_like(reference), Budget(model, backward=True)
    lengths = (prefix.batch.lengths - prefix.batch.last_subject).view(len(rows.requests), -1).amax(1).tolist()
    for group in share(lengths, rows.contexts + 1, CALL):

        def work(some: slice, group: list[int] = group) -> None:
            few = group[some]
            delta[few] = _optimize(
                model, prefix.select(few), reference[few], settings, method, last_updates_when_lowering
            )

        budget.spend(len(group), (rows.contexts + 1) * lengths[group[-1]], work)
    if not torch.isfinite(delta).all():
        bad = [r.fact_id for r, d in zip(rows.requests, delta, strict=True) if not torch.isfinite(d).all()]
        raise EditFailed(f"fact {', '.join(map(str, bad))}: the value below layer {prefix.layer} is not finite")
    return delta


def share(lengths: Sequence[int], rows: int, call: int) -> list[list[int]]:
    """Requests in groups that are padded to one length, such that padding and calls together cost least.

    Args:
        lengths: of each request's rows, as far as they are computed.
        rows: of each request.
        call: what calling a layer once costs, in positions computed in it.

    Returns:
        Groups of indices; lengths ascend.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)

    @cache
    def best(n: int) -> tuple[float, int]:
        """Cost of the `n` shortest, and where their last group begins."""
        costs = ((best(i)[0] + call + rows * (n - i) * lengths[order[n - 1]], i) for i in range(n))
        return min(costs, default=(0.0, 0))

    groups, n = [], len(order)
    for end in range(n):  # from the bottom: no deep recursion
        best(end)
    while n:
        start = best(n)[1]
        groups.append(order[start:n])
        n = start
    return groups[::-1]


def _optimize(
    model: Model,
    prefix: Prefix,
    reference: Float[Tensor, "request d_model"],
    settings: ValueSettings,
    method: str,
    last_updates_when_lowering: bool,
) -> Float[Tensor, "request d_model"]:
    """Adam with a projection after each step, all requests at once; a request that has stopped stays as it is."""
    objective = _Objective(model, prefix, settings, reference, method)
    delta = torch.zeros_like(reference).requires_grad_()
    adam = torch.optim.Adam([delta], lr=settings.lr)
    limit = settings.clamp * reference.norm(dim=-1, keepdim=True)
    lower = torch.tensor([r.objective == "lower" for r in prefix.rows.requests], device=reference.device)[:, None]
    stopped = torch.zeros_like(lower)
    for step in range(settings.steps):
        last = step == settings.steps - 1
        if last and not (last_updates_when_lowering and lower.any()):
            break
        before = delta.detach().clone()
        loss = objective(delta)
        stopped |= loss.detach()[:, None] < settings.early_stop
        if stopped.all():
            break
        (delta.grad,) = torch.autograd.grad(loss.sum(), delta)  # and no weight's, whatever the model says
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
        model: Model,
        prefix: Prefix,
        settings: ValueSettings,
        reference: Float[Tensor, "request d_model"],
        method: str,
    ) -> None:
        self.model, self.prefix, self.settings = model, prefix, settings
        rows, batch, device = prefix.rows, prefix.batch, reference.device
        self.owner = rows.owner.to(device)
        self.lower = torch.tensor([r.objective == "lower" for r in rows.requests], device=device)
        self.decay = settings.decay / reference.norm(dim=-1) ** 2
        # What is unembedded: the positions that predict a target's tokens, and then the essence rows' last ones.
        real = batch.targets != NO_TARGET
        essence = torch.arange(rows.contexts, len(batch), rows.contexts + 1, device=device)
        self.row, self.column = torch.cat([real.nonzero(), torch.stack([essence, torch.zeros_like(essence)], 1)]).T
        self.alone, self.at, self.lengths = answers_alone(model), batch.answers_at, batch.lengths
        self.answers = batch.targets[real]
        share = 1 / (real.sum(1) * rows.contexts)
        self.weight = share[self.row[: len(self.answers)]]
        self.noisy = any(request.noise is not None for request in rows.requests)
        self.draws = [generator("fresh", r.seed, r.fact_id, method, prefix.layer - 1) for r in rows.requests]
        with torch.no_grad():
            fixed = (
                self._tails_under(rows.noise)
                if self.noisy
                else make_tails(model, prefix.residual, prefix.layer, batch.last_subject, batch.lengths)
            )
            self.tails = None if self.noisy else fixed
            _, self.initial = self._log_probs(fixed, torch.zeros_like(reference))

    def __call__(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, " request"]:
        answers, now = self._log_probs(self._fresh_tails() if self.tails is None else self.tails, delta)
        owner = self.owner[self.row[: len(answers)]]
        nll = torch.zeros_like(self.decay).index_add(0, owner, -answers * self.weight)
        # The gradient of KL is p (log p - log q) but for a term that the softmax takes away.  Without that term it is
        # exactly 0 where nothing has changed, as above the last layer, and Adam has no rounding to follow.
        slope = (now.exp() * (now - self.initial)).detach()
        kl = slope.sum(-1) + (slope * (now - now.detach())).sum(-1)
        fit = torch.where(self.lower, (-nll).exp(), nll)
        return fit + self.settings.kl * kl + self.decay * delta.norm(dim=-1)

    def _log_probs(
        self, tails: Tails, delta: Float[Tensor, "request d_model"]
    ) -> tuple[Float[Tensor, " answer"], Float[Tensor, "request d_vocab"]]:
        """Of each token of the targets, and of every next token after the subject in the essence rows."""
        residual = tails.add(delta[self.owner])
        final = resume_tails(self.model, tails, residual, self.at, self.lengths, alone=self.alone)
        logits = logits_at(self.model, final[self.row, self.column][None])[0]
        log_p = logits.float().log_softmax(-1)
        n = len(self.answers)
        return log_p[:n].gather(-1, self.answers[:, None])[:, 0], log_p[n:]

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
        """The rows under some noise each."""
        rows, batch = self.prefix.rows, self.prefix.batch
        fresh = replace(batch, noise=embed_noise(self.model, rows.prompts, batch.tokens.shape[1], noise))
        embedded = run(self.model, fresh, stop_at_layer=0)
        noised = self._noised
        at = noised.start[:, None] + torch.arange(noised.residual.shape[1], device=embedded.device)
        tails = embedded[torch.arange(len(at), device=at.device)[:, None], at.clamp(max=embedded.shape[1] - 1)]
        layer = self.prefix.layer
        stream = run_layers(self.model, tails, start=0, stop=layer, past=noised.past, mask=noised.mask)
        return make_tails(self.model, stream, layer, batch.last_subject, batch.lengths, noised)

    @cached_property
    def _noised(self) -> Tails:
        """The rows from their subject's first token on: noise changes nothing before."""
        batch = self.prefix.batch
        start = torch.tensor([prompt.subject.start for prompt in self.prefix.rows.prompts], device=batch.tokens.device)
        clean = run(self.model, replace(batch, noise=None), stop_at_layer=0)
        return make_tails(self.model, clean, 0, start, batch.lengths)
