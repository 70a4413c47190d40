"""Key statistics as a thing: second moments by layer, in memory or in a file, and solving against them."""

import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loc_edit.keys.disk import write_tensors
from loc_edit.models.checks import check_layers
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model

FORMAT = "loc_edit.key_stats/1"
CONVERGENCE = ("layer", "tokens", "rank", "condition", "change", "cosine")


class BadKeyStats(ValueError):
    """Key statistics that cannot be solved against, or do not belong to the model."""


class StoredMoments(Mapping[int, Tensor]):
    """The matrices of a file, each read when it is asked for and not kept."""

    def __init__(self, file: Any, path: Path, layers: Sequence[int], device: torch.device | str) -> None:
        self._file, self._path, self._layers, self._device = file, path, tuple(layers), device

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self._layers:
            raise KeyError(layer)
        try:
            tensor: Tensor = self._file.get_tensor(str(layer))
        except (SafetensorError, OSError) as error:
            raise BadKeyStats(f"{self._path}: layer {layer} cannot be read ({error})") from error
        return tensor.to(self._device)

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class Identities(Mapping[int, Tensor]):
    """The identity for each layer, made when it is asked for."""

    def __init__(self, layers: Sequence[int], size: int, device: torch.device | str) -> None:
        self.size, self._layers, self._device = size, tuple(layers), device

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self._layers:
            raise KeyError(layer)
        return torch.eye(self.size, device=self._device)

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class Factors:
    """Cholesky factors by layer: as many as fit in half of the memory that is free, at least the last one.

    A factor that had to go is computed again, to the same bits, when its layer comes back.
    """

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def get(self, layer: int, make: Callable[[], Tensor]) -> Tensor:
        """The factor of a layer, which `make` computes where it is not there."""
        if layer not in self._kept:
            while self._kept and not self._fits():  # before making one: two need not be there at once
                self._kept.popitem(last=False)
            self._kept[layer] = make()
        self._kept.move_to_end(layer)
        return self._kept[layer]

    def __len__(self) -> int:
        return len(self._kept)

    def _fits(self) -> bool:
        one = next(iter(self._kept.values()))
        room = free_memory(one.device) // 2 if self.room is None else self.room - one.nbytes * len(self)
        return one.nbytes <= room


