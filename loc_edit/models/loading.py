"""Loading of models, without weight processing: built in, by name, from a directory or a GGUF file, or on the hub."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from loc_edit.arguments import checked
from loc_edit.files import DATA
from loc_edit.models.adapter import lens
from loc_edit.models.catalog import model_directory
from loc_edit.models.checkpoints import hooked_config, hugging_face_config, read_config, refusing, shard_names
from loc_edit.models.checks import HALF, BadModel, check_numbers, check_unprocessed
from loc_edit.models.model import Model, logits_at
from loc_edit.models.named import NAMED
from loc_edit.models.passes import run_layers
from loc_edit.names import nearest

BUILTIN = DATA / "model"

PROBE_LENGTH = 16


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, and the warning that `HookedTransformer` is deprecated."""
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*HookedTransformer.*deprecated", category=DeprecationWarning)
            yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()


@checked
def load_model(
    source: str | Path | Model = "builtin",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    prepend_bos: bool | None = None,
    accept_terms: bool = False,
) -> Model:
    """A model with the checkpoint's own weights: nothing folded, nothing centered.

    With TransformerLens 3 it is a `HookedTransformer`, with TransformerLens 4 a `TransformerBridge`.

    A named model is downloaded once.  It and GGUF files are converted once, into directories in the cache.

    A directory is read without a network, with about one copy of the weights in memory; before the model is returned,
    its logits on a few tokens are compared with Hugging Face's.  Tests cover directories of GPT-2, GPT-J, GPT-NeoX
    (Pythia), Llama, Mistral, Qwen 2 and 3, Gemma 1, 2 and 3, and OLMo 2; other architectures that TransformerLens
    converts may work.

    Args:
        source: `"builtin"`; a named model, such as `"smollm2"` (`loc-edit models` lists them); a local Hugging Face
            directory; a GGUF file; a hub name that TransformerLens knows; or a loaded model (then only `prepend_bos`
            and `device` apply).
        device: the model's device; by default CUDA if there is one, else the CPU.
        dtype: of the weights.  In half precision, activations are rounded to it; a warning says so.
        prepend_bos: whether prompts start with the BOS token.  By default they do if the tokenizer, called with its
            own defaults, begins a text with it (a loaded model keeps its configuration's choice).  Other tokens that
            a tokenizer adds, such as T5's end of the text, are never part of a prompt.
        accept_terms: whether the user accepts the terms of a named model that has some; needed before its download.

    Returns:
        The model in evaluation mode, parameters without gradients.

    Raises:
        TermsNotAccepted: the named model is not in the cache, and has terms that must be accepted.
        BadModel: the source is neither a known name nor a model directory nor a GGUF file that can be rebuilt; it
            cannot be downloaded; its weights are incomplete, or give other logits than Hugging Face's; a loaded
            model's weights are processed (see `check_unprocessed`); there is no fast tokenizer; or `prepend_bos` is
            true, but the tokenizer has no BOS token.
    """
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise BadModel(f"model {source!s}: device {device!r}: {str(error).splitlines()[0]}") from error
    if not dtype.is_floating_point:
        raise BadModel(f"model {source!s}: expected weights of floats, got {dtype}")
    with quiet():
        if isinstance(source, Model):
            check_unprocessed(source)
            try:
                model = lens.adopt(source, device)
            except ValueError as error:
                raise BadModel(f"model {getattr(source.cfg, 'model_name', '')}: {error}") from error
        elif str(source) == "builtin":
            model = read_builtin(device=device, dtype=dtype)
        elif directory := model_directory(source, accept_terms=accept_terms):
            model = _load_directory(directory, device, dtype)
            if directory != Path(source):
                model.cfg.model_name = Path(source).stem
        else:
            model = _load_from_hub(str(source), device, dtype)
    if model.tokenizer is None or not getattr(model.tokenizer, "is_fast", False):
        raise BadModel(
            f"model {source!s}: expected a fast tokenizer, whose character offsets are needed to find subjects"
        )
    if model.cfg.dtype in HALF:
        warnings.warn(
            f"model {model.cfg.model_name} computes in {model.cfg.dtype}: activations and the edited weights are "
            "rounded to it; keys, solves and scores are kept in float32 or better",
            stacklevel=2,
        )
    if prepend_bos is not None:
        if prepend_bos and model.tokenizer.bos_token_id is None:
            raise BadModel(f"model {source!s}: prepend_bos=True, but its tokenizer has no BOS token")
        model.cfg.default_prepend_bos = prepend_bos
    model.tokenizer.padding_side = "right"
    check_numbers(model)
    return lens.prepare(model)


