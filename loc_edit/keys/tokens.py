"""A corpus as token ids on disk: read and tokenized once, to a limit, before any long work.

Every document is seen here first, so that what is wrong with a corpus shows at once, the tokens are counted exactly,
and a pass that was stopped goes on at a row's number.  4 bytes a token: 400 MB for 1e8.
"""

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from loc_edit.models.model import Model, tokenizer

AT_ONCE = 1 << 20
"""Characters that are tokenized together."""
LONGEST_ROW = 2048
"""Tokens after which a document goes on in another row, where the model's context does not end before."""


def row_length(model: Model) -> int:
    """Tokens that a row has at most."""
    return min(model.cfg.n_ctx, LONGEST_ROW)


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids in a file, in the corpus's order; a long document is several rows.

    Attributes:
        file: the ids, 4 bytes each.
        starts: where each row starts, and where the last one ends.
        digest: hash of the ids and starts.
    """

    file: IO[bytes]
    starts: Int[np.ndarray, " rows_and_1"]
    digest: str

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.starts[-1])

    def read(self, first: int, last: int) -> list[Int[Tensor, " _"]]:
        """The rows from `first` up to, not including, `last`."""
        starts = self.starts[first : last + 1]
        if len(starts) < 2:
            return []
        count = int(starts[-1] - starts[0])
        self.file.seek(4 * int(starts[0]))
        ids = np.frombuffer(self.file.read(4 * count), np.int32)
        return list(torch.from_numpy(ids.astype(np.int64)).split((starts[1:] - starts[:-1]).tolist()))


def write_tokens(model: Model, documents: Iterable[str], limit: int, folder: Path) -> TokenRows:
    """Tokenize documents into a file, `limit` tokens at most; the BOS token counts where the model has one.

    Args:
        model: gives the tokenizer, and the longest row.
        documents: read as far as the limit, and some documents more.
        limit: the last row is cut there.
        folder: where the ids go, in a file without a name: it ends with the process, however that ends.
    """
    length, starts, digest, left = row_length(model), array("q", [0]), hashlib.sha256(), limit
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (it is open as long as its rows are wanted)
    for ids in _tokenized(model, documents):
        row = ids[:left]
        left -= len(row)
        data = np.asarray(row, dtype=np.int32).tobytes()
        digest.update(data)
        file.write(data)
        for start in range(0, len(row), length):
            starts.append(starts[-1] + len(row[start : start + length]))
        if left <= 0:
            break
    file.flush()
    digest.update(starts.tobytes())
    return TokenRows(file, np.frombuffer(starts, dtype=np.int64), digest.hexdigest())


def _tokenized(model: Model, documents: Iterable[str]) -> Iterator[list[int]]:
    """Ids of each document that has any, many documents at once: fast tokenizers use all cores for them."""
    bos = [tokenizer(model).bos_token_id] if model.cfg.default_prepend_bos else []
    for texts in _bunches(documents):
        for ids in tokenizer(model)(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            if ids:
                yield bos + ids


def _bunches(documents: Iterable[str]) -> Iterator[list[str]]:
    bunch: list[str] = []
    length = 0
    for text in documents:
        bunch.append(text)
        length += len(text)
        if length >= AT_ONCE or len(bunch) >= 1000:
            yield bunch
            bunch, length = [], 0
    if bunch:
        yield bunch
