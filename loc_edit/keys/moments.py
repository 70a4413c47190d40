"""Second moments of the keys of each layer: the class that stores them, saves and loads them, and computes C^-1 k."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loc_edit.arguments import Index, Ridge, checked, fits, fitted, words
from loc_edit.files import Damaged
from loc_edit.keys.disk import TensorFile, kinds_of, tensor_checksum, write_tensors
from loc_edit.keys.plausibility import check_moments
from loc_edit.keys.spectrum import spectrum
from loc_edit.models.checks import check_layers
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model

FORMAT = "loc_edit.key_stats/1"
PROJECTIONS = 8
"""How many numbers a sketch has."""
CONVERGENCE = ("layer", "tokens", "rank", "condition", "change", "cosine")


class BadKeyStats(ValueError):
    """Key statistics that cannot be computed or inverted, or that belong to another model."""


class LazyTensors(Mapping[int, Tensor]):
    """Matrices by layer, each made or read anew whenever it is asked for.

    Args:
        layers: 0-based.
        read: gives the matrix of a layer.
    """

    def __init__(self, layers: Sequence[int], read: Callable[[int], Tensor]) -> None:
        self._layers, self._read = tuple(layers), read

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self._layers:
            raise KeyError(layer)
        return self._read(layer)

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class Factors:
    """Cholesky factors or eigenvectors by layer: as many as fit into half of the free memory, and always the last one.

    A factor that was dropped is computed again, to the same bits, when its layer is asked for again.

    Args:
        room: bytes that the factors may take together; half of the free memory if None.
    """

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def get(self, layer: int, make: Callable[[], Tensor]) -> Tensor:
        """Returns the factor of a layer; `make` computes it if it is not kept."""
        if layer not in self._kept:
            while self._kept and not self._another_fits():  # first make room, so that memory never holds both
                self._kept.popitem(last=False)
            self._kept[layer] = make()
        self._kept.move_to_end(layer)
        return self._kept[layer]

    def __len__(self) -> int:
        return len(self._kept)

    def _another_fits(self) -> bool:
        factor = next(iter(self._kept.values()))
        room = free_memory(factor.device) // 2 if self.room is None else self.room - factor.nbytes * len(self)
        return factor.nbytes <= room


def free_memory(device: torch.device | str) -> int:
    """Returns how many bytes of memory a device has to give, cached files counted as free."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@dataclass(frozen=True)
