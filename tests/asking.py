"""Questions about one fact, and its patched runs written out: what the tests of localizers share."""

import torch
from oracles import SITES, add_noise, sequence_log_prob

import loc_edit
from loc_edit.localization.question import Questions
from loc_edit.localization.targets import targeted_prompt

K = 3
"""Noise samples."""


def case(model, fact, scale=1.5):
    prompt = loc_edit.encode(model, fact)
    return prompt, loc_edit.subject_noise(model, prompt, scale=scale, samples=K)


def questions(
    model, fact, noise_scale=1.5, site="mlp_out", window=1, metric="log_probability", foil=None, reference=()
):
    prompt, noise = case(model, fact, noise_scale)
    targeted = targeted_prompt(model, prompt, fact.target_true, noise, metric, foil, reference)
    return Questions(model, [targeted], site, [window], metric)


def only(nested):
    """What there is for a single fact and window."""
    ((one,),) = nested
    return one


def question(model, fact, **about):
    return only(questions(model, fact, **about).each())


def value(q, logits):
    """The metric of whole rows of logits, by definition."""
    if q.metric == "logit_difference":
        last = len(q.prompt) - 1
        return logits[:, last, q.answer[0]] - logits[:, last, q.foil]
    return torch.stack([sequence_log_prob(one, len(q.prompt), q.answer) for one in logits])


def names(site, layers):
    return [f"blocks.{layer}.{SITES.get(site, site)}" for layer in layers]


def put(pos, new):
    def hook(activation, hook):
        activation = activation.clone()
        activation[:, pos] = new
        return activation

    return hook


def cells(q, begin=0):
    """Every center with the layers of its window, written out, and every position."""
    n = q.model.cfg.n_layers
    for center in range(n):
        low = center - q.window // 2
        for pos in range(begin, len(q.prompt)):
            yield center, [layer for layer in range(low, low + q.window) if 0 <= layer < n], pos


def cache_of(q, eps=None):
    with q.model.hooks(fwd_hooks=add_noise(eps, q.prompt.subject)):
        return q.model.run_with_cache(q.tokens[None])[1]
