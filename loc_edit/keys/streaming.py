"""One pass over rows of tokens that sums k k^T of every layer, and can be stopped at any moment.

Memory is one sum per layer, whatever the number of tokens: float32 products of some thousand tokens are added to
float64 sums.  (Summed in float32, 1e8 tokens would lose half of the digits: each addition rounds at the size of the
sum.)  The rows are taken a stretch at a time, in order of their length within it, so that little is padding.  The
order is the same each time, and a checkpoint falls between two batches: a pass that was stopped comes to the same bits.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loc_edit.keys.disk import write_tensors
from loc_edit.keys.moments import free_memory
from loc_edit.keys.probes import Probes
from loc_edit.keys.tokens import TokenRows
from loc_edit.models.model import Hook, Model
from loc_edit.models.passes import run_layers

log = logging.getLogger(__name__)

BATCH = 8192
"""Tokens of a batch, padding included."""
BLOCK = 1024
"""Rows that are multiplied in the dtype of the products before they are added to the sums: 6 digits are left."""
SAVING = 0.05
"""Share of the time that checkpoints may take: where writing is slow, there are fewer."""
STRETCH = 16
"""Batches whose rows are sorted together."""

Progress = Callable[[int, int], None]
"""Called with (tokens seen, tokens in all)."""


class Sums:
    """Sums of k k^T by layer, in float64."""

    def __init__(self, layers: Sequence[int], size: int, device: torch.device | str, products: torch.dtype) -> None:
        self.by_layer = {
            layer: torch.zeros(size, size, dtype=torch.float64, device=device) for layer in sorted(set(layers))
        }
        self.products = products

    def add(self, layer: int, keys: Float[Tensor, "row d_mlp"]) -> None:
        """Add k k^T of each row."""
        total = self.by_layer[layer]
        part = total if total.device == keys.device else torch.zeros_like(total, device=keys.device)
        for block in keys.to(self.products).split(BLOCK):
            part += block.T @ block
        if part is not total:
            total += part.to(total.device)


@dataclass
class Pass:
    """A pass under way: the sums, what was kept to see them converge, and how far it has come.

    Attributes:
        sums: see `Sums`.
        probes: see `Probes`.
        batch: tokens of a batch; a pass that goes on keeps it.
        row: the first row of the stretch at work.
        done: batches of that stretch that are in the sums.
        seen: tokens in the sums.
    """

    sums: Sums
    probes: Probes
    batch: int = BATCH
    row: int = 0
    done: int = 0
    seen: int = 0
    _saved: float = field(default_factory=lambda: time.monotonic())

    def run(
        self,
        model: Model,
        rows: TokenRows,
        progress: Progress | None = None,
        save: Callable[[], None] | None = None,
        every: float = 120.0,
    ) -> None:
        """Go on to the last row.

        Args:
            model: whose keys they are.
            rows: the corpus.
            progress: told after every batch.
            save: called between two batches, `every` seconds or more apart: see `SAVING`.
            every: see there.
        """
        with _strict_products():
            while self.row < len(rows):
                last, batches = stretch(rows, self.row, self.batch)
                for batch in batches[self.done :]:
                    before = self.seen
                    self._add(model, batch)
                    self.done += 1
                    self.probes.look(self.sums.by_layer, before, self.seen, rows.n_tokens)
                    if progress:
                        progress(self.seen, rows.n_tokens)
                    if save and time.monotonic() - self._saved >= every:
                        start = time.monotonic()
                        save()
                        self._saved = time.monotonic()
                        every = max(every, (self._saved - start) / SAVING)
                self.row, self.done = last, 0

    def _add(self, model: Model, batch: list[Int[Tensor, " _"]]) -> None:
        """One batch: the keys of its real tokens into the sums."""
        lengths = torch.tensor([len(row) for row in batch])
        tokens = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(model.W_E.device)
        real = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(tokens.device)

        def add(key: Tensor, hook: Any) -> Tensor:
            keys = key[real]
            self.sums.add(hook.layer(), keys)
            self.probes.keep(hook.layer(), keys)
            return key

        hooks: list[Hook] = [(f"blocks.{layer}.mlp.hook_post", add) for layer in self.sums.by_layer]
        with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
            run_layers(model, tokens, stop=max(self.sums.by_layer) + 1)
        self.seen += int(lengths.sum())

    def save(self, path: Path, identity: str) -> None:
        """Write all that `restore` needs, a tensor at a time."""
        tensors = {f"sum.{layer}": total for layer, total in self.sums.by_layer.items()} | self.probes.tensors()
        state = {"batch": self.batch, "row": self.row, "done": self.done, "seen": self.seen}
        metadata = {"identity": identity, "state": json.dumps(state), "shares": json.dumps(self.probes.shares)}
        kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        write_tensors(path, kinds, lambda name: tensors[name], metadata)

    def restore(self, path: Path, identity: str) -> bool:
        """Take over what another process saved for the same pass, if there is anything; whether there was."""
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != identity:
                    log.warning("%s: a checkpoint of another pass; starting again", path)
                    return False
                state = json.loads(metadata["state"])
                for layer, total in self.sums.by_layer.items():
                    total.copy_(file.get_tensor(f"sum.{layer}"))
                self.probes.restore(file, json.loads(metadata["shares"]))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            log.warning("%s: no usable checkpoint (%s); starting again", path, error)
            for total in self.sums.by_layer.values():
                total.zero_()
                self.probes = Probes(len(total), self.sums.products)
            return False
        self.batch, self.row, self.done, self.seen = (state[name] for name in ("batch", "row", "done", "seen"))
        return True


def start_pass(model: Model, layers: Sequence[int], products: torch.dtype, batch: int = BATCH) -> Pass:
    """A pass that has seen nothing yet, its sums where there is room for them.

    Args:
        model: whose keys are summed; the sums are on its device if they fit, else in the memory of the host.
        layers: 0-based.
        products: dtype of the products.
        batch: tokens of a batch.
    """
    size, device = int(model.cfg.d_mlp or 0), model.W_E.device
    needed = len(set(layers)) * size * size * 8
    if device.type == "cuda" and needed > 0.8 * free_memory(device):
        log.warning("sums of %.0f GB do not fit the GPU beside the model: they are kept in host memory", needed / 1e9)
        device = torch.device("cpu")
    return Pass(Sums(layers, size, device, products), Probes(size, products), batch)


def stretch(rows: TokenRows, first: int, batch: int) -> tuple[int, list[list[Int[Tensor, " _"]]]]:
    """The batches from row `first` on that are made together, and the row where the next stretch starts.

    Rows are taken up to `STRETCH` batches and sorted by length; a batch has at most `batch` tokens with its padding,
    or one row.  The batches come in random order, the same each time: half of them is a fair half.
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
def _strict_products() -> Iterator[None]:
    """Float32 products in float32: TF32 would leave three digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
