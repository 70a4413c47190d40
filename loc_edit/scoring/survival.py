"""Whether an edit survives what happens to checkpoints: rounding to few bits, and merging with the unedited weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.update import Edit
from loc_edit.facts.fact import Fact
from loc_edit.models.adapter import lens
from loc_edit.models.model import Model
from loc_edit.scoring.contract import scorer
from loc_edit.scoring.measuring import Meter
from loc_edit.scoring.probes import make_probes
from loc_edit.scoring.scores import share_of_change

GROUP = 32
"""How many weights share a scale, as in the common 8- and 4-bit formats."""
BITS = (8, 4)
SHARES = (75, 50, 25)
"""Percentages of the edit that merging leaves."""
WHOLE = "whole"


def compare(before: Mapping[str, float], after: Mapping[str, float], request: EditRequest) -> dict[str, float]:
    """The rewrite score of each damaged model, from the probabilities of the whole unedited model and of this one."""
    return {name: share_of_change(before[WHOLE], p, request.objective) for name, p in after.items() if name != WHOLE}


@scorer("survival", compare=compare)
def survival(model: Model, fact: Fact, request: EditRequest, edit: Edit | None) -> dict[str, float]:
    """p(target) on the edit prompt: with the weights as they are, rounded, and merged with the unedited ones."""
    probes = make_probes(model, replace(fact, paraphrases=(), neighbors=()), request)

    def p_target() -> float:
        return Meter(model, [probes]).before[0].rewrite

    measured = {WHOLE: p_target()}
    for bits in BITS:
        with rounded(model, bits):
            measured[f"survival_int{bits}"] = p_target()
    for share in SHARES:
        with (edit or Edit(())).scaled(share / 100 - 1).applied(model):
            measured[f"survival_merge_{share}"] = p_target()
    return measured


@contextmanager
def rounded(model: Model, bits: int) -> Iterator[None]:
    """The model with all matrices rounded to nearest, a scale for every 32 inputs of a unit; the bytes come back."""
    matrices = [(name, parameter) for name, parameter in lens.named_weights(model).items() if parameter.ndim > 1]
    saved = [parameter.detach().clone() for _, parameter in matrices]
    try:
        with torch.no_grad():
            for name, parameter in matrices:
                inputs = -1 if name.endswith(("W_E", "W_pos")) else -2
                parameter.copy_(round_to_nearest(parameter, bits, inputs))
        yield
    finally:
        with torch.no_grad():
            for (_, parameter), before in zip(matrices, saved, strict=True):
                parameter.copy_(before)


def round_to_nearest(weight: Float[Tensor, "*shape"], bits: int, inputs: int = -2) -> Float[Tensor, "*shape"]:
    """A weight in steps of the largest size of its group over `2^(bits - 1) - 1`.

    Args:
        weight: a matrix, or several.
        bits: of each number.
        inputs: the dimension along which groups lie.
    """
    columns = weight.float().movedim(inputs, -1)
    steps = 2 ** (bits - 1) - 1
    parts = []
    for group in columns.split(GROUP, -1):
        scale = group.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / steps
        parts.append((group / scale).round() * scale)
    return torch.cat(parts, -1).movedim(-1, inputs).to(weight)