def both_weights(
    base: str | Path | Model, edited: str | Path | Model | Mapping[str, Tensor]
) -> tuple[Model, Mapping[str, Tensor]]:
    """A model, and the weights of another version of it by the names of the model's parameters.

    Args:
        base: what `load_model` takes.
        edited: what `load_model` takes; or a state dictionary, with the names of the model's parameters, or of the
            Hugging Face checkpoint if `base` is its directory.
    """
    model = base if isinstance(base, Model) else load_model(base)
    if isinstance(edited, Mapping) and not set(edited) <= set(cast(Any, model).state_dict()):
        return model, lens.named_weights(_load_tensors(base, edited))
    if isinstance(edited, Mapping):
        return model, {**lens.named_weights(model), **edited}
    other = edited if isinstance(edited, Model) else load_model(edited, device=model.cfg.device)
    return model, lens.named_weights(other)


def _load_tensors(base: str | Path | Model, tensors: Mapping[str, Tensor]) -> Model:
    """The model of a Hugging Face directory with other tensors in the place of its own."""
    directory = None if isinstance(base, Model) else model_directory(base)
    if directory is None:
        unknown = next(iter(sorted(tensors)))
        raise BadModel(f"tensor {unknown}: expected names of the model's parameters, or a base that is a directory")
    with tempfile.TemporaryDirectory(prefix="edited_") as folder:
        for path in directory.iterdir():
            if path.suffix in (".json", ".model", ".txt") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, Path(folder) / path.name)
        own = {name: value.contiguous().clone() for name, value in tensors.items()}
        save_file(own, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return load_model(folder)


def read_builtin(
    folder: Path = BUILTIN, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Model:
    """The model that ships with the package, or a folder of the same form: configuration, weights and tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        name_or_path="builtin",  # given a bos_token, TransformerLens would look up this name on the hub
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    weights = load_file(folder / "model.safetensors")
    weights.setdefault("unembed.W_U", weights["embed.W_E"].T)
    try:
        return lens.native(config, weights, fast, device, dtype)
    except KeyError as error:
        raise BadModel(f"model builtin: weights missing from the package: {error.args[0]}") from error


def _load_directory(directory: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """A local Hugging Face checkpoint, without a network.

    transformers maps the weights of safetensors files in the right dtype without reading them.  Each weight is copied
    into the new model and released, so that there is never a whole second copy.
    """
    config = read_config(directory)
    cfg = hooked_config(directory, config, device=str(device), dtype=dtype)
    hf_config = hugging_face_config(directory, config)
    fast = _read_tokenizer(directory, hf_config, cfg)
    hf_model = _read_weights(directory, hf_config, dtype)
    tokens = torch.randint(cfg.d_vocab, (min(PROBE_LENGTH, cfg.n_ctx),), generator=torch.Generator().manual_seed(0))
    with refusing(f"model directory {directory}: its weights cannot be converted"):
        with torch.inference_mode():
            hf_logits = hf_model(tokens[None]).logits[0].float()
        model, weights = lens.from_hugging_face(hf_model, cfg, hf_config, str(directory.resolve()))
        del hf_model
        _fill(model, weights)
    _give_tokenizer(model, fast)
    _compare(model, directory, tokens, hf_logits)
    return model


def _read_tokenizer(directory: Path, hf_config: Any, cfg: Any) -> Any:
    """The directory's tokenizer; refused if it has tokens without an embedding in the model."""
    with refusing(f"model directory {directory}: its tokenizer cannot be read"):
        fast = AutoTokenizer.from_pretrained(
            directory, config=hf_config, local_files_only=True, trust_remote_code=False
        )
        tried = fast("a", add_special_tokens=False)["input_ids"]
    if not tried:  # without files, transformers makes an empty tokenizer
        raise BadModel(f"model directory {directory}: no tokenizer in it")
    if (largest := max(fast.get_vocab().values())) >= cfg.d_vocab:
        raise BadModel(
            f"model directory {directory}: expected token ids below the model's vocabulary size {cfg.d_vocab}, "
            f"but its tokenizer has token {largest}"
        )
    return fast


def _read_weights(directory: Path, hf_config: Any, dtype: torch.dtype) -> Any:
    """The directory's model as transformers loads it; refused if weights are missing or of another shape."""
    shard_names(directory)  # refuses an index that leads outside
    with refusing(f"model directory {directory}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=hf_config,  # config.json itself may select code
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            attn_implementation="eager",  # every architecture has it, soft caps included
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
    hf_model, report = loaded
    for name, shape, expected in report["mismatched_keys"]:
        raise BadModel(
            f"model directory {directory}: tensor {name}: expected shape {list(expected)}, got {list(shape)}"
        )
    missing = sorted(map(str, report["missing_keys"]))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BadModel(f"model directory {directory}: weights missing: {', '.join(missing[:3])}{more}")
    return hf_model.eval()


@torch.no_grad()
def _fill(model: Model, weights: dict[str, Tensor]) -> None:
    """Copy the weights into the model, and release each one after its copy."""
    own = cast(Any, model).state_dict()
    for name in list(weights):
        value = weights.pop(name)
        if name in own:
            own[name].copy_(value)


@torch.inference_mode()
def _compare(
    model: Model, directory: Path, tokens: Int[Tensor, " pos"], hf_logits: Float[Tensor, "pos d_vocab"]
) -> None:
    """Refuse a model whose logits differ from Hugging Face's: its configuration was misunderstood."""
    with refusing(f"model directory {directory}: it does not run in {model.cfg.dtype}"):
        final = run_layers(model, tokens[None].to(model.cfg.device), stop=model.cfg.n_layers)
        logits = logits_at(model, final)[0].float().cpu()
    error = ((logits - hf_logits).square().mean() / hf_logits.square().mean()).sqrt().item()
    rough = model.cfg.dtype in HALF or (model.cfg.device != "cpu" and torch.backends.cuda.matmul.allow_tf32)
    if not error <= (0.1 if rough else 1e-3):
        check_numbers(model)
        raise BadModel(
            f"model directory {directory}: its logits as a {lens.KIND} differ from Hugging Face's by {error:.1%} "
            "of their size; something in its configuration is not supported"
        )


def _load_from_hub(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """A checkpoint on the hub, by a name that TransformerLens knows."""
    try:
        lens.hub_name(name)
    except ValueError as error:
        raise BadModel(
            f"model {name!r}: there is no such directory, no such GGUF file, and no such name that TransformerLens "
            f"knows; {nearest(name, ['builtin', *NAMED])}"
        ) from error
    with refusing(f"model {name!r}: cannot be downloaded or read"):
        model, tokenizer_name = lens.from_hub(name, device, dtype)
        fast = AutoTokenizer.from_pretrained(tokenizer_name, trust_remote_code=False)
    _give_tokenizer(model, fast)
    return model


def _give_tokenizer(model: Model, fast: Any) -> None:
    """Give the model a tokenizer, and begin texts as the tokenizer does when it is called with its defaults."""
    fast.pad_token = fast.pad_token or fast.eos_token
    first = fast("a")["input_ids"][:1]
    begins_with_bos = fast.bos_token_id is not None and first == [fast.bos_token_id]
    lens.give_tokenizer(model, fast)
    model.cfg.tokenizer_prepends_bos = model.cfg.default_prepend_bos = begins_with_bos
