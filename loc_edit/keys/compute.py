"""Computes the key statistics of a model from a corpus, or reads them from the cache."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from loc_edit.arguments import Count, checked
from loc_edit.files import Damaged, StoreError, cache_folder, set_aside, short_hash
from loc_edit.keys.corpora import IDENTITY, open_corpus
from loc_edit.keys.disk import remove_stale
from loc_edit.keys.moments import BadKeyStats, KeyStats
from loc_edit.keys.plausibility import record_checksums
from loc_edit.keys.streaming import BATCH, Pass, start_pass
from loc_edit.keys.tokens import TokenRows, row_length, write_tokens
from loc_edit.models.checks import check_layers, warn_of_hooks
from loc_edit.models.identity import fingerprint, tokenizer_fingerprint
from loc_edit.models.model import Model

log = logging.getLogger(__name__)

SMALL_BATCH = 256
"""Tokens in a batch of a small sample, in which a full-size batch would leave no half to compare the whole with."""


@checked
def key_stats(
    model: Model,
    layers: Sequence[int],
    corpus: str | Path | Iterable[str] = "builtin",
    *,
    tokens: Count = 200_000,
    ridge: float = 0.0,
    dtype: torch.dtype = torch.float32,
    cache: str | Path | None = None,
    batch: Count | None = None,
    every: float = 120.0,
) -> KeyStats:
    """Computes the second moments of the keys of `layers`, all in one pass over a corpus.

    A pass writes a checkpoint to the cache from time to time; stop it at any moment, and the same call resumes it and
    arrives at the same bits.  The whole sample is read and tokenized before the pass starts.

    Hooks of yours on the model are part of the pass, whose result is then not cached.

    Args:
        model: the model whose `blocks.<l>.mlp.hook_post` are the keys.
        layers: 0-based.
        corpus: `"builtin"`, a file, folder or hub data set (see `corpora.open_corpus`), texts, one document each, or
            `"identity"` for no corpus and C = I.
        tokens: the number of tokens to use, or fewer if the corpus ends before.
        ridge: see `KeyStats`.
        dtype: the type of the products k k^T and of the stored moments; the sums are always float64.  Float64 is for
            condition numbers beyond 1e7: it takes twice the time and disk on a CPU.
        cache: the folder in which statistics are kept by content; `LOC_EDIT_CACHE` or `~/.cache/loc_edit` by default.
        batch: the number of tokens in a batch, padding included; by default 8192, and 1/32 of a small sample.
        every: seconds between two checkpoints, or more where writing takes more than 5% of the time.

    Raises:
        BadCorpus: the corpus cannot be read; the message names it, and the line where there is one.
        BadKeyStats: the corpus is empty, or a key is not finite.
    """
    layers = sorted(set(layers))
    _check(model, layers, dtype)
    if isinstance(corpus, str) and corpus == IDENTITY:
        return KeyStats.identity(model, layers).with_ridge(ridge)
    source, rows = open_corpus(corpus), None
    with _working_folder(cache, warn_of_hooks(model)) as folder:
        identity = source.identity()
        if identity is None:  # only the documents tell; the digest is of the tokens that are used
            rows = write_tokens(model, source.documents(), tokens, folder)
            identity = rows.digest
        provenance = _provenance(model, tokens, dtype, identity)
        name = _name(provenance)
        stats = _cached(folder / name, model, layers)
        if stats is None:
            rows = rows or write_tokens(model, source.documents(), tokens, folder)
            if not rows.n_tokens:
                raise BadKeyStats(f"corpus {source.name!r} has no tokens")
            work = start_pass(model, layers, dtype, batch or min(BATCH, max(SMALL_BATCH, rows.n_tokens // 32)))
            _run(work, model, rows, folder / name, every)
            provenance |= {"corpus_name": source.name, "text": rows.digest[:16], "batch": str(work.batch)}
            stats = _result(work, provenance)
            if folder == cache_folder("key_stats", cache):
                stats = _keep(model, stats, folder / name)
    return stats.with_ridge(ridge)


def are_cached(model: Model, layers: Sequence[int], corpus: str | Path, *, tokens: int) -> bool:
    """Whether `key_stats` finds its result in the cache, as far as one can tell without reading the corpus."""
    identity = open_corpus(corpus).identity()
    if identity is None:
        return False
    name = _name(_provenance(model, tokens, torch.float32, identity))
    return _cached(cache_folder("key_stats", None) / name, model, sorted(layers), check=False) is not None


def _check(model: Model, layers: list[int], dtype: torch.dtype) -> None:
    """Refuses arguments of `key_stats` that cannot be meant."""
    check_layers(model, layers)
    if dtype not in (torch.float32, torch.float64):
        raise BadKeyStats(f"expected dtype float32 or float64, got {dtype}")
    if not model.cfg.d_mlp or model.cfg.attn_only:
        raise BadKeyStats(f"model {model.cfg.model_name}: there are no keys in a model without MLPs")


def _name(provenance: dict[str, str]) -> str:
    """Returns the name of the statistics in the cache."""
    return short_hash(repr(sorted(provenance.items())))


def _provenance(model: Model, tokens: int, dtype: torch.dtype, corpus: str) -> dict[str, str]:
    """Returns what the statistics depend on; `corpus` is its identity."""
    return {
        "model": fingerprint(model),
        "tokenizer": tokenizer_fingerprint(model),
        "tokens_wanted": str(tokens),
        "row": str(row_length(model)),
        "dtype": str(model.cfg.dtype),
        "moments": str(dtype),
        "corpus": corpus[:16],
    }


def _run(work: Pass, model: Model, rows: TokenRows, stem: Path, every: float) -> None:
    """Runs the pass to its end, from its checkpoint if there is one; the checkpoint's name starts with `stem`."""
    identity = f"{rows.digest}|{list(work.sums.by_layer)}|{work.sums.products}|{fingerprint(model)}"
    path = stem.with_name(f"{stem.name}-{short_hash(identity)[:8]}.checkpoint")
    remove_stale(path)
    if work.restore(path, identity):
        log.info("resuming after %d of %d tokens", work.seen, rows.n_tokens)

    def save() -> None:
        try:
            work.save(path, identity)
        except OSError as error:
            log.warning("no checkpoint is written: %s", error)

    work.run(model, rows, save, every)
    path.unlink(missing_ok=True)


