"""A localizer by linear probes: where a linear map reads the object off the residual stream.

loc-edit run --plugin examples/linear_probe.py --localizers causal_tracing probe

The probe of a layer is a ridge regression from the stream at the subject's last token to the object of the fact.  It
is trained on the facts of the data set, a fifth of them held out in turn, so that it has not seen the fact that it is
asked about.  Source: Alain and Bengio 2017; for facts, Hernandez et al. 2024.
"""

import torch

import loc_edit

FOLDS, RIDGE = 5, 1.0
TRAINED = {}
"""What was trained on, and the probes; for the last model and data set."""


@loc_edit.localizer("probe", cost="1, and one run of each fact of the data set for all")
@torch.no_grad()
def probe(question, *, facts=()):
    """The share of the probe's scores that goes to the true object, at each layer and position."""
    if not facts:
        raise ValueError("the probe is trained on facts: give the data set as facts=")
    key = (loc_edit.fingerprint(question.model), tuple(fact.content for fact in facts))
    if TRAINED.get("key") != key:
        TRAINED.update(key=key, probes=train(question.model, facts))
    objects, folds = TRAINED["probes"]
    if question.target not in objects:
        raise ValueError(f"no probe knows {question.target!r}")
    scores = streams(question.model, question.prompt) @ folds[question.prompt.fact_id % FOLDS]
    return scores.softmax(-1)[..., objects.index(question.target)]


def train(model, facts):
    """The objects, and for each fold the maps from a layer's stream to objects: [layer, d_model, object]."""
    objects = sorted({fact.target_true for fact in facts})
    prompts = [loc_edit.encode(model, fact) for fact in facts]
    states = torch.stack([streams(model, prompt)[:, prompt.last_subject] for prompt in prompts], dim=1)
    target = torch.stack([torch.eye(len(objects))[objects.index(fact.target_true)] for fact in facts]).to(states)
    fold = torch.tensor([fact.fact_id % FOLDS for fact in facts])
    maps = []
    for held_out in range(FOLDS):
        x, y = states[:, fold != held_out], target[fold != held_out]
        gram = x.mT @ x + RIDGE * x.square().mean() * x.shape[1] * torch.eye(x.shape[-1]).to(x)
        maps.append(10 * torch.linalg.solve(gram, x.mT @ y))  # 10: how sharply the softmax chooses
    return objects, maps


def streams(model, prompt):
    """The residual stream after each layer, at unit length: [layer, pos, d_model]."""
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(prompt.tokens[None], names_filter=names)
    return torch.nn.functional.normalize(torch.stack([cache[name][0] for name in names]).float(), dim=-1)
