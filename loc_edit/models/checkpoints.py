"""Hugging Face checkpoints: the names of the MLP output weights, and a configuration for TransformerLens."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformer_lens import HookedTransformerConfig, loading_from_pretrained as loading
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from loc_edit.models.checks import BadModel
from loc_edit.models.model import Model, W_out, b_out

LONGEST_CONTEXT = 2048
"""The longest context of a model with rotary positions: no text of a study is longer, and sliding windows from this
length on need no mask of their own."""

REBUILT = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM")
"""Architectures whose configuration is made here, because TransformerLens knows it by model names only."""

CONVERSION_ERRORS = (ValueError, AttributeError, KeyError, TypeError, NotImplementedError, RuntimeError, ImportError)
"""The errors of TransformerLens and transformers for checkpoints that they do not expect."""


@contextmanager
def refusing(words: str) -> Iterator[None]:
    """Turns an error of the disk, TransformerLens or transformers inside the block into a `BadModel`.

    Args:
        words: the beginning of its message.
    """
    try:
        yield
    except BadModel:
        raise
    except (OSError, SafetensorError, *CONVERSION_ERRORS) as error:
        raise BadModel(f"{words}: {error}") from error


@dataclass(frozen=True)
class MlpOutput:
    """The names of the tensors in which a checkpoint keeps a layer's MLP output weights.

    Attributes:
        weight: the matrix's name, with `{}` for the layer.
        bias: the bias's name; empty if there is no bias.
        transposed: whether the matrix is stored as `[d_model d_mlp]`.
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
    **{
        f"{family}ForCausalLM": _GATED
        for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Olmo2")
    },
}
"""The names by architecture, as a checkpoint's configuration calls it."""


def mlp_output(model: Model) -> MlpOutput:
    """The names of `W_out` and `b_out` in the model's checkpoint.

    Raises:
        BadModel: the model comes from no checkpoint, or from a checkpoint whose names are not known.
    """
    architecture = model.cfg.original_architecture
    if architecture not in MLP_OUTPUTS:
        raise BadModel(
            f"model {model.cfg.model_name}: Hugging Face names are known for {', '.join(MLP_OUTPUTS)}, "
            f"but not for {architecture or 'a model without a checkpoint'}"
        )
    return MLP_OUTPUTS[architecture]


@torch.no_grad()
def hf_state_dict(model: Model, layers: Iterable[int], biases: Iterable[int] = ()) -> dict[str, Tensor]:
    """Copies of `W_out` of `layers` and `b_out` of `biases` under the checkpoint's names, in its orientation.

    `hf_model.load_state_dict(..., strict=False)` takes them.

    Raises:
        BadModel: as `mlp_output`; or biases are given, but the checkpoint has none.
    """
    names = mlp_output(model)
    biases = list(biases)
    if biases and not names.bias:
        raise BadModel(f"model {model.cfg.model_name}: layer {biases[0]} of its checkpoint has no MLP output bias")
    tensors = {}
    for layer in layers:
        weight = W_out(model, layer).detach()
        tensors[names.weight.format(layer)] = (weight.T if names.transposed else weight).clone().contiguous()
    tensors |= {names.bias.format(layer): b_out(model, layer).detach().clone() for layer in biases}
    return tensors


def read_config(directory: Path) -> dict[str, Any]:
    """A checkpoint's config.json, completed by an architecture and an `n_ctx` where transformers 5 leaves them out.

    Raises:
        BadModel: there is no such file, or it is not a JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise BadModel(f"model directory {directory}: no config.json in it")
    with refusing(f"model directory {directory}: config.json is not JSON"):
        config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise BadModel(f"model directory {directory}: expected a JSON object in config.json, got {config!r}")
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

    TransformerLens looks for names such as "llama" and "gemma" in the directory's name, so it gets the configuration
    in a directory with a neutral name.  Fields that it then reads wrong or not at all are corrected.

    Args:
        directory: the checkpoint, for errors and the model's name.
        config: from `read_config`.
        given: fields that do not come from the checkpoint: device and dtype.

    Raises:
        BadModel: the architecture is not supported.
    """
    architecture = config["architectures"][0]
    refusal = refusing(f"model directory {directory}: architecture {architecture} is not supported")
    with tempfile.TemporaryDirectory(prefix="checkpoint_") as folder, refusal:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        hf_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if architecture in REBUILT:
            values = _rebuilt(hf_config, architecture)
        else:
            values = {**loading.convert_hf_model_config(folder), **_corrections(hf_config, architecture)}
        if values.get("positional_embedding_type") == "rotary":
            values["n_ctx"] = min(LONGEST_CONTEXT, getattr(hf_config, "max_position_embeddings", values["n_ctx"]))
        values |= _scaling(hf_config, values)
        values |= _windows(hf_config, values)
        values |= {"model_name": directory.resolve().name, "init_weights": False, "trust_remote_code": False}
        values["tokenizer_name"] = None  # TransformerLens puts the name of the temporary folder there
        return HookedTransformerConfig.from_dict({**values, "from_checkpoint": False, **given})