class KeyStats:
    """Second moments of the keys by layer, and where they come from.

    Attributes:
        moments: by layer, C = E[k k^T] as `[d_mlp d_mlp]`, float32 or float64; read from the file when needed.
        n_tokens: the number of tokens that the mean is taken over.
        provenance: plain strings that name the model's fingerprint, the tokenizer, the corpus and the limits.
        ridge: the share of the diagonal's mean that is added to the diagonal before C is factored; 0 by default.
        shares: the rows of `convergence`.
    """

    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    n_tokens: int
    provenance: Mapping[str, str] = field(default_factory=dict)
    ridge: float = 0.0
    shares: tuple[Mapping[str, int | float], ...] = ()
    _factors: Factors = field(default_factory=Factors, repr=False, compare=False)
    _eigenvectors: Factors = field(default_factory=Factors, repr=False, compare=False)
    _eigenvalues: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _checksums: dict[int, str] = field(default_factory=dict, repr=False, compare=False)
    _sketches: dict[int, list[float]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not fits(self.ridge, Ridge):
            raise BadKeyStats(
                f"expected a ridge, as a share of the diagonal's mean, to be {words(Ridge)}, got ridge {self.ridge}"
            )

    @classmethod
    @checked
    def from_moments(cls, moments: Mapping[int, Any], *, n_tokens: Index, ridge: float = 0.0) -> "KeyStats":
        """Makes statistics of given matrices.

        Args:
            moments: E[k k^T] by layer, tensors or arrays `[d_mlp d_mlp]`.
            n_tokens: the number of tokens that the mean was taken over.
            ridge: as in `KeyStats`.

        Raises:
            BadKeyStats: a matrix is not square or not finite.
        """
        moments = {layer: torch.as_tensor(moment) for layer, moment in moments.items()}
        for layer, moment in moments.items():
            if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not torch.isfinite(moment).all():
                raise BadKeyStats(f"layer {layer}: expected a finite square matrix, got shape {list(moment.shape)}")
        return cls(moments, n_tokens, {"source": "given"}, ridge)

    @classmethod
    def identity(cls, model: Model, layers: Sequence[int] | None = None) -> "KeyStats":
        """Makes statistics with C = I in every layer, so that C^-1 k = k: the choice to use no corpus.

        Args:
            model: gives d_mlp, the device and the fingerprint.
            layers: 0-based; all if None.
        """
        layers = range(model.cfg.n_layers) if layers is None else layers
        check_layers(model, list(layers))
        size, device = int(model.cfg.d_mlp or 0), model.W_E.device
        provenance = {"source": "identity", "corpus_name": "identity", "model": fingerprint(model)}
        return cls(LazyTensors(layers, lambda layer: torch.eye(size, device=device)), 0, provenance)

    @property
    def is_identity(self) -> bool:
        """Whether `KeyStats.identity` made these statistics."""
        return self.provenance.get("source") == "identity"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have statistics, in ascending order."""
        return tuple(sorted(self.moments))

    @property
    def convergence(self) -> pd.DataFrame:
        """How C^-1 k changed as the sample grew: a row per layer at 1/16, 1/8, 1/4, 1/2 and all of the sample.

        Columns: `layer, tokens`; `rank` and `condition` of C (estimated where d_mlp > 1024, see `keys.convergence`);
        `change` and `cosine` compare C^-1 k with its value from the whole sample: the distance between the two as a
        share of the latter's length, and their cosine, both means over 16 keys; NaN where C cannot be factored.
        Where d_mlp > 4096, only the last two shares have rows; given matrices have none.
        """
        return pd.DataFrame([dict(row) for row in self.shares], columns=list(CONVERGENCE))

    def second_moment(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """Returns E[k k^T] of a layer."""
        if layer not in self.moments:
            raise BadKeyStats(f"layer {layer}: no key statistics; expected one of layers {list(self.layers)}")
        return self.moments[layer]

    def checksum(self, layer: int) -> str:
        """Returns a hash of E[k k^T] of a layer, 16 hexadecimal digits: which statistics an edit was made with."""
        if layer not in self._checksums:
            self._checksums[layer] = tensor_checksum(self.second_moment(layer))
        return self._checksums[layer]

    def sketch(self, layer: int) -> list[float]:
        """Returns `r^T C r / d_mlp` of a layer for eight fixed vectors r of random signs, in float64.

        Statistics that another machine computes from the same texts differ by rounding, so that their checksum is
        another one, while these numbers differ only as much as the rounding.
        """
        if layer not in self._sketches:
            moment = self.second_moment(layer).double().cpu()
            draws = torch.Generator().manual_seed(0)
            signs = 2.0 * torch.randint(2, (PROJECTIONS, len(moment)), generator=draws) - 1
            values = ((signs.double() @ moment) * signs).mean(1).tolist()
            self._sketches[layer] = [float(f"{value:.9g}") for value in values]
        return self._sketches[layer]

    def _check_width(self, layer: int, keys: Float[Tensor, "*batch d_mlp"], width: int) -> None:
        if keys.shape[-1] != width:
            raise BadKeyStats(f"layer {layer}: expected statistics of size {keys.shape[-1]}, as the keys, got {width}")

    def with_ridge(self, ridge: float) -> "KeyStats":
        """Returns the same moments with another ridge."""
        return replace(self, ridge=ridge, _factors=Factors(self._factors.room))

    def solve(self, layer: int, keys: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
        """Returns C^-1 k for each key, solved in float64 by a Cholesky factor that is kept for the next call.

        Raises:
            BadKeyStats: there were fewer tokens than d_mlp, or C is not positive definite in float64.
        """
        if self.is_identity and layer in self.moments:
            return keys / (1 + self.ridge)
        factor = self._factors.get(layer, lambda: self._factor(layer))
        self._check_width(layer, keys, len(factor))
        columns = rearrange(keys.to(factor), "... d_mlp -> d_mlp (...)")
        solved = torch.cholesky_solve(columns, factor)
        return solved.T.reshape(keys.shape).to(keys)

    def project(
        self, layer: int, keys: Float[Tensor, "*batch d_mlp"], null_space: float
    ) -> Float[Tensor, "*batch d_mlp"]:
        """Returns the part of each key along directions that the corpus's keys hardly use: P k, in float64.

        P projects onto the eigenvectors of C whose eigenvalue is below `null_space` times the mean of C's diagonal.
        The eigenvectors are kept for the next call, as Cholesky factors are.

        Raises:
            BadKeyStats: no eigenvalue is that small.
        """
        vectors = self._eigenvectors.get(layer, lambda: self._decompose(layer))
        values = self._eigenvalues[layer]
        self._check_width(layer, keys, len(values))
        shares = values / values.mean()
        free = vectors[:, shares < null_space]
        if free.shape[1] == 0:
            raise BadKeyStats(
                f"layer {layer}: the old keys use every direction: the smallest eigenvalue of C is "
                f"{float(shares.min()):.2g} of the mean, and null_space is {null_space:g}"
            )
        return (keys.to(free) @ free @ free.T).to(keys)

    def condition_number(self, layer: int) -> float:
        """Returns the largest eigenvalue of C divided by the smallest, in float64."""
        return spectrum(self.second_moment(layer))[1]

    def rank(self, layer: int) -> int:
        """Returns the number of eigenvalues of C that are larger than the rounding of its entries explains."""
        return spectrum(self.second_moment(layer))[0]

    def _decompose(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        self._eigenvalues[layer], vectors = torch.linalg.eigh(self.second_moment(layer).double())
        return vectors

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
        """Writes the matrices and their provenance to a safetensors file, whole or not at all, a layer at a time."""
        if self.is_identity:
            raise BadKeyStats("the identity needs no file: KeyStats.identity(model), or corpus 'identity', makes it")
        metadata = {
            **self.provenance,
            "format": FORMAT,
            "n_tokens": str(self.n_tokens),
            "ridge": repr(self.ridge),
            "convergence": json.dumps([dict(row) for row in self.shares]),
        }
        kinds = kinds_of((str(layer), moment) for layer, moment in self.moments.items())
        write_tensors(Path(path), kinds, lambda name: self.moments[int(name)], metadata)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: Model | None = None,
        layers: Sequence[int] | None = None,
        *,
        check: bool = True,
    ) -> "KeyStats":
        """Opens a file of statistics; a layer's matrix is read whenever it is needed, and not kept.

        Every matrix is compared with its checksum, here and whenever it is read again.  A file of an old version has
        no checksums: its matrices must look like second moments (`keys.plausibility.check_moments`).

        Args:
            path: a file that `save` wrote.
            model: the model that the statistics must belong to; matrices are moved to its device.
            layers: the layers to load, 0-based; all layers in the file if None.
            check: whether to read all matrices here; if not, a damaged one is refused when it is needed.

        Raises:
            BadKeyStats: the file cannot be read, is damaged, has another format, lacks a layer, or belongs to another
                model (the message names both fingerprints).
        """
        try:
            file = TensorFile(path)
        except OSError as error:
            raise BadKeyStats(f"{path}: the file cannot be read ({error})") from error
        metadata = file.metadata
        if metadata.pop("format", None) != FORMAT:
            raise BadKeyStats(f"{path}: expected key statistics of format {FORMAT}")
        try:
            stored, n_tokens = sorted(map(int, file.names)), fitted(int(metadata.pop("n_tokens")), Index, "n_tokens")
            ridge, shares = float(metadata.pop("ridge")), json.loads(metadata.pop("convergence", "[]"))
            rows = tuple(row for row in fitted(shares, list[dict[str, Any]], "convergence") if row["layer"] in stored)
        except (KeyError, ValueError) as error:
            raise BadKeyStats(f"{path}: expected layers, n_tokens, ridge and convergence, got {error!r}") from error
        layers = stored if layers is None else sorted(layers)
        if missing := set(layers) - set(stored):
            raise BadKeyStats(f"{path}: expected key statistics for layers {sorted(missing)}, found layers {stored}")
        if model is not None and metadata.get("model") != fingerprint(model):
            raise BadKeyStats(f"{path}: made for model {metadata.get('model')}, expected model {fingerprint(model)}")
        try:
            check_moments(file, layers if check else ())
        except Damaged as error:
            raise BadKeyStats(str(error)) from error
        rows = tuple(row for row in rows if row["layer"] in layers)
        device = "cpu" if model is None else model.W_E.device
        checksums = {int(name): checksum for name, checksum in file.checksums.items()}
        moments = LazyTensors(layers, lambda layer: file.read(str(layer)).to(device))
        return cls(moments, n_tokens, metadata, ridge, rows, _checksums=checksums)

    def __repr__(self) -> str:
        return f"KeyStats(layers={list(self.layers)}, n_tokens={self.n_tokens}, provenance={dict(self.provenance)})"
