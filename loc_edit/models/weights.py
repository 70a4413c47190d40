"""Weights in the layout that products read, so that no forward pass copies them.

TransformerLens keeps W_Q, W_K and W_V by head, and W_gate apart from W_in.  `arrange` moves their values into one
matrix per layer: the parameters keep their shapes and become views of it, so that writing to one writes to the matrix,
and nothing can fall out of date.  A copy of a model, or a model on its way to another device, loses the layout; then
the products copy their weights, as TransformerLens does, with the same results.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.components import Attention, GatedMLP, GroupedQueryAttention

from loc_edit.models.model import Model


def attention_weights(attn: Any) -> tuple[Tensor, Tensor, Tensor]:
    """W_Q, W_K and W_V as parameters; keys and values with one head for each group of queries."""
    if isinstance(attn, GroupedQueryAttention):
        return attn.W_Q, attn._W_K, attn._W_V
    return attn.W_Q, attn.W_K, attn.W_V


@torch.no_grad()
def arrange(model: Model) -> None:
    """Put every layer's W_Q, W_K and W_V side by side, its W_gate and W_in likewise, and W_U column by column."""
    for block in model.blocks:
        attn, mlp = block.attn, getattr(block, "mlp", None)
        if type(attn) in (Attention, GroupedQueryAttention):
            _arrange(attention_weights(attn))
        if type(mlp) is GatedMLP:
            _arrange((mlp.W_gate, mlp.W_in))
    weight: Any = model.unembed.W_U
    if weight.stride(0) != 1:
        weight.data = weight.T.contiguous().T


def _arrange(parts: Sequence[Tensor]) -> None:
    if _joint(parts) is not None:
        return
    matrices = [_columns(part) for part in parts]
    joint = torch.cat(matrices, 1).split([matrix.shape[1] for matrix in matrices], 1)
    for part, columns in zip(parts, joint, strict=True):
        by_head = part.ndim == 3
        part.data = rearrange(columns, "d (head d_head) -> head d d_head", head=len(part)) if by_head else columns


def side_by_side(parts: Sequence[Tensor]) -> Float[Tensor, "d_model all_columns"]:
    """Weights of shape [d_model, columns] or [head, d_model, d_head] as one matrix; a view of it once arranged."""
    joint = _joint(parts)
    return torch.cat([_columns(part) for part in parts], 1) if joint is None else joint


def _joint(parts: Sequence[Tensor]) -> Tensor | None:
    """The matrix that the weights are side by side in, if there is one."""
    first, height = parts[0], parts[0].shape[-2]
    widths = [part.numel() // height for part in parts]
    size, at = sum(widths), first.data_ptr()
    for part, width in zip(parts, widths, strict=True):
        by_head = (part.shape[-1], size, 1) if part.ndim == 3 else (size, 1)
        if part.stride() != by_head or part.data_ptr() != at:
            return None
        at += width * part.itemsize
    return first.as_strided((height, size), (size, 1), first.storage_offset())


def _columns(part: Tensor) -> Float[Tensor, "d_model columns"]:
    return rearrange(part, "head d d_head -> d (head d_head)") if part.ndim == 3 else part
