"""TransformerLens 3: what the package needs of `HookedTransformer`, and how it differs from a `TransformerBridge`.

`adapter` chooses between this file and `bridged`, which has the same functions for TransformerLens 4.
"""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig, loading_from_pretrained as loading
from transformer_lens.components import MLP, GatedMLP, RMSNorm
from transformer_lens.pretrained.weight_conversions import convert_olmo3_weights
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from loc_edit.models import attention
from loc_edit.models.kernels import one_kernel_each
from loc_edit.models.model import Model, hooked_within
from loc_edit.models.past import Past
from loc_edit.models.weights import arrange

KIND = "HookedTransformer"
UNPROCESSED = "HookedTransformer.from_pretrained_no_processing({!r})"
"""The line that loads a model of the hub without processing its weights."""


def adopt(model: Model, device: torch.device) -> Model:
    """A model that the user has loaded, on the device."""
    return cast(Model, cast(Any, model).to(device, print_details=False))


def prepare(model: Model) -> Model:
    """The model in evaluation mode, without gradients, its weights in the layout that products read."""
    arrange(model)
    return cast(Model, cast(Any, model).eval().requires_grad_(False))


def give_tokenizer(model: Model, fast: Any) -> None:
    """Give the model a tokenizer as it is.

    `HookedTransformer.set_tokenizer` would read it once more, so that it puts BOS before every text, and would take
    another token as BOS if there is none.
    """
    model.tokenizer = fast


def native(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], fast: Any, device: torch.device | str, dtype: torch.dtype
) -> Model:
    """A model of a configuration of TransformerLens, with the weights by their names there.

    Raises:
        KeyError: weights are missing; its argument names them.
    """
    model = HookedTransformer(
        HookedTransformerConfig.from_dict({**config, "device": str(device), "dtype": dtype}), fast
    )
    missing = set(dict(model.named_parameters())) - set(weights) - {"unembed.b_U"}
    if missing:
        raise KeyError(", ".join(sorted(missing)))
    model.load_state_dict({name: w.to(device, dtype) for name, w in weights.items()}, strict=False)
    return model


def converted(folder: str, hf_config: Any) -> dict[str, Any]:
    """The configuration that TransformerLens makes of a checkpoint's, which is in a folder with a neutral name."""
    return cast(dict[str, Any], loading.convert_hf_model_config(folder))


def configuration_of(values: Mapping[str, Any]) -> HookedTransformerConfig:
    """The configuration of a checkpoint's model, of its fields."""
    return HookedTransformerConfig.from_dict({**values, "from_checkpoint": False})


def from_hugging_face(
    hf_model: Any, cfg: HookedTransformerConfig, hf_config: Any, directory: str
) -> tuple[Model, dict[str, Tensor]]:
    """A model without weights, and the checkpoint's weights for it by their names there.

    Args:
        hf_model: the checkpoint as transformers loads it.
        cfg: from `configuration_of`.
        hf_config: the checkpoint's configuration in transformers.
        directory: the checkpoint.
    """
    model = HookedTransformer(cfg)
    if cfg.original_architecture == "Olmo2ForCausalLM":  # its own conversion knows no grouped keys
        weights = convert_olmo3_weights(hf_model, cfg)
    else:
        weights = loading.get_pretrained_state_dict(directory, cfg, hf_model, dtype=cfg.dtype)
    return model, loading.fill_missing_keys(model, weights)


def hub_name(name: str) -> str:
    """The hub's name of a model.

    Raises:
        ValueError: TransformerLens does not know it.
    """
    return loading.get_official_model_name(name)


def from_hub(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Model, str]:
    """A checkpoint on the hub, and the name of its tokenizer there."""
    model = HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=dtype)
    return model, str(model.cfg.tokenizer_name)


def takes_past(model: Model) -> bool:
    """Whether `run` can take a `past`: whether the model's forward pass has a parameter `past_kv_cache`."""
    return "past_kv_cache" in inspect.signature(cast(Any, type(model)).forward).parameters


