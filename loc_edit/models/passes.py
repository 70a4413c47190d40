"""Forward passes through some of a model's layers, from tokens or a residual stream to a residual stream."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.models.adapter import lens
from loc_edit.models.model import Model
from loc_edit.models.past import Past, PastEntry


def run_layers(
    model: Model,
    given: Int[Tensor, "row pos"] | Float[Tensor, "row pos d_model"],
    *,
    start: int | None = None,
    stop: int,
    past: Past | None = None,
    mask: Int[Tensor, "row past_and_pos"] | None = None,
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream before layer `stop`, with the effect of all hooks on the model.

    Args:
        model: any.
        given: tokens; or, with `start`, the residual stream before layer `start`.
        start: the first layer to run.
        stop: the first layer not to run; the number of layers, to run through the last one.
        past: keys and values of positions before the given ones; only if `lens.takes_past`.  A row's positions
            are counted by `mask`, so padding may stand anywhere.
        mask: 1 at real positions, 0 at padding, for past and given positions together; without it, all are real.
    """
    if start == stop:
        return given
    return lens.run(model, given, start, stop, past, mask)


def answers_alone(model: Model) -> bool:
    """Whether `run_answers` may compute the last layer for some positions only.

    It may not if the model takes no past, if the last layer's attention is not `plain`, or if hooks are on the last
    layer, because they may depend on positions.  Ask before adding hooks that do not depend on positions.
    """
    last = model.cfg.n_layers - 1
    return lens.takes_past(model) and lens.plain_attention(model, last) and not lens.watched(model.blocks[last])


def run_answers(
    model: Model,
    given: Float[Tensor, "row pos d_model"],
    at: Int[Tensor, "row answer"],
    lengths: Int[Tensor, " row"],
    *,
    start: int,
    alone: bool,
    past: Past | None = None,
    mask: Int[Tensor, "row past_and_pos"] | None = None,
) -> Float[Tensor, "row answer d_model"]:
    """The final residual stream at answer positions, which lie near the ends of their rows.

    In the last layer, all other positions matter only by their keys and values.  So the rows, which are padded on the
    right, are shifted to the right until they all end at the same place.  For positions before the first answer
    position of any row, the last layer computes keys and values only, and adds them to the past; it computes queries
    and the MLP for the remaining positions.

    Args:
        model: any.
        given: the residual stream before layer `start`.
        at: the answer positions in `given`.
        lengths: the lengths of the rows in `given`, without padding.
        start: the first layer to run.
        alone: the result of `answers_alone`; if false, all layers are computed at all positions.
        past: see `run_layers`; frozen.
        mask: see `run_layers`.
    """
    n_layers, n_pos, rows = model.cfg.n_layers, given.shape[1], torch.arange(len(given), device=given.device)[:, None]
    n = int((lengths[:, None] - at).max())
    if not alone or start == n_layers or n == n_pos:
        return run_layers(model, given, start=start, stop=n_layers, past=past, mask=mask)[rows, at]
    stream = run_layers(model, given, start=start, stop=n_layers - 1, past=past, mask=mask)
    shifted = lengths[:, None] + torch.arange(-n_pos, 0, device=given.device)
    stream, real = stream[rows, shifted.clamp(min=0)], (shifted >= 0).long()
    before = past[n_layers - 1] if past is not None else PastEntry()
    if mask is not None:
        real = torch.cat([mask[:, : before.length], real], 1)
    keys, values = lens.keys_and_values(model, n_layers - 1, stream[:, :-n], before.length, real[:, :-n])
    entry = PastEntry(*before.append(keys, values), frozen=True)
    final = run_layers(model, stream[:, -n:], start=n_layers - 1, stop=n_layers, past={n_layers - 1: entry}, mask=real)
    return final[rows, at - (lengths[:, None] - n)]
