"""The model class, and the parts of a model: edited weights, embeddings, tokenizer, and logits of the last layer."""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear
from transformer_lens import HookedTransformer

Model = HookedTransformer
"""The class of every model in the package."""

Hook = tuple[str | Callable[..., Any], Callable[..., Any]]
"""A hook point's name and a function, as TransformerLens takes them."""


def W_out(model: Model, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """A layer's MLP output weights, to be written in place (`model.W_out` is a copy)."""
    return cast(Tensor, model.blocks[layer].mlp.W_out)


def b_out(model: Model, layer: int) -> Float[Tensor, " d_model"]:
    """A layer's MLP output bias, to be written in place; zeros for a `TransformerBridge` without a bias."""
    bias = cast(Tensor | None, model.blocks[layer].mlp.b_out)
    return W_out(model, layer).new_zeros(model.cfg.d_model) if bias is None else bias


def has_output_bias(model: Model) -> bool:
    """Whether the checkpoint has an MLP output bias (TransformerLens adds a zero bias to gated MLPs)."""
    return not model.cfg.gated_mlp


def tokenizer(model: Model) -> Any:
    """The model's tokenizer, untyped, as Hugging Face does not type it."""
    return model.tokenizer


def logits_at(model: Model, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of the final residual stream at any positions, as at the end of `model.forward`.

    They are in float32 at least: rounding the logits of a half-precision model would change a probability by several
    percent.  The product is computed here, because `Unembed` copies its weights at every call.
    """
    if model.cfg.normalization_type is not None:
        residual = model.ln_final(residual)
    unembed = model.unembed
    wide = torch.promote_types(unembed.W_U.dtype, torch.float32)
    logits = linear(unembed.hook_in(residual).to(wide), unembed.W_U.to(wide).T, unembed.b_U.to(wide))
    logits = unembed.hook_out(logits)
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def token_texts(model: Model, tokens: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """The text of each token on its own, for labels."""
    return tuple(str(tokenizer(model).decode([i])) for i in tokens.tolist())
