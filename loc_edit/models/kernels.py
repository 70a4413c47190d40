"""Faster GELU, LayerNorm and attention: one torch kernel each in place of TransformerLens' chains of operations."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention
from transformer_lens.components import Attention, GroupedQueryAttention, LayerNorm
from transformer_lens.utilities.activation_functions import gelu_fast, gelu_new


@contextmanager
def one_kernel_each(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, the given layers compute GELU (the tanh kind), LayerNorm and attention by torch's own kernels.

    The kernels compute the same functions up to rounding, in one pass over the activations instead of about eight, and
    keep one tensor for the backward pass instead of about eight.  Every hook point still fires.  If a hook is on a
    point inside a kernel (in a LayerNorm, or on attention's scores or pattern), TransformerLens' own chain of
    operations runs instead.  A layer normalizes its input three times, for queries, keys and values; as long as they
    share one input tensor, it is normalized once.

    GELU also keeps its chain if its result, the key, has a hook: far below zero a key is mostly rounding error, which
    Adam would follow in fine-tuning.  In inference mode nothing is trained, and the kernel runs.
    """
    last_norm: list[Any] = []  # the norm that ran last, its input and output: no layer's activations outlive it
    inference = torch.is_inference_mode_enabled()
    with ExitStack() as stack:
        for block in blocks:
            mlp: Any = getattr(block, "mlp", None)
            attn: Any = getattr(block, "attn", None)
            if getattr(mlp, "act_fn", None) in (gelu_new, gelu_fast) and (inference or not hooked(mlp.hook_post)):
                stack.enter_context(_replaced(mlp, "act_fn", partial(gelu, approximate="tanh")))
            if plain(attn) and not (hooked(attn.hook_attn_scores) or hooked(attn.hook_pattern)):
                stack.enter_context(_replaced(attn, "forward", _fused(attn)))
            for norm in (getattr(block, "ln1", None), getattr(block, "ln2", None)):
                if type(norm) is LayerNorm and not (hooked(norm.hook_scale) or hooked(norm.hook_normalized)):
                    stack.enter_context(_replaced(norm, "forward", _once(norm, last_norm)))
        yield


def _once(norm: LayerNorm, last_norm: list[Any]) -> Callable[[Tensor], Tensor]:
    """The norm's function, which takes its result from `last_norm` if the last call had the same norm and tensor."""

    def forward(x: Tensor) -> Tensor:
        if x.dtype != norm.w.dtype:
            return LayerNorm.forward(norm, x)
        if not last_norm or last_norm[0] is not norm or last_norm[1] is not x:
            last_norm[:] = norm, x, layer_norm(x, (norm.length,), norm.w, norm.b, norm.eps)
        return last_norm[2]

    return forward


def plain(attn: Any) -> bool:
    """Whether attention only projects its input, rotates queries and keys, and masks later positions."""
    if type(attn) not in (Attention, GroupedQueryAttention):
        return False
    cfg: Any = attn.cfg
    return (
        cfg.positional_embedding_type in ("standard", "rotary")
        and (attn._attention_dir_override or cfg.attention_dir) == "causal"
        and cfg.attn_scores_soft_cap <= 0
        and not (cfg.use_split_qkv_input or cfg.use_attn_in or cfg.use_attn_result or cfg.use_logn_attn)
        and not (cfg.use_attention_sinks or cfg.load_in_4bit or cfg.clip_qkv is not None)
        and not (cfg.original_architecture or "").startswith("Olmo")  # it normalizes whole keys after projecting them
    )


def _fused(attn: Attention | GroupedQueryAttention) -> Callable[..., Tensor]:
    """The forward function of `plain` attention, in which scores and pattern are never separate tensors."""

    def forward(
        query_input: Tensor,
        key_input: Tensor,
        value_input: Tensor,
        past_kv_cache_entry: Any = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        q, k, v = attn.calculate_qkv_matrices(query_input, key_input, value_input)
        n_before = 0
        if past_kv_cache_entry is not None:
            n_before = past_kv_cache_entry.past_keys.shape[1]
            k, v = past_kv_cache_entry.append(k, v)
        if attn.cfg.positional_embedding_type == "rotary":
            q = attn.hook_rot_q(attn.apply_rotary(q, n_before, attention_mask))
            k = attn.hook_rot_k(attn.apply_rotary(k, 0, attention_mask))
        mask = attn._make_causal_mask(q.shape[1], k.shape[1], n_before, q.device)
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None].bool()
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        z = scaled_dot_product_attention(q, k, v, mask, scale=1 / attn.attn_scale, enable_gqa=q.shape[1] != k.shape[1])
        z = attn.hook_z(z.transpose(1, 2))
        return linear(z.flatten(2), attn.W_O.flatten(0, 1).T, attn.b_O)

    return forward


@contextmanager
def _replaced(module: nn.Module, name: str, value: object) -> Iterator[None]:
    """Inside the block, `module.name` is `value`; afterwards it is as before."""
    own = vars(module)  # `nn.Module.__setattr__` takes ten times as long
    old = own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if old is None:
            del own[name]
        else:
            own[name] = old


def hooked(module: nn.Module) -> bool:
    """Whether a hook is on this module itself, not only on its parts."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
