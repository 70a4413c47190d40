"""Slow, obvious versions of tracing and of the three editors, written from the definitions.

One forward pass per cell, row and sample; whole sequences, no batching, no resuming; weights really written.
They share nothing with the package but the model and the data given to them: token ids, spans, noise.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from scipy.optimize import brentq

from loc_edit.models.adapter import lens

SITES = {"mlp_out": "hook_mlp_out", "attn_out": "hook_attn_out", "resid_post": "hook_resid_post"}


def sequence_log_prob(logits, n_prompt, answer):
    """Sum of log p of `answer`, whose tokens follow a prompt of `n_prompt` tokens in one row's `logits`."""
    return sum(logits[n_prompt - 1 + j].log_softmax(-1)[token] for j, token in enumerate(answer.tolist()))


def add_noise(noise, subject):
    def hook(value, hook):
        value = value.clone()
        value[:, subject] = value[:, subject] + noise
        return value

    return [] if noise is None else [("hook_embed", hook)]


def trace(model, tokens, subject, answer, noise, site="mlp_out", window=5, metric=sequence_log_prob):
    """(clean, corrupted, restored[layer, pos]): means over samples of `metric`'s exp, one cell at a time.

    `metric(logits, n_prompt, answer)`; probabilities are its exp, other metrics are wrapped by the caller.
    """
    n_layers, n_pos = model.cfg.n_layers, len(tokens)
    row = torch.cat([tokens, answer[:-1]])[None]
    name = SITES.get(site, site)
    clean_logits, cache = model.run_with_cache(row)
    clean = metric(clean_logits[0], n_pos, answer)

    def run(eps, restored):
        def overwrite(pos):
            def hook(value, hook):
                value = value.clone()
                value[0, pos] = cache[hook.name][0, pos]
                return value

            return hook

        hooks = add_noise(eps, subject) + [(f"blocks.{k}.{name}", overwrite(t)) for k, t in restored]
        return metric(model.run_with_hooks(row, fwd_hooks=hooks)[0], n_pos, answer)

    def mean(restored):
        return torch.stack([run(eps, restored) for eps in noise]).double().mean().item()

    grid = torch.zeros(n_layers, n_pos, dtype=torch.float64)
    for layer in range(n_layers):
        low, high = max(0, layer - window // 2), min(n_layers, layer - window // 2 + window)
        for pos in range(n_pos):
            grid[layer, pos] = mean([(k, pos) for k in range(low, high)])
    return clean.item(), mean([]), grid


def probability(logits, n_prompt, answer):
    return sequence_log_prob(logits, n_prompt, answer).exp()


@dataclass
class Row:
    """One row of an edit: its ids, where its prompt ends, its subject's span, its noise for keys and values."""

    tokens: torch.Tensor
    n_prompt: int
    subject: slice
    noise: torch.Tensor | None = None

    @property
    def last_subject(self):
        return self.subject.stop - 1


def make_row(model, before, template, subject, target=None):
    """Tokenise `before` + template with its subject (+ target), and find the subject by character offsets."""
    begin, end = template.split("{}")
    text = before + begin + subject + end
    encoding = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    first = len(before + begin)
    last = first + len(subject)
    covering = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if b > first and a < last]
    bos = [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []
    ids = bos + encoding["input_ids"]
    subject_at = slice(covering[0] + len(bos), covering[-1] + 1 + len(bos))
    tail = [] if target is None else target[:-1].tolist()
    return Row(torch.tensor(ids + tail), len(ids), subject_at)


def rows_of(model, request, contexts):
    """The context + prompt + target rows, bare one first, and the essence row."""
    template, subject = request.prompt.template, request.prompt.subject_text
    befores = [context[: context.rindex("{}")] for context in contexts]
    rows = [make_row(model, before, template, subject, request.target_tokens) for before in befores]
    return rows, make_row(model, "", "{} is a", subject)


@contextmanager
def adding(model, where, pos, delta):
    """The model with `delta` added, at one position, at a hook point or to what an MLP puts out before any norm."""

    def add(value, hook=None):
        value = value.clone()
        value[0, pos] = value[0, pos] + delta
        return value

    if not where.endswith(".mlp"):
        with model.hooks(fwd_hooks=[(where, add)]):
            yield
        return
    handle = model.get_submodule(where).register_forward_hook(lambda module, given, value: add(value))
    try:
        yield
    finally:
        handle.remove()


def norm_after_mlp(model, layer):
    """The module between `W_out` and `hook_mlp_out`, if there is one."""
    block = model.blocks[layer]
    if hasattr(block, "ln2_post"):
        return block.ln2_post
    return block.ln2 if model.cfg.original_architecture == "Olmo2ForCausalLM" else None


def mlp_output(model, row, layer):
    """What `W_out` puts out at the row's last subject token, before any norm."""
    return through_W_out(model, layer, read_at(model, row, f"blocks.{layer}.mlp.hook_post"))


def through_W_out(model, layer, keys, delta=0):
    """`keys @ (W_out + delta) + b_out`; with TransformerLens 4 there may be no bias."""
    mlp = model.blocks[layer].mlp
    return keys @ (mlp.W_out + delta) + (0 if mlp.b_out is None else mlp.b_out)


def leaf(parameter):
    """The tensor that holds a parameter's values: with TransformerLens 4, `W_out` may be a transposed view of it."""
    return parameter if parameter._base is None else parameter._base


def read_at(model, row, name):
    """The activation `name` at the row's last subject token, without its target."""
    _, cache = (
        model.run_with_cache(row.tokens[None, : row.n_prompt], names_filter=[name])
        if row.noise is None
        else (
            None,
            _noised_cache(model, row, name),
        )
    )
    return cache[name][0, row.last_subject]


def _noised_cache(model, row, name):
    with model.hooks(fwd_hooks=add_noise(row.noise, row.subject)):
        return model.run_with_cache(row.tokens[None, : row.n_prompt], names_filter=[name])[1]


def value_delta(model, rows, essence, request, where, reference, settings, *, last_updates, fresh=None):
    """The optimised delta at the module `where`; `fresh(step)` gives each row's noise of that step.

    Before a norm, all is measured in units of the reference's root mean square.
    """
    unit = 1.0
    if where.endswith(".mlp"):
        unit = reference.square().mean().sqrt()
    reference = reference / unit

    def run(row, noise, delta):
        with adding(model, where, row.last_subject, unit * delta):
            return model.run_with_hooks(row.tokens[None], fwd_hooks=add_noise(noise, row.subject))[0]

    def essence_log_probs(delta):
        return run(essence, essence.noise, delta)[essence.last_subject].log_softmax(-1)

    with torch.no_grad():
        initial = essence_log_probs(torch.zeros_like(reference))
    delta = torch.zeros_like(reference, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.lr)
    for step in range(settings.steps):
        if step == settings.steps - 1 and not last_updates:
            break
        noises = fresh(step) if fresh else [None] * len(rows)
        nll = 0.0
        for row, noise in zip(rows, noises, strict=True):
            log_p = sequence_log_prob(run(row, noise, delta), row.n_prompt, request.target_tokens)
            nll = nll - log_p / len(request.target_tokens) / len(rows)
        now = essence_log_probs(delta)
        kl = (now.exp() * (now - initial)).sum()
        fit = nll if request.objective == "raise" else (-nll).exp()
        loss = fit + settings.kl * kl + settings.decay * delta.norm() / reference.norm() ** 2
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            if delta.norm() > settings.clamp * reference.norm():
                delta.mul_(settings.clamp * reference.norm() / delta.norm())
    return unit * delta.detach()


def value_start(model, row, layer):
    """Where ROME's value is changed, and what stands there: the MLP's output, before a norm if there is one."""
    if norm_after_mlp(model, layer):
        return f"blocks.{layer}.mlp", mlp_output(model, row, layer)
    return f"blocks.{layer}.hook_mlp_out", read_at(model, row, f"blocks.{layer}.hook_mlp_out")


def nearest_change(model, row, layer, share):
    """What `W_out` must put out more so that its norm's output changes by `share`, or comes closest to it.

    The norm takes a vector of any length to one of root mean square 1 (but for eps), and multiplies it by its weight.
    """
    norm, output = lens.output_norm(model, layer), mlp_output(model, row, layer).double()
    if norm is None:
        return share
    weight, eps = norm
    weight, scale = weight.double(), (output.square().mean() + eps).sqrt()
    goal = weight * output / scale + share

    def best(mu):
        return weight * goal / (weight**2 + mu)

    low, high = -weight.square().min().item(), 1e6
    low += 1e-12 * abs(low)
    mu = brentq(lambda mu: (best(mu).square().mean() - (output / scale).square().mean()).item(), low, high, xtol=1e-15)
    return (best(mu) * scale - output).float()


def rome(model, request, layer, moment, contexts, settings, fixed=None, fresh=None):
    """The change of `W_out`; `fixed` is the noise of every row and of the essence row, `fresh` see above."""
    rows, essence = rows_of(model, request, contexts)
    if fixed is not None:
        *per_row, essence.noise = fixed
        for row, noise in zip(rows, per_row, strict=True):
            row.noise = noise
    key_name = f"blocks.{layer}.mlp.hook_post"
    keys = [read_at(model, row, key_name) for row in rows]
    k_star, k_bar = keys[0], torch.stack(keys).mean(0)
    u = torch.linalg.solve(moment.double(), k_bar.double()).float()
    where, v0 = value_start(model, rows[0], layer)
    delta = value_delta(
        model,
        rows,
        essence,
        request,
        where,
        v0,
        settings,
        last_updates=request.objective == "lower",
        fresh=fresh,
    )
    v_star = v0 + delta
    return torch.outer(u, v_star - through_W_out(model, layer, k_star)) / (k_star @ u)


def memit(model, request, layers, moments, contexts, settings, fixed=None, fresh=None):
    """The change of each layer's `W_out`: dense solves, weights really written, and put back at the end."""
    rows, essence = rows_of(model, request, contexts)
    if fixed is not None:
        *per_row, essence.noise = fixed
        for row, noise in zip(rows, per_row, strict=True):
            row.noise = noise
    where = stream = f"blocks.{layers[-1]}.hook_resid_post"
    reference = read_at(model, rows[0], stream)
    if norm_after_mlp(model, layers[-1]):
        where, reference = f"blocks.{layers[-1]}.mlp", mlp_output(model, rows[0], layers[-1])
    delta = value_delta(model, rows, essence, request, where, reference, settings, last_updates=False, fresh=fresh)
    with adding(model, where, rows[0].last_subject, delta):
        z = read_at(model, rows[0], stream)
    saved = {layer: model.blocks[layer].mlp.W_out.detach().clone() for layer in layers}
    deltas = {}
    try:
        for i, layer in enumerate(layers):
            keys = [read_at(model, row, f"blocks.{layer}.mlp.hook_post") for row in rows]
            k = keys[0] if len(keys) == 1 else keys[0] / 2 + torch.stack(keys[1:]).mean(0) / 2
            share = (z - read_at(model, rows[0], stream)) / (len(layers) - i)
            r = nearest_change(model, rows[0], layer, share)
            k64 = k.double()
            dense = settings.moment_weight * moments[layer].double() + torch.outer(k64, k64)
            deltas[layer] = torch.outer(torch.linalg.solve(dense, k64), r.double()).float()
            with torch.no_grad():
                model.blocks[layer].mlp.W_out.add_(deltas[layer])
    finally:
        with torch.no_grad():
            for layer, weight in saved.items():
                model.blocks[layer].mlp.W_out.copy_(weight)
    return deltas


def finetune(model, request, layers, settings, noised_copies=None):
    """{layer: (change of W_out, change of b_out)}: Adam on the real parameters, a real clamp, then put back.

    `noised_copies(step)` gives the subject noises of a step's copies of the bare prompt.
    """
    prompt = request.prompt
    row = torch.cat([prompt.tokens, request.target_tokens[:-1]])[None]
    names = ["W_out", "b_out"] if settings.bias and not model.cfg.gated_mlp else ["W_out"]
    given = [getattr(model.blocks[layer].mlp, name) for layer in layers for name in names]
    parameters = [leaf(p) for p in given]
    start = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    adam = torch.optim.Adam(parameters, lr=settings.lr)
    small = 0
    try:
        for step in range(settings.steps):
            loss = 0.0
            for noise in noised_copies(step) if noised_copies else [None]:
                logits = model.run_with_hooks(row, fwd_hooks=add_noise(noise, prompt.subject))[0]
                log_p = sequence_log_prob(logits, len(prompt.tokens), request.target_tokens)
                loss = loss + (-log_p if request.objective == "raise" else log_p.exp())
            if loss.item() >= 1e-2:
                small = 0
                adam.zero_grad()
                held = sum((p - p0).square().sum() for p, p0 in zip(parameters, start, strict=True))
                (loss + settings.weight_decay * held).backward()
                adam.step()
                with torch.no_grad():
                    for p, p0 in zip(parameters, start, strict=True):
                        p.copy_(torch.clamp(p, p0 - settings.eps, p0 + settings.eps))
            else:
                small += 1
                if small == 5 and request.objective == "raise":
                    break
        changes = [(p - p0).detach() for p, p0 in zip(parameters, start, strict=True)]
        changes = [c if p is own else c.T for c, p, own in zip(changes, given, parameters, strict=True)]
    finally:
        for p, p0 in zip(parameters, start, strict=True):
            p.grad = None
            p.requires_grad_(False)
            with torch.no_grad():
                p.copy_(p0)
    width = len(names)
    return {layer: tuple(changes[i * width : (i + 1) * width]) for i, layer in enumerate(layers)}


def gradient_effects(model, tokens, subject, answer, noise, site, shares):
    """(clean - corrupted output) . gradient of the log-probability, [layer, pos]: one whole row at a time.

    The gradients are those at rows with these shares of the noise; their mean over shares and samples is taken.
    """
    row, n_pos, n_layers = torch.cat([tokens, answer[:-1]])[None], len(tokens), model.cfg.n_layers
    names = [f"blocks.{layer}.{SITES.get(site, site)}" for layer in range(n_layers)]

    def outputs_of(noise):
        outputs = []

        def keep(value, hook):
            outputs.append(value if value.requires_grad else value.detach().requires_grad_())
            return outputs[-1]

        with torch.enable_grad():
            logits = model.run_with_hooks(
                row, fwd_hooks=[*add_noise(noise, subject), *((name, keep) for name in names)]
            )
        return outputs, sequence_log_prob(logits[0], n_pos, answer)

    clean, _ = outputs_of(None)
    grid = torch.zeros(n_layers, n_pos, dtype=torch.float64)
    for sample in noise:
        corrupted, _ = outputs_of(sample)
        for share in shares:
            outputs, log_p = outputs_of(share * sample)
            slopes = torch.autograd.grad(log_p, outputs)
            for layer, (own, noisy, slope) in enumerate(zip(clean, corrupted, slopes, strict=True)):
                grid[layer] += ((own - noisy) * slope)[0, :n_pos].detach().double().flatten(1).sum(1)
    return grid / len(noise) / len(shares)
