"""The configuration that TransformerLens 3 makes of a model, for TransformerLens 4, which keeps another one.

Both versions must give the same model the same fingerprint, so that a run goes on in either.  A fingerprint stands for
the configuration of version 3 as it is in 3.9, with every field; a test compares this file with it.
"""

from collections.abc import Mapping
from typing import Any

import torch

DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "attn_types", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "clip_qkv",
            "decoder_start_token_id", "experts_per_token", "n_key_value_heads", "num_experts", "original_architecture",
            "quantization_method", "relative_attention_max_distance", "relative_attention_num_buckets",
            "rotary_base_local", "rotary_dim", "seed", "tokenizer_name", "tokenizer_prepends_bos", "train_seq_length",
            "window_size",
        )
    ),
    **dict.fromkeys(
        (
            "attn_only", "final_rms", "from_checkpoint", "gated_mlp", "layer_norm_folding", "load_in_4bit",
            "norm_topk_prob", "parallel_attn_mlp", "post_embedding_ln", "rotary_adjacent_pairs",
            "scale_attn_by_inverse_layer_idx", "tie_word_embeddings", "trust_remote_code",
            "ungroup_grouped_query_attention", "use_NTK_by_parts_rope", "use_attention_sinks", "use_attn_in",
            "use_attn_result", "use_dynamic_ntk_rope", "use_hook_mlp_in", "use_hook_tokens", "use_local_attn",
            "use_logn_attn", "use_normalization_before_and_after", "use_qk_norm", "use_split_qkv_input",
            "use_yarn_rope", "uses_rms_norm", "yarn_global_attn_only",
        ),
        False,
    ),
    "NTK_by_parts_factor": 8.0,
    "NTK_by_parts_high_freq_factor": 4.0,
    "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_original_ctx_len": 8192,
    "attention_dir": "causal",
    "attn_scale": -1.0,
    "attn_scores_soft_cap": -1.0,
    "default_prepend_bos": True,
    "dtype": torch.float32,
    "eps": 1e-5,
    "init_mode": "gpt2",
    "init_weights": True,
    "n_devices": 1,
    "normalization_type": "LN",
    "output_logits_soft_cap": -1.0,
    "positional_embedding_type": "standard",
    "rotary_base": 10000,
    "rotary_scaling_factor": 1.0,
    "use_attn_scale": True,
    "yarn_attention_factor": 1.0,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_factor": 1.0,
    "yarn_original_max_position_embeddings": 4096,
    "yarn_truncate": True,
}  # fmt: skip

TAKEN_OVER: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"positional_embedding_type": "standard"},
    "GPTJForCausalLM": {"parallel_attn_mlp": True, "rotary_adjacent_pairs": True},
    "GPTNeoXForCausalLM": {"default_prepend_bos": False},
    "LlamaForCausalLM": {"final_rms": True},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"final_rms": True, "default_prepend_bos": False, "tokenizer_prepends_bos": True},
    "Qwen3ForCausalLM": {"final_rms": True, "default_prepend_bos": False, "tokenizer_prepends_bos": True},
}
"""Architectures whose configuration is made here as in version 3, and fields that all their models share."""


def converted(hf_config: Any, architecture: str) -> dict[str, Any]:
    """The fields that TransformerLens 3 reads from a checkpoint's configuration.

    Args:
        hf_config: the checkpoint's configuration in transformers.
        architecture: one of `TAKEN_OVER`.
    """
    rotary = architecture != "GPT2LMHeadModel"
    gated = architecture not in ("GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoXForCausalLM")
    n_heads, d_model = hf_config.num_attention_heads, hf_config.hidden_size
    d_head = getattr(hf_config, "head_dim", None) or d_model // n_heads
    values = {
        "d_model": d_model,
        "d_head": d_head,
        "n_heads": n_heads,
        "d_mlp": getattr(hf_config, "intermediate_size", None) or 4 * d_model,
        "n_layers": hf_config.num_hidden_layers,
        "n_ctx": hf_config.max_position_embeddings,
        "d_vocab": hf_config.vocab_size,
        "original_architecture": architecture,
        **TAKEN_OVER[architecture],
    }
    if architecture == "GPTNeoXForCausalLM":
        values |= {"act_fn": hf_config.hidden_act, "eps": hf_config.layer_norm_eps}
        values |= {"parallel_attn_mlp": hf_config.use_parallel_residual}
    elif not gated:
        values |= {"act_fn": hf_config.activation_function, "eps": hf_config.layer_norm_epsilon}
    if rotary:
        rope = getattr(hf_config, "rope_parameters", None) or {}
        share = rope.get("partial_rotary_factor", getattr(hf_config, "rotary_pct", 1.0))
        values |= {"positional_embedding_type": "rotary", "rotary_dim": round(share * d_head)}
        if architecture == "GPTJForCausalLM":
            values["rotary_dim"] = hf_config.rotary_dim
    if gated:
        values |= {"act_fn": hf_config.hidden_act, "eps": hf_config.rms_norm_eps, "normalization_type": "RMS"}
        values |= {"gated_mlp": True, "rotary_base": rope["rope_theta"]}
        if hf_config.num_key_value_heads != n_heads or architecture in ("MistralForCausalLM", "Qwen2ForCausalLM"):
            values["n_key_value_heads"] = hf_config.num_key_value_heads
    if architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        values |= {"initializer_range": hf_config.initializer_range, "rotary_base": int(rope["rope_theta"])}
        values["use_qk_norm"] = architecture == "Qwen3ForCausalLM"
    if rotary and gated and rope.get("rope_type") == "llama3":
        values |= {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": rope.get("original_max_position_embeddings", 8192),
            "NTK_by_parts_low_freq_factor": rope.get("low_freq_factor", 1.0),
            "NTK_by_parts_high_freq_factor": rope.get("high_freq_factor", 4.0),
            "NTK_by_parts_factor": rope.get("factor", 1.0),
        }
    return values


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """All fields: the given ones, defaults, and those that follow from others."""
    cfg = {**DEFAULTS, **values}
    cfg.setdefault("d_vocab_out", cfg["d_vocab"])
    cfg.setdefault("initializer_range", 0.8 / cfg["d_model"] ** 0.5)
    if cfg["positional_embedding_type"] == "rotary" and cfg["rotary_dim"] is None:
        cfg["rotary_dim"] = cfg["d_head"]
    if cfg["use_attn_scale"] and cfg["attn_scale"] == -1.0:
        cfg["attn_scale"] = cfg["d_head"] ** 0.5
    of_attention = 4 * cfg["d_head"] * cfg["n_heads"]
    cfg["n_params"] = cfg["n_layers"] * cfg["d_model"] * (of_attention + cfg["d_mlp"] * (2 + cfg["gated_mlp"]))
    return cfg