def _corrections(hf_config: Any, architecture: str) -> dict[str, Any]:
    """Fields of the checkpoint that TransformerLens ignores, deriving them from other fields."""
    values: dict[str, Any] = {}
    if getattr(hf_config, "n_inner", None):
        values["d_mlp"] = hf_config.n_inner
    if architecture == "LlamaForCausalLM" and getattr(hf_config, "head_dim", None):
        values |= {"d_head": hf_config.head_dim, "rotary_dim": hf_config.head_dim}
    return values


def _scaling(hf_config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The factor of linearly scaled rotary positions; refuses scalings that the configuration does not describe.

    A probe of a few tokens would not show every scaling: many change late positions only.
    """
    rope = getattr(hf_config, "rope_parameters", None) or {}
    whole = rope.get("full_attention", rope)
    kind = whole.get("rope_type", "default")
    described = {"llama3": "use_NTK_by_parts_rope", "yarn": "use_yarn_rope"}
    local = rope.get("sliding_attention", {}).get("rope_type", "default")
    if local != "default" or not (kind in ("default", "linear") or values.get(described.get(kind, ""))):
        raise ValueError(f"rotary positions with {(kind if local == 'default' else local)!r} scaling")
    return {"rotary_scaling_factor": whole["factor"]} if kind == "linear" else {}


def _windows(hf_config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The layers with sliding attention, if the checkpoint has any.

    A window that is not shorter than the context restricts nothing; its layers count as global, unless they have
    rotary positions of their own.
    """
    types: Sequence[str] = getattr(hf_config, "layer_types", None) or ()
    window = getattr(hf_config, "sliding_window", None) or values.get("window_size")
    if window and window >= values["n_ctx"] and "rotary_base_local" not in values:
        return {"use_local_attn": False, "window_size": None, "attn_types": None}
    if not window or "sliding_attention" not in types:
        return {}
    attention = ["local" if name == "sliding_attention" else "global" for name in types]
    return {"use_local_attn": True, "window_size": window, "attn_types": attention}


def _rebuilt(hf_config: Any, architecture: str) -> dict[str, Any]:
    """The configuration of architectures that TransformerLens knows by the names of the released models only."""
    d_head = getattr(hf_config, "head_dim", hf_config.hidden_size // hf_config.num_attention_heads)
    rope = hf_config.rope_parameters
    values = {
        "original_architecture": architecture,
        "d_model": hf_config.hidden_size,
        "d_head": d_head,
        "n_heads": hf_config.num_attention_heads,
        "n_key_value_heads": hf_config.num_key_value_heads,
        "d_mlp": hf_config.intermediate_size,
        "n_layers": hf_config.num_hidden_layers,
        "d_vocab": hf_config.vocab_size,
        "n_ctx": hf_config.max_position_embeddings,
        "eps": hf_config.rms_norm_eps,
        "act_fn": getattr(hf_config, "hidden_activation", None) or hf_config.hidden_act,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        "rotary_base": rope.get("full_attention", rope)["rope_theta"],
    }
    if architecture in ("Gemma2ForCausalLM", "Gemma3ForCausalLM"):
        values |= {
            "use_normalization_before_and_after": True,
            "attn_scale": hf_config.query_pre_attn_scalar**0.5,
            "output_logits_soft_cap": hf_config.final_logit_softcapping or -1.0,
        }
    if architecture == "Gemma2ForCausalLM":
        values["attn_scores_soft_cap"] = hf_config.attn_logit_softcapping or -1.0
    if architecture == "Gemma3ForCausalLM":  # Hugging Face ignores its soft cap of attention scores
        values |= {"use_qk_norm": True, "rotary_base_local": rope["sliding_attention"]["rope_theta"]}
    return values
