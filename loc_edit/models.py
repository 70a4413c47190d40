"""Load a `HookedTransformer` without weight processing, name its parts, take its fingerprint.

The only room that knows how checkpoints, configurations and the model class behave.
"""

import hashlib
import json
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens import loading_from_pretrained as loading
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

BUILTIN = Path(__file__).parent / "data" / "model"

NO_BOS = ("GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoXForCausalLM", "GPTNeoForCausalLM", "Qwen")
"""Architectures (by prefix) that were trained, and are studied here, without a token at the start."""

POST_NORM = ("Gemma2", "Gemma3", "Olmo2", "Olmo3")


class BadModel(ValueError):
    """A model that cannot be found, read or used for what was asked; the message names it."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the one warning that `HookedTransformer` is going away (the pin keeps it)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HookedTransformer.*deprecated", category=DeprecationWarning)
        yield


def load_model(
    source: str | Path | HookedTransformer = "builtin",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    prepend_bos: bool | None = None,
) -> HookedTransformer:
    """A `HookedTransformer` with the checkpoint's own weights: nothing folded, nothing centred.

    Args:
        source: `"builtin"`, a local Hugging Face directory, a hub name that TransformerLens knows, or a
            model that is loaded already (then only `prepend_bos` and `device` are applied).
        device: where to put it; CUDA if there is one, else the CPU.
        dtype: of the weights.
        prepend_bos: whether prompts start with the BOS token; by default as the family was trained.

    Returns:
        The model in evaluation mode, parameters without gradients.

    Raises:
        BadModel: the source is no known name and no model directory, or the model has no tokenizer.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with quiet():
        if isinstance(source, HookedTransformer):
            model = source.to(device, print_details=False)
        elif str(source) == "builtin":
            model = _load_builtin(device, dtype)
        elif Path(source).is_dir():
            model = _load_directory(Path(source), device, dtype, prepend_bos)
        else:
            model = _load_from_hub(str(source), device, dtype, prepend_bos)
    if model.tokenizer is None or not getattr(model.tokenizer, "is_fast", False):
        raise BadModel(f"model {source!s}: a fast tokenizer (with character offsets) is needed to find subjects")
    if prepend_bos is not None:
        model.cfg.default_prepend_bos = prepend_bos
    model.tokenizer.padding_side = "right"
    return model.eval().requires_grad_(False)


def _load_builtin(device: torch.device, dtype: torch.dtype) -> HookedTransformer:
    """The model that ships with the package: TransformerLens configuration, weights, tokenizer."""
    config = json.loads((BUILTIN / "config.json").read_text())
    cfg = HookedTransformerConfig.from_dict({**config, "device": str(device), "dtype": dtype})
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(BUILTIN / "tokenizer.json"),
        name_or_path="builtin",  # TransformerLens reads it back; with a bos_token it would ask the hub for it
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    model = HookedTransformer(cfg, fast, move_to_device=True)
    weights = load_file(BUILTIN / "model.safetensors")
    weights.setdefault("unembed.W_U", weights["embed.W_E"].T)
    missing = set(dict(model.named_parameters())) - set(weights) - {"unembed.b_U"}
    if missing:
        raise BadModel(f"model builtin: weights missing from the package: {', '.join(sorted(missing))}")
    model.load_state_dict({name: w.to(device, dtype) for name, w in weights.items()}, strict=False)
    return model


def _load_directory(
    directory: Path, device: torch.device, dtype: torch.dtype, prepend_bos: bool | None
) -> HookedTransformer:
    """A local Hugging Face checkpoint, offline.

    TransformerLens chooses its branch by name: it sees the configuration through a neutrally named copy,
    completed by the one field that GPT-2 configurations of transformers 5 lack.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise BadModel(f"model directory {directory}: no config.json in it")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise BadModel(f"model directory {directory}: config.json is no JSON: {error}") from error
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])
    architecture = (config.get("architectures") or ["?"])[0]
    try:
        fast = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        hf_model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"model directory {directory}: {error}") from error
    if not fast("a", add_special_tokens=False)["input_ids"]:  # what transformers makes of no files at all
        raise BadModel(f"model directory {directory}: no tokenizer in it")
    fast.name_or_path = fast.name_or_path or "local"
    with tempfile.TemporaryDirectory(prefix="checkpoint_") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            cfg = loading.get_pretrained_model_config(
                folder,
                fold_ln=False,
                default_prepend_bos=_prepend_bos(architecture, prepend_bos),
                device=str(device),
                dtype=dtype,
            )
        except (NotImplementedError, AttributeError, KeyError) as error:
            raise BadModel(f"model directory {directory}: architecture {architecture} is not supported") from error
        weights = loading.get_pretrained_state_dict(folder, cfg, hf_model, dtype=dtype)
    cfg.model_name = directory.resolve().name
    model = HookedTransformer(cfg, fast, move_to_device=True)
    model.load_and_process_state_dict(
        weights,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    return model.to(device, print_details=False)


def _load_from_hub(name: str, device: torch.device, dtype: torch.dtype, prepend_bos: bool | None) -> HookedTransformer:
    """A checkpoint of the hub, by a name that TransformerLens knows."""
    try:
        loading.get_official_model_name(name)
    except ValueError as error:
        raise BadModel(
            f"model {name!r}: not 'builtin', no directory here, and no hub name that TransformerLens knows"
        ) from error
    try:
        model = HookedTransformer.from_pretrained_no_processing(name, device=device, dtype=dtype)
    except OSError as error:
        raise BadModel(f"model {name!r}: cannot be fetched or read: {error}") from error
    model.cfg.default_prepend_bos = _prepend_bos(model.cfg.original_architecture, prepend_bos)
    return model


def _prepend_bos(architecture: str | None, wanted: bool | None) -> bool:
    """Whether prompts start with BOS: what the caller wants, else as the family was trained."""
    return wanted if wanted is not None else not (architecture or "").startswith(NO_BOS)


def W_out(model: HookedTransformer, layer: int) -> Parameter:
    """The parameter `[d_mlp d_model]` that holds a layer's MLP output weights (`model.W_out` is a copy)."""
    return cast(Parameter, model.blocks[layer].mlp.W_out)


