"""Checks of a loaded model: its weights are unprocessed, and for editing, its layers have the right form."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from loc_edit.models.adapter import lens
from loc_edit.models.identity import checksums
from loc_edit.models.memory import out_of_memory
from loc_edit.models.model import Model, hook_points, hooked
from loc_edit.models.norms import output_norm
from loc_edit.names import first_few

HALF = (torch.float16, torch.bfloat16)


class BadModel(ValueError):
    """A model that cannot be found, cannot be read, or does not suit its purpose; the message names it."""


class ModelChanged(RuntimeError):
    """A plug-in that left the model in another state than it found it; the message names the plug-in and the change."""


@contextmanager
def left_alone(model: Model, who: str) -> Iterator[None]:
    """A block that may read the model, hook it and even write to it, if it puts everything back.

    Args:
        model: any.
        who: runs in the block.

    Raises:
        ModelChanged: afterwards a weight is another, or a hook is left.
    """
    weights, hooks = _state(model), _n_hooks(model)
    try:
        yield
    finally:
        changed = [name for name, value in _state(model).items() if value != weights[name]]
        if changed:
            raise ModelChanged(
                f"{who} changed {first_few(changed)} and did not put back the old values; the model is spoiled"
            )
        if (left := _n_hooks(model) - hooks) != 0:
            raise ModelChanged(f"{who} left {left} hooks on the model; `with model.hooks(...)` takes them away again")


def ends_run(error: Exception) -> bool:
    """Whether an error is more than one fact's: the model has changed, or memory has run out, or the disk refuses."""
    return isinstance(error, (ModelChanged, OSError)) or out_of_memory(error)


def _state(model: Model) -> dict[str, tuple[bytes, bool]]:
    """Of each parameter, a checksum, and whether it requires a gradient."""
    sums = checksums(model)
    return {name: (sums[name], parameter.requires_grad) for name, parameter in model.named_parameters()}


def _n_hooks(model: Model) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in set(hook_points(model).values()))


def warn_of_hooks(model: Model) -> bool:
    """Whether the user has hooks on the model; if so, with a warning that they are part of every run.

    A bridge has several names for a hook point, such as `blocks.0.mlp.hook_out` for `blocks.0.hook_mlp_out`; the
    warning has the one of TransformerLens 3.
    """
    if not lens.watched(model):
        return False
    points: dict[int, list[str]] = {}
    for name, point in hook_points(model).items():
        if hooked(point):
            points.setdefault(id(point), []).append(name)
    names = sorted(min(of_one, key=lambda name: (name.count("."), -len(name))) for of_one in points.values())
    places = f"at {first_few(names)}" if names else "outside its hook points"
    warnings.warn(
        f"the model has hooks of yours {places}: they are part of all that is computed, and nothing of it is cached; "
        "model.reset_hooks() takes hooks away",
        stacklevel=3,
    )
    return True


def check_layers(model: Model, layers: list[int]) -> None:
    """Refuse layers that the model does not have, none, or one twice."""
    wrong = [layer for layer in layers if not 0 <= layer < model.cfg.n_layers]
    if wrong or not layers:
        raise ValueError(f"layers {wrong or layers}: {model.cfg.model_name} has layers 0 to {model.cfg.n_layers - 1}")
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers {layers}: a layer stands twice")


def check_numbers(model: Model) -> None:
    """Refuse weights that are NaN or infinite; the message names the tensor."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise BadModel(f"model {model.cfg.model_name}: tensor {name}: expected numbers, got NaN or infinity")


def check_editable(model: Model) -> None:
    """Refuse a model in which `hook_mlp_out` is not `hook_post @ W_out + b_out`, or the RMSNorm of it.

    Raises:
        BadModel: a layer has experts or no MLP, or a norm of another kind follows the MLP.
    """
    name = model.cfg.model_name
    if not _has_one_mlp(model.cfg):
        raise BadModel(f"model {name}: each layer must have one MLP to be edited")
    try:
        output_norm(model, 0)
    except TypeError as error:
        raise BadModel(
            f"model {name}: expected no norm after the MLP, or TransformerLens' RMSNorm, got {error}; "
            "it can be traced but not edited"
        ) from error


@torch.no_grad()
def check_unprocessed(model: Model) -> None:
    """Refuse a model whose weights TransformerLens has processed, as its `from_pretrained` does by default.

    Centering changes the norms of values, and so the weight decay and the clamp of ROME.  Folding layer norms and
    centering the unembedding leave the numbers as they are, but not the weights that an edit is written back into.

    Detected: folded layer norms (the configuration says so); centered writing weights (every matrix and bias that
    writes into the residual stream has rows of mean 0, up to rounding); a centered unembedding (likewise, over the
    vocabulary).  Not detected, but without effect on traces of MLP outputs, edits or scores: folded value biases and
    refactored attention matrices.  Not detected: a layer norm folded by hand that left its weights at 1.  Wrongly
    refused: a model trained with norms without weights, or to means of exactly 0; use it without `load_model`.

    Raises:
        BadModel: names the processing, and the line that loads the model without it.
    """
    name, kind = model.cfg.model_name, model.cfg.normalization_type
    processing = []
    if kind in ("LNPre", "RMSPre"):
        processing.append("layer norms are folded into the weights")
    if kind in ("LN", "LNPre") and all(map(_centered, _writing_weights(model))):
        processing.append("weights that write to the residual stream are centered")
    if _centered(model.unembed.W_U):
        processing.append("the unembedding is centered")
    if processing:
        raise BadModel(
            f"model {name}: {' and '.join(processing)}; editing needs the checkpoint's own weights: "
            f"loc_edit.load_model({name!r}), or {lens.UNPROCESSED.format(name)}"
        )


def _has_one_mlp(cfg: Any) -> bool:
    """Whether every layer has one MLP: neither experts nor attention alone."""
    return not (cfg.attn_only or getattr(cfg, "num_experts", None))


def _writing_weights(model: Model) -> list[Any]:
    """All matrices and biases that write into the residual stream, with the output dimension last."""
    weights: list[Any] = [model.W_E]
    if model.cfg.positional_embedding_type == "standard":
        weights.append(cast(Any, model).pos_embed.W_pos)
    for block in model.blocks:
        weights += [block.attn.W_O, block.attn.b_O]
        if _has_one_mlp(model.cfg):
            weights += [block.mlp.W_out, block.mlp.b_out]
    return weights


def _centered(weight: Tensor) -> bool:
    """Whether the means over the last dimension are 0, up to the rounding of the entries.

    The mean of n independent entries is about 1/sqrt(n) of an entry's size; rounding leaves about 1e-7 of that in
    single precision and 1e-3 in half precision.
    """
    wide = weight.float()
    means = wide.mean(-1).square().mean().sqrt()
    size = wide.square().mean().sqrt() * wide.shape[-1] ** -0.5
    return bool(means <= (2e-2 if weight.dtype in HALF else 1e-4) * size)
