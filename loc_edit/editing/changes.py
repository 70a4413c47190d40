"""The change of one weight: whole, or as low-rank factors."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

MOST_RANK = 64
"""A change of a higher rank is kept whole."""
EXACT = 1e-5
"""The share of a change that its factors may miss."""


@dataclass(frozen=True, eq=False)
class _Update:
    """What the updates of all weights share."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the update has, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


AnyUpdate = TypeVar("AnyUpdate", bound=_Update)


@dataclass(frozen=True, eq=False)
class WeightUpdate(_Update):
    """The change of one layer's `W_out`, whole or as factors `left @ right`, and of its bias if that was trained.

    Attributes:
        layer: 0-based.
        left: with `right`, the factors.
        right: see `left`.
        full: the whole change, where the method has no factors.
        bias: the change of `b_out`.
    """

    layer: int
    left: Float[Tensor, "d_mlp rank"] | None = None
    right: Float[Tensor, "rank d_model"] | None = None
    full: Float[Tensor, "d_mlp d_model"] | None = None
    bias: Float[Tensor, " d_model"] | None = None

    @property
    def delta(self) -> Float[Tensor, "d_mlp d_model"]:
        """The whole change of `W_out`."""
        if self.full is not None:
            return self.full
        left, right = self.factors
        return left @ right

    @property
    def factors(self) -> tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "rank d_model"]]:
        """The factors; an update without them is refused."""
        if self.left is None or self.right is None:
            raise ValueError(f"update of layer {self.layer} has neither factors nor a whole change")
        return self.left, self.right


@dataclass(frozen=True, eq=False)
class OtherUpdate(_Update):
    """The change of any other parameter, whole or as factors `left @ right`.

    Attributes:
        name: of the parameter, as `model.named_parameters()` has it.
        left: with `right`, the factors.
        right: see `left`.
        full: the whole change, where there are no factors.
    """

    name: str
    left: Float[Tensor, "*outer rank"] | None = None
    right: Float[Tensor, "*outer_too rank_too inner"] | None = None
    full: Float[Tensor, "*any"] | None = None

    @property
    def delta(self) -> Float[Tensor, "*any"]:
        """The whole change."""
        if self.full is not None:
            return self.full
        if self.left is None or self.right is None:
            raise ValueError(f"update of {self.name} has neither factors nor a whole change")
        return self.left @ self.right


def moved(update: AnyUpdate, device: torch.device | str | None) -> AnyUpdate:
    """The update on a device."""
    tensors: dict[str, Any] = {name: value.to(device) for name, value in update.tensors().items()}
    return replace(update, **tensors)


def times(update: AnyUpdate, factor: float) -> AnyUpdate:
    """The update times a number."""
    tensors: dict[str, Any] = {name: factor * value for name, value in update.tensors().items() if name != "left"}
    return replace(update, **tensors)


def parts(delta: Float[Tensor, "*any"]) -> dict[str, Tensor]:
    """A change as factors `left` and `right` if it is a matrix of low rank, else as `full`."""
    if delta.ndim != 2 or min(delta.shape) <= 2:
        return {"full": delta}
    wide = delta.double()
    most = min(MOST_RANK, min(delta.shape) // 2)
    with torch.random.fork_rng():  # the decomposition is random, and nobody else's draws may depend on it
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(wide, q=most, niter=4)
    rank = max(1, int((s > EXACT * s[0]).sum()))
    left, right = u[:, :rank] * s[:rank], v[:, :rank].T
    if (wide - left @ right).norm() > EXACT * wide.norm():
        return {"full": delta}
    return {"left": left.to(delta), "right": right.to(delta)}
