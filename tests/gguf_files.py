"""Small GGUF files of every architecture that is read, written by the `gguf` package as llama.cpp's converter does."""

import json

import gguf
import numpy as np
import torch
from transformers import Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.auto import AutoModelForCausalLM

SIZES = {
    "vocab_size": 460,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GEMMA = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 256, "bos_token_id": 2, "eos_token_id": 1}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True),
    "llama, untied": lambda: LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2, untied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(
        vocab_size=460, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    ),
    "gpt2, untied": lambda: GPT2Config(
        vocab_size=460, n_positions=64, n_embd=64, n_layer=2, n_head=4, n_inner=96, tie_word_embeddings=False
    ),
    "gemma2": lambda: Gemma2Config(**{**SIZES, **GEMMA}),
    "gemma3": lambda: Gemma3TextConfig(**{**SIZES, **GEMMA, "num_hidden_layers": 7}),
}
"""Seven layers of Gemma 3: the sixth looks at all positions."""


def random_hf_model(name, seed=0):
    """A Hugging Face model of one of `CONFIGS` with random weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def write_gguf(path, model, tokenizer, *, quantized=None, without=(), fields=None, tensors=None, untrue=None):
    """Write a model and its tokenizer.

    Args:
        path: the file.
        model: from `random_hf_model`.
        tokenizer: a byte-level BPE tokenizer; Gemma gets a SentencePiece vocabulary of its own.
        quantized: the type of the matrices, F32 by default.
        without: fields and tensors that are left out.
        fields: fields that are added or replaced, by their full names.
        tensors: tensors that are added.
        untrue: hyperparameters of the architecture that are replaced, by name.
    """
    config = model.config
    architecture = {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    vocabulary = sentencepiece_fields() if architecture.startswith("gemma") else bpe_fields(tokenizer)
    own = {f"{architecture}.{name}": value for name, value in {**hyperparameters(config), **(untrue or {})}.items()}
    for name, value in {**own, **vocabulary, **(fields or {})}.items():
        if name not in without:
            add_field(writer, name, value)
    names = gguf.get_tensor_name_map(
        {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[architecture], config.num_hidden_layers
    )
    for parameter, weight in model.named_parameters():
        stem, _, suffix = parameter.rpartition(".")
        name, value = f"{names.get_name(stem)}.{suffix}", as_written(architecture, parameter, weight.detach(), config)
        if name in without:
            continue
        if quantized is not None and value.ndim == 2:
            writer.add_tensor(name, gguf.quantize(value, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, value)
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_field(writer, name, value):
    """A field of the type that llama.cpp gives it."""
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_uint32(name, value)


def hyperparameters(config):
    """The fields of the architecture."""
    fields = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
    }
    if config.model_type == "gpt2":
        inner = config.n_inner or 4 * config.n_embd
        return {**fields, "feed_forward_length": inner, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
    fields |= {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if config.model_type == "llama":
        fields |= {"rope.dimension_count": config.head_dim, "vocab_size": config.vocab_size}
    if config.model_type in ("gemma2", "gemma3_text", "qwen3"):
        fields |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if config.model_type in ("gemma2", "gemma3_text"):
        fields["attention.sliding_window"] = config.sliding_window
    rope = config.rope_parameters
    return {**fields, "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"])}


def as_written(architecture, parameter, weight, config):
    """A weight in the form in which llama.cpp's converter writes it."""
    if architecture == "llama" and ("q_proj" in parameter or "k_proj" in parameter):
        heads = config.num_attention_heads if "q_proj" in parameter else config.num_key_value_heads
        weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    if architecture == "gpt2" and weight.ndim == 2 and ".h." in parameter:
        weight = weight.T
    if architecture.startswith("gemma") and parameter.endswith("norm.weight"):
        weight = weight + 1
    return weight.contiguous().numpy()


def bpe_fields(tokenizer):
    """The vocabulary and merges of a byte-level BPE tokenizer, whose first token is BOS."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    padding = [f"[PAD{i}]" for i in range(len(tokens), 460)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens + padding,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1) + [5] * len(padding),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }


def sentencepiece_fields():
    """A vocabulary of 460 tokens as Gemma's: special ones, bytes, and pieces with their merges in order."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    letters = "▁etaoinsrhldcumfpgwybvkxjqzETAOINSRHLDCUMFPGWYBVKXJQZ0123456789.,:'-"
    pairs = [a + b for a in "▁etaoin" for b in "etaoinsrhldcu"] + ["the", "▁the", "▁to", "▁is", "▁in"]
    pieces = list(dict.fromkeys([*letters, *pairs]))[: 460 - len(special) - len(byte_tokens)]
    pieces += [f"<unused{i}>" for i in range(460 - len(special) - len(byte_tokens) - len(pieces))]
    tokens = special + byte_tokens + pieces
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1000.0 * (i < 260) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [3, 3, 3, 2] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def logits(model, tokens):
    """The logits of a Hugging Face model, as log-probabilities."""
    with torch.inference_mode():
        return model(tokens).logits.float().log_softmax(-1)


def some_tokens(n=24):
    """Two rows of token ids."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 460, (2, n)))
