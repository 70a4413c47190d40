"""TransformerLens 4: what the package needs of `TransformerBridge`, and how it differs from a `HookedTransformer`.

`adapter` chooses between this file and `hooked`, which has the same functions for TransformerLens 3.  A bridge has the
hook points of a `HookedTransformer` over the modules of Hugging Face:

- Weights are views of Hugging Face's parameters, some of them transposed.  An edit and its undo write through them.
- It runs all layers from the first to the logits.  `run` makes those pass on their input that are not asked for.
- It takes no cached keys and values of single rows, and has no fast layers: callers compute whole rows.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import supported_models
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.exceptions import StopAtLayerException
from transformer_lens.model_bridge.generalized_components import GatedMLPBridge, MLPBridge
from transformer_lens.model_bridge.sources import native as native_models
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from loc_edit.models import fields
from loc_edit.models.bridged_weights import (
    all_weights as all_weights,
    configuration as configuration,
    named_weights as named_weights,
    part_of,
    scale_of,
)
from loc_edit.models.model import Model, replaced
from loc_edit.models.past import Past

KIND = "TransformerBridge"
UNPROCESSED = "TransformerBridge.boot_transformers({!r}) without enable_compatibility_mode()"
"""The line that loads a model of the hub without processing its weights."""

_TUPLES: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()
"""Whether a model's layers put out a tuple, whose first entry is the residual stream."""


def adopt(model: Model, device: torch.device) -> Model:
    """A model that the user has loaded, on the device.

    Raises:
        ValueError: it is no `TransformerBridge` with weights here, has processed weights, or has layers that do not
            add up (see `check_streams`).
    """
    bridge = cast(Any, model)
    if not isinstance(bridge, TransformerBridge):
        raise ValueError(f"expected a {KIND} over weights on this machine, got a {type(model).__name__}")
    if bridge._weights_processed:
        raise ValueError("its weights are processed; ask for enable_compatibility_mode(no_processing=True)")
    bridge.to(device, print_details=False)
    return _named_as_in_3(model)


def _named_as_in_3(model: Any) -> Model:
    """The model with the fields of its configuration that the package reads under another name."""
    if model.cfg.original_architecture is None:
        model.cfg.original_architecture = model.cfg.architecture
    check_streams(model)
    return cast(Model, model)


@torch.inference_mode()
def check_streams(model: Any) -> None:
    """Refuse a model whose attention and MLP outputs do not add up to its residual stream.

    Raises:
        ValueError: names the layer.
    """
    tokens = torch.arange(min(4, model.cfg.d_vocab), device=model.cfg.device)[None]
    names = [f"blocks.{layer}.hook_{site}" for layer in range(model.cfg.n_layers) for site in _SITES]
    allowed = 0.05 if model.cfg.dtype.itemsize < 4 else 1e-4
    with _without_hooks(model):
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in names or name.endswith(_ENDINGS))
    for layer in range(model.cfg.n_layers):
        before, attn_out, mlp_out, after = (cache[f"blocks.{layer}.hook_{site}"] for site in _SITES)
        error = (before + attn_out + mlp_out - after).float().norm() / after.float().norm()
        if error > allowed:  # weights that are no numbers are refused elsewhere
            raise ValueError(
                f"layer {layer}: its attention and MLP outputs do not add up to what it adds to the residual stream "
                f"(an error of {error:.1%}), so that it cannot be traced or edited"
            )


_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
_ENDINGS = ("hook_in", "hook_out")
"""Ends of the names that a bridge itself gives to these hook points."""


def prepare(model: Model) -> Model:
    """The model in evaluation mode, without gradients."""
    return cast(Model, cast(Any, model).eval().requires_grad_(False))


def give_tokenizer(model: Model, fast: Any) -> None:
    """Give the model a tokenizer as it is; the setter would read it once more, so that it puts BOS before texts."""
    cast(Any, model)._tokenizer = fast


