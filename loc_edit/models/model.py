"""What the package asks of a model, and the parts of one: edited weights, tokenizer, and logits of the last layer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear


@runtime_checkable
class Model(Protocol):
    """What the package asks of a model: a `HookedTransformer` of TransformerLens 3, or a `TransformerBridge` of 4.

    Both have the same hook points, blocks and shapes of weights.  `adapter` knows how they differ.

    Attributes:
        cfg: the configuration, with sizes, device, dtype and whether texts begin with BOS.
        tokenizer: Hugging Face's, a fast one.
        blocks: the layers, each with `attn` and `mlp`.
        unembed: the last matrix, with its hook points.
    """

    cfg: Any
    tokenizer: Any
    if TYPE_CHECKING:  # parts of a module are no attributes for `isinstance`, from Python 3.12 on
        blocks: Any
        unembed: Any

    @property
    def W_E(self) -> Any:
        """The embeddings `[d_vocab d_model]`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """From tokens, or with `start_at_layer` a residual stream, to the logits."""

    def hooks(self, *args: Any, **options: Any) -> AbstractContextManager[Any]:
        """A block in which `fwd_hooks` and `bwd_hooks` are on the model."""

    def run_with_cache(self, *args: Any, **options: Any) -> Any:
        """The logits, and the activations at all hook points."""

    def run_with_hooks(self, *args: Any, **options: Any) -> Any:
        """The logits with `fwd_hooks` on the model."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its parameters."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Its parameters by their names, which are not the same in the two versions: see `adapter`."""


Hook = tuple[str | Callable[..., Any], Callable[..., Any]]
"""A hook point's name and a function, as TransformerLens takes them."""


def W_out(model: Model, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """A layer's MLP output weights, to be written in place (`model.W_out` is a copy).

    A `TransformerBridge` gives a view of a transposed parameter, so that they have no gradient of their own.
    """
    return cast(Tensor, model.blocks[layer].mlp.W_out)


def b_out(model: Model, layer: int) -> Float[Tensor, " d_model"]:
    """A layer's MLP output bias, to be written in place; zeros for a `TransformerBridge` without a bias."""
    bias = cast(Tensor | None, model.blocks[layer].mlp.b_out)
    return W_out(model, layer).new_zeros(model.cfg.d_model) if bias is None else bias


def has_output_bias(model: Model) -> bool:
    """Whether the checkpoint has an MLP output bias (TransformerLens adds a zero bias to gated MLPs)."""
    return not model.cfg.gated_mlp


def tokenizer(model: Model) -> Any:
    """The model's tokenizer, untyped, as Hugging Face does not type it."""
    return model.tokenizer


def logits_at(model: Model, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
    """The logits of the final residual stream at any positions, as at the end of `model.forward`.

    They are in float32 at least: rounding the logits of a half-precision model would change a probability by several
    percent.  The product is computed here, because `Unembed` copies its weights at every call.
    """
    if model.cfg.normalization_type is not None:
        residual = cast(Any, model).ln_final(residual)
    unembed = model.unembed
    wide = torch.promote_types(unembed.W_U.dtype, torch.float32)
    logits = linear(unembed.hook_in(residual).to(wide), unembed.W_U.to(wide).T, unembed.b_U.to(wide))
    logits = unembed.hook_out(logits)
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def hook_points(model: Model) -> dict[str, Any]:
    """The model's hook points, by every name that they have."""
    return cast(dict[str, Any], cast(Any, model).hook_dict)


def hooked(module: Any) -> bool:
    """Whether a hook is on this module itself, not only on its parts."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def hooked_within(module: Any) -> bool:
    """Whether a hook is on this module or on any of its parts."""
    return any(hooked(part) for part in module.modules())


@contextmanager
def replaced(module: nn.Module, name: str, value: object) -> Iterator[None]:
    """Inside the block, `module.name` is `value`; afterwards it is as before."""
    own = vars(module)  # `nn.Module.__setattr__` takes ten times as long
    old = own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if old is None:
            del own[name]
        else:
            own[name] = old


def token_texts(model: Model, tokens: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """The text of each token on its own, for labels."""
    return tuple(str(tokenizer(model).decode([i])) for i in tokens.tolist())
