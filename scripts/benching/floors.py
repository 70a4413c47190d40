"""The arithmetic that cannot be avoided: how many positions in how many layers, and what the model takes for one."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from benching.products import matrices
from benching.timing import Clock
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import make_rows
from loc_edit.localization.hooks import window_layers
from loc_edit.localization.sweep import plan
from loc_edit.models.kernels import one_kernel_each
from loc_edit.models.model import logits_at
from loc_edit.prompts.encoding import Prompt
from loc_edit.scoring.measuring import Meter

BLOCKS = ("forward", "both", "gradients")
"""The kinds of work that the block floor is made of."""


class Floor:
    """Seconds that the model's own blocks take for one position in one layer, at their best batch size."""

    def __init__(self, model: HookedTransformer, length: int, clock: Clock) -> None:
        self.model, self.length, self.clock, cfg = model, length, clock, model.cfg
        on_gpu = model.W_E.device.type == "cuda"
        wide = cfg.d_model >= 512  # where two layers say as much as eight, in a quarter of the time
        sizes = (64, 256, 1024, 2048) if on_gpu else (16, 64) if wide else (8, 16, 32, 64, 128)
        self.layers, self.repeats = list(model.blocks)[: 2 if wide else 8], 2 if wide else 4  # all cost the same
        self.rows = {
            backward: min(sizes, key=lambda rows, backward=backward: self.block(backward, rows, 1 if wide else 2))
            for backward in (False, True)
        }
        self.multiplications = sum(w.numel() for name, w in matrices(model, 0).items() if name != "unembed")

    def block(self, backward: bool = False, rows: int | None = None, repeats: int = 0, fused: bool = False) -> float:
        """Seconds per position and layer: forward; or forward and backward to the input.

        Of TransformerLens's own block; or `fused`, of one whose GELU and LayerNorm are one kernel each.
        """
        x = torch.randn(rows or self.rows[backward], self.length, self.model.cfg.d_model).to(self.model.W_E)

        def run() -> None:
            kernels = one_kernel_each(self.layers) if fused else nullcontext()
            with torch.inference_mode(not backward), kernels:
                y = x.clone().requires_grad_(backward)
                for block in self.layers:
                    y = block(y)
                if backward:
                    y.sum().backward()

        return self._least(run, repeats or self.repeats) / (x.shape[0] * x.shape[1] * len(self.layers))

    def unembedding(self, backward: bool = False) -> float:
        """Seconds per position whose logits and log-probabilities are wanted."""
        x = torch.randn(256, 1, self.model.cfg.d_model).to(self.model.W_E)

        def run() -> None:
            with torch.inference_mode(not backward):
                log_p = logits_at(self.model, x.clone().requires_grad_(backward)).float().log_softmax(-1)
                if backward:
                    log_p[..., 0].sum().backward()

        return self._least(run, self.repeats) / len(x)

    def update(self) -> tuple[float, float]:
        """Seconds per step, layer and fact of fine-tuning: of the weights' gradient; of Adam (fused) and the box."""
        cfg, facts = self.model.cfg, 4
        weights, slopes = (torch.zeros(facts, cfg.d_mlp, cfg.d_model, device=self.model.W_E.device) for _ in range(2))
        key, gradient = (torch.randn(facts, self.length, n).to(weights) for n in (cfg.d_mlp, cfg.d_model))
        params = list(weights)
        adam = torch.optim.Adam(params, lr=1e-4, fused=True)
        for param, slope in zip(params, slopes, strict=True):
            param.grad = slope

        def product() -> None:
            torch.bmm(key.mT, gradient, out=slopes)

        def step() -> None:
            adam.step()
            weights.clamp_(-1e-4, 1e-4)

        product(), step()
        return self._least(product, self.repeats) / facts, self._least(step, self.repeats) / facts

    def costs(self, fused: bool = False) -> dict[str, float]:
        """Seconds of each kind of `Work`, by the name of its field."""
        gradient, optimiser = self.update()
        return {
            "forward": self.block(fused=fused),
            "both": self.block(backward=True, fused=fused),
            "gradients": gradient,
            "unembedded": self.unembedding(),
            "unembedded_both": self.unembedding(backward=True),
            "updates": optimiser,
        }

    @torch.inference_mode()
    def matrix(self) -> float:
        """Seconds per multiplication (with its addition)."""
        cfg, n = self.model.cfg, self.rows[False] * self.length
        x = torch.randn(n, cfg.d_model).to(self.model.W_E)
        w = torch.randn(cfg.d_model, cfg.d_mlp).to(x)
        return self._least(lambda: [x @ w for _ in range(10)], self.repeats) / (10 * n * w.numel())

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
    """Positions times layers, forward alone and with the backward pass; gradients of whole weights, one a step, layer
    and fact; positions that are unembedded, forward alone and both; and updates of whole weights, as many."""

    forward: int = 0
    both: int = 0
    gradients: int = 0
    unembedded: int = 0
    unembedded_both: int = 0
    updates: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def seconds(self, cost: dict[str, float], kinds: Sequence[str] = BLOCKS) -> float:
        """Of some kinds of work: by default in the blocks, which is the block floor."""
        return sum(getattr(self, kind) * cost[kind] for kind in kinds)


def value_work(
    model: HookedTransformer,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layers: Sequence[int],
    steps: int,
) -> Work:
    """ROME or MEMIT: once all rows up to the last layer of the window, and above it what comes before the subject's
    last token; at each step that token and what follows it, above; MEMIT's rows again through its window.

    Under fresh noise, at each step also what follows the subject's first token; above, as far as the tail.
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
        if request.noise is not None:
            noised = zip(rows.prompts[:-1], lengths[:-1], strict=True)
            for prompt, length in noised:
                first, last = prompt.subject.start, prompt.last_subject
                total += Work(forward=steps * ((length - first) * (layers[-1] + 1) + (last - first) * above))
        if len(layers) > 1:
            through = sum(start + 1 for start in before[:-1]) * (len(layers) - 1)
            total += Work(forward=through + (before[0] + 1) * sum(range(len(layers) - 1)))
    return total


def finetune_work(
    model: HookedTransformer, requests: Sequence[EditRequest], layers: Sequence[int], steps: Sequence[int]
) -> Work:
    """Once the bare prompt below the first trained layer; each step all of it from there on, and the weights' updates.

    Under fresh noise each copy, from the subject's first token on, through all layers; what comes before once a step.
    """
    total = Work()
    for request, n in zip(requests, steps, strict=True):
        length = len(request.prompt) + len(request.target_tokens) - 1
        above, n_targets, below = model.cfg.n_layers - layers[0], len(request.target_tokens), length * layers[0]
        if request.noise is not None:
            noised, copies = length - request.prompt.subject.start, len(request.noise)
            below = n * copies * noised * layers[0] + request.prompt.subject.start * layers[0]
            length, n_targets = request.prompt.subject.start + copies * noised, copies * n_targets
        n_weights = n * len(layers)
        total += Work(below, n * length * above, n_weights, unembedded_both=n * n_targets, updates=n_weights)
    return total


def scoring_work(model: HookedTransformer, meter: Meter, first: int) -> Work:
    """All prompts and essence texts from the first edited layer on; logits where a target is read."""
    positions = sum(int(laid.batch.lengths.sum()) for laid in meter.batches)
    answers = sum(int((laid.batch.targets >= 0).sum()) for laid in meter.batches)
    return Work(forward=positions * (model.cfg.n_layers - first), unembedded=answers)