def free_memory(device: torch.device | str) -> int:
    """Bytes that are free on a device."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 8 << 30


@dataclass(frozen=True)
class KeyStats:
    """Second moments of the keys by layer, with how they came about.

    Attributes:
        moments: per layer `[d_mlp d_mlp]`, E[k k^T], float32 or better; read from their file when asked for.
        n_tokens: tokens averaged over.
        provenance: model fingerprint, tokenizer, corpus, limits; plain strings.
        ridge: added to the diagonal before factoring, as a share of its mean; 0 unless asked for.
        shares: what was seen at shares of the sample, rows of `convergence`.
    """

    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    n_tokens: int
    provenance: Mapping[str, str] = field(default_factory=dict)
    ridge: float = 0.0
    shares: tuple[Mapping[str, int | float], ...] = ()
    _factors: Factors = field(default_factory=Factors, repr=False, compare=False)
    _spectra: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise BadKeyStats(f"ridge {self.ridge}: a share of the mean of the diagonal, 0 or more, is wanted")

    @classmethod
    def from_moments(cls, moments: Mapping[int, Any], *, n_tokens: int, ridge: float = 0.0) -> "KeyStats":
        """Statistics from given matrices.

        Args:
            moments: E[k k^T] by layer, tensors or arrays `[d_mlp d_mlp]`.
            n_tokens: tokens they were averaged over.
            ridge: see the class.
        """
        moments = {layer: torch.as_tensor(moment) for layer, moment in moments.items()}
        for layer, moment in moments.items():
            if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not torch.isfinite(moment).all():
                raise BadKeyStats(f"layer {layer}: a finite square matrix is wanted, got {list(moment.shape)}")
        return cls(moments, n_tokens, {"source": "given"}, ridge)

    @classmethod
    def identity(cls, model: Model, layers: Sequence[int] | None = None) -> "KeyStats":
        """C = I in every layer: an explicit choice to do without a corpus, recorded as such; C^-1 k is k.

        Args:
            model: gives d_mlp, device and fingerprint.
            layers: 0-based; all if None.
        """
        layers = range(model.cfg.n_layers) if layers is None else layers
        check_layers(model, list(layers))
        about = {"source": "identity", "corpus_name": "identity", "model": fingerprint(model)}
        return cls(Identities(layers, int(model.cfg.d_mlp or 0), model.W_E.device), 0, about)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers there are, ascending."""
        return tuple(sorted(self.moments))

    @property
    def convergence(self) -> pd.DataFrame:
        """What was seen at 1/16, 1/8, 1/4, 1/2 and all of the sample, a row per layer and share.

        Columns: `layer, tokens`; `rank` and `condition` of C (estimated where d_mlp > 1024, see `keys.probes`);
        `change` and `cosine`: the distance of C^-1 k to that of the whole sample as a share of its length, and the
        cosine between the two, means over 16 keys; NaN where C cannot be factored.  Only the last two shares where
        d_mlp > 4096; empty for given matrices.
        """
        return pd.DataFrame([dict(row) for row in self.shares], columns=list(CONVERGENCE))

    def second_moment(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """E[k k^T] of a layer."""
        if layer not in self.moments:
            raise BadKeyStats(f"layer {layer}: no key statistics; there are some for layers {list(self.layers)}")
        return self.moments[layer]

    def with_ridge(self, ridge: float) -> "KeyStats":
        """The same statistics, solved with another ridge."""
        return replace(self, ridge=ridge, _factors=Factors(self._factors.room))

    def solve(self, layer: int, keys: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
        """C^-1 k for each key, solved in float64 by a Cholesky factor that is kept.

        Raises:
            BadKeyStats: fewer tokens than d_mlp, or C is not positive definite in float64.
        """
        if isinstance(self.moments, Identities) and layer in self.moments:
            return keys / (1 + self.ridge)
        factor = self._factors.get(layer, lambda: self._factor(layer))
        columns = rearrange(keys.to(factor), "... d_mlp -> d_mlp (...)")
        solved = torch.cholesky_solve(columns, factor)
        return solved.T.reshape(keys.shape).to(keys)

    def project(
        self, layer: int, keys: Float[Tensor, "*batch d_mlp"], null_space: float
    ) -> Float[Tensor, "*batch d_mlp"]:
        """The part of each key that the old keys hardly use: P k, in float64.

        P projects on the eigenvectors of C whose eigenvalue is below `null_space` times the mean of C's diagonal.
        The eigenvectors of the last layer asked for are kept.

        Raises:
            BadKeyStats: no eigenvalue is that small.
        """
        if layer not in self._spectra:
            self._spectra.clear()
            values, vectors = torch.linalg.eigh(self.second_moment(layer).double())
            self._spectra[layer] = values, vectors
        values, vectors = self._spectra[layer]
        shares = values / values.mean()
        free = vectors[:, shares < null_space]
        if free.shape[1] == 0:
            raise BadKeyStats(
                f"layer {layer}: the old keys use every direction: the smallest eigenvalue of C is "
                f"{float(shares.min()):.2g} of the mean, and null_space is {null_space:g}"
            )
        return (keys.to(free) @ free @ free.T).to(keys)

    def condition_number(self, layer: int) -> float:
        """Largest over smallest eigenvalue of C, in float64."""
        return spectrum(self.second_moment(layer))[1]

    def rank(self, layer: int) -> int:
        """Eigenvalues of C that are more than the rounding of its entries."""
        return spectrum(self.second_moment(layer))[0]

    def _factor(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        stored = self.second_moment(layer)
        size = len(stored)
        if self.n_tokens < size and not self.ridge:
            raise BadKeyStats(
                f"layer {layer}: {self.n_tokens} tokens cannot give a second moment of size {size} full rank; "
                "use more tokens, or ridge="
            )
        moment = stored.to(torch.float64, copy=True)
        moment.diagonal().add_(self.ridge * moment.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(moment)
        if failed:
            raise BadKeyStats(
                f"layer {layer}: the second moment has rank {spectrum(moment, stored.dtype)[0]} of {size} "
                f"after {self.n_tokens} tokens; use more tokens, or ridge="
            )
        return factor

    def save(self, path: str | Path) -> None:
        """Write the matrices and their provenance to a safetensors file, whole or not at all, a layer at a time."""
        metadata = {
            **self.provenance,
            "format": FORMAT,
            "n_tokens": str(self.n_tokens),
            "ridge": repr(self.ridge),
            "convergence": json.dumps([dict(row) for row in self.shares]),
        }
        if isinstance(self.moments, Identities):
            raise BadKeyStats("the identity needs no file: KeyStats.identity(model), or corpus 'identity', makes it")
        kinds = {}
        for layer in self.layers:
            one = self.moments[layer]
            kinds[str(layer)] = (one.dtype, tuple(one.shape))
        write_tensors(path, kinds, lambda name: self.moments[int(name)], metadata)

    @classmethod
    def load(
        cls, path: str | Path, model: Model | None = None, layers: Sequence[int] | None = None
    ) -> "KeyStats":
        """Open a file of statistics; a layer's matrix is read when it is first needed, and not kept.

        Args:
            path: what `save` wrote.
            model: refuse those of another one; matrices come to its device.
            layers: those wanted; all there are if None.

        Raises:
            BadKeyStats: unreadable, of another format, without a layer, or of another model (both fingerprints are
                named).
        """
        try:
            file = safe_open(path, framework="pt")  # open as long as the statistics: a new file may take its name
            metadata, names = dict(file.metadata() or {}), list(file.keys())
        except (SafetensorError, OSError) as error:
            raise BadKeyStats(f"{path}: cannot be read ({error})") from error
        if metadata.pop("format", None) != FORMAT:
            raise BadKeyStats(f"{path}: no key statistics of format {FORMAT}")
        there = sorted(map(int, names))
        wanted = there if layers is None else sorted(layers)
        if missing := set(wanted) - set(there):
            raise BadKeyStats(f"{path}: no key statistics for layers {sorted(missing)}; there are some for {there}")
        if model is not None and metadata.get("model") != fingerprint(model):
            raise BadKeyStats(f"{path}: made for model {metadata.get('model')}, and this one is {fingerprint(model)}")
        n_tokens, ridge = int(metadata.pop("n_tokens")), float(metadata.pop("ridge"))
        rows = tuple(row for row in json.loads(metadata.pop("convergence", "[]")) if row["layer"] in wanted)
        device = "cpu" if model is None else model.W_E.device
        return cls(StoredMoments(file, Path(path), wanted, device), n_tokens, metadata, ridge, rows)

    def __repr__(self) -> str:
        return f"KeyStats(layers={list(self.layers)}, n_tokens={self.n_tokens}, provenance={dict(self.provenance)})"


def spectrum(moment: Float[Tensor, "d_mlp d_mlp"], entries: torch.dtype | None = None) -> tuple[int, float]:
    """Rank and condition number of a second moment, in float64; see `rounding`.

    Args:
        moment: C.
        entries: dtype to which its entries were rounded, if not its own.
    """
    eigenvalues = torch.linalg.eigvalsh(moment.double())
    rank = int((eigenvalues > rounding(len(moment), entries or moment.dtype) * eigenvalues.norm()).sum())
    return rank, (eigenvalues[-1] / eigenvalues[0]).abs().item()


def rounding(size: int, entries: torch.dtype) -> float:
    """Share of the Frobenius norm up to which an eigenvalue of C is nothing but rounding.

    Entries that are rounded independently make a random matrix whose norm is 0.6 eps ||C|| / sqrt(size); several
    times that.  The solver for eigenvalues itself rounds in float64.
    """
    return float(max(4 * torch.finfo(entries).eps / size**0.5, torch.finfo(torch.float64).eps * size**0.5))
