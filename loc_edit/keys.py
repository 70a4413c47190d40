"""The uncentred second moment of the keys, E[k k^T], which ROME and MEMIT solve against."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.batching import Hook
from loc_edit.models import check_layers, fingerprint, tokenizer, tokenizer_fingerprint

log = logging.getLogger(__name__)
FORMAT = "loc_edit.key_stats/1"


class BadKeyStats(ValueError):
    """Key statistics that cannot be solved against, or do not belong to the model."""


@dataclass(frozen=True)
class KeyStats:
    """Second moments of the keys by layer, with how they came about.

    Attributes:
        moments: per layer `[d_mlp d_mlp]`, E[k k^T], float32 or better.
        n_tokens: tokens averaged over.
        provenance: model fingerprint, tokenizer, corpus, limits; plain strings.
        ridge: added to the diagonal before factoring, as a share of its mean; 0 unless asked for.
    """

    moments: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    n_tokens: int
    provenance: Mapping[str, str] = field(default_factory=dict)
    ridge: float = 0.0
    _factors: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

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

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers there are, ascending."""
        return tuple(sorted(self.moments))

    def second_moment(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """E[k k^T] of a layer."""
        if layer not in self.moments:
            raise BadKeyStats(f"layer {layer}: no key statistics; there are some for layers {list(self.layers)}")
        return self.moments[layer]

    def solve(self, layer: int, keys: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "*batch d_mlp"]:
        """C^-1 k for each key, solved in float64 by a Cholesky factor that is kept.

        Raises:
            BadKeyStats: fewer tokens than d_mlp, or C is not positive definite in float64.
        """
        factor = self._factor(layer)
        columns = rearrange(keys.to(factor), "... d_mlp -> d_mlp (...)")
        solved = torch.cholesky_solve(columns, factor)
        return solved.T.reshape(keys.shape).to(keys)

    def condition_number(self, layer: int) -> float:
        """Largest over smallest eigenvalue of C, in float64."""
        eigenvalues = torch.linalg.eigvalsh(self.second_moment(layer).double())
        return (eigenvalues[-1] / eigenvalues[0]).abs().item()

    def _factor(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        if layer not in self._factors:
            moment = self.second_moment(layer).double()
            size = len(moment)
            if self.n_tokens < size and not self.ridge:
                raise BadKeyStats(
                    f"layer {layer}: {self.n_tokens} tokens cannot give a second moment of size {size} full rank; "
                    "use more tokens, or ridge="
                )
            moment = moment + self.ridge * moment.diagonal().mean() * torch.eye(size).to(moment)
            factor, failed = torch.linalg.cholesky_ex(moment)
            if failed:
                rank = torch.linalg.matrix_rank(moment, hermitian=True).item()
                raise BadKeyStats(
                    f"layer {layer}: the second moment has rank {rank} of {size}; use more tokens, or ridge="
                )
            self._factors[layer] = factor
        return self._factors[layer]

    def save(self, path: str | Path) -> None:
        """Write the matrices and their provenance to a safetensors file, whole or not at all."""
        metadata = {
            **self.provenance,
            "format": FORMAT,
            "n_tokens": str(self.n_tokens),
            "ridge": repr(self.ridge),
        }
        partial = Path(f"{path}.{os.getpid()}.tmp")
        save_file({str(k): v.cpu().contiguous() for k, v in self.moments.items()}, partial, metadata=metadata)
        partial.replace(path)

    @classmethod
    def load(
        cls, path: str | Path, model: HookedTransformer | None = None, layers: Sequence[int] | None = None
    ) -> "KeyStats":
        """Read statistics; with `model`, refuse those of another one.

        Raises:
            BadKeyStats: unreadable, of another format, or of another model (both fingerprints are named).
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                wanted = file.keys() if layers is None else [str(layer) for layer in layers]
                moments = {int(name): file.get_tensor(name) for name in wanted}
        except (SafetensorError, OSError) as error:
            raise BadKeyStats(f"{path}: cannot be read ({error})") from error
        if metadata.pop("format", None) != FORMAT:
            raise BadKeyStats(f"{path}: no key statistics of format {FORMAT}")
        n_tokens, ridge = int(metadata.pop("n_tokens")), float(metadata.pop("ridge"))
        if model is not None:
            if metadata.get("model") != fingerprint(model):
                raise BadKeyStats(
                    f"{path}: made for model {metadata.get('model')}, and this one is {fingerprint(model)}"
                )
            moments = {layer: moment.to(model.cfg.device) for layer, moment in moments.items()}
        return cls(moments, n_tokens, metadata, ridge)

    def __repr__(self) -> str:
        return f"KeyStats(layers={list(self.layers)}, n_tokens={self.n_tokens}, provenance={dict(self.provenance)})"


def key_stats(
    model: HookedTransformer,
    layers: Sequence[int],
    corpus: str | Iterable[str] = "builtin",
    *,
    tokens: int = 200_000,
    ridge: float = 0.0,
    cache: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KeyStats:
    """Second moments of the keys of `layers`, all accumulated in one pass over a corpus.

    Args:
        model: whose `blocks.<l>.mlp.hook_post` are the keys.
        layers: 0-based.
        corpus: `"builtin"`, or texts, one document each.
        tokens: where to stop; the corpus may end before.
        ridge: see `KeyStats`.
        cache: folder in which statistics are kept by content; `LOC_EDIT_CACHE`, or `~/.cache/loc_edit`.
        progress: called with (tokens seen, tokens wanted).

    Raises:
        BadKeyStats: the corpus is empty.
    """
    check_layers(model, list(layers))
    texts = list(_documents(corpus))
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\x00")
    provenance = {
        "model": fingerprint(model),
        "tokenizer": tokenizer_fingerprint(model),
        "corpus": digest.hexdigest()[:16],
        "corpus_name": corpus if isinstance(corpus, str) else "given texts",
        "tokens_wanted": str(tokens),
        "dtype": str(model.cfg.dtype),
    }
    folder = Path(cache or os.environ.get("LOC_EDIT_CACHE") or Path.home() / ".cache" / "loc_edit") / "key_stats"
    identity = hashlib.sha256(repr((sorted(provenance.items()), sorted(layers))).encode()).hexdigest()[:16]
    path = folder / f"{identity}.safetensors"
    if path.is_file():
        stats = KeyStats.load(path, model)
    else:
        moments, n_tokens = _accumulate(model, list(layers), texts, tokens, progress)
        stats = KeyStats(moments, n_tokens, provenance)
        _keep(stats, path)
    return KeyStats(stats.moments, stats.n_tokens, stats.provenance, ridge)


def _keep(stats: KeyStats, path: Path) -> None:
    """Cache the statistics; a cache that cannot be written costs time, not the result."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stats.save(path)
    except (OSError, SafetensorError) as error:
        log.warning("key statistics are not cached: %s", error)


def _documents(corpus: str | Iterable[str]) -> Iterator[str]:
    if not isinstance(corpus, str):
        yield from corpus
    elif corpus == "builtin":
        from loc_edit.data.corpus import builtin_corpus  # only this corpus needs the generator

        yield from builtin_corpus()
    else:
        raise BadKeyStats(f"corpus {corpus!r}: 'builtin' or texts are wanted")


@torch.inference_mode()
def _accumulate(
    model: HookedTransformer,
    layers: list[int],
    texts: list[str],
    limit: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[int, Tensor], int]:
    """Sums of k k^T in float64, of float32 products by batch, over real tokens only."""
    size, device = int(model.cfg.d_mlp or 0), model.cfg.device
    sums = {layer: torch.zeros(size, size, dtype=torch.float64, device=device) for layer in layers}
    seen, mask = 0, torch.zeros(0)

    def add(key: Tensor, hook: Any) -> Tensor:
        rows = key[mask].float()
        sums[hook.layer()] += (rows.T @ rows).double()
        return key

    hooks: list[Hook] = [(f"blocks.{layer}.mlp.hook_post", add) for layer in layers]
    for chunk in _chunks(model, texts, limit):
        mask = torch.zeros(len(chunk), max(map(len, chunk)), dtype=torch.bool, device=device)
        for row, one in enumerate(chunk):
            mask[row, : len(one)] = True
        padded = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True)
        model.run_with_hooks(padded, stop_at_layer=max(layers) + 1, fwd_hooks=hooks)
        seen += int(mask.sum())
        if progress:
            progress(seen, limit)
    if not seen:
        raise BadKeyStats("the corpus holds no tokens")
    return {layer: (total / seen).float() for layer, total in sums.items()}, seen


def _chunks(
    model: HookedTransformer, texts: list[str], limit: int, rows: int = 64
) -> Iterator[list[Int[Tensor, " pos"]]]:
    """Documents as token rows of at most n_ctx, some at a time, `limit` tokens in all."""
    chunk: list[Tensor] = []
    left, bos = limit, [tokenizer(model).bos_token_id] if model.cfg.default_prepend_bos else []
    for text in texts:
        ids = torch.tensor(bos + tokenizer(model)(text, add_special_tokens=False)["input_ids"])[:left]
        left -= len(ids)
        chunk += [piece.to(model.cfg.device) for piece in ids.split(model.cfg.n_ctx) if len(piece)]
        while len(chunk) >= rows:
            yield chunk[:rows]
            chunk = chunk[rows:]
        if left <= 0:
            break
    if chunk:
        yield chunk
