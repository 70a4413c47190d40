"""GGUF files: checked before any library reads them, and converted into Hugging Face directories in fp32.

Transformers dequantizes the weights and rebuilds the tokenizer.  But it allocates what a file claims to hold, and it
ignores rope scaling, fields and rules that it does not know.  So the header is checked here first.
"""

import json
import re
from contextlib import redirect_stderr
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from loc_edit.models.checks import BadModel
from loc_edit.models.gguf_header import Header, read_header, refuse_file

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3")
"""The architectures, as GGUF calls them, that are read: those that the tests cover."""

FIELDS = (
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.sliding_window"),
    *("rope.dimension_count", "rope.freq_base", "attn_logit_softcapping", "final_logit_softcapping"),
)
"""The fields of an architecture that describe the model completely; others would be ignored."""

_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

SPLITS = {
    **dict.fromkeys(("gpt-2", "olmo", "mpt", "jais", "phi-2"), (_GPT2_SPLIT,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (r"\p{N}", _GPT2_SPLIT)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"), (_LLAMA3_SPLIT,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (_QWEN2_SPLIT,)),
}
"""By the name of a pre-tokenizer (`tokenizer.ggml.pre`), the patterns by which it splits a text before its merges."""

WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
"""Pre-tokenizers of vocabularies whose words are taken whole before any merge; they add BOS unless the file says no."""

PROBE_TEXT = "The year 1987: it's 3.14  times\nas far, déjà vu."
"""A text that a tokenizer must give back unchanged."""


def convert(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face directory: fp32 weights, configuration and tokenizer.

    The weights are those that transformers dequantizes; the tokenizer splits text and begins it as the file says.

    Args:
        path: the file.
        folder: an empty directory.

    Raises:
        BadModel: the file is not a whole GGUF file, or something in it cannot be rebuilt right.
    """
    with redirect_stderr(StringIO()):  # transformers shows bars that cannot be turned off
        try:
            header = read_header(path)
            check_header(path, header)
            model, tokenizer = _read(path, header)
        except BadModel:
            raise
        except Exception as error:  # three libraries read the file, each with errors of its own
            raise BadModel(f"model file {path}: it cannot be read: {type(error).__name__}: {error}") from error
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _read(path: Path, header: Header) -> tuple[Any, Any]:
    """The file's model in fp32 as transformers reads it, and its tokenizer."""
    source = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    config = _read_config(path, header, source)
    check_tensors(path, header, config)
    tokenizer = _read_tokenizer(path, header, source)
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, config=config, dtype=torch.float32, **source)
    model.hf_quantizer = None  # its weights are plain fp32 now, and are to be saved as such
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def check_header(path: Path, header: Header) -> None:
    """Refuse a file with anything that would be rebuilt wrongly, or not at all."""
    metadata, architecture = header.metadata, header.architecture
    if metadata.get("split.count", 1) > 1 or re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        refuse_file(path, "it is one of the parts of a split model; join them with llama-gguf-split --merge")
    if (kind := metadata.get("general.type", "model")) != "model":
        refuse_file(path, f"expected a model, got a GGUF file of type {kind!r}")
    if architecture not in ARCHITECTURES:
        refuse_file(path, f"expected an architecture among {', '.join(ARCHITECTURES)}, got {architecture!r}")
    scaling = {name: value for name, value in header.fields.items() if name.startswith("rope.scal")}
    if scaling.pop("rope.scaling.type", "none") != "none" or any(v != 1 for v in scaling.values()):
        refuse_file(path, "its rotary positions are scaled (rope.scaling), which transformers does not rebuild")
    if "rope_freqs.weight" in header.shapes:
        refuse_file(path, "its rotary positions are scaled (rope_freqs, as in Llama 3.1), which is not rebuilt")
    for name in header.fields:
        if name not in FIELDS:
            refuse_file(
                path, f"its field {architecture}.{name} is not supported, and ignoring it could change the model"
            )
    for name, kind in header.types.items():
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            refuse_file(path, f"its tensor {name} is stored as {kind.name}, which the gguf package cannot dequantize")
    _check_tokenizer(path, metadata)


def _check_tokenizer(path: Path, metadata: dict[str, Any]) -> None:
    """Refuse a tokenizer whose rules are not known."""
    kind, rule = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "none")
    if kind not in ("gpt2", "llama"):
        refuse_file(path, f"expected a tokenizer of kind gpt2 (byte-level BPE) or llama (SentencePiece), got {kind!r}")
    if kind == "gpt2" and rule not in SPLITS:
        refuse_file(path, f"its pre-tokenizer {rule!r} is unknown; known are {', '.join(SPLITS)}")
    if kind == "llama" and rule not in ("none", "default"):
        refuse_file(path, f"expected no pre-tokenizer for a SentencePiece vocabulary, got {rule!r}")
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    if kind == "llama" and prefix == metadata["general.architecture"].startswith("gemma"):
        refuse_file(path, f"expected a vocabulary of this architecture, got one with add_space_prefix = {prefix}")
    if "tokenizer.ggml.tokens" not in metadata or (kind == "gpt2" and "tokenizer.ggml.merges" not in metadata):
        refuse_file(path, "it has no vocabulary, or no merges")


def _read_config(path: Path, header: Header, source: dict[str, Any]) -> Any:
    """The configuration as transformers reads it, completed where it leaves out what the file says."""
    fields = header.fields
    if not 0 < fields.get("block_count", 0) <= len(header.shapes):
        refuse_file(path, f"it claims {fields.get('block_count')} layers and has {len(header.shapes)} tensors")
    if header.architecture.startswith("gemma") and fields["block_count"] in (46, 62):
        refuse_file(
            path, "Gemma 27B scales its attention otherwise than the smaller ones, and its file does not say so"
        )
    config = AutoConfig.from_pretrained(path.parent, **source)
    if header.architecture == "gpt2":
        config.n_positions = fields["context_length"]
        config.n_inner = fields.get("feed_forward_length")
    if "attention.key_length" in fields and hasattr(config, "head_dim"):
        config.head_dim = fields["attention.key_length"]
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.get(name) != (stated := getattr(config, name, None)) and name in fields:
            refuse_file(path, f"its {name} is {fields[name]}, but transformers reads {stated}")
    return config


def check_tensors(path: Path, header: Header, config: Any) -> None:
    """Refuse a file unless it has exactly the tensors that its configuration describes, each of the right size.

    The model is made without memory for its weights, so that a configuration that lies costs nothing.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architectures[header.architecture], config.num_hidden_layers)
    left = dict(header.shapes)
    for parameter, weight in model.named_parameters():
        stem, _, suffix = parameter.rpartition(".")
        name = f"{names.get_name(stem)}.{suffix}"
        if name not in left:
            refuse_file(path, f"tensor {name} ({parameter}) is missing")
        if prod(shape := left.pop(name)) != weight.numel():
            refuse_file(path, f"tensor {name} has shape {list(shape)}, but its fields promise {list(weight.shape)}")
    if left:
        refuse_file(
            path, f"its tensor {next(iter(left))} has no place in a model of architecture {header.architecture}"
        )


def _read_tokenizer(path: Path, header: Header, source: dict[str, Any]) -> Any:
    """The file's tokenizer, which splits texts and begins them as the file says."""
    metadata = header.metadata
    rule, is_bpe = metadata.get("tokenizer.ggml.pre", ""), metadata["tokenizer.ggml.model"] == "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
    backend = _without_added(tokenizer.backend_tokenizer, metadata["tokenizer.ggml.tokens"])
    if is_bpe:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[rule]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        backend.model.ignore_merges = rule in WHOLE_WORDS
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", not is_bpe or rule in WHOLE_WORDS)
    if adds_bos and tokenizer.bos_token_id is None:
        refuse_file(path, "texts are to begin with BOS, but no token is named as BOS")
    if metadata.get("tokenizer.ggml.add_eos_token"):
        refuse_file(path, "texts are to end with EOS, so it is no model that continues them")
    begin = f"{tokenizer.bos_token}:0 " if adds_bos else ""
    special = [(tokenizer.bos_token, tokenizer.bos_token_id)] if adds_bos else []
    backend.post_processor = TemplateProcessing(f"{begin}$A:0", f"{begin}$A:0 {begin}$B:1", special)
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    special_tokens = {role: token for role in roles if (token := getattr(tokenizer, role))}
    # A class of its own would make its rules anew from the vocabulary when the directory is read.
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special_tokens)
    if (text := fast.decode(fast(PROBE_TEXT, add_special_tokens=False)["input_ids"])) != PROBE_TEXT:
        refuse_file(path, f"its tokenizer reads {PROBE_TEXT!r} as {text!r}")
    return fast


def _without_added(backend: Tokenizer, n_tokens: int) -> Tokenizer:
    """The tokenizer without tokens that transformers adds and the file does not have, such as Gemma's `<mask>`."""
    if backend.get_vocab_size() <= n_tokens:
        return backend
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < n_tokens]
    return Tokenizer.from_str(json.dumps(state))
