"""A localizer by the logit lens: where a layer moves the residual stream toward the target.

loc-edit run --plugin examples/logit_lens.py --localizers causal_tracing lens

Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

import torch

import loc_edit


@loc_edit.localizer("lens", cost="1")
@torch.no_grad()
def lens(question):
    """How much each layer raises the probability of the target's first token, read off the stream at its position."""
    model, n = question.model, len(question.prompt)
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers))]
    _, cache = model.run_with_cache(question.prompt.tokens[None], names_filter=names)
    streams = torch.stack([cache[name][0, :n] for name in names])
    p = model.unembed(model.ln_final(streams)).softmax(-1)[..., question.answer[0]]
    return p[1:] - p[:-1]
