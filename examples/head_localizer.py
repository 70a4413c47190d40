"""A localizer of attention heads: attribution patching of each head's output, reduced to the layer's strongest head.

loc-edit run --plugin examples/head_localizer.py --localizers causal_tracing heads

Source: attribution patching (Nanda 2023; Syed et al. 2023) of `hook_z`.
"""

from functools import partial

import torch
from einops import einsum

import loc_edit


@loc_edit.localizer("heads", cost="1 forward, K forward, K backward")
def heads(question):
    """At each layer and position, the first-order effect of restoring the head that matters most there."""
    return by_head(question).amax(-1)


def by_head(question):
    """The first-order effect of restoring each head's output, averaged over noise samples: [layer, pos, head]."""
    model, n = question.model, len(question.prompt)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, clean = model.run_with_cache(question.tokens[None], names_filter=names)
    outputs = {}

    def start(residual, hook):
        return residual.detach().requires_grad_()  # no weight requires a gradient, so the stream has to

    def keep(z, hook, name):  # in TransformerLens 4, z is a view that only counts when it is returned
        outputs[name] = z
        return z

    hooks = loc_edit.corruption_hooks(question.prompt, question.noise)
    hooks += [("blocks.0.hook_resid_pre", start), *((name, partial(keep, name=name)) for name in names)]
    rows = question.tokens.repeat(len(question.noise), 1)
    with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
        log_p = model(rows)[:, n - 1 :].log_softmax(-1)  # one position for each token of the target
        p = einsum(log_p[:, range(len(question.answer)), question.answer], "sample token -> sample").exp()
        gradients = torch.autograd.grad(p.sum(), [outputs[name] for name in names])
    effects = [
        einsum(
            clean[name] - outputs[name].detach(), gradient, "sample pos head d, sample pos head d -> sample pos head"
        )
        for name, gradient in zip(names, gradients, strict=True)
    ]
    return torch.stack([effect.mean(0)[:n] for effect in effects])
