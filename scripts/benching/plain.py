"""Plain code from the definitions: one forward pass per cell of a trace, one fact at a time, no work reused.

An edit's rows (its contexts and the essence row) share a padded batch, as in public code; all layers and positions are
computed at every step, and all logits.  Weights are written for the scores.
"""

import contextlib
import io
from types import SimpleNamespace

import torch
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.patching import get_act_patch_mlp_out

from benching.setup import Case
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import make_rows
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.localization.hooks import corruption_hooks, window_layers
from loc_edit.prompts.batches import Batch, make_batch
from loc_edit.prompts.encoding import Prompt


@torch.inference_mode()
def trace(model: HookedTransformer, case: Case, window: int) -> Tensor:
    """One full forward pass per (layer, position): row 0 is clean, the others are corrupted, and patched from it."""
    prompt, noise = case.prompt, case.noise
    tokens = prompt.tokens.repeat(len(noise) + 1, 1)
    grid = torch.zeros(model.cfg.n_layers, len(prompt))

    def corrupt(value, hook):
        value[1:, prompt.subject] += noise
        return value

    for layer in range(model.cfg.n_layers):
        for pos in range(len(prompt)):

            def restore(value, hook, pos=pos):
                value[1:, pos] = value[0, pos]
                return value

            names = [f"blocks.{k}.hook_mlp_out" for k in window_layers(layer, window, model.cfg.n_layers)]
            logits = model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", corrupt), *((n, restore) for n in names)])
            grid[layer, pos] = logits[1:, -1].float().softmax(-1)[:, case.target[0]].mean()
    return grid


@torch.inference_mode()
def act_patch(model: HookedTransformer, case: Case) -> Tensor:
    """TransformerLens's own patching, window 1, mean over the noise."""
    _, clean = model.run_with_cache(case.prompt.tokens[None])
    hooks = corruption_hooks(case.prompt, case.noise)
    with model.hooks(fwd_hooks=hooks), contextlib.redirect_stderr(io.StringIO()):
        return get_act_patch_mlp_out(
            model,
            case.prompt.tokens.repeat(len(case.noise), 1),
            clean,
            lambda logits: logits[:, -1].float().softmax(-1)[:, case.target[0]].mean(),
        )


def edit_and_score(bench: SimpleNamespace, method: str, layers: list[int]) -> list[tuple[Edit, float]]:
    """Each fact's edit and p(target) after it, one fact after the other; all its scores are measured."""
    model, found = bench.model, []
    for request, probes in zip(bench.requests, bench.probes, strict=True):
        settings = bench.settings[method]
        if method == "rome":
            edit = rome(model, request, layers[0], bench.stats, bench.contexts["rome"], settings)
        elif method == "memit":
            edit = memit(model, request, layers, bench.stats, bench.contexts["memit"], settings)
        else:
            edit = finetune(model, request, layers, settings)
        with edit.applied(model):
            found.append((edit, score(model, probes)))
    return found


@torch.inference_mode()
def score(model: HookedTransformer, probes) -> float:
    """One padded batch of the fact's prompts, one of its essence texts, all logits of both."""
    batch = make_batch(model, [r.prompt for r in probes.probes], [r.target for r in probes.probes])
    log_p = model(batch.tokens).log_softmax(-1)
    p = answers(log_p, batch).sum(1).exp()
    if probes.essence:
        texts = torch.stack(list(probes.essence))
        model(texts).log_softmax(-1)[:, :-1].gather(-1, texts[:, 1:, None]).mean(1).neg().exp()
    return p[0].item()


def answers(log_p: Tensor, batch: Batch) -> Tensor:
    """log p of each target's tokens, 0 where padded."""
    rows = torch.arange(len(batch), device=log_p.device)[:, None]
    picked = log_p[rows, batch.answers_at].gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
    return picked * (batch.targets >= 0)


def read(model: HookedTransformer, prompts: list[Prompt], names: list[str]) -> list[Tensor]:
    """Activations at the last subject token of each prompt, by a full forward pass."""
    batch = make_batch(model, prompts)
    with torch.inference_mode():
        _, cache = model.run_with_cache(batch.tokens, names_filter=names)
    return [cache[name][torch.arange(len(batch)), batch.last_subject].clone() for name in names]


