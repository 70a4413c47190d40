"""TransformerLens' layers by fewer operations: one kernel in place of several, and no copies of weights."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, rms_norm
from transformer_lens.components import GatedMLP, LayerNorm, RMSNorm
from transformer_lens.utilities.activation_functions import gelu_fast, gelu_new

from loc_edit.models.attention import Positions, attend, plain
from loc_edit.models.model import hooked, hooked_within, replaced
from loc_edit.models.weights import side_by_side

ONE_PASS = (torch.float32, torch.float64)


@contextmanager
def one_kernel_each(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, the given layers compute GELU (the tanh kind), norms, gated MLPs and attention by few kernels.

    They are the same functions up to rounding, in one pass over the activations instead of about eight, and keep one
    tensor for the backward pass instead of about eight.  Weights are read where they are; TransformerLens copies most
    of them at every call.  Every hook point still fires.  If a hook is on a point inside a norm, TransformerLens' own
    chain of operations runs instead.  A layer normalizes its input three times, for queries, keys and values; as long
    as they share one input tensor, it is normalized once.

    GELU also keeps its chain if its result, the key, has a hook: far below zero a key is mostly rounding error, which
    Adam would follow in fine-tuning.  In inference mode nothing is trained, and the kernel runs.
    """
    last_norm: list[Any] = []  # the norm that ran last, its input and output: no layer's activations outlive it
    inference, positions = torch.is_inference_mode_enabled(), Positions()
    with ExitStack() as stack:
        for block in blocks:
            mlp: Any = getattr(block, "mlp", None)
            attn: Any = getattr(block, "attn", None)
            if getattr(mlp, "act_fn", None) in (gelu_new, gelu_fast) and (inference or not hooked(mlp.hook_post)):
                stack.enter_context(replaced(mlp, "act_fn", partial(gelu, approximate="tanh")))
            if type(mlp) is GatedMLP and not mlp.cfg.is_layer_norm_activation():
                stack.enter_context(replaced(mlp, "forward", partial(_gated, mlp)))
            if plain(attn):
                ln1: Any = block.ln1
                untouched = not (hooked(attn) or hooked_within(ln1))
                stack.enter_context(replaced(attn, "forward", partial(attend, attn, positions, untouched)))
            norms = [getattr(block, name, None) for name in ("ln1", "ln1_post", "ln2", "ln2_post")]
            for norm in (*norms, getattr(attn, "q_norm", None), getattr(attn, "k_norm", None)):
                kernel = KERNELS.get(type(norm))
                if norm is not None and kernel and not (hooked(norm.hook_scale) or hooked(norm.hook_normalized)):
                    stack.enter_context(replaced(norm, "forward", partial(_once, norm, kernel, last_norm)))
        yield


def _layer_norm(norm: LayerNorm, x: Tensor) -> Tensor:
    if x.dtype != norm.w.dtype:
        return LayerNorm.forward(norm, x)
    return layer_norm(x, (norm.length,), norm.w, norm.b, norm.eps)


def _rms_norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """In half precision, the norm is computed in float32 and rounded before the weights, as in TransformerLens."""
    if norm.w.dtype in ONE_PASS:
        return rms_norm(x, (norm.length,), norm.w, norm.eps)
    return rms_norm(x.float(), (norm.length,), None, norm.eps).to(norm.w.dtype) * norm.w


KERNELS: dict[Any, Callable[[Any, Tensor], Tensor]] = {LayerNorm: _layer_norm, RMSNorm: _rms_norm}


def _once(norm: Any, kernel: Callable[[Any, Tensor], Tensor], last_norm: list[Any], x: Tensor) -> Tensor:
    """The norm's result; from `last_norm`, if the last call had the same norm and tensor."""
    if not last_norm or last_norm[0] is not norm or last_norm[1] is not x:
        last_norm[:] = norm, x, kernel(norm, x)
    return cast(Tensor, last_norm[2])


def _gated(mlp: Any, x: Tensor) -> Tensor:
    """The forward function of a gated MLP, with one product for W_gate and W_in."""
    gate, pre = (x @ side_by_side([mlp.W_gate, mlp.W_in])).split(mlp.d_mlp, -1)
    key, pre = mlp.act_fn(mlp.hook_pre(gate)), mlp.hook_pre_linear(pre)
    in_place = not (key.requires_grad or pre.requires_grad)
    key = key.mul_(pre).add_(mlp.b_in) if in_place else key * pre + mlp.b_in
    return linear(mlp.hook_post(key), mlp.W_out.T, mlp.b_out)
