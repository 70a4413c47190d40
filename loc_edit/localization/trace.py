"""What a trace is: the grid of restored runs of one prompt, and the numbers made of it."""

import math
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
from loc_edit.models.model import Model, token_texts
from loc_edit.prompts.encoding import Prompt
from loc_edit.views.heatmap import heatmap
from loc_edit.views.tokens import colored_tokens

if TYPE_CHECKING:
    from circuitsvis.utils.render import RenderedHTML
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Trace:
    """What restoring a site does to the probability of a target, for each layer and position.

    Attributes:
        prompt: the traced prompt.
        target: the target's text.
        p_clean: the metric without noise.
        p_corrupted: its mean over noise samples with the subject corrupted.
        p_restored: its mean with the site restored at (layer, position); before the subject it equals
            `p_corrupted`.
        window: number of layers restored together, centred on the layer.
        site: the hook point that was restored.
        metric: what the three numbers are.
        token_texts: the prompt's tokens as text.
        localizer: what found the numbers; of others than Causal Tracing `p_restored` is `p_corrupted` plus what the
            cell is worth (see `loc_edit.localizers`).
        batch_size: token positions in one call of a layer, at most about; less than was asked for where memory did not
            suffice.  0: not known.
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
    localizer: str = "causal_tracing"
    batch_size: int = field(default=0, repr=False, compare=False)

    @property
    def effect(self) -> Float[Tensor, "layer pos"]:
        """`p_restored - p_corrupted`."""
        return self.p_restored - self.p_corrupted

    @property
    def fraction(self) -> Float[Tensor, "layer pos"]:
        """The effect as a share of what the noise took away; NaN where that is degenerate."""
        return self.fractions()

    @property
    def is_nan(self) -> bool:
        """Whether any of the numbers is none."""
        return isnan(self.p_clean) or isnan(self.p_corrupted) or bool(self.p_restored.isnan().any())

    @property
    def degenerate(self) -> bool:
        """Whether the noise changed the metric by less than 1e-6, or to no number, so that fractions mean nothing."""
        return not abs(self.p_clean - self.p_corrupted) >= DEGENERATE

    def fractions(self, denominator: Denominator = "clean") -> Float[Tensor, "layer pos"]:
        """The effect divided by `top - p_corrupted`.

        Args:
            denominator: the top is `p_clean` (the paper), or with `"max"` the larger of it and the best
                restored run (the study's released code).
        """
        check_choice(denominator=denominator)
        restored = self.p_restored.double().cpu().numpy()
        best = restored.max() if denominator == "max" else -math.inf
        return torch.from_numpy(fractional_effect(restored, self.p_clean, self.p_corrupted, best)).to(self.p_restored)

    def by_layer(self, regressor: Regressor = "max", denominator: Denominator = "clean") -> Float[Tensor, " layer"]:
        """One number a layer (spec 1.5).

        Args:
            regressor: `"max"`, the largest fraction over positions from the subject on, floored at 0; or
                `"last_subject"`, the fraction at the subject's last token, not floored.
            denominator: see `fractions`.
        """
        check_choice(regressor, denominator)
        fraction, subject = self.fractions(denominator).double().cpu().numpy(), self.prompt.subject
        layer, pos = np.indices(fraction.shape)
        used = positions_that_count(pos, subject.start, subject.stop, regressor)
        return torch.from_numpy(effect_by_layer(fraction[used], layer[used], regressor)).to(self.p_restored)

    def to_frame(self) -> pd.DataFrame:
        """One row per (layer, position), in the columns of a run's trace rows."""
        n_layers, n_pos = self.p_restored.shape
        return pd.DataFrame(
            {
                "fact_id": self.prompt.fact_id,
                "localizer": self.localizer,
                "layer": torch.arange(n_layers).repeat_interleave(n_pos).numpy(),
                "pos": torch.arange(n_pos).repeat(n_layers).numpy(),
                "window": self.window,
                "site": self.site,
                "metric": self.metric,
                "p_restored": self.p_restored.double().flatten().cpu().numpy(),
                "p_clean": self.p_clean,
                "p_corrupted": self.p_corrupted,
                "subject_begin": self.prompt.subject.start,
                "subject_end": self.prompt.subject.stop,
                "token": list(self.token_texts) * n_layers,
                "degenerate": self.degenerate,
            }
        )

    def plot(self) -> "Figure":
        """The layer x token heatmap, subject tokens starred."""
        return heatmap(
            self.effect.double().cpu().numpy(),
            tokens=self.token_texts or [str(pos) for pos in range(self.p_restored.shape[1])],
            subject=(self.prompt.subject.start, self.prompt.subject.stop),
            metric=self.metric,
            window=self.window,
            site=self.site,
            ends=(self.p_clean, self.p_corrupted),
        )

    def show(self) -> "RenderedHTML":
        """The prompt's tokens colored by the effect, a layer at a time (circuitsvis); for a notebook.

        Raises:
            ValueError: the trace has cells without a number, which have no color.
        """
        effect = self.effect.detach().double().cpu().numpy()
        if not np.isfinite(effect).all():
            raise ValueError(
                f"fact {self.prompt.fact_id}: the trace has cells without a number; there is no color for them"
            )
        return colored_tokens(effect, self.token_texts or [f"token {pos}" for pos in range(effect.shape[1])])

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        out = BytesIO()
        self.plot().savefig(out, format="png", dpi=100, bbox_inches="tight")
        return out.getvalue()


def empty_trace(
    model: Model, prompt: Prompt, target: str, *, localizer: str, window: int, site: str, metric: str
) -> Trace:
    """The trace of a fact about which a localizer can say nothing: every number is NaN, so that none can be used."""
    restored = torch.full((model.cfg.n_layers, len(prompt)), torch.nan)
    window, nan = 1 if site == "resid_post" else window, float("nan")
    texts = token_texts(model, prompt.tokens)
    return Trace(prompt, target, nan, nan, restored, window, site, metric, texts, localizer)
