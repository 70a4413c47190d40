"""GELU, LayerNorm and attention in one kernel each, where TransformerLens writes them as chains of operations."""

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
    """Within it, these blocks compute GELU (of the tanh kind), LayerNorm and attention by torch's own kernels.

    The same functions up to rounding, with one pass over the activations in place of about eight, and one tensor kept
    for the backward pass in place of as many.  Every hook point stays where it is, and where one lies inside of what a
    kernel does and has a hook, that is computed as TransformerLens wrote it: a LayerNorm with a hook in it, attention
    with a hook on scores or pattern.  A block normalises its input three times, for queries, keys and values: as long
    as that is one and the same tensor, once is enough.

    GELU too where its result, the key, has a hook: far below zero a key is little but rounding, and fine-tuning's Adam
    follows that.  In inference mode nothing is trained, and the kernel is used.
    """
    held: list[Any] = []  # of the norm called last, so that no layer's activations outlive it
    scored = torch.is_inference_mode_enabled()
    with ExitStack() as stack:
        for block in blocks:
            mlp: Any = getattr(block, "mlp", None)
            attn: Any = getattr(block, "attn", None)
            if getattr(mlp, "act_fn", None) in (gelu_new, gelu_fast) and (scored or not hooked(mlp.hook_post)):
                stack.enter_context(_replaced(mlp, "act_fn", partial(gelu, approximate="tanh")))
            if plain(attn) and not (hooked(attn.hook_attn_scores) or hooked(attn.hook_pattern)):
                stack.enter_context(_replaced(attn, "forward", _fused(attn)))
            for norm in (getattr(block, "ln1", None), getattr(block, "ln2", None)):
                if type(norm) is LayerNorm and not (hooked(norm.hook_scale) or hooked(norm.hook_normalized)):
                    stack.enter_context(_replaced(norm, "forward", _once(norm, held)))
        yield


def _once(norm: LayerNorm, held: list[Any]) -> Callable[[Tensor], Tensor]:
    """The norm's function; of one and the same tensor it is computed once, in a row of calls (`held`: of the last)."""

    def forward(x: Tensor) -> Tensor:
        if x.dtype != norm.w.dtype:
            return LayerNorm.forward(norm, x)
        if not held or held[0] is not norm or held[1] is not x:
            held[:] = norm, x, layer_norm(x, (norm.length,), norm.w, norm.b, norm.eps)
        return held[2]

    return forward


def plain(attn: Any) -> bool:
    """Whether attention does no more than to project what it is given, to rotate it and to mask what comes later."""
    if type(attn) not in (Attention, GroupedQueryAttention):
        return False
    cfg: Any = attn.cfg
    return (
        cfg.positional_embedding_type in ("standard", "rotary")
        and (attn._attention_dir_override or cfg.attention_dir) == "causal"
        and cfg.attn_scores_soft_cap <= 0
        and not (cfg.use_split_qkv_input or cfg.use_attn_in or cfg.use_attn_result or cfg.use_logn_attn)
        and not (cfg.use_attention_sinks or cfg.load_in_4bit or cfg.clip_qkv is not None)
        and not (cfg.original_architecture or "").startswith("Olmo")  # norms whole keys after projecting them
    )


def _fused(attn: Attention | GroupedQueryAttention) -> Callable[..., Tensor]:
    """The function of `plain` attention; scores and pattern are not kept."""

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
    """`module.name` is `value`, and then again what it was, in the instance or else in the class."""
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
    """Whether a hook is on this module itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
