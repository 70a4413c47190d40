"""The translators of the tuned lens: affine maps from the residual stream after each layer to the final one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.facts.fact import Fact
from loc_edit.files import short_hash
from loc_edit.localization.hooks import site_name
from loc_edit.models.adapter import lens
from loc_edit.models.identity import fingerprint
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook, Model
from loc_edit.prompts.batches import make_batch, run
from loc_edit.prompts.encoding import Prompt, encode_all

RIDGE = 0.01
"""The weight of the ridge, relative to the variance of each entry of the residual stream."""


@dataclass(frozen=True)
class Translators:
    """Affine maps from the residual stream after each layer to the final one, as what they add to the stream.

    Attributes:
        weight: the residual stream goes through it from the left.
        bias: added to the product.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]

    def translated(self, stream: Float[Tensor, "*rows d_model"], layer: int) -> Float[Tensor, "*rows d_model"]:
        """The final residual stream that is expected of the stream after a layer."""
        return stream + (stream.to(self.weight) @ self.weight[layer] + self.bias[layer]).to(stream)


class Fitter:
    """Accumulates residual streams, and fits to each layer's what the layers above it add, by ridge regression.

    The ridge pulls toward adding the mean: toward the logit lens and not toward nothing.

    Args:
        model: whose layers are counted.
    """

    def __init__(self, model: Model) -> None:
        n_layers, d = model.cfg.n_layers, model.cfg.d_model
        zeros = torch.zeros(n_layers, d, 2 * d + 1, dtype=torch.float64, device=model.W_E.device)
        self._products = zeros  # by layer, stream x (stream, what is added, 1)
        self._added = zeros.new_zeros(n_layers, d)
        self._n = 0

    def add(self, streams: Float[Tensor, "layer token d_model"]) -> None:
        """Count some tokens, given their residual stream after each layer."""
        streams = streams.double()
        added = streams[-1] - streams
        ones = streams.new_ones(*streams.shape[:2], 1)
        self._products += streams.mT @ torch.cat([streams, added, ones], -1)
        self._added += added.sum(1)
        self._n += streams.shape[1]

    def fit(self) -> Translators:
        """The translators, in float32.

        Raises:
            ValueError: fewer than two tokens were counted.
        """
        if self._n < 2:
            raise ValueError(f"translators need at least 2 tokens to be fitted on, got {self._n}")
        d = self._products.shape[1]
        mean, added = self._products[..., -1] / self._n, self._added / self._n
        centered = self._products[..., :-1] / self._n - mean[..., None] * torch.cat([mean, added], -1)[:, None]
        covariance, crossed = centered.split(d, -1)
        variances = covariance.diagonal(dim1=1, dim2=2)
        floor = 1e-6 * mean.square() + torch.finfo(torch.float32).tiny  # for entries that never vary
        ridge = torch.diag_embed(RIDGE * variances + floor)
        weight = torch.linalg.solve(covariance + ridge, crossed)
        bias = added - (mean[:, None] @ weight)[:, 0]
        return Translators(weight.float(), bias.float())


_FITTED: "WeakKeyDictionary[Model, tuple[str, list[Translators]]]" = WeakKeyDictionary()


def fitted_translators(model: Model, halves: Sequence[Sequence[Fact]]) -> list[Translators]:
    """For each half of a data set, the translators fitted on its prompts; the last ones are kept, with their model.

    Raises:
        ValueError: none of the prompts of a half can be used.
    """
    if lens.watched(model):  # what the user's hooks do is not in the fingerprint
        return [_fitted(model, half) for half in halves]
    key = short_hash(repr([fingerprint(model), [[fact.prompt for fact in half] for half in halves]]))
    if model not in _FITTED or _FITTED[model][0] != key:
        _FITTED[model] = key, [_fitted(model, half) for half in halves]
    return _FITTED[model][1]


@torch.no_grad()
def _fitted(model: Model, facts: Collection[Fact]) -> Translators:
    """Translators fitted on every token of the facts' prompts, each prompt once."""
    encoded = encode_all(model, list({fact.prompt: fact for fact in facts}.values()))
    prompts = sorted((one.prompt for one in encoded if not isinstance(one, ValueError)), key=len)
    fitter = Fitter(model)

    def work(part: slice) -> None:
        fitter.add(_streams(model, prompts[part]))

    Budget(model).spend(len(prompts), max(map(len, prompts), default=1), work)
    return fitter.fit()


def _streams(model: Model, prompts: Sequence[Prompt]) -> Float[Tensor, "layer token d_model"]:
    """The residual stream after each layer, at every token of some prompts."""
    batch, streams = make_batch(model, prompts), list[Tensor]()
    real: Int[Tensor, " pos"] = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    kept = real < batch.lengths[:, None]
    names = [site_name("resid_post", layer) for layer in range(model.cfg.n_layers)]
    hooks: list[Hook] = [(name, lambda value, hook: streams.append(value[kept])) for name in names]
    run(model, batch, hooks=hooks)
    return torch.stack(streams)
