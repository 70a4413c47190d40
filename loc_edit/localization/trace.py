"""A trace: what restoring each layer and position of one prompt does to its target, and the numbers made of it."""

from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit.effects import (
    DEGENERATE,
    Denominator,
    Regressor,
    check_choice,
    effect_by_layer,
    fractional_effect,
    positions_that_count,
)
from loc_edit.localization.hooks import site_window
from loc_edit.models.model import Model, token_texts
from loc_edit.names import TRACING
from loc_edit.prompts.encoding import Prompt
from loc_edit.views.tokens import colored_tokens

if TYPE_CHECKING:
    from circuitsvis.utils.render import RenderedHTML

    from loc_edit.views.style import Figure


@dataclass(frozen=True)
class Trace:
    """What restoring a site does to the probability of a target, for each layer and position.

    Attributes:
        prompt: the traced prompt.
        target: the target's text.
        p_clean: the metric without noise.
        p_corrupted: the mean metric over noise samples with the subject corrupted.
        p_restored: the mean metric with the site restored at (layer, position) as well; before the subject it equals
            `p_corrupted`.
        window: the number of layers restored together, centered on the layer.
        site: the hook point that was restored.
        metric: what the three numbers measure.
        token_texts: the prompt's tokens as text.
        localizer: the localizer that computed the numbers; for localizers other than Causal Tracing, `p_restored` is
            `p_corrupted` plus the effect of the cell (see `loc_edit.localize`).
        batch_size: about how many token positions one call of a layer computed at most; less than the caller asked
            for if memory did not suffice.  0: not known.
        reason: why there are no numbers, if the localizer failed.
    """

    prompt: Prompt
    target: str
    p_clean: float
    p_corrupted: float
    p_restored: Float[Tensor, "layer pos"] = field(repr=False)
    window: int
    site: str
    metric: str = "probability"
    token_texts: tuple[str, ...] = ()
    localizer: str = TRACING
    batch_size: int = field(default=0, repr=False, compare=False)
    reason: str = field(default="", repr=False, compare=False)

    @property
    def effect(self) -> Float[Tensor, "layer pos"]:
        """`p_restored - p_corrupted`."""
        return self.p_restored - self.p_corrupted

    @property
    def fraction(self) -> Float[Tensor, "layer pos"]:
        """The effect as a share of what the noise took away; NaN if the trace is degenerate."""
        return self.fractions()

    @property
    def is_nan(self) -> bool:
        """Whether any of the numbers is NaN."""
        return isnan(self.p_clean) or isnan(self.p_corrupted) or bool(self.p_restored.isnan().any())

    @property
    def degenerate(self) -> bool:
        """Whether the noise changed the metric by less than 1e-6, or to NaN, so that fractions mean nothing."""
        return not abs(self.p_clean - self.p_corrupted) >= DEGENERATE

    def fractions(self, denominator: Denominator = "clean") -> Float[Tensor, "layer pos"]:
        """The effect divided by `top - p_corrupted`.

        Args:
            denominator: with `"clean"` the top is `p_clean` (the paper); with `"max"` it is the larger of `p_clean`
                and the best restored run (the study's released code).
        """
        check_choice(denominator=denominator)
        restored = _array(self.p_restored)
        best = np.fmax.reduce(restored, axis=None) if denominator == "max" else -np.inf
        return torch.from_numpy(fractional_effect(restored, self.p_clean, self.p_corrupted, best)).to(self.p_restored)

    def by_layer(self, regressor: Regressor = "max", denominator: Denominator = "clean") -> Float[Tensor, " layer"]:
        """One number per layer (spec 1.5).

        Args:
            regressor: `"max"`, the largest fraction over positions from the subject on, floored at 0; or
                `"last_subject"`, the fraction at the subject's last token, not floored.
            denominator: see `fractions`.
        """
        check_choice(regressor, denominator)
        fraction, subject = _array(self.fractions(denominator)), self.prompt.subject
        layer, pos = np.indices(self.p_restored.shape)
        used = positions_that_count(pos, subject.start, subject.stop, regressor)
        return torch.from_numpy(effect_by_layer(fraction[used], layer[used], regressor)).to(self.p_restored)

    def to_frame(self) -> pd.DataFrame:
        """One row per (layer, position), in the columns of trace rows; `reason` only if the localizer failed."""
        layer, pos = np.indices(self.p_restored.shape)
        rows = pd.DataFrame(
            {
                "fact_id": self.prompt.fact_id,
                "localizer": self.localizer,
                "layer": layer.ravel(),
                "pos": pos.ravel(),
                "window": self.window,
                "site": self.site,
                "metric": self.metric,
                "p_restored": _array(self.p_restored).ravel(),
                "p_clean": self.p_clean,
                "p_corrupted": self.p_corrupted,
                "subject_begin": self.prompt.subject.start,
                "subject_end": self.prompt.subject.stop,
                "token": list(self.token_texts) * len(layer),
                "degenerate": self.degenerate,
            }
        )
        return rows.assign(reason=self.reason) if self.reason else rows

    def plot(self) -> "Figure":
        """The layer x token heatmap, with a star at each subject token."""
        from loc_edit.views.heatmap import heatmap  # matplotlib takes a third of a second to load

        return heatmap(
            _array(self.effect),
            tokens=self._labels,
            subject=(self.prompt.subject.start, self.prompt.subject.stop),
            metric=self.metric,
            window=self.window,
            site=self.site,
            ends=(self.p_clean, self.p_corrupted),
        )

    def show(self) -> "RenderedHTML":
        """The prompt's tokens colored by the effect, one layer at a time (circuitsvis); for a notebook.

        Raises:
            ValueError: some cells of the trace are not finite numbers, and have no color.
        """
        effect = _array(self.effect)
        if not np.isfinite(effect).all():
            raise ValueError(f"fact {self.prompt.fact_id}: the trace has cells without a number, which have no color")
        return colored_tokens(effect, self._labels)

    @property
    def _labels(self) -> tuple[str, ...]:
        return self.token_texts or tuple(f"token {pos}" for pos in range(self.p_restored.shape[1]))

    def _repr_png_(self) -> bytes:
        return self.plot()._repr_png_()


def empty_trace(
    model: Model, prompt: Prompt, target: str, *, localizer: str, window: int, site: str, metric: str
) -> Trace:
    """The trace of a fact that a localizer cannot handle: every number is NaN, so that none can be used."""
    restored = torch.full((model.cfg.n_layers, len(prompt)), torch.nan)
    nan, texts = float("nan"), token_texts(model, prompt.tokens)
    return Trace(prompt, target, nan, nan, restored, site_window(site, window), site, metric, texts, localizer)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
