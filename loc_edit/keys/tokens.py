"""Reads and tokenizes a corpus once, up to a limit, before any long work, and keeps the token ids on disk.

Every document is read here first: mistakes in a corpus show at once, the tokens are counted exactly, and a pass that
was stopped resumes at the number of a row.  A token takes 4 bytes: 400 MB for 1e8.
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
"""Tokens after which a document continues in another row, unless the model's context is shorter."""


def row_length(model: Model) -> int:
    """Returns the largest number of tokens in a row."""
    return min(model.cfg.n_ctx, LONGEST_ROW)


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids in a file, in the order of the corpus; a long document takes several rows.

    Attributes:
        file: the ids, 4 bytes each.
        starts: the number of the token at which each row starts, and at the end the number of tokens.
        digest: a hash of the ids and starts.
    """

    file: IO[bytes]
    starts: Int[np.ndarray, " rows_and_1"]
    digest: str

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def n_tokens(self) -> int:
        """The number of tokens in all rows."""
        return int(self.starts[-1])

    def read(self, first: int, last: int) -> list[Int[Tensor, " _"]]:
        """Returns the rows from `first` up to, but not including, `last`."""
        starts = self.starts[first : last + 1]
        count = int(starts[-1] - starts[0])
        self.file.seek(4 * int(starts[0]))
        ids = np.frombuffer(self.file.read(4 * count), np.int32)
        return list(torch.from_numpy(ids.astype(np.int64)).split((starts[1:] - starts[:-1]).tolist()))


def write_tokens(model: Model, documents: Iterable[str], limit: int, folder: Path) -> TokenRows:
    """Tokenizes documents into a file, up to `limit` tokens; the BOS token counts where the model uses one.

    Args:
        model: gives the tokenizer and the length of the longest row.
        documents: texts; they are read up to the limit and a few documents beyond.
        limit: the number of tokens after which the last row is cut.
        folder: the place of the ids; their file has no name and disappears with the process, however that ends.
    """
    length, starts, digest, left = row_length(model), array("q", [0]), hashlib.sha256(), limit
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (open as long as its rows are needed)
    for ids in _tokenized(model, documents):
        row = ids[:left]
        left -= len(row)
        data = np.asarray(row, dtype=np.int32).tobytes()
        digest.update(data)
        file.write(data)
        end = starts[-1] + len(row)
        starts.extend([*range(starts[-1] + length, end, length), end])
        if left <= 0:
            break
    file.flush()
    digest.update(starts.tobytes())
    return TokenRows(file, np.frombuffer(starts, dtype=np.int64), digest.hexdigest())


def _tokenized(model: Model, documents: Iterable[str]) -> Iterator[list[int]]:
    """Yields the ids of each document that has any; tokenizes many at once, because fast tokenizers use all cores."""
    bos = [tokenizer(model).bos_token_id] if model.cfg.default_prepend_bos else []
    for texts in bunches(documents, AT_ONCE, most=1000):
        for ids in tokenizer(model)(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            if ids:
                yield bos + ids


def bunches(documents: Iterable[str], characters: int, most: int) -> Iterator[list[str]]:
    """Yields the documents in lists that end when they have enough characters or `most` documents."""
    bunch: list[str] = []
    length = 0
    for text in documents:
        bunch.append(text)
        length += len(text)
        if length >= characters or len(bunch) >= most:
            yield bunch
            bunch, length = [], 0
    if bunch:
        yield bunch
