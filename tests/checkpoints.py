"""Small Hugging Face checkpoints with random weights, of every family that is loaded."""

from copy import deepcopy

import torch
from tokenizers import processors
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

SIZES = {"vocab_size": 460, "bos_token_id": 0, "eos_token_id": 0}
GATED = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "head_dim": 8,
}
NEOX = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "gpt2": lambda: GPT2Config(**SIZES, n_positions=64, n_embd=16, n_layer=3, n_head=2, initializer_range=0.3),
    "gptj": lambda: GPTJConfig(
        **SIZES, n_positions=64, n_embd=16, n_layer=3, n_head=2, rotary_dim=4, initializer_range=0.3
    ),
    "neox": lambda: GPTNeoXConfig(**SIZES, **NEOX, num_hidden_layers=3, initializer_range=0.3),
    "llama": lambda: LlamaConfig(**SIZES, **GATED),
    "mistral": lambda: MistralConfig(**SIZES, **GATED),
    "qwen2": lambda: Qwen2Config(**SIZES, **{k: v for k, v in GATED.items() if k != "head_dim"}),
    "qwen3": lambda: Qwen3Config(**SIZES, **GATED),
    "gemma": lambda: GemmaConfig(**SIZES, **GATED),
}
GROUPED = {**GATED, "num_attention_heads": 4, "num_key_value_heads": 2}
GEMMA3 = {
    "query_pre_attn_scalar": 4,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
OLMO2 = {k: v for k, v in GATED.items() if k != "head_dim"}
ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS = {
    "gpt2 with its own d_mlp": lambda: GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_inner=40, n_positions=64),
    "gpt2 untied": lambda: GPT2Config(
        **SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=64, tie_word_embeddings=False
    ),
    "neox, one after the other": lambda: GPTNeoXConfig(
        **SIZES, **NEOX, num_hidden_layers=2, use_parallel_residual=False
    ),
    "llama, grouped, wide heads": lambda: LlamaConfig(**SIZES, **GROUPED),
    "llama, tied": lambda: LlamaConfig(**SIZES, **GATED, tie_word_embeddings=True),
    "llama, linear positions": lambda: LlamaConfig(
        **SIZES, **GATED, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    ),
    "llama 3 positions": lambda: LlamaConfig(
        **SIZES, **GROUPED, rope_parameters={**ROPE, "original_max_position_embeddings": 32}
    ),
    "mistral, window": lambda: MistralConfig(**SIZES, **GROUPED, sliding_window=8),
    "qwen2, window in some layers": lambda: Qwen2Config(
        **SIZES,
        **{k: v for k, v in GROUPED.items() if k != "head_dim"},
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
    ),
    "gemma, one key": lambda: GemmaConfig(**SIZES, **{**GROUPED, "num_key_value_heads": 1}),
    "gemma2": lambda: Gemma2Config(**SIZES, **GROUPED, query_pre_attn_scalar=4, sliding_window=8),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, **GROUPED, **GEMMA3),
    "gemma3, untied, one key": lambda: Gemma3TextConfig(
        **SIZES, **{**GROUPED, "num_key_value_heads": 1}, **GEMMA3, tie_word_embeddings=False
    ),
    "gemma3, capped, window beyond the context": lambda: Gemma3TextConfig(
        **SIZES, **GATED, **{**GEMMA3, "sliding_window": 4096}, final_logit_softcapping=3.0
    ),
    "gemma3, linear positions": lambda: Gemma3TextConfig(
        **SIZES,
        **GROUPED,
        **GEMMA3,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "olmo2": lambda: Olmo2Config(**SIZES, **OLMO2),
    "olmo2, grouped, tied": lambda: Olmo2Config(
        **SIZES, **{**OLMO2, "num_attention_heads": 4}, tie_word_embeddings=True
    ),
}
MISUNDERSTOOD = {
    "biases that have no place": lambda: LlamaConfig(**SIZES, **GATED, attention_bias=True),
}
LONG = {
    "llama": (lambda: LlamaConfig(**SIZES, **{**GATED, "max_position_embeddings": 8192}), False),
    "mistral": (
        lambda: MistralConfig(**SIZES, **{**GATED, "max_position_embeddings": 8192}, sliding_window=4096),
        False,
    ),
    "gemma3": (
        lambda: Gemma3TextConfig(
            **SIZES, **{**GATED, "max_position_embeddings": 8192}, **{**GEMMA3, "sliding_window": 512}
        ),
        True,
    ),
    "gemma3, long window": (
        lambda: Gemma3TextConfig(
            **SIZES, **{**GATED, "max_position_embeddings": 8192}, **{**GEMMA3, "sliding_window": 4096}
        ),
        True,
    ),
}
"""Checkpoints with more positions than are kept, and whether their sliding windows are kept."""
SCALED = {
    "dynamic": lambda: LlamaConfig(
        **SIZES, **GATED, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    ),
    "llama3": lambda: Gemma3TextConfig(
        **SIZES,
        **GATED,
        **GEMMA3,
        rope_parameters={
            "full_attention": {**ROPE, "original_max_position_embeddings": 32},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
}
"""Checkpoints whose rotary positions are scaled in a way that is refused, by the name of the scaling."""


def save_random(config, tokenizer, folder, seed=0):
    """A checkpoint with random weights, biases included, as `save_pretrained` writes it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.3)
            elif p.ndim == 1:
                p.add_(0.2 * torch.randn(p.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def tokenizer_beginning_with_bos(tokenizer, ends=False):
    """A copy of the tokenizer that puts BOS before every text, and if `ends`, EOS after it."""
    begun = deepcopy(tokenizer)
    bos, after = tokenizer.bos_token, f" {tokenizer.eos_token}" if ends else ""
    begun.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A{after}", pair=f"{bos} $A $B{after}", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return begun
