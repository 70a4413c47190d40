"""A localizer of neurons: the knowledge attribution of every MLP neuron, of which the strongest count.

loc-edit run --plugin examples/neuron_localizer.py --localizers causal_tracing neurons

Source: Dai et al. 2022, "Knowledge Neurons in Pretrained Transformers", equation 2, with `hook_post` as the neurons.
"""

import torch

import loc_edit


@loc_edit.localizer("neurons", cost="layers x steps, forward and backward")
def neurons(question, *, steps=10, strongest=20):
    """At each layer and position, the summed attribution of the neurons that raise the target's probability most."""
    attribution = by_neuron(question, steps)
    return attribution.clamp(min=0).topk(min(strongest, attribution.shape[-1])).values.sum(-1)


def by_neuron(question, steps):
    """The probability that each neuron adds on the way from silence to its value: [layer, pos, neuron].

    A layer's neurons go together from 0 to their values; the gradient is taken at the midpoint of each of the steps.
    """
    model, n, layers = question.model, len(question.prompt), []
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, clean = model.run_with_cache(question.tokens[None], names_filter=names)
    shares = (torch.arange(steps, device=question.tokens.device) + 0.5) / steps
    for name in names:
        scaled = (clean[name] * shares[:, None, None]).requires_grad_()

        def replace(value, hook, scaled=scaled):
            return scaled

        with torch.enable_grad(), model.hooks(fwd_hooks=[(name, replace)]):
            log_p = model(question.tokens.repeat(steps, 1))[:, n - 1 :].log_softmax(-1)
            p = log_p[:, range(len(question.answer)), question.answer].sum(-1).exp()
            (gradient,) = torch.autograd.grad(p.sum(), scaled)
        layers.append((clean[name][0] * gradient.mean(0))[:n])
    return torch.stack(layers)
