"""The rules of relevance propagation, under which an ordinary backward pass gives coefficients in place of gradients.

Layer-wise relevance propagation (LRP) writes each operation of the forward pass as a linear map whose coefficients may
depend on the input, and holds these coefficients constant.  So it needs the ordinary forward pass, whose values do not
change, and a backward pass in which the coefficients are detached.

| operation | rule | coefficients that are held constant |
|---|---|---|
| LayerNorm, RMSNorm | LN-rule | the scale |
| activation function | identity rule | f(z) / z |
| gated MLP, gate x up | half rule | each factor for the other, both halved |
| attention | AH-rule | the pattern |
| linear maps, residual stream | 0-rule | the weights |

Source: Rezaei Jafari et al. 2025 (RelP, arXiv 2508.21258), table of rules; Ali et al. 2022 for norms and attention.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.models.adapter import lens
from loc_edit.models.checks import BadModel
from loc_edit.models.model import Hook, Model, hook_points, replaced

HELD = (".hook_scale", ".attn.hook_q", ".attn.hook_k", ".attn.hook_rot_q", ".attn.hook_rot_k")
"""The ends of the names of hook points that are held constant: scales of norms, and what the pattern is made from."""


@contextmanager
def relevance_rules(model: Model) -> Iterator[list[Hook]]:
    """Inside the block, activation functions follow the identity rule; yields hooks that apply the other rules.

    The hooks must come after all others, so that activations read at the same hook points have their own coefficients.

    Args:
        model: any whose MLPs are plain or gated.

    Raises:
        BadModel: an MLP is of another kind, such as a mixture of experts, for which there are no rules here.
    """
    hooks: list[Hook] = [(name, _constant) for name in hook_points(model) if name.endswith(HELD)]
    with ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            mlp: Any = getattr(block, "mlp", None)
            if mlp is None:
                continue
            found = lens.activation(mlp)
            if found is None:
                kind = type(mlp).__name__
                raise BadModel(
                    f"model {model.cfg.model_name}, layer {layer}: no relevance rule for an MLP of kind {kind}"
                )
            owner, name, gated = found
            follows_rule = partial(_identity_rule, getattr(owner, name), 0.5 if gated else 1.0)
            stack.enter_context(replaced(owner, name, follows_rule))
            if gated:
                hooks.append((f"blocks.{layer}.mlp.hook_pre_linear", _half))
        yield hooks


def _identity_rule(act_fn: Callable[[Tensor], Tensor], share: float, z: Float[Tensor, "*rows d_mlp"]) -> Tensor:
    """The activation function with `share` times f(z) / z in place of its derivative; 0 where z is 0.

    The half rule halves the share, as the product that follows has the other factor as its gradient.
    """
    with torch.no_grad():
        value = act_fn(z)
        coefficient = share * torch.where(z == 0, 0, value / z)
    return value + coefficient * (z - z.detach())


def _constant(value: Tensor, hook: Any) -> Tensor:
    return value.detach()


def _half(value: Tensor, hook: Any) -> Tensor:
    return 0.5 * value + 0.5 * value.detach()
