"""One pass over rows of tokens that sums k k^T of every layer, and can be stopped at any moment.

Memory is one sum per layer, however many tokens there are: float32 products of about a thousand tokens are added to
float64 sums.  (In float32, sums of 1e8 tokens would lose half of their digits, because each addition rounds at the
size of the sum.)  Rows are taken a stretch at a time and sorted by length within the stretch, so that batches need
little padding.  The order is always the same, and checkpoints fall between two batches: a pass that was stopped
arrives at the same bits.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit import events
from loc_edit.keys.convergence import ConvergenceSamples
from loc_edit.keys.disk import TensorFile, kinds_of, write_tensors
from loc_edit.keys.moments import free_memory
from loc_edit.keys.tokens import TokenRows
from loc_edit.models.model import Hook, Model
from loc_edit.models.passes import run_layers

log = logging.getLogger(__name__)

BATCH = 8192
"""Tokens of a batch, padding included."""
BLOCK = 1024
"""Rows that are multiplied in the dtype of the products before they are added to the sums, which keeps 6 digits."""
SAVING = 0.05
"""Share of the time that checkpoints may take; where writing is slow, checkpoints are rarer."""
STRETCH = 16
"""Batches whose rows are sorted together."""


class Sums:
    """Sums of k k^T by layer, in float64.

    Args:
        layers: 0-based.
        size: d_mlp.
        device: where the sums are kept.
        products: the dtype of the products k k^T.
    """

    def __init__(self, layers: Sequence[int], size: int, device: torch.device | str, products: torch.dtype) -> None:
        self.by_layer = {
            layer: torch.zeros(size, size, dtype=torch.float64, device=device) for layer in sorted(set(layers))
        }
        self.products = products

    def add(self, layer: int, keys: Float[Tensor, "row d_mlp"]) -> None:
        """Adds k k^T of each row."""
        total = self.by_layer[layer]
        part = total if total.device == keys.device else torch.zeros_like(total, device=keys.device)
        for block in keys.to(self.products).split(BLOCK):
            part += block.T @ block
        if part is not total:
            total += part.to(total.device)


@dataclass
class Pass:
    """A pass under way: the sums, the samples that show their convergence, and the position in the corpus.

    Attributes:
        sums: see `Sums`.
        samples: see `ConvergenceSamples`.
        batch: the number of tokens in a batch; a pass that is resumed keeps it.
        row: the first row of the current stretch.
        done: the number of batches of that stretch that are in the sums.
        seen: the number of tokens in the sums.
    """

    sums: Sums
    samples: ConvergenceSamples
    batch: int = BATCH
    row: int = 0
    done: int = 0
    seen: int = 0

    def run(
        self, model: Model, rows: TokenRows, save: Callable[[], object] | None = None, every: float = 120.0
    ) -> None:
        """Goes on to the last row, and reports the progress in tokens after each batch.

        Args:
            model: the model whose keys are summed.
            rows: the tokens of the corpus.
            save: writes a checkpoint; it is called between two batches.
            every: seconds between two checkpoints, or more where they take longer than `SAVING` allows.
        """
        found, last_save = self.seen, time.monotonic()
        with strict_products():
            for _ in self.batches(model, rows):
                events.progress("tokens", self.seen, rows.n_tokens, found=found)
                start = time.monotonic()
                if save and start - last_save >= every:
                    save()
                    last_save = time.monotonic()
                    every = max(every, (last_save - start) / SAVING)

    def batches(self, model: Model, rows: TokenRows) -> Iterator[None]:
        """Adds one batch after another to the sums, up to the last row, and yields after each one."""
        while self.row < len(rows):
            next_row, batches = stretch(rows, self.row, self.batch)
            for batch in batches[self.done :]:
                before = self.seen
                self._add(model, batch)
                self.done += 1
                self.samples.solve(self.sums.by_layer, before, self.seen, rows.n_tokens)
                yield
            self.row, self.done = next_row, 0

    def _add(self, model: Model, batch: list[Int[Tensor, " _"]]) -> None:
        """Adds the keys of one batch's tokens to the sums, without the padding."""
        lengths = torch.tensor([len(row) for row in batch])
        tokens = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(model.W_E.device)
        real = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(tokens.device)

        def add(key: Tensor, hook: Any) -> Tensor:
            keys = key[real]
            self.sums.add(hook.layer(), keys)
            self.samples.keep(hook.layer(), keys)
            return key

        hooks: list[Hook] = [(f"blocks.{layer}.mlp.hook_post", add) for layer in self.sums.by_layer]
        with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
            run_layers(model, tokens, stop=max(self.sums.by_layer) + 1)
        self.seen += int(lengths.sum())

    def save(self, path: Path, identity: str) -> None:
        """Writes a checkpoint, a tensor at a time.

        Args:
            path: the file.
            identity: names the model, the layers and the corpus; only a pass of the same identity may resume here.
        """
        tensors = {f"sum.{layer}": total for layer, total in self.sums.by_layer.items()} | self.samples.tensors()
        state = {"batch": self.batch, "row": self.row, "done": self.done, "seen": self.seen}
        metadata = {"identity": identity, "state": json.dumps(state), "shares": json.dumps(self.samples.shares)}
        write_tensors(path, kinds_of(tensors.items()), tensors.__getitem__, metadata)

    def restore(self, path: Path, identity: str) -> bool:
        """Takes over a checkpoint of the same pass, and returns whether there was one that could be used."""
        if not path.is_file():
            return False
        try:
            file = TensorFile(path)
            if file.metadata.get("identity") != identity:
                log.warning("%s: the checkpoint is of another pass; starting again", path)
                return False
            state = json.loads(file.metadata["state"])
            for layer, total in self.sums.by_layer.items():
                total.copy_(file.read(f"sum.{layer}"))
            self.samples.restore(file, json.loads(file.metadata["shares"]))
        except (OSError, KeyError, ValueError) as error:
            log.warning("%s: no usable checkpoint (%s); starting again", path, error)
            for total in self.sums.by_layer.values():
                total.zero_()
                self.samples = ConvergenceSamples(len(total), self.sums.products)
            return False
        self.batch, self.row, self.done, self.seen = (state[name] for name in ("batch", "row", "done", "seen"))
        return True