def run(
    model: Model,
    given: Tensor,
    start: int | None,
    stop: int,
    past: Past | None,
    mask: Int[Tensor, "row past_and_pos"] | None,
) -> Float[Tensor, "row pos d_model"]:
    """See `passes.run_layers`."""
    if start is None and (past is not None or mask is not None):
        given, start = _embed(model, given, past, mask), 0
    options = {} if past is None and mask is None else {"past_kv_cache": past, "attention_mask": mask}
    with one_kernel_each(list(model.blocks)[start or 0 : stop]):
        return cast(Tensor, model(given, start_at_layer=start, stop_at_layer=stop, **options))


def _embed(
    model: Any, tokens: Int[Tensor, "row pos"], past: Past | None, mask: Int[Tensor, "row past_and_pos"] | None
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream before the first layer, at the positions after a past."""
    n_before = past[0].length if past is not None else 0
    embedded = model.hook_embed(model.embed(tokens))
    return cast(Tensor, model.get_residual(embedded, n_before, None, mask, tokens, return_shortformer_pos_embed=False))


def watched(model: Any) -> bool:
    """Whether a hook is on the model, or on this part of one."""
    return hooked_within(model)


def plain_attention(model: Model, layer: int) -> bool:
    """Whether `keys_and_values` may be asked for the layer."""
    return attention.plain(model.blocks[layer].attn)


def keys_and_values(
    model: Model,
    layer: int,
    stream: Float[Tensor, "row pos d_model"],
    n_before: int,
    real: Int[Tensor, "row before_and_pos"],
) -> tuple[Float[Tensor, "row pos kv_head d_head"], Float[Tensor, "row pos kv_head d_head"]]:
    """The keys and values that a layer's attention makes of the residual stream, at positions after `n_before`."""
    block = model.blocks[layer]
    with one_kernel_each([block]):
        if model.cfg.original_architecture not in POST_NORM_ARCHITECTURES:
            stream = block.ln1(stream)
        return attention.keys_and_values(block.attn, stream, n_before, real)


def output_norm(model: Model, layer: int) -> tuple[Tensor, float] | None:
    """The weight and epsilon of the RMSNorm between `W_out` and `hook_mlp_out`, or `None` if there is no norm.

    Raises:
        TypeError: the norm is of another kind, which its argument names.
    """
    if model.cfg.use_normalization_before_and_after:
        norm = model.blocks[layer].ln2_post
    elif model.cfg.original_architecture in POST_NORM_ARCHITECTURES:
        norm = model.blocks[layer].ln2
    else:
        return None
    if not isinstance(norm, RMSNorm):
        raise TypeError(type(norm).__name__)
    return norm.w, norm.eps


def final_scale(model: Model) -> Tensor | None:
    """The weight of the final norm, or `None` if it has none."""
    return getattr(cast(Any, model).ln_final, "w", None)


def activation(mlp: Any) -> tuple[Any, str, bool] | None:
    """The module and the name of an MLP's activation function there, and whether it is a gate's; else `None`.

    `None` means that `relevance` has no rules for the MLP: it is neither plain nor gated.
    """
    if type(mlp) not in (MLP, GatedMLP):
        return None
    return mlp, "act_fn", type(mlp) is GatedMLP and not mlp.cfg.is_layer_norm_activation()


def embeddings(model: Model, tokens: Int[Tensor, "*tokens"]) -> Float[Tensor, "*tokens d_model"]:
    """The embeddings of tokens, as they enter the residual stream."""
    return cast(Tensor, model.W_E[tokens])


def named_weights(model: Model) -> dict[str, Tensor]:
    """The model's weights by name, to be written in place."""
    return dict(model.named_parameters())


def all_weights(model: Model) -> dict[str, Tensor]:
    """The weights that stand for the model in its fingerprint."""
    return dict(model.named_parameters())


def configuration(model: Model) -> dict[str, Any]:
    """The configuration that stands for the model in its fingerprint."""
    return cast(dict[str, Any], model.cfg.to_dict())