def b_out(model: HookedTransformer, layer: int) -> Parameter:
    """The parameter `[d_model]` that holds a layer's MLP output bias."""
    return cast(Parameter, model.blocks[layer].mlp.b_out)


def has_output_bias(model: HookedTransformer) -> bool:
    """Whether the checkpoint has an MLP output bias (gated MLPs carry a zero that is not theirs)."""
    return not model.cfg.gated_mlp


def tokenizer(model: HookedTransformer) -> Any:
    """The model's tokenizer, whose types Hugging Face leaves open."""
    return model.tokenizer


def embeddings(model: HookedTransformer) -> Float[Tensor, "d_vocab d_model"]:
    """The token embeddings, as `hook_embed` sees them."""
    return model.embed.W_E


def logits_at(
    model: HookedTransformer, residual: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the final residual stream, as `model.forward` ends; for chosen positions only."""
    if model.cfg.normalization_type is not None:
        residual = model.ln_final(residual)
    logits = model.unembed(residual)
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def token_texts(model: HookedTransformer, tokens: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """The text of each token by itself, for labels."""
    return tuple(str(tokenizer(model).decode([i])) for i in tokens.tolist())


def check_layers(model: HookedTransformer, layers: list[int]) -> None:
    """Refuse layers that the model does not have."""
    wrong = [layer for layer in layers if not 0 <= layer < model.cfg.n_layers]
    if wrong or not layers:
        raise ValueError(f"layers {wrong or layers}: {model.cfg.model_name} has layers 0 to {model.cfg.n_layers - 1}")


def check_editable(model: HookedTransformer) -> None:
    """Refuse a model in which `hook_mlp_out` is not `hook_post @ W_out + b_out`.

    Raises:
        BadModel: normalisation after the MLP, experts, or no MLP.
    """
    name, cfg = model.cfg.model_name, model.cfg
    if cfg.use_normalization_before_and_after or (cfg.original_architecture or "").startswith(POST_NORM):
        raise BadModel(
            f"model {name}: a norm follows the MLP, so hook_mlp_out is not hook_post @ W_out + b_out; "
            "it can be traced, not edited"
        )
    if cfg.attn_only or getattr(cfg, "num_experts", None):
        raise BadModel(f"model {name}: each layer must have one MLP to be edited")


_FINGERPRINTS: "WeakKeyDictionary[HookedTransformer, tuple[tuple[int, ...], str]]" = WeakKeyDictionary()


def fingerprint(model: HookedTransformer) -> str:
    """A short hash of all that makes the model compute what it computes: weights, shape, BOS, tokenizer.

    Kept until a parameter is written again (an edit and its undo both count as writing).
    """
    parameters = dict(model.named_parameters())
    versions = (
        int(model.cfg.default_prepend_bos),
        *(n for p in parameters.values() for n in (p._version, p.data_ptr())),
    )
    known = _FINGERPRINTS.get(model)
    if known and known[0] == versions:
        return known[1]
    digest = hashlib.sha256()
    cfg = {k: v for k, v in sorted(model.cfg.to_dict().items()) if k not in ("device", "seed", "tokenizer_name")}
    digest.update(json.dumps(cfg, default=str, sort_keys=True).encode())
    digest.update(tokenizer_fingerprint(model).encode())
    for name, parameter in sorted(parameters.items()):
        digest.update(name.encode())
        data = parameter.detach().to("cpu").contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    _FINGERPRINTS[model] = (versions, digest.hexdigest()[:16])
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(model: HookedTransformer) -> str:
    """A short hash of the tokenizer: its vocabulary, merges and rules."""
    return hashlib.sha256(tokenizer(model).backend_tokenizer.to_str().encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, and the device they are computed on."""
    names = ("loc-edit", "torch", "transformer-lens", "transformers", "numpy", "pandas")
    found = {name: version(name) for name in names}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {**found, "python": platform.python_version(), "device": device}
