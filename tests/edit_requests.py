"""Requests to edit a fact, and what a model says of them by one plain forward pass: for the tests of editors."""

from dataclasses import replace

import oracles
import torch

import loc_edit


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def ask(model, fact, objective="raise", **changes):
    """A request for `target_new`, or to make it less likely."""
    prompt = loc_edit.encode(model, fact)
    tokens = loc_edit.target_tokens(model, prompt.text, fact.target_new)
    return replace(loc_edit.EditRequest(prompt, fact.target_new, tokens, objective), **changes)


def likely(model, fact):
    """A request to make the likeliest next token less likely."""
    request = ask(model, fact, "lower")
    return replace(request, target_tokens=model(request.prompt.tokens[None])[0, -1].argmax()[None])


def mixed(model, facts):
    """Requests of several lengths and both objectives, one with noise, one with a target of several tokens."""
    noise = loc_edit.subject_noise(model, loc_edit.encode(model, facts[1]), scale=0.5, samples=3)
    return [
        ask(model, facts[0]),
        likely(model, facts[2]),
        ask(model, facts[1], noise=noise, noise_scale=0.5),
        ask(model, facts[2]),
        ask(model, facts[3]),
    ]


def p(model, request):
    """The target's probability, by one forward pass of the whole model."""
    row = torch.cat([request.prompt.tokens, request.target_tokens[:-1]])[None]
    hooks = [] if request.noise is None else oracles.add_noise(request.noise[0], request.prompt.subject)
    logits = model.run_with_hooks(row, fwd_hooks=hooks)[0]
    return oracles.probability(logits, len(request.prompt.tokens), request.target_tokens).item()


def at_last_subject(model, request, name):
    return model.run_with_cache(request.prompt.tokens[None])[1][name][0, request.prompt.last_subject]