def native(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], fast: Any, device: torch.device | str, dtype: torch.dtype
) -> Model:
    """A model of a configuration of TransformerLens 3, with the weights by their names there.

    It is TransformerLens' own small model, in which some layers may see a window of positions only.

    Raises:
        KeyError: weights are missing; its argument names them.
        ValueError: the configuration has something that this model does not have.
    """
    values = {key: value for key, value in config.items() if key != "seed"}
    own = {"init_weights": False, "device": str(device), "dtype": dtype}
    known = {"normalization_type": "LN", "positional_embedding_type": "standard", "parallel_attn_mlp": False}
    for key, only in known.items():
        if values.get(key, only) != only:
            raise ValueError(f"{key} {values[key]!r}: expected {only!r} with TransformerLens 4")
    cfg = TransformerBridgeConfig.from_dict({**values, **own})
    model = cast(Any, native_models).boot(cfg, device=device, dtype=dtype)
    for block, kind in zip(model.blocks, values.get("attn_types") or (), strict=bool(values.get("attn_types"))):
        if kind == "local":
            hidden = block.attn.original_component.causal_mask
            hidden |= torch.ones_like(hidden).tril(-values["window_size"])
    missing = set(named_weights(model)) - set(weights)
    if missing:
        raise KeyError(", ".join(sorted(missing)))
    with torch.no_grad():
        for name, weight in named_weights(model).items():
            weight.copy_(weights[name])
    model.cfg.as_in_3 = {**config, "tokenizer_prepends_bos": False}
    model.cfg.model_name = config.get("model_name", model.cfg.model_name)
    model.cfg.default_prepend_bos = config.get("default_prepend_bos", True)
    model.cfg.tokenizer_prepends_bos = False
    give_tokenizer(model, fast)
    return _named_as_in_3(model)


def converted(folder: str, hf_config: Any) -> dict[str, Any]:
    """The configuration that TransformerLens 3 would make of a checkpoint's.

    Raises:
        ValueError: the architecture is none of those whose configuration is known here.
    """
    architecture = hf_config.architectures[0]
    if architecture not in fields.TAKEN_OVER:
        raise ValueError(f"with TransformerLens 4, expected one of {', '.join(fields.TAKEN_OVER)}")
    return fields.converted(hf_config, architecture)


def configuration_of(values: Mapping[str, Any]) -> Any:
    """The configuration of a checkpoint's model, of its fields."""
    return SimpleNamespace(**values)


def from_hugging_face(hf_model: Any, cfg: Any, hf_config: Any, directory: str) -> tuple[Model, dict[str, Tensor]]:
    """The model over the checkpoint as transformers loads it, and nothing, as it has its weights.

    Args:
        hf_model: the checkpoint as transformers loads it.
        cfg: from `configuration_of`.
        hf_config: the checkpoint's configuration in transformers.
        directory: the checkpoint.

    Raises:
        ValueError: its layers do not add up (see `check_streams`).
    """
    hf_model.to(cfg.device)
    model: Any = build_bridge_from_module(
        hf_model, cfg.original_architecture, hf_config=hf_model.config, device=cfg.device, model_name=cfg.model_name
    )
    model.cfg.n_ctx, model.cfg.as_in_3 = cfg.n_ctx, vars(cfg)
    return _named_as_in_3(model), {}


def hub_name(name: str) -> str:
    """The hub's name of a model.

    Raises:
        ValueError: TransformerLens does not know it.
    """
    return cast(str, cast(Any, supported_models).get_official_model_name(name))


def from_hub(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Model, str]:
    """A checkpoint on the hub, and the name of its tokenizer there."""
    official = hub_name(name)
    model = TransformerBridge.boot_transformers(official, device=device, dtype=dtype)
    return _named_as_in_3(model), official


def takes_past(model: Model) -> bool:
    """Whether `run` can take a `past`: it cannot."""
    return False


def run(
    model: Model,
    given: Tensor,
    start: int | None,
    stop: int,
    past: Past | None,
    mask: Int[Tensor, "row past_and_pos"] | None,
) -> Float[Tensor, "row pos d_model"]:
    """See `passes.run_layers`.

    Layers below `start` pass on what they get; before layer `stop`, or after the last one before the final norm, the
    forward pass ends.
    """
    if past is not None or mask is not None:
        raise ValueError("a TransformerBridge takes no cached keys and values and no mask")
    bridge, options = cast(Any, model), {}
    blocks = list(bridge.blocks)
    if start is not None:
        options["start_at_layer"] = start
    with ExitStack() as stack:
        if start:
            for block in blocks[:start]:
                stack.enter_context(replaced(block, "forward", _pass_on(_gives_tuples(bridge))))
        end = blocks[stop] if stop < len(blocks) else bridge.ln_final
        stack.enter_context(replaced(end, "forward", _stop))
        return cast(Tensor, bridge(given, use_cache=False, **options))


