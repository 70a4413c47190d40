"""Key statistics of a model and a corpus: from the cache, or by one pass that goes on where it was stopped."""

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from loc_edit.files import cache_folder
from loc_edit.keys.corpora import IDENTITY, Corpus, open_corpus
from loc_edit.keys.disk import remove_stale
from loc_edit.keys.moments import BadKeyStats, KeyStats
from loc_edit.keys.streaming import BATCH, Pass, Progress, start_pass
from loc_edit.keys.tokens import TokenRows, row_length, write_tokens
from loc_edit.models.checks import check_layers
from loc_edit.models.identity import fingerprint, tokenizer_fingerprint
from loc_edit.models.model import Model

log = logging.getLogger(__name__)

SMALL_BATCH = 256
"""Tokens of a batch of a small sample: with one of full size, there would be no half to compare the whole with."""


def key_stats(
    model: Model,
    layers: Sequence[int],
    corpus: str | Path | Iterable[str] = "builtin",
    *,
    tokens: int = 200_000,
    ridge: float = 0.0,
    dtype: torch.dtype = torch.float32,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    batch: int | None = None,
    every: float = 120.0,
) -> KeyStats:
    """Second moments of the keys of `layers`, all accumulated in one pass over a corpus.

    A pass writes a checkpoint to the cache from time to time; stopped at any moment, the same call goes on from there
    and comes to the same bits.  The whole sample is read and tokenized before the pass starts.

    Args:
        model: whose `blocks.<l>.mlp.hook_post` are the keys.
        layers: 0-based.
        corpus: `"builtin"`, a file, folder or hub data set (see `corpora.open_corpus`), texts, one document each, or
            `"identity"` for no corpus and C = I.
        tokens: where to stop; the corpus may end before.
        ridge: see `KeyStats`.
        dtype: of the products k k^T and of the stored moments; the sums are float64 in any case.  Float64 is for
            condition numbers beyond 1e7: twice the time and disk on a CPU.
        cache: folder in which statistics are kept by content; `LOC_EDIT_CACHE`, or `~/.cache/loc_edit`.
        progress: called with (tokens seen, tokens in all) after each batch.
        batch: tokens of a batch, padding included; by default 8192, and 1/32 of a small sample.
        every: seconds between two checkpoints; longer ones where writing takes more than 5% of the time.

    Raises:
        BadCorpus: the corpus cannot be read; named, with the line where there is one.
        BadKeyStats: the corpus is empty, or a key is not finite.
    """
    layers = sorted(set(layers))
    check_layers(model, layers)
    if tokens < 1 or dtype not in (torch.float32, torch.float64) or (batch is not None and batch < 1):
        raise BadKeyStats(f"tokens {tokens}, batch {batch}, dtype {dtype}: at least 1, float32 or float64 are wanted")
    if not model.cfg.d_mlp or model.cfg.attn_only:
        raise BadKeyStats(f"model {model.cfg.model_name}: there are no keys in a model without MLPs")
    if isinstance(corpus, str) and corpus == IDENTITY:
        return KeyStats.identity(model, layers).with_ridge(ridge)
    source = open_corpus(corpus)
    about = {
        "model": fingerprint(model),
        "tokenizer": tokenizer_fingerprint(model),
        "tokens_wanted": str(tokens),
        "row": str(row_length(model)),
        "dtype": str(model.cfg.dtype),
        "moments": str(dtype),
    }
    with _workshop(cache) as folder:
        identity, rows = source.identity(), None
        if identity is None:  # only reading tells; the digest is of the tokens that are used
            rows = write_tokens(model, source.documents(), tokens, folder)
            identity = rows.digest
        about = {**about, "corpus": identity[:16]}
        name = hashlib.sha256(repr(sorted(about.items())).encode()).hexdigest()[:16]
        stats = _find(folder, name, model, layers)
        if stats is None:
            rows = rows or write_tokens(model, source.documents(), tokens, folder)
            work = _work_through(model, layers, rows, dtype, folder / name, source, progress, batch, every)
            about |= {"corpus_name": source.name, "text": rows.digest[:16], "batch": str(work.batch)}
            stats = _result(work, about, dtype)
            if folder == cache_folder("key_stats", cache):
                stats = _keep(model, stats, folder, name)
    return stats.with_ridge(ridge)


def _work_through(
    model: Model,
    layers: list[int],
    rows: TokenRows,
    dtype: torch.dtype,
    stem: Path,
    source: Corpus,
    progress: Progress | None,
    batch: int | None,
    every: float,
) -> Pass:
    """The pass, from its checkpoint on if there is one."""
    if not rows.n_tokens:
        raise BadKeyStats(f"corpus {source.name!r} holds no tokens")
    identity = f"{rows.digest}|{layers}|{dtype}|{fingerprint(model)}"
    place = stem.with_name(f"{stem.name}-{_hash(identity)}.checkpoint")
    remove_stale(place)
    work = start_pass(model, layers, dtype, batch or min(BATCH, max(SMALL_BATCH, rows.n_tokens // 32)))
    if work.restore(place, identity):
        log.info("going on from %d of %d tokens", work.seen, rows.n_tokens)

    def save() -> None:
        try:
            work.save(place, identity)
        except OSError as error:
            log.warning("no checkpoint is written: %s", error)

    work.run(model, rows, progress, save, every)
    place.unlink(missing_ok=True)
    return work


def _result(work: Pass, about: dict[str, str], dtype: torch.dtype) -> KeyStats:
    """The sums as means; each is let go when its mean is there."""
    convergence = work.probes.convergence()
    moments = {layer: (work.sums.by_layer.pop(layer) / work.seen).to(dtype) for layer in list(work.sums.by_layer)}
    return KeyStats(moments, work.seen, about, shares=convergence)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _find(folder: Path, name: str, model: Model, layers: list[int]) -> KeyStats | None:
    """Kept statistics of that name that have the layers, and maybe others too."""
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        try:
            return KeyStats.load(path, model, layers)
        except BadKeyStats as error:
            log.debug("%s", error)
    return None


def _keep(model: Model, stats: KeyStats, folder: Path, name: str) -> KeyStats:
    """The statistics from the cache; one that cannot be written costs time, not the result."""
    path = folder / f"{name}-{_hash(str(stats.layers))}.safetensors"
    try:
        stats.save(path)
    except (OSError, SafetensorError) as error:
        log.warning("key statistics are not cached: %s", error)
        return stats
    return KeyStats.load(path, model)


@contextmanager
def _workshop(cache: str | Path | None) -> Iterator[Path]:
    """The folder of the cache; where it cannot be written, one that is gone afterwards."""
    folder = cache_folder("key_stats", cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        log.warning("key statistics are not cached, and a pass that is stopped starts again: %s", error)
        with tempfile.TemporaryDirectory(prefix="loc_edit_") as temporary:
            yield Path(temporary)
        return
    yield folder
