"""Attention by fewer operations than TransformerLens, with the same results and hook points.

Queries, keys and values come from one product; keys are rotated once, before they enter the past; scores and pattern
are never separate tensors, unless a hook is on them or scores have a soft cap.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformer_lens.components import Attention, GroupedQueryAttention

from loc_edit.models.model import hooked
from loc_edit.models.past import PastEntry
from loc_edit.models.weights import attention_weights, side_by_side


def plain(attn: Any) -> bool:
    """Whether attention only projects its input, rotates and normalizes queries and keys, and masks positions."""
    if type(attn) not in (Attention, GroupedQueryAttention):
        return False
    cfg: Any = attn.cfg
    return (
        cfg.positional_embedding_type in ("standard", "rotary")
        and (attn._attention_dir_override or cfg.attention_dir) == "causal"
        and not (cfg.use_split_qkv_input or cfg.use_attn_in or cfg.use_attn_result or cfg.use_logn_attn)
        and not (cfg.use_attention_sinks or cfg.load_in_4bit or cfg.use_dynamic_ntk_rope or cfg.clip_qkv is not None)
        and not cfg.ungroup_grouped_query_attention
    )


class Positions:
    """Rotary angles of the positions of one forward pass, and which keys each query sees: one for all layers."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], Tensor] = {}
        self._bias: dict[tuple[object, ...], Tensor] = {}
        self._rotation: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def seen(
        self, attn: Any, n_queries: int, n_keys: int, mask: Int[Tensor, "row key"] | None
    ) -> Bool[Tensor, "row_or_1 1 query key"]:
        """Keys at the query's position or before it, real, and within the layer's window if it has one.

        A query that would see nothing (it is padding, which nobody reads) sees everything, as the softmax and its
        gradient over nothing would not be numbers.
        """
        window = int(attn.cfg.window_size) if attn.attn_type == "local" else 0
        key = window, n_queries, n_keys, id(mask)
        if key not in self._seen:
            columns = torch.arange(n_keys, device=attn.W_Q.device)
            seen = (columns <= columns[n_keys - n_queries :, None])[None]
            counted = columns[None] if mask is None else mask.cumsum(1)
            if window:
                seen = seen & (counted[:, None] > counted[:, n_keys - n_queries :, None] - window)
            if mask is not None:
                seen = seen & mask[:, None].bool()
                seen = seen | ~seen.any(-1, keepdim=True)
            self._seen[key] = seen[:, None]
        return self._seen[key]

    def bias(
        self, attn: Any, n_queries: int, n_keys: int, mask: Int[Tensor, "row key"] | None, group: int, like: Tensor
    ) -> Float[Tensor, "row_or_1 1 group_and_query key"]:
        """0 for keys that are seen, -inf for others; for the queries of `group` heads, one head after another."""
        key = attn.attn_type, n_queries, n_keys, id(mask)
        if key not in self._bias:
            seen = self.seen(attn, n_queries, n_keys, mask).repeat(1, 1, group, 1)
            self._bias[key] = like.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return self._bias[key]

    def rotation(
        self, attn: Any, n_before: int, end: int, mask: Int[Tensor, "row all_pos"] | None
    ) -> tuple[Float[Tensor, "*row pos 1 rotary_dim"], Float[Tensor, "*row pos 1 rotary_dim"]]:
        """Cosines and sines of rotary embeddings from `n_before` to `end`; with a mask, only real positions count."""
        key = attn.attn_type, n_before, end, id(mask)
        if key not in self._rotation:
            if end > len(attn.rotary_cos):
                attn._extend_rotary_embeddings(min(attn.cfg.n_ctx, max(end, 2 * len(attn.rotary_cos))))
            at = slice(n_before, end) if mask is None else (mask.cumsum(1)[:, n_before:end] - 1).clamp(min=0)
            self._rotation[key] = attn.rotary_cos[at].unsqueeze(-2), attn.rotary_sin[at].unsqueeze(-2)
        return self._rotation[key]


def keys_and_values(
    attn: Any, x: Float[Tensor, "row pos d_model"], n_before: int, mask: Int[Tensor, "row before_and_pos"]
) -> tuple[Float[Tensor, "row pos kv_head d_head"], Float[Tensor, "row pos kv_head d_head"]]:
    """Keys and values of the positions after `n_before`, as a `PastEntry` holds them."""
    _, weight_k, weight_v = attention_weights(attn)
    bias_k, bias_v = _biases(attn)[1:]
    k = _heads(linear(x, side_by_side([weight_k]).T, bias_k.flatten()), attn.cfg.d_head)
    v = _heads(linear(x, side_by_side([weight_v]).T, bias_v.flatten()), attn.cfg.d_head)
    return _rotate(attn, _normalize(attn, k, attn.k_norm), n_before, mask, Positions()), v