def value(model, request: EditRequest, contexts, name: str, reference: Tensor, settings) -> Tensor:
    """v* - v0 by full forward passes."""
    rows = make_rows(model, [request], contexts, "plain")
    batch = make_batch(model, rows.prompts, rows.targets)
    at, last = torch.arange(len(batch), device=reference.device), batch.last_subject
    delta = torch.zeros_like(reference, requires_grad=True)
    adam, initial = torch.optim.Adam([delta], lr=settings.lr), None

    def add(value, hook):
        value = value.clone()
        value[at, last] = value[at, last] + delta
        return value

    for _ in range(settings.steps - 1):
        log_p = model.run_with_hooks(batch.tokens, fwd_hooks=[(name, add)]).log_softmax(-1)
        nll = -answers(log_p, batch)[:-1].sum(1).mean() / len(request.target_tokens)
        now = log_p[-1, last[-1]]
        initial = now.detach() if initial is None else initial
        kl = (now.exp() * (now - initial)).sum()
        loss = nll + settings.kl * kl + settings.decay * delta.norm() / reference.norm() ** 2
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta.mul_(min(1.0, (settings.clamp * reference.norm() / delta.norm()).item()))
    return delta.detach()


def rome(model, request: EditRequest, layer: int, stats, contexts, settings) -> Edit:
    prompts = list(make_rows(model, [request], contexts, "plain").prompts[:-1])
    out = f"blocks.{layer}.hook_mlp_out"
    keys, values = read(model, prompts, [f"blocks.{layer}.mlp.hook_post", out])
    left = stats.solve(layer, keys.mean(0))
    delta = value(model, request, contexts, out, values[0], settings)
    return Edit((WeightUpdate(layer, left[:, None], (delta / (keys[0] @ left))[None]),))


def memit(model, request: EditRequest, layers: list[int], stats, contexts, settings) -> Edit:
    prompts = list(make_rows(model, [request], contexts, "plain").prompts[:-1])
    name, edit = f"blocks.{layers[-1]}.hook_resid_post", Edit(())
    z = read(model, prompts[:1], [name])[0][0]
    z = z + value(model, request, contexts, name, z, settings)
    for i, layer in enumerate(layers):
        with edit.applied(model):
            keys, residual = read(model, prompts, [f"blocks.{layer}.mlp.hook_post", name])
        key = keys[0] / 2 + keys[1:].mean(0) / 2
        left = stats.solve(layer, key)
        right = (z - residual[0]) / (len(layers) - i) / (settings.moment_weight + key @ left)
        edit = Edit((*edit.updates, WeightUpdate(layer, left[:, None], right[None])))
    return edit


def finetune(model, request: EditRequest, layers: list[int], settings) -> Edit:
    batch = make_batch(model, [request.prompt], [request.target_tokens])
    mlps = [model.blocks[layer].mlp for layer in layers]
    weights = [p for mlp in mlps for p in (mlp.W_out, mlp.b_out)]
    start = [p.detach().clone() for p in weights]
    for p in weights:
        p.requires_grad_()
    adam, small = torch.optim.Adam(weights, lr=settings.lr), 0
    for _ in range(settings.steps):
        if small == 5:
            break
        loss = -answers(model(batch.tokens).log_softmax(-1), batch).sum()
        if loss.item() < 1e-2:
            small += 1
            continue
        small = 0
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for p, p0 in zip(weights, start, strict=True):
                p.copy_(torch.clamp(p, p0 - settings.eps, p0 + settings.eps))
    with torch.no_grad():
        changes = [p - p0 for p, p0 in zip(weights, start, strict=True)]
        for p, p0 in zip(weights, start, strict=True):
            p.copy_(p0).requires_grad_(False)
            p.grad = None
    updates = (WeightUpdate(layer, full=changes[2 * i], bias=changes[2 * i + 1]) for i, layer in enumerate(layers))
    return Edit(tuple(updates))
