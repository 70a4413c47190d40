"""What `W_out` puts out and how it reaches the residual stream: in some models, through a norm.

In most models `hook_mlp_out` is `key @ W_out + b_out`.  In Gemma 2 and 3 and OLMo 2 and 3, an RMSNorm stands between
the two.  An edit changes `W_out`, so whoever edits computes its effect with `output_change`, which is exact in both.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.models.adapter import lens
from loc_edit.models.model import Model, W_out, b_out

BISECTIONS = 64
"""Halvings of a bracket's logarithm: enough for any bracket in float64."""


def output_norm(model: Model, layer: int) -> tuple[Float[Tensor, " d_model"], float] | None:
    """The weight and epsilon of the norm between `W_out` and `hook_mlp_out`, or `None` if there is none.

    Raises:
        TypeError: the norm is no RMSNorm.
    """
    return lens.output_norm(model, layer)


def raw_output(model: Model, layer: int, key: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
    """What `W_out` and `b_out` put out for a key, before any norm, in float32 at least."""
    key = key.to(torch.promote_types(key.dtype, torch.float32))
    return key @ W_out(model, layer).to(key) + b_out(model, layer).to(key)


def output_change(
    model: Model, layer: int, key: Float[Tensor, "*rows d_mlp"], added: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows d_model"]:
    """What `hook_mlp_out` changes by if `W_out` puts out `added` more for a key: `added` itself, if there is no norm.

    The norm's formula is written out here, because its module's hook points would fire a second time.
    """
    norm = output_norm(model, layer)
    if norm is None:
        return added
    output = raw_output(model, layer, key)
    return _normalize(norm, output + added) - _normalize(norm, output)


def added_for(
    model: Model, layer: int, key: Float[Tensor, "*rows d_mlp"], change: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows d_model"]:
    """What `W_out` must put out more for a key so that `hook_mlp_out` changes by `change`, or comes closest to it.

    Without a norm that is `change` itself.  A norm reaches an ellipsoid only, so the nearest point on it is taken.  The
    norm ignores lengths, so what `W_out` puts out keeps its length.
    """
    norm = output_norm(model, layer)
    if norm is None:
        return change
    output = raw_output(model, layer, key).double()
    weight, eps = norm[0].double(), norm[1]
    scale = (output.square().mean(-1, keepdim=True) + eps).sqrt()
    normalized = nearest_normalized(weight, weight * output / scale + change, (output / scale).square().mean(-1))
    return (normalized * scale - output).to(change)


def nearest_normalized(
    weight: Float[Tensor, " d_model"], value: Float[Tensor, "*rows d_model"], mean_square: Float[Tensor, "*rows"]
) -> Float[Tensor, "*rows d_model"]:
    """The x with the given mean square for which `weight * x` is nearest to `value`, in float64.

    It is x = weight value / (weight^2 + mu).  The mean square falls as mu grows from -min(weight^2) on, so bisection
    finds mu.  If the smallest weight, or `value` there, is 0, x may stay too short for every mu; then that entry of x,
    which moves `weight * x` least, takes the missing length.
    """
    product, squares = weight * value, weight.square()
    least, where = squares.min(0)
    size = mean_square.sqrt()[..., None]
    high = product.square().mean(-1, keepdim=True).sqrt() / size + least
    low = product[..., where][..., None].abs() / size / len(weight) ** 0.5
    low = low.maximum(high * torch.finfo(torch.float64).eps ** 2)
    for _ in range(BISECTIONS):
        middle = (low * high).sqrt()
        x = product / (squares - least + middle)
        too_long = x.square().mean(-1, keepdim=True) > mean_square[..., None]
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    x = product / (squares - least + high)
    missing = (mean_square - x.square().mean(-1)).clamp(min=0) * len(weight)
    rest = x[..., where]
    x[..., where] = (rest.square() + missing).sqrt().copysign(rest)
    return x


def _normalize(norm: tuple[Tensor, float], output: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    """RMSNorm, as TransformerLens computes it, but in float32 at least."""
    weight, eps = norm
    return output / (output.square().mean(-1, keepdim=True) + eps).sqrt() * weight.to(output)
