"""The shapes of `conftest` in TransformerLens 4: Hugging Face models with random weights, in a `TransformerBridge`."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, GPTJConfig, LlamaConfig, Olmo2Config

from loc_edit.models.adapter import lens
from loc_edit.models.checkpoints import hooked_config, hugging_face_config, read_config

KNOWN = {
    "n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_mlp", "d_vocab", "act_fn", "normalization_type",
    "model_name", "default_prepend_bos", "device", "init_weights", "gated_mlp", "final_rms",
    "positional_embedding_type", "rotary_dim", "parallel_attn_mlp", "rotary_adjacent_pairs",
    "use_normalization_before_and_after", "use_qk_norm", "use_local_attn", "attn_types", "window_size",
    "rotary_base_local", "original_architecture",
}  # fmt: skip


def hugging_face_shape(shape):
    """The configuration in transformers of a shape in the words of TransformerLens 3."""
    if unknown := {name for name, value in shape.items() if name not in KNOWN}:
        pytest.skip(f"TransformerLens 4 has no model with {', '.join(sorted(unknown))}")
    if shape.get("positional_embedding_type", "standard") not in ("standard", "rotary"):
        pytest.skip("TransformerLens 4 has no model with such positions")
    if shape["normalization_type"] is None:
        pytest.skip("TransformerLens 4 has no model without norms")
    ids = {"vocab_size": shape["d_vocab"], "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    old = {"n_embd": shape["d_model"], "n_layer": shape["n_layers"], "n_head": shape["n_heads"]}
    old |= {"n_positions": shape["n_ctx"], "n_inner": shape["d_mlp"], **ids}
    new = {
        "hidden_size": shape["d_model"],
        "intermediate_size": shape["d_mlp"],
        "num_hidden_layers": shape["n_layers"],
        "num_attention_heads": shape["n_heads"],
        "num_key_value_heads": shape["n_heads"],
        "max_position_embeddings": shape["n_ctx"],
        "tie_word_embeddings": False,
        **ids,
    }
    if shape.get("parallel_attn_mlp"):
        return GPTJConfig(**old, rotary_dim=shape["rotary_dim"])
    if not shape.get("gated_mlp"):
        return GPT2Config(**old, tie_word_embeddings=False)
    if shape.get("use_normalization_before_and_after"):
        kinds = {"local": "sliding_attention", "global": "full_attention"}
        return Gemma3TextConfig(
            **new,
            head_dim=shape["d_head"],
            query_pre_attn_scalar=shape["d_head"],
            sliding_window=shape["window_size"],
            layer_types=[kinds[name] for name in shape["attn_types"]],
            hidden_activation="silu",
        )
    return (Olmo2Config if shape.get("original_architecture") else LlamaConfig)(**new)


def random_bridge(tokenizer, seed, shape):
    """A bridge of the shape, with random weights so large that a patch or an edit changes its answer."""
    config = hugging_face_shape(shape)
    hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    config.architectures = [type(hf_model).__name__]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config.to_dict(), default=str))
        read = read_config(Path(folder))
        cfg = hooked_config(Path(folder), read, device="cpu", dtype=torch.float32)
        hf_config = hugging_face_config(Path(folder), read)
    cfg.model_name = shape["model_name"]
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in hf_model.parameters():
            p.zero_()
        model, _ = lens.from_hugging_face(hf_model, cfg, hf_config, "")
        lens.give_tokenizer(model, tokenizer)
        for name, p in sorted(lens.named_weights(model).items()):
            part = name.split(".")[-1]
            noise = torch.randn(p.shape, generator=draws)
            offset = 1 if "gemma" in type(hf_model).__name__.lower() else 0
            if part == "w":
                after_mlp = name.endswith("ln2.w" if config.model_type == "olmo2" else "ln2_post.w")
                p.copy_(0.5 * noise.exp() - offset if after_mlp else 1 - offset + 0.2 * noise)
            elif part == "b" or part.startswith("b_"):
                p.copy_(0.3 * noise)
            elif part in ("W_E", "W_pos", "weight"):
                p.copy_({"W_E": 1.0, "W_pos": 0.5, "weight": shape["d_model"] ** -0.5}[part] * noise)
            else:
                p.copy_((1.2 if part == "W_U" else 1) * 1.6 * p.shape[-2] ** -0.5 * noise)
    model.cfg.default_prepend_bos = shape["default_prepend_bos"]
    model.cfg.tokenizer_prepends_bos = False
    return model