def attend(
    attn: Attention | GroupedQueryAttention,
    positions: Positions,
    untouched: bool,
    query_input: Float[Tensor, "row pos d_model"],
    key_input: Float[Tensor, "row pos d_model"],
    value_input: Float[Tensor, "row pos d_model"],
    past_kv_cache_entry: PastEntry | None = None,
    attention_mask: Int[Tensor, "row before_and_pos"] | None = None,
) -> Float[Tensor, "row pos d_model"]:
    """What `plain` attention computes, with the parameters that TransformerLens calls it with.

    Args:
        attn: the layer's attention.
        positions: the positions of this forward pass.
        untouched: whether no hook can make its three inputs differ; TransformerLens gives it equal copies of one.
        query_input: what queries are made from.
        key_input: what keys are made from.
        value_input: what values are made from.
        past_kv_cache_entry: keys and values of earlier positions; these are added to it.
        attention_mask: 1 at real positions, 0 at padding, earlier positions included.
    """
    given = [value_input] if untouched else [query_input, key_input, value_input]
    q, k, v = _project(attn, given)
    q, k, v = attn.hook_q(q), attn.hook_k(k), attn.hook_v(v)
    q, k = _normalize(attn, q, attn.q_norm), _normalize(attn, k, attn.k_norm)
    if attn.cfg.positional_embedding_type == "rotary":
        n_before = past_kv_cache_entry.length if past_kv_cache_entry else 0
        q = attn.hook_rot_q(_rotate(attn, q, n_before, attention_mask, positions))
        k = attn.hook_rot_k(_rotate(attn, k, n_before, attention_mask, positions))
    if past_kv_cache_entry is not None:
        k, v = past_kv_cache_entry.append(k, v)
    z = attn.hook_z(_mix(attn, q, k, v, attention_mask, positions))
    return linear(z.flatten(2), attn.W_O.flatten(0, 1).T, attn.b_O)


def _project(attn: Any, given: list[Float[Tensor, "row pos d_model"]]) -> list[Float[Tensor, "row pos head d_head"]]:
    """Queries, keys and values, by one product if they have one input."""
    weights, biases = attention_weights(attn), [bias.flatten() for bias in _biases(attn)]
    if len(given) == 1:
        joint = linear(given[0], side_by_side(weights).T, torch.cat(biases))
        parts = joint.split([len(bias) for bias in biases], -1)
    else:
        rows = zip(given, weights, biases, strict=True)
        parts = tuple(linear(x, side_by_side([weight]).T, bias) for x, weight, bias in rows)
    return [_heads(part, attn.cfg.d_head) for part in parts]


def _biases(attn: Any) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(attn, GroupedQueryAttention):
        return attn.b_Q, attn._b_K, attn._b_V
    return attn.b_Q, attn.b_K, attn.b_V


def _heads(x: Float[Tensor, "row pos columns"], d_head: int) -> Float[Tensor, "row pos head d_head"]:
    return x.unflatten(-1, (-1, d_head))


def _normalize(attn: Any, x: Float[Tensor, "row pos head d_head"], norm: Any) -> Float[Tensor, "row pos head d_head"]:
    """Queries or keys through their norm, if the model has one: of each head, or of all heads together (OLMo)."""
    if norm is None:
        return x
    if norm.length == attn.cfg.d_head:
        return attn._apply_qk_norm(x, norm)
    return _heads(norm(x.flatten(2)), attn.cfg.d_head)


def _rotate(
    attn: Any,
    x: Float[Tensor, "row pos head d_head"],
    n_before: int,
    mask: Int[Tensor, "row all_pos"] | None,
    positions: Positions,
) -> Float[Tensor, "row pos head d_head"]:
    """Rotary embeddings of the positions after `n_before`, if the model has them."""
    cfg = attn.cfg
    if cfg.positional_embedding_type != "rotary":
        return x
    cos, sin = positions.rotation(attn, n_before, n_before + x.shape[1], mask)
    n, half = cfg.rotary_dim, cfg.rotary_dim // 2
    first, second = (slice(0, n, 2), slice(1, n, 2)) if cfg.rotary_adjacent_pairs else (slice(half), slice(half, n))
    rotated = x[..., :n] * cos
    rotated[..., first].addcmul_(x[..., second], sin[..., first], value=-1)
    rotated[..., second].addcmul_(x[..., first], sin[..., second])
    return rotated if n == x.shape[-1] else torch.cat([rotated, x[..., n:]], -1)


def _mix(
    attn: Any,
    q: Float[Tensor, "row query head d_head"],
    k: Float[Tensor, "row key kv_head d_head"],
    v: Float[Tensor, "row key kv_head d_head"],
    mask: Int[Tensor, "row key"] | None,
    positions: Positions,
) -> Float[Tensor, "row query head d_head"]:
    """Values mixed by attention.  The queries that share a key head stand one after another, so no key is repeated."""
    (rows, n_queries, heads, d_head), kv_heads = q.shape, k.shape[2]
    group, scale = heads // kv_heads, 1 / attn.attn_scale
    grouped = q.transpose(1, 2).reshape(rows, kv_heads, group * n_queries, d_head)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    cap = attn.cfg.attn_scores_soft_cap
    if not (cap > 0 or hooked(attn.hook_attn_scores) or hooked(attn.hook_pattern)):
        bias = positions.bias(attn, n_queries, k.shape[2], mask, group, grouped)
        z = scaled_dot_product_attention(grouped, k, v, bias, scale=scale)
    else:
        seen = positions.seen(attn, n_queries, k.shape[2], mask)
        scores = (grouped * scale @ k.mT).view(rows, heads, n_queries, -1)
        scores = cap * torch.tanh(scores / cap) if cap > 0 else scores
        pattern = attn.hook_attn_scores(scores.masked_fill(~seen, -torch.inf)).softmax(-1)
        z = attn.hook_pattern(pattern).view(*grouped.shape[:3], -1) @ v
    return z.reshape(rows, heads, n_queries, d_head).transpose(1, 2)
