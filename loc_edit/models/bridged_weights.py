"""The weights and the configuration of a `TransformerBridge` as TransformerLens 3 names and shapes them."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from loc_edit.models import fields
from loc_edit.models.model import Model

LIVE = ("default_prepend_bos", "tokenizer_prepends_bos", "dtype", "model_name")
"""Fields of a configuration that may change after loading."""


def part_of(module: Any, name: str) -> Any:
    """A part of a bridge's component, or `None`; asked as an attribute, Hugging Face's module would answer as well."""
    return module._modules.get(name)


def scale_of(norm: Any) -> Tensor:
    """What a norm multiplies with: Gemma's weights are kept as differences from 1."""
    return cast(Tensor, 1.0 + norm.weight if norm.uses_weight_offset else norm.weight)


def _norms(block: Any) -> dict[str, Any]:
    """A layer's norms by their names in version 3, where OLMo's norms after attention and MLP are `ln1` and `ln2`."""
    norms = {name: part_of(block, name) for name in ("ln1", "ln2", "ln1_post", "ln2_post")}
    if norms["ln1"] is None:
        norms = {"ln1": norms["ln1_post"], "ln2": norms["ln2_post"]}
    norms |= {f"attn.{name}": part_of(block.attn, name) for name in ("q_norm", "k_norm")}
    return {name: norm for name, norm in norms.items() if norm is not None}


def _named(model: Any) -> Iterator[tuple[str, Tensor | None]]:
    """The weights by their names in version 3, those that are kept in another form included."""
    yield "embed.W_E", model.embed.weight
    if model.cfg.positional_embedding_type == "standard":
        yield "pos_embed.W_pos", model.pos_embed.weight
    grouped = "_" if getattr(model.cfg, "as_in_3", {}).get("n_key_value_heads", model.cfg.n_key_value_heads) else ""
    for layer, block in enumerate(model.blocks):
        for name, norm in _norms(block).items():
            yield f"blocks.{layer}.{name}.w", norm.weight
            yield f"blocks.{layer}.{name}.b", None if norm.uses_rms_norm else norm.bias
        attn, mlp = block.attn, block.mlp
        for kind in "Wb":
            for part in "QO":
                yield f"blocks.{layer}.attn.{kind}_{part}", getattr(attn, f"{kind}_{part}")
            for part in "KV":
                yield f"blocks.{layer}.attn.{grouped}{kind}_{part}", getattr(attn, f"{kind}_{part}")
        for name in ("W_in", "b_in", "W_gate", "W_out", "b_out"):
            yield f"blocks.{layer}.mlp.{name}", getattr(mlp, name)
    yield "ln_final.w", model.ln_final.weight
    yield "ln_final.b", None if model.ln_final.uses_rms_norm else model.ln_final.bias
    yield "unembed.W_U", model.unembed.W_U


def named_weights(model: Model) -> dict[str, Tensor]:
    """The model's weights by their names in version 3, to be written in place.

    Left out is an unembedding that is tied to the embeddings, as it would be written twice.  Embeddings that are scaled
    on their way into the residual stream have another name.
    """
    bridge = cast(Any, model)
    weights = {name: weight for name, weight in _named(bridge) if weight is not None}
    if _tied(bridge):
        del weights["unembed.W_U"]
    if hasattr(bridge.embed.original_component, "embed_scale"):
        weights["embed.weight"] = weights.pop("embed.W_E")
    return weights


def _tied(bridge: Any) -> bool:
    return bool(bridge.unembed.W_U.data_ptr() == bridge.embed.weight.data_ptr())


@torch.no_grad()
def all_weights(model: Model) -> dict[str, Tensor]:
    """The weights that version 3 would have: they stand for the model in its fingerprint."""
    bridge, cfg = cast(Any, model), model.cfg
    weights = {name: weight for name, weight in _named(bridge) if weight is not None}
    heads = {"Q": cfg.n_heads, "K": cfg.n_key_value_heads or cfg.n_heads, "V": cfg.n_key_value_heads or cfg.n_heads}
    absent = {"W_gate": None, "b_in": cfg.d_mlp, "b_out": cfg.d_model, "b_O": cfg.d_model}
    for name, weight in _named(bridge):
        part = name.rpartition(".")[2]
        size = (heads[part[-1]], cfg.d_head) if part[-1] in heads and part[-3:-1] == "b_" else absent.get(part)
        if weight is None and size is not None:
            weights[name] = bridge.embed.weight.new_zeros(size)
    for layer, block in enumerate(bridge.blocks):
        for name, norm in _norms(block).items():
            weights[f"blocks.{layer}.{name}.w"] = scale_of(norm)
        if f"blocks.{layer}.ln2.w" not in weights:  # GPT-J has one norm for both
            for part in "wb":
                weights[f"blocks.{layer}.ln2.{part}"] = weights[f"blocks.{layer}.ln1.{part}"]
    weights["ln_final.w"] = scale_of(bridge.ln_final)
    if hasattr(bridge.embed.original_component, "embed_scale"):
        weights["embed.W_E"] = weights["embed.W_E"] * bridge.embed.original_component.embed_scale
    bias = bridge.unembed.b_U
    weights["unembed.b_U"] = bridge.embed.weight.new_zeros(weights["unembed.W_U"].shape[1]) if bias is None else bias
    return weights


def configuration(model: Model) -> dict[str, Any]:
    """The configuration that stands for the model in its fingerprint: of version 3, if this package has loaded it."""
    as_in_3 = getattr(model.cfg, "as_in_3", None)
    if as_in_3 is None:
        return cast(dict[str, Any], model.cfg.to_dict())
    live = {name: getattr(model.cfg, name) for name in LIVE}
    return fields.completed({**as_in_3, **live})
