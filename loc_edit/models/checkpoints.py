"""Hugging Face checkpoints: which tensor is `W_out`, and the configuration that TransformerLens reads right."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformer_lens import loading_from_pretrained as loading
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from loc_edit.models.checks import BadModel
from loc_edit.models.model import Model, W_out, b_out

CONVERSION_ERRORS = (ValueError, AttributeError, KeyError, TypeError, NotImplementedError, RuntimeError, ImportError)
"""What TransformerLens and transformers raise for checkpoints that are not what they expect."""


@dataclass(frozen=True)
class MlpOutput:
    """Where a checkpoint keeps the MLP's output matrix of a layer.

    Attributes:
        weight: the tensor's name, `{}` for the layer.
        bias: likewise; empty where there is none.
        transposed: whether it is stored as `[d_model d_mlp]`.
    """

    weight: str
    bias: str = ""
    transposed: bool = True


_GATED = MlpOutput("model.layers.{}.mlp.down_proj.weight")

MLP_OUTPUTS = {
    "GPT2LMHeadModel": MlpOutput("transformer.h.{}.mlp.c_proj.weight", "transformer.h.{}.mlp.c_proj.bias", False),
    "GPTJForCausalLM": MlpOutput("transformer.h.{}.mlp.fc_out.weight", "transformer.h.{}.mlp.fc_out.bias"),
    "GPTNeoXForCausalLM": MlpOutput(
        "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight", "gpt_neox.layers.{}.mlp.dense_4h_to_h.bias"
    ),
    **dict.fromkeys(
        ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM"), _GATED
    ),
}
"""By architecture, as a checkpoint's configuration names it."""


def mlp_output(model: Model) -> MlpOutput:
    """The names that the model's checkpoint has for `W_out` and `b_out`.

    Raises:
        BadModel: the model comes from no checkpoint, or from one whose names are not known.
    """
    architecture = model.cfg.original_architecture
    if architecture not in MLP_OUTPUTS:
        raise BadModel(
            f"model {model.cfg.model_name}: Hugging Face names are known for {', '.join(MLP_OUTPUTS)}, "
            f"and its architecture is {architecture or 'of no checkpoint'}"
        )
    return MLP_OUTPUTS[architecture]


@torch.no_grad()
def hf_state_dict(model: Model, layers: Iterable[int], biases: Iterable[int] = ()) -> dict[str, Tensor]:
    """Copies of `W_out` of `layers` and `b_out` of `biases` under the checkpoint's names, in its orientation.

    `hf_model.load_state_dict(..., strict=False)` takes them.

    Raises:
        BadModel: as `mlp_output`; or a bias is wanted and the checkpoint has none.
    """
    names = mlp_output(model)
    biases = list(biases)
    if biases and not names.bias:
        raise BadModel(
            f"model {model.cfg.model_name}: its checkpoint has no MLP output bias, and layer {biases[0]} has"
        )
    found = {}
    for layer in layers:
        weight = W_out(model, layer).detach()
        found[names.weight.format(layer)] = (weight.T if names.transposed else weight).clone().contiguous()
    found |= {names.bias.format(layer): b_out(model, layer).detach().clone() for layer in biases}
    return found


def read_config(directory: Path) -> dict[str, Any]:
    """A checkpoint's config.json, its architecture named, completed where transformers 5 leaves something out.

    Raises:
        BadModel: there is none, or it is no JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise BadModel(f"model directory {directory}: no config.json in it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadModel(f"model directory {directory}: config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadModel(f"model directory {directory}: config.json holds {type(config).__name__}, no object")
    if not config.get("architectures"):
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type")))
        if not name:
            raise BadModel(f"model directory {directory}: config.json names no architecture")
        config["architectures"] = [name]
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    return config


def hooked_config(directory: Path, config: dict[str, Any], **given: Any) -> HookedTransformerConfig:
    """The TransformerLens configuration of a checkpoint.

    TransformerLens chooses its branch by the directory's name ("llama", "gemma", ...): it sees the configuration
    through a neutrally named copy.  What it then reads wrong or not at all is put right.

    Args:
        directory: named in errors.
        config: from `read_config`.
        given: fields of our own: device, dtype, default_prepend_bos.

    Raises:
        BadModel: the architecture is not supported.
    """
    architecture = config["architectures"][0]
    with tempfile.TemporaryDirectory(prefix="checkpoint_") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            theirs = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if architecture in ("GemmaForCausalLM", "Gemma2ForCausalLM"):
                values = _gemma(theirs, architecture)
            else:
                values = {**loading.convert_hf_model_config(folder), **_corrections(theirs, architecture)}
            values |= _windows(theirs, values)
            values |= {"model_name": directory.resolve().name, "init_weights": False, "trust_remote_code": False}
            return HookedTransformerConfig.from_dict({**values, "from_checkpoint": False, **given})
        except CONVERSION_ERRORS as error:
            raise BadModel(
                f"model directory {directory}: architecture {architecture} is not supported ({error})"
            ) from error


def _corrections(theirs: Any, architecture: str) -> dict[str, Any]:
    """Fields that TransformerLens derives from others, where the checkpoint has them of its own."""
    values: dict[str, Any] = {}
    if getattr(theirs, "n_inner", None):
        values["d_mlp"] = theirs.n_inner
    if architecture == "LlamaForCausalLM" and getattr(theirs, "head_dim", None):
        values |= {"d_head": theirs.head_dim, "rotary_dim": theirs.head_dim}
    if architecture in ("MistralForCausalLM", "Qwen3ForCausalLM"):  # cut to 2048, also where that is too long
        values["n_ctx"] = min(2048, theirs.max_position_embeddings)
    return values


def _windows(theirs: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Layers with sliding attention, where the checkpoint names them and the window is shorter than the context."""
    types: Sequence[str] = getattr(theirs, "layer_types", None) or ()
    window = getattr(theirs, "sliding_window", None)
    if not window or window >= values["n_ctx"] or "sliding_attention" not in types:
        return {}
    attention = ["local" if name == "sliding_attention" else "global" for name in types]
    return {"use_local_attn": True, "window_size": window, "attn_types": attention}


def _gemma(theirs: Any, architecture: str) -> dict[str, Any]:
    """Gemma 1 and 2, which TransformerLens knows by the names of the released sizes only."""
    values = {
        "original_architecture": architecture,
        "d_model": theirs.hidden_size,
        "d_head": theirs.head_dim,
        "n_heads": theirs.num_attention_heads,
        "n_key_value_heads": theirs.num_key_value_heads,
        "d_mlp": theirs.intermediate_size,
        "n_layers": theirs.num_hidden_layers,
        "n_ctx": theirs.max_position_embeddings,
        "d_vocab": theirs.vocab_size,
        "eps": theirs.rms_norm_eps,
        "act_fn": theirs.hidden_act if architecture == "GemmaForCausalLM" else theirs.hidden_activation,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": theirs.head_dim,
        "rotary_base": theirs.rope_parameters["rope_theta"],
    }
    if architecture == "Gemma2ForCausalLM":
        values |= {
            "use_normalization_before_and_after": True,
            "attn_scale": theirs.query_pre_attn_scalar**0.5,
            "attn_scores_soft_cap": theirs.attn_logit_softcapping or -1.0,
            "output_logits_soft_cap": theirs.final_logit_softcapping or -1.0,
        }
    return values
