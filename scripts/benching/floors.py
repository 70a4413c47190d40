"""The arithmetic that cannot be avoided: how many positions in how many layers, and what the model takes for one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from benching.timing import Clock
from loc_edit.editing.rows import make_rows
from loc_edit.models import logits_at
from loc_edit.probing import Meter
from loc_edit.problems import EditRequest
from loc_edit.prompts import Prompt
from loc_edit.tracing import window_layers
from loc_edit.tracing.sweep import plan


class Floor:
    """Seconds that the model's own blocks take for one position in one layer, at their best batch size."""

    def __init__(self, model: HookedTransformer, length: int, clock: Clock) -> None:
        self.model, self.length, self.clock, cfg = model, length, clock, model.cfg
        on_gpu = model.W_E.device.type == "cuda"
        sizes = (64, 256, 1024, 2048) if on_gpu else (8, 16, 32, 64, 128)
        self.layers = list(model.blocks)[:: max(1, cfg.n_layers // 8)]  # all layers cost the same
        self.rows = {
            backward: min(sizes, key=lambda rows, backward=backward: self.block(backward, rows, 2))
            for backward in (False, True)
        }
        self.multiplications = cfg.d_model * (4 * cfg.n_heads * cfg.d_head + 2 * cfg.d_mlp)

    def block(self, backward: bool = False, rows: int | None = None, repeats: int = 4) -> float:
        """Seconds per position and layer: forward; or forward and backward to the input."""
        x = torch.randn(rows or self.rows[backward], self.length, self.model.cfg.d_model).to(self.model.W_E)

        def run() -> None:
            with torch.inference_mode(not backward):
                y = x.clone().requires_grad_(backward)
                for block in self.layers:
                    y = block(y)
                if backward:
                    y.sum().backward()

        return self._least(run, repeats) / (x.shape[0] * x.shape[1] * len(self.layers))

    def unembedding(self, backward: bool = False) -> float:
        """Seconds per position whose logits and log-probabilities are wanted."""
        x = torch.randn(256, 1, self.model.cfg.d_model).to(self.model.W_E)

        def run() -> None:
            with torch.inference_mode(not backward):
                log_p = logits_at(self.model, x.clone().requires_grad_(backward)).float().log_softmax(-1)
                if backward:
                    log_p[..., 0].sum().backward()

        return self._least(run, 4) / len(x)

    @torch.inference_mode()
    def matrix(self) -> float:
        """Seconds per multiplication (with its addition)."""
        cfg, n = self.model.cfg, self.rows[False] * self.length
        x = torch.randn(n, cfg.d_model).to(self.model.W_E)
        w = torch.randn(cfg.d_model, cfg.d_mlp).to(x)
        return self._least(lambda: [x @ w for _ in range(10)], 4) / (10 * n * w.numel())

    def _least(self, run: Callable[[], object], repeats: int) -> float:
        return min(self.clock.seconds(run) for _ in range(repeats))


def tracing_work(
    model: HookedTransformer, cases: Sequence[tuple[Prompt, Tensor]], windows: Sequence[int]
) -> tuple[int, int, int]:
    """Of prompts with their noise: positions times layers cell by cell, and with shared layers; rows to unembed."""
    n_layers = model.cfg.n_layers
    cells = [window_layers(layer, window, n_layers) for window in windows for layer in range(n_layers)]
    steps = plan(sorted({(some[0], some[-1]) for some in cells}), n_layers, entered=True)
    states = sum(len(step.source) for step in steps[:n_layers])
    firsts = len({some[0] for some in cells})
    alone = shared = rows = 0
    for prompt, noise in cases:
        tails = range(1, len(prompt) - prompt.subject.start + 1)
        alone += len(noise) * sum(tails) * sum(n_layers - some[0] for some in cells)
        shared += len(noise) * (sum(tails) * states + len(tails) * firsts)
        rows += len(noise) * len(tails) * len(steps[-1].source)
    return alone, shared, rows


@dataclass
class Work:
    """Positions times layers, forward alone and with the backward pass; positions that are unembedded, likewise."""

    forward: int = 0
    both: int = 0
    unembedded: int = 0
    unembedded_both: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.forward + other.forward,
            self.both + other.both,
            self.unembedded + other.unembedded,
            self.unembedded_both + other.unembedded_both,
        )

    def seconds(self, cost: dict[str, float]) -> tuple[float, float]:
        """In the blocks; and with the unembedding."""
        blocks = self.forward * cost["forward"] + self.both * cost["both"]
        return blocks, blocks + self.unembedded * cost["unembed"] + self.unembedded_both * cost["unembed both"]


def value_work(
    model: HookedTransformer,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layers: Sequence[int],
    steps: int,
) -> Work:
    """ROME or MEMIT: once all rows up to the last layer of the window, and above it what comes before the subject's
    last token; at each step that token and what follows it, above; MEMIT's rows again through its window.
    """
    above, total = model.cfg.n_layers - layers[-1] - 1, Work()
    for request in requests:
        rows = make_rows(model, [request], contexts, "rome")
        lengths = [len(p) + max(0, len(t) - 1) for p, t in zip(rows.prompts, rows.targets, strict=True)]
        before = [prompt.last_subject for prompt in rows.prompts]
        total += Work(forward=sum(lengths) * (layers[-1] + 1) + sum(before) * above)
        tails = sum(length - start for length, start in zip(lengths, before, strict=True))
        answers = rows.contexts * len(request.target_tokens) + 1
        total += Work(both=steps * tails * above, unembedded_both=steps * answers)
        if len(layers) > 1:
            through = sum(start + 1 for start in before[:-1]) * (len(layers) - 1)
            total += Work(forward=through + (before[0] + 1) * sum(range(len(layers) - 1)))
    return total


def finetune_work(
    model: HookedTransformer, requests: Sequence[EditRequest], layers: Sequence[int], steps: Sequence[int]
) -> Work:
    """Once the bare prompt below the first trained layer; each step all of it from there on."""
    total = Work()
    for request, n in zip(requests, steps, strict=True):
        length = len(request.prompt) + len(request.target_tokens) - 1
        above = model.cfg.n_layers - layers[0]
        total += Work(length * layers[0], n * length * above, 0, n * len(request.target_tokens))
    return total


def scoring_work(model: HookedTransformer, meter: Meter, first: int) -> Work:
    """All prompts and essence texts from the first edited layer on; logits where a target is read."""
    positions = sum(int(laid.batch.lengths.sum()) for laid in meter.batches)
    answers = sum(int((laid.batch.targets >= 0).sum()) for laid in meter.batches)
    return Work(forward=positions * (model.cfg.n_layers - first), unembedded=answers)
