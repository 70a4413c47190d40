"""What a model must be: unprocessed for everything, pre-norm with one MLP a layer for editing."""

from typing import Any

import torch
from torch import Tensor

from loc_edit.models.model import Model

POST_NORM = ("Gemma2", "Gemma3", "Olmo2", "Olmo3")

HALF = (torch.float16, torch.bfloat16)


class BadModel(ValueError):
    """A model that cannot be found, read or used for what was asked; the message names it."""


def check_layers(model: Model, layers: list[int]) -> None:
    """Refuse layers that the model does not have."""
    wrong = [layer for layer in layers if not 0 <= layer < model.cfg.n_layers]
    if wrong or not layers:
        raise ValueError(f"layers {wrong or layers}: {model.cfg.model_name} has layers 0 to {model.cfg.n_layers - 1}")


def check_editable(model: Model) -> None:
    """Refuse a model in which `hook_mlp_out` is not `hook_post @ W_out + b_out`.

    Raises:
        BadModel: normalisation after the MLP, experts, or no MLP.
    """
    name, cfg = model.cfg.model_name, model.cfg
    if cfg.use_normalization_before_and_after or (cfg.original_architecture or "").startswith(POST_NORM):
        raise BadModel(
            f"model {name}: a norm follows the MLP, so hook_mlp_out is not hook_post @ W_out + b_out; "
            "it can be traced, not edited"
        )
    if cfg.attn_only or getattr(cfg, "num_experts", None):
        raise BadModel(f"model {name}: each layer must have one MLP to be edited")


@torch.no_grad()
def check_unprocessed(model: Model) -> None:
    """Refuse a model whose weights TransformerLens has processed, as `from_pretrained` does unless told otherwise.

    Centring changes the norms of values, and so ROME's decay and clamp; a folded layer norm or a centred unembedding
    leaves numbers as they are, but not the weights that an edit is written back into.

    Detected: folded layer norms (the configuration says so); centred writing weights (every matrix and bias that
    writes into the residual stream has rows of mean 0, up to rounding); a centred unembedding (likewise, over the
    vocabulary).  Not detected, and without effect on traces of MLP outputs, edits or scores: folded value biases and
    refactored attention matrices.  Not detected either: a layer norm folded by hand that left its weights at 1.  A
    model that was trained with norms without weights, or to means of exactly 0, is refused wrongly: use it without
    `load_model`.

    Raises:
        BadModel: names what was processed, and the line that loads the model right.
    """
    name, cfg = model.cfg.model_name, model.cfg
    found = []
    if cfg.normalization_type in ("LNPre", "RMSPre"):
        found.append("layer norms are folded into the weights")
    if cfg.normalization_type in ("LN", "LNPre") and all(map(_centred, _writing(model))):
        found.append("weights that write to the residual stream are centred")
    if _centred(model.unembed.W_U):
        found.append("the unembedding is centred")
    if found:
        raise BadModel(
            f"model {name}: {' and '.join(found)}; editing wants the checkpoint's own weights: "
            f"loc_edit.load_model({name!r}), or Model.from_pretrained_no_processing({name!r})"
        )


def _writing(model: Model) -> list[Tensor]:
    """All that writes into the residual stream, output dimension last."""
    writing: list[Any] = [model.embed.W_E]
    if model.cfg.positional_embedding_type == "standard":
        writing.append(model.pos_embed.W_pos)
    for block in model.blocks:
        writing += [block.attn.W_O, block.attn.b_O]
        if not model.cfg.attn_only and not getattr(model.cfg, "num_experts", None):
            writing += [block.mlp.W_out, block.mlp.b_out]
    return writing


def _centred(weight: Tensor) -> bool:
    """Whether the means over the last dimension are 0, up to the rounding of the entries.

    Means of n independent entries are about 1/sqrt(n) of the entries' size; rounding leaves some 1e-7 of it in single
    precision and 1e-3 in half.
    """
    wide = weight.float()
    means = wide.mean(-1).square().mean().sqrt()
    size = wide.square().mean().sqrt() * wide.shape[-1] ** -0.5
    return bool(means <= (2e-2 if weight.dtype in HALF else 1e-4) * size)