def _result(work: Pass, provenance: dict[str, str]) -> KeyStats:
    """Returns the means; each sum is dropped as soon as its mean is computed."""
    sums, dtype = work.sums.by_layer, work.sums.products
    moments = {layer: (sums.pop(layer) / work.seen).to(dtype) for layer in list(sums)}
    return KeyStats(moments, work.seen, provenance, shares=work.samples.rows())


def _cached(stem: Path, model: Model, layers: list[int], *, check: bool = True) -> KeyStats | None:
    """Returns statistics from the cache that have all of the layers, and perhaps others.

    With `check`, a damaged file is set aside, and a file of an old version gets checksums if the disk allows it.
    """
    for path in sorted(stem.parent.glob(f"{stem.name}-*.safetensors")):
        try:
            KeyStats.load(path, model, layers, check=check)
            if check:
                _record_checksums(path)
            return KeyStats.load(path, model, layers, check=False)
        except BadKeyStats as error:
            if check and isinstance(error.__cause__, Damaged):
                _set_aside(path)
            log.debug("%s", error)
    return None


def _record_checksums(path: Path) -> None:
    try:
        record_checksums(path)
    except OSError as error:
        log.info("%s gets no checksums: %s", path, error)


def _set_aside(path: Path) -> None:
    try:
        set_aside(path)
    except StoreError as error:
        log.warning("%s", error)


def _keep(model: Model, stats: KeyStats, stem: Path) -> KeyStats:
    """Writes the statistics to the cache and opens them there; if writing fails, they stay in memory."""
    path = stem.with_name(f"{stem.name}-{short_hash(str(stats.layers))[:8]}.safetensors")
    try:
        stats.save(path)
    except OSError as error:
        log.warning("key statistics are not cached: %s", error)
        return stats
    return KeyStats.load(path, model)


@contextmanager
def _working_folder(cache: str | Path | None, hooked: bool) -> Iterator[Path]:
    """The folder of the cache, or a temporary folder if the cache cannot be written, or the model has hooks.

    The cache knows a model by its weights alone.
    """
    folder = cache_folder("key_stats", cache)
    if not hooked and _can_be_written(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="loc_edit_") as temporary:
        yield Path(temporary)


def _can_be_written(folder: Path) -> bool:
    """Whether the cache's folder is there, or can be made, and takes files; if not, with a warning in the log."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        log.warning("key statistics are not cached, and a pass that is stopped starts again: %s", error)
        return False
