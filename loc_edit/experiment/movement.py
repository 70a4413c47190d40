"""Whether a fact moves when it is edited: Causal Tracing after the edit beside Causal Tracing before it."""

from dataclasses import dataclass
from math import nan

from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.update import Edit
from loc_edit.facts.fact import Fact
from loc_edit.localization.tracing import trace
from loc_edit.models.model import Model
from loc_edit.prompts.encoding import encode
from loc_edit.scoring.contract import scorer

WINDOW = 1
"""Layers restored together: one, as wider windows blur where the peak is."""


@dataclass(frozen=True)
class Profile:
    """The tracing profile of one object.

    Attributes:
        by_layer: the effect of each layer, floored at 0.
        layers: the layers of the edit that is in the weights; empty before it is.
    """

    by_layer: Float[Tensor, " layer"]
    layers: tuple[int, ...] = ()

    @property
    def shares(self) -> Float[Tensor, " layer"]:
        """The profile as shares of its sum; NaN where tracing finds nothing."""
        return self.by_layer / self.by_layer.sum()


def compare(before: Profile, after: Profile) -> dict[str, float]:
    """How far the profile moves, and whether its peak is in the edited layers, afterwards and before.

    The distance is half the sum of the absolute differences of the two profiles, each as shares of its sum: 0 if they
    have the same shape, 1 if they have no layer in common.
    """
    distance = (before.shares - after.shares).abs().sum().div(2).clamp(max=1).item()

    def peaks_there(profile: Profile) -> float:
        return float(int(profile.by_layer.argmax()) in after.layers) if profile.by_layer.sum() > 0 else nan

    return {
        "movement_distance": distance,
        "movement_to_edit": peaks_there(after) if after.layers else nan,
        "movement_from_edit": peaks_there(before) if after.layers else nan,
    }


@scorer("movement", compare=compare)
def movement(
    model: Model, fact: Fact, request: EditRequest, edit: Edit | None, noise: Float[Tensor, "sample subject d_model"]
) -> Profile:
    """The tracing profile of the true object before an edit, and after it of the object that the edit teaches.

    An edit that lowers its target's probability teaches none, and the true object is traced again.
    """
    taught = edit is not None and request.objective == "raise"
    traced = trace(
        model, encode(model, fact), request.target if taught else fact.target_true, noise=noise, window=WINDOW
    )
    effects = traced.effect[:, traced.prompt.subject.start :].amax(1).clamp(min=0)
    return Profile(effects, edit.layers if edit else ())
