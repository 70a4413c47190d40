"""Fingerprints of models and tokenizers, and the versions that numbers depend on."""

import hashlib
import json
import platform
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from loc_edit.models.model import Model, tokenizer

COLUMNS = 509
"""Width of a checksum, in words of 8 bytes: a prime, so that no row of weights is as long."""

KEPT = 8
"""Fingerprints kept for each model: edits come and go."""

SMALL = 2**14
"""Bytes up to which a tensor stands for itself."""

NAMES = ("device", "seed", "model_name", "tokenizer_name")
"""Fields of a configuration that say where a model comes from or lies, not what it computes."""

_TOKENIZERS: "WeakKeyDictionary[Any, tuple[str, str]]" = WeakKeyDictionary()
_FINGERPRINTS: "WeakKeyDictionary[Model, dict[bytes, str]]" = WeakKeyDictionary()


def fingerprint(model: Model) -> str:
    """A short hash of all that makes the model compute what it computes: weights, shape, BOS, tokenizer.

    The bytes of the weights are hashed once; later calls read all weights again, but only add them up (see
    `_checksum`), so that every write is seen, also one through `parameter.data`, and an edit that was undone
    costs no second hash.  Adding up takes about a ninth of the time of hashing: some 3 ms on the built-in model and
    80 ms on half a gigabyte, on one busy core.
    """
    digest = hashlib.sha256()
    cfg = {k: v for k, v in sorted(model.cfg.to_dict().items()) if k not in NAMES}
    digest.update(json.dumps(cfg, default=str, sort_keys=True).encode())
    digest.update(tokenizer_fingerprint(model).encode())
    parameters = sorted(model.named_parameters())
    state = digest.copy()
    for name, parameter in parameters:
        state.update(name.encode() + _checksum(parameter))
    known = _FINGERPRINTS.setdefault(model, {})
    if state.digest() not in known:
        for name, parameter in parameters:
            digest.update(name.encode())
            digest.update(_raw(parameter).cpu().numpy().data)
        if len(known) >= KEPT:
            known.pop(next(iter(known)))
        known[state.digest()] = digest.hexdigest()[:16]
    return known[state.digest()]


def _raw(parameter: Tensor) -> Tensor:
    """The bytes of a tensor, in order."""
    return parameter.detach().contiguous().reshape(-1).view(torch.uint8)


def _checksum(parameter: Tensor) -> bytes:
    """Sums of the tensor's bytes, read as integers of 8 bytes in rows of `COLUMNS`, by column; and the rest as it is.

    A change of any one entry changes its column's sum.  Changes of several entries escape only where those of one
    column, taken as integers, cancel.
    """
    raw = _raw(parameter)
    if raw.data_ptr() % 8:
        raw = raw.clone()
    size = raw.numel()
    whole = size - size % (8 * COLUMNS) if size > SMALL else 0
    sums = raw[:whole].view(torch.int64).view(-1, COLUMNS).sum(0)
    return sums.cpu().numpy().tobytes() + raw[whole:].cpu().numpy().tobytes()


def tokenizer_fingerprint(model: Model) -> str:
    """A short hash of the tokenizer: its vocabulary, merges and rules; not how it was last told to pad or cut.

    Kept until a rule or the size of the vocabulary changes, as writing out a large one takes long.
    """
    fast = tokenizer(model)
    backend = fast.backend_tokenizer
    rules = (backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder)
    state = repr((*rules, backend.get_vocab_size(), backend.get_added_tokens_decoder()))
    known = _TOKENIZERS.get(fast)
    if known is None or known[0] != state:
        whole = {**json.loads(backend.to_str()), "padding": None, "truncation": None}
        known = (state, hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16])
        _TOKENIZERS[fast] = known
    return known[1]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, and the device they are computed on."""
    names = ("loc-edit", "torch", "transformer-lens", "transformers", "numpy", "pandas")
    found = {name: version(name) for name in names}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {**found, "python": platform.python_version(), "device": device}