def _stop(*args: Any, **options: Any) -> None:
    """A layer's forward function that ends the pass with what it gets."""
    raise StopAtLayerException(_stream(args, options))


def _pass_on(as_tuple: bool) -> Any:
    """A layer's forward function that puts out what it gets."""

    def forward(*args: Any, **options: Any) -> Any:
        stream = _stream(args, options)
        return (stream,) if as_tuple else stream

    return forward


def _stream(args: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
    return cast(Tensor, args[0] if args else options["hidden_states"])


def _gives_tuples(bridge: Any) -> bool:
    """Whether the layers put out tuples; this differs between architectures, so one token is run to see it."""
    if bridge not in _TUPLES:
        outputs: list[Any] = []
        first = bridge.blocks[0]

        def look(*args: Any, **options: Any) -> Any:
            outputs.append(type(first).forward(first, *args, **options))
            raise StopAtLayerException(_stream(args, options))

        with _without_hooks(bridge), replaced(first, "forward", look), torch.no_grad():
            bridge(torch.zeros(1, 1, dtype=torch.long, device=bridge.cfg.device), use_cache=False)
        _TUPLES[bridge] = isinstance(outputs[0], tuple)
    return _TUPLES[bridge]


def watched(model: Model) -> bool:
    """Whether a hook is on any hook point; a bridge has hooks of its own on other modules."""
    return any(part._forward_hooks or part._backward_hooks for part in _points(model))


def _points(model: Any) -> list[Any]:
    return [part for part in model.modules() if isinstance(part, HookPoint)]


@contextmanager
def _without_hooks(bridge: Any) -> Iterator[None]:
    """A block in which hooks of users and callers, which may expect other tokens, are off."""
    with ExitStack() as stack:
        for part in [part for part in _points(bridge) if part._forward_hooks]:
            stack.enter_context(replaced(part, "_forward_hooks", OrderedDict()))
        yield


def plain_attention(model: Model, layer: int) -> bool:
    """Whether `keys_and_values` may be asked for the layer: it may not."""
    return False


def keys_and_values(*given: Any) -> tuple[Tensor, Tensor]:
    """Not to be called: see `plain_attention`."""
    raise NotImplementedError("a TransformerBridge computes no keys and values apart")


def output_norm(model: Model, layer: int) -> tuple[Tensor, float] | None:
    """The weight and epsilon of the RMSNorm between `W_out` and `hook_mlp_out`, or `None` if there is no norm.

    Raises:
        TypeError: the norm is of another kind, which its argument names.
    """
    norm = part_of(model.blocks[layer], "ln2_post")
    if norm is None:
        return None
    if not norm.uses_rms_norm:
        raise TypeError(type(norm.original_component).__name__)
    return scale_of(norm), model.cfg.eps


def final_scale(model: Model) -> Tensor | None:
    """The weight of the final norm, or `None` if it has none."""
    return scale_of(cast(Any, model).ln_final)


def activation(mlp: Any) -> tuple[Any, str, bool] | None:
    """The module and the name of an MLP's activation function there, and whether it is a gate's; else `None`.

    `None` means that `relevance` has no rules for the MLP: it is neither plain nor gated.
    """
    if type(mlp) not in (MLPBridge, GatedMLPBridge):
        return None
    wrapped = mlp.original_component
    name = next((name for name in ("act", "act_fn") if hasattr(wrapped, name)), None)
    return None if name is None else (wrapped, name, type(mlp) is GatedMLPBridge)


def embeddings(model: Model, tokens: Int[Tensor, "*tokens"]) -> Float[Tensor, "*tokens d_model"]:
    """The embeddings of tokens, as they enter the residual stream: Gemma's are scaled on the way."""
    return cast(Tensor, cast(Any, model).embed.original_component(tokens))