def start_pass(model: Model, layers: Sequence[int], products: torch.dtype, batch: int = BATCH) -> Pass:
    """Returns a pass that has seen nothing yet.

    Args:
        model: the model whose keys are summed; the sums are on its device if they fit, else in host memory.
        layers: 0-based.
        products: the dtype of the products k k^T.
        batch: the number of tokens in a batch, padding included.
    """
    size, device = int(model.cfg.d_mlp or 0), model.W_E.device
    needed = len(set(layers)) * size * size * 8
    if device.type == "cuda" and needed > 0.8 * free_memory(device):
        log.warning("sums of %.0f GB do not fit the GPU beside the model: they are kept in host memory", needed / 1e9)
        device = torch.device("cpu")
    return Pass(Sums(layers, size, device, products), ConvergenceSamples(size, products), batch)


def stretch(rows: TokenRows, first: int, batch: int) -> tuple[int, list[list[Int[Tensor, " _"]]]]:
    """Returns the row where the next stretch starts, and the batches of the stretch that starts at row `first`.

    A stretch is `STRETCH` batches long, and its rows are sorted by length; a batch has at most `batch` tokens with its
    padding, or one row.  The batches are shuffled, always in the same way, so that half of them is a fair half.
    """
    last = int(rows.starts.searchsorted(rows.starts[first] + STRETCH * batch, side="right")) - 1
    last = min(max(last, first + 1), len(rows))
    batches: list[list[Tensor]] = []
    for row in sorted(rows.read(first, last), key=len):
        if not batches or len(row) * (len(batches[-1]) + 1) > batch:
            batches.append([])
        batches[-1].append(row)
    Random(first).shuffle(batches)
    return last, batches


@contextmanager
def strict_products() -> Iterator[None]:
    """Multiplies float32 matrices in float32 inside the block; TF32 would keep three digits only."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
