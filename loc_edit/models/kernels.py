"""GELU and LayerNorm in one kernel each, where TransformerLens writes them as chains of elementwise operations."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm
from transformer_lens.components import LayerNorm
from transformer_lens.utilities.activation_functions import gelu_fast, gelu_new


@contextmanager
def one_kernel_each(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, these blocks compute GELU (of the tanh kind) and LayerNorm by torch's own kernels.

    The same functions up to rounding, with one pass over the activations in place of about eight, and one tensor kept
    for the backward pass in place of as many.  Every hook point stays where it is.

    Two lie inside of a LayerNorm: one that has a hook there runs as TransformerLens wrote it.  So does GELU where its
    result, the key, has a hook: far below zero a key is little but rounding, and fine-tuning's Adam follows that.  A
    block normalises its input three times, for queries, keys and values: as long as that is one and the same tensor,
    once is enough.
    """
    held: list[Any] = []  # of the norm called last, so that no layer's activations outlive it
    with ExitStack() as stack:
        for block in blocks:
            mlp = getattr(block, "mlp", None)
            if mlp is not None and getattr(mlp, "act_fn", None) in (gelu_new, gelu_fast) and not hooked(mlp.hook_post):
                stack.enter_context(_replaced(mlp, "act_fn", partial(gelu, approximate="tanh")))
            for norm in (getattr(block, "ln1", None), getattr(block, "ln2", None)):
                if type(norm) is LayerNorm and not (hooked(norm.hook_scale) or hooked(norm.hook_normalized)):
                    stack.enter_context(_replaced(norm, "forward", _once(norm, held)))
        yield


def _once(norm: LayerNorm, held: list[Any]) -> Callable[[Tensor], Tensor]:
    """The norm's function; of one and the same tensor it is computed once, in a row of calls (`held`: of the last)."""

    def forward(x: Tensor) -> Tensor:
        if x.dtype != norm.w.dtype:
            return LayerNorm.forward(norm, x)
        if not held or held[0] is not norm or held[1] is not x:
            held[:] = norm, x, layer_norm(x, (norm.length,), norm.w, norm.b, norm.eps)
        return held[2]

    return forward


@contextmanager
def _replaced(module: nn.Module, name: str, value: object) -> Iterator[None]:
    """`module.name` is `value`, and then again what it was, in the instance or else in the class."""
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


def hooked(module: nn.Module) -> bool:
    """Whether a hook is on this module itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
