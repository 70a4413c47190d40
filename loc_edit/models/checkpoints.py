"""Hugging Face checkpoints: the names of the MLP output weights, and a configuration for TransformerLens."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from loc_edit.arguments import Count, fits, fitted, words
from loc_edit.files import join_inside
from loc_edit.models.adapter import lens
from loc_edit.models.checks import BadModel
from loc_edit.models.model import Model, W_out, b_out

LONGEST_CONTEXT = 2048
"""The longest context of a model with rotary positions: no text of a study is longer, and sliding windows from this
length on need no mask of their own."""

REBUILT = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM")
"""Architectures whose configuration is made here, because TransformerLens knows it by model names only."""

OTHER_KEYS = (
    "architectures", "model_type", "n_ctx", "rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_pct",
    "rotary_emb_base", "partial_rotary_factor", "sliding_window_pattern",
)  # fmt: skip
"""Keys of config.json that are kept beside the fields of the architecture's configuration; some are their old names."""

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
    "num_key_value_heads", "max_position_embeddings",
)  # fmt: skip
"""Sizes by which every architecture divides or counts."""


@contextmanager
def refusing(beginning: str) -> Iterator[None]:
    """Turns an error of the disk, TransformerLens or transformers inside the block into a `BadModel`.

    Args:
        beginning: of its message.
    """
    try:
        yield
    except BadModel:
        raise
    except Exception as error:  # libraries for checkpoints, each with errors of its own
        raise BadModel(f"{beginning}: {shorten(str(error) or type(error).__name__, 400)}") from error


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

    Only keys that describe the model are kept.  Others may select code, such as `_attn_implementation`, for which
    transformers would fetch a kernel, or `auto_map`.

    Raises:
        BadModel: there is no such file, it is not a JSON object, names no architecture that is known, or says that the
            weights are quantized.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise BadModel(f"model directory {directory}: no config.json in it")
    with refusing(f"model directory {directory}: config.json is not JSON"):
        config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise BadModel(f"model directory {directory}: expected a JSON object in config.json, got {config!r}")
    if config.get("quantization_config") or (directory / "adapter_config.json").exists():
        raise BadModel(f"model directory {directory}: expected plain weights, got quantized ones or an adapter")
    if not config.get("architectures"):
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type")))
        if not name:
            raise BadModel(f"model directory {directory}: config.json names no architecture")
        config["architectures"] = [name]
    if not fits(config["architectures"], list[str]):
        raise BadModel(
            f"model directory {directory}: config.json: expected architectures to be a list whose entries are each a "
            f"text, got {config['architectures']!r}"
        )
    if config.get("model_type") not in list(CONFIG_MAPPING):
        raise BadModel(
            f"model directory {directory}: config.json: model_type {config.get('model_type')!r} is not one that "
            "transformers knows"
        )
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    with refusing(f"model directory {directory}: config.json"):
        return _known_keys(config, CONFIG_MAPPING[config["model_type"]])


def _known_keys(config: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The keys of a configuration that its class has as fields, by their own or another name, and `OTHER_KEYS`."""
    own = {entry.name for entry in fields(kind)} - {entry.name for entry in fields(PreTrainedConfig)}
    known = {*own, *kind.attribute_map, *OTHER_KEYS}
    return {
        name: _known_keys(value, kind.sub_configs[name]) if name in kind.sub_configs else value
        for name, value in config.items()
        if name in known
    }


def hugging_face_config(directory: Path, config: dict[str, Any]) -> Any:
    """The configuration as transformers has it.

    Args:
        directory: the checkpoint, for errors.
        config: from `read_config`.

    Raises:
        BadModel: a value is of another type, or a size is not at least 1.
    """
    kind = CONFIG_MAPPING[config["model_type"]]
    for name in {*SIZES, *(kind.attribute_map.get(name, name) for name in SIZES)}:
        if (size := config.get(name)) is not None and not fits(size, Count):
            raise BadModel(
                f"model directory {directory}: config.json: expected {name} to be {words(Count)}, got {size!r}"
            )
    with refusing(f"model directory {directory}: config.json"):
        return kind.from_dict(dict(config))


def shard_names(directory: Path) -> list[str]:
    """The names of a checkpoint's safetensors files: one, or those that its index lists.

    Raises:
        BadModel: there are none, or the index cannot be read or names a file outside the directory.
    """
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if not directory.is_dir():
        raise BadModel(f"model directory {directory} does not exist")
    if whole.is_file():
        return [whole.name]
    if not index.is_file():
        raise BadModel(
            f"model directory {directory}: it has no safetensors; write them first: "
            "AutoModelForCausalLM.from_pretrained(directory).save_pretrained(new_directory)"
        )
    with refusing(f"model directory {directory}: {index.name} cannot be read"):
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({*fitted(weight_map, dict[str, str], "weight_map").values()})
        for name in names:
            join_inside(directory, name, links=True)  # the hub's cache has links to the files
    return names


def hooked_config(directory: Path, config: dict[str, Any], **given: Any) -> Any:
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
        hf_config = hugging_face_config(directory, config)
        if architecture in REBUILT:
            values = _rebuilt(hf_config, architecture)
        else:
            values = {**lens.converted(folder, hf_config), **_corrections(hf_config, architecture)}
        if values.get("positional_embedding_type") == "rotary":
            values["n_ctx"] = min(LONGEST_CONTEXT, getattr(hf_config, "max_position_embeddings", values["n_ctx"]))
        values |= _scaling(hf_config, values)
        values |= _windows(hf_config, values)
        values |= {"model_name": directory.resolve().name, "init_weights": False, "trust_remote_code": False}
        values["tokenizer_name"] = None  # TransformerLens puts the name of the temporary folder there
        return lens.configuration_of({**values, **given})


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
