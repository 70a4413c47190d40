"""Measuring the probes of many requests in batches, under one set of edits after another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import exp, inf, isnan, nan
from statistics import fmean
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.editing.update import Edit, changes_at, edit_hooks
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook, Model, logits_at
from loc_edit.prompts.batches import NO_TARGET, Batch, make_batch, resume, run
from loc_edit.prompts.encoding import Prompt, encode_text, target_tokens
from loc_edit.scoring.probes import Measured, Probe, Probes

BATCH_TOKENS = 6400
"""Most token positions of a batch; fewer if layers are given fewer at a time (`Budget`)."""
KEPT_BYTES = 2**31
"""Most memory for keys and residual streams that are kept to start from."""


class Meter:
    """The probes of many requests laid out in batches, ready to be measured under one set of edits after another.

    Probes that differ only in their target's last token share a line of a batch.  An edit changes nothing before its
    first layer's `W_out`: with `layers`, the unedited model's keys in each of them and the residual stream after it are
    kept, and a measurement starts there.  If memory does not suffice for the keys, streams before as many layers as
    possible are kept.

    Args:
        model: the unedited model.
        probes: the probes of each request.
        layers: layers where measurements may start.
        batch_tokens: most token positions of a batch; by default what suits the device.

    Attributes:
        before: raw numbers of the unedited model, by request.
    """

    def __init__(
        self, model: Model, probes: Sequence[Probes], layers: Iterable[int] = (), *, batch_tokens: int | None = None
    ) -> None:
        self.model, self.probes = model, list(probes)
        lines = [line for owner, of_request in enumerate(self.probes) for line in _lines(owner, of_request)]
        batch_tokens = batch_tokens or min(BATCH_TOKENS, Budget(model).positions)
        self.batches = [_lay_out(model, group) for group in _group(lines, batch_tokens)]
        layers, cfg = sorted(set(layers)), model.cfg
        size = sum(laid.batch.tokens.numel() for laid in self.batches) * cfg.dtype.itemsize
        self.keys = layers if len(layers) * size * (cfg.d_model + (cfg.d_mlp or 0)) <= KEPT_BYTES else []
        step = max(1, -(-len(layers) * size * cfg.d_model // KEPT_BYTES))
        fitting = layers[::step] if size * cfg.d_model <= KEPT_BYTES else []
        self.streams = [layer + 1 for layer in layers] if self.keys else fitting
        self.before = self._measure([None] * len(self.probes), keep=True)

    def measure(self, edits: Sequence[Edit | None]) -> list[Measured]:
        """Raw numbers of each request under its own edit.

        No weight is written, but for edits of other weights than `W_out` and `b_out`, and these are taken back.
        """
        if len(edits) != len(self.probes):
            raise ValueError(f"expected an edit for each of {len(self.probes)} requests, got {len(edits)} edits")
        alone = [i for i, edit in enumerate(edits) if edit and edit.others]
        measured = self._measure([None if i in alone else edit for i, edit in enumerate(edits)])
        for i in alone:  # more than MLP outputs change: written into the weights
            edit = edits[i]
            assert edit is not None
            with edit.applied(self.model):
                measured[i] = Meter(self.model, [self.probes[i]]).before[0]
        return measured

    @torch.inference_mode()
    def _measure(self, edits: Sequence[Edit | None], keep: bool = False) -> list[Measured]:
        numbers: list[dict[tuple[str, int], list[float]]] = [{} for _ in self.probes]
        for laid in self.batches:
            log_probs = laid.log_probs(self.model, self._final(laid, edits, keep))
            for line, log_ps in zip(laid.lines, log_probs, strict=True):
                for (kind, _), log_p in zip(line.targets, log_ps, strict=False):
                    number = _exp(-log_p / (len(line.prefix) + 1)) if kind[0] == "essence" else exp(log_p)
                    numbers[line.owner].setdefault(kind, []).append(number)
        return [_collect(*of_request) for of_request in zip(self.probes, numbers, strict=True)]

    def _final(self, laid: "_LaidOut", edits: Sequence[Edit | None], keep: bool) -> Float[Tensor, "row pos d_model"]:
        """The final residual stream of a batch, computed from as late a layer on as what is kept allows."""
        hooks = edit_hooks(self.model, edits, laid.owner)
        if keep:
            return run(self.model, laid.batch, hooks=[*hooks, *laid.keeping(self.keys, self.streams)])
        first = min((layer for edit in edits if edit for layer in edit.layers), default=0)
        if first in laid.keys:
            change = changes_at(self.model, edits, laid.owner, first)
            stream = change(laid.keys[first], laid.streams[first + 1])
            return resume(self.model, stream, first + 1, hooks)
        start = max((layer for layer in laid.streams if layer <= first), default=None)
        if start is None:
            return run(self.model, laid.batch, hooks=hooks)
        return resume(self.model, laid.streams[start], start, hooks)


@torch.inference_mode()
def text_probabilities(
    model: Model, texts: Sequence[tuple[str, Sequence[str]]], *, fact_id: int = 0
) -> list[list[float]]:
    """The probabilities of some targets after each text, with the weights as they are.

    Args:
        model: the model.
        texts: each with its targets.
        fact_id: for errors.

    Raises:
        BadPrompt: a text is empty, or does not fit the model's context.
    """
    probes: list[Probe] = []
    for number, (text, targets) in enumerate(texts):
        prompt = encode_text(model, text, fact_id=fact_id)
        endings = [target_tokens(model, text, target) for target in targets]
        probes += [Probe((str(number), i), prompt, ending) for i, ending in enumerate(endings)]
    p: dict[tuple[str, int], float] = {}
    for group in _group(_lines(0, Probes(tuple(probes), 0, "", ())), min(BATCH_TOKENS, Budget(model).positions)):
        laid = _lay_out(model, group)
        for line, log_ps in zip(laid.lines, laid.log_probs(model, run(model, laid.batch)), strict=True):
            p |= {kind: exp(log_p) for (kind, _), log_p in zip(line.targets, log_ps, strict=False)}
    return [[p[str(number), i] for i in range(len(targets))] for number, (_, targets) in enumerate(texts)]


@dataclass(frozen=True)
class _Line:
    """One line of a batch: a prompt and all but the last token of a target.

    Attributes:
        owner: the request's number.
        prompt: the prompt.
        prefix: the target's tokens but for the last.
        noise: subject noise.
        targets: what is measured: kind and whole target, of every target that begins with the prefix.
    """

    owner: int
    prompt: Prompt
    prefix: Int[Tensor, " prefix"]
    noise: Tensor | None
    targets: list[tuple[tuple[str, int], Tensor]]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.prefix)


@dataclass(frozen=True)
class _LaidOut:
    """A batch of lines with all their targets, and what is kept of the unedited model; a request's lines are neighbors.

    Attributes:
        lines: one in each row of the batch.
        batch: their prompts, each with the first of its targets.
        targets: the targets of each row, padded.
        owner: the request of each row.
        keys: the keys that are kept, by layer.
        streams: the residual streams that are kept, by the layer that they enter.
    """

    lines: list[_Line]
    batch: Batch
    targets: Int[Tensor, "row alternative target"]
    owner: Int[Tensor, " row"]
    keys: dict[int, Float[Tensor, "row pos d_mlp"]] = field(default_factory=dict)
    streams: dict[int, Float[Tensor, "row pos d_model"]] = field(default_factory=dict)

    def keeping(self, keys: Sequence[int], streams: Sequence[int]) -> list[Hook]:
        """Hooks that keep the keys of the layers `keys` and the streams before the layers `streams`.

        The stream after the last layer counts as the one before a layer with the next number.
        """

        def keep(kept: dict[int, Tensor], layer: int, value: Tensor, hook: object) -> None:
            kept[layer] = value

        places = [(f"blocks.{layer}.mlp.hook_post", self.keys, layer) for layer in keys]
        for layer in streams:
            name = f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
            places.append((name, self.streams, layer))
        return [(name, partial(keep, kept, layer)) for name, kept, layer in places]

    def log_probs(self, model: Model, final: Float[Tensor, "row pos d_model"]) -> list[list[float]]:
        """Log p of each target of each row; 0 for padding."""
        rows = torch.arange(len(final), device=final.device)[:, None, None]
        log_p = logits_at(model, self.batch.answers(final)).float().log_softmax(-1)
        of_tokens = log_p[rows, torch.arange(log_p.shape[1], device=log_p.device), self.targets.clamp(min=0)]
        of_targets = of_tokens.masked_fill(self.targets == NO_TARGET, 0.0).double().sum(-1)
        return cast(list[list[float]], of_targets.tolist())


def _lines(owner: int, probes: Probes) -> list[_Line]:
    """The lines of a request; probes whose targets differ only in their last token share one."""
    lines: dict[object, _Line] = {}
    for probe in probes.probes:
        prefix = probe.target[:-1]
        key = (id(probe.prompt), tuple(prefix.tolist()), id(probe.noise))
        line = lines.setdefault(key, _Line(owner, probe.prompt, prefix, probe.noise, []))
        line.targets.append((probe.kind, probe.target))
    texts = [
        _Line(owner, Prompt(0, "", "", "", text[:1], slice(0, 0)), text[1:-1], None, [(("essence", i), text[1:])])
        for i, text in enumerate(probes.essence)
    ]
    return [*lines.values(), *texts]


def _group(lines: Sequence[_Line], batch_tokens: int) -> list[list[_Line]]:
    """Runs of similar length together."""
    groups: list[list[_Line]] = []
    for line in sorted(lines, key=len):
        if not groups or (len(groups[-1]) + 1) * len(line) > batch_tokens or len(line) > 1.3 * len(groups[-1][0]) + 2:
            groups.append([])
        groups[-1].append(line)
    return groups


def _lay_out(model: Model, lines: list[_Line]) -> _LaidOut:
    lines = sorted(lines, key=lambda line: line.owner)
    first_targets = [line.targets[0][1] for line in lines]
    batch = make_batch(model, [line.prompt for line in lines], first_targets, [line.noise for line in lines])
    n_alternatives = max(len(line.targets) for line in lines)
    targets = batch.targets.new_full((len(lines), n_alternatives, batch.targets.shape[1]), NO_TARGET)
    for row, line in enumerate(lines):
        for i, (_, target) in enumerate(line.targets):
            targets[row, i, : len(target)] = target
    owner = torch.tensor([line.owner for line in lines], device=batch.tokens.device)
    return _LaidOut(lines, batch, targets, owner)


def _collect(probes: Probes, numbers: dict[tuple[str, int], list[float]]) -> Measured:
    """The numbers by kind and prompt, averaged over noise samples."""
    means = {kind: fmean(samples) for kind, samples in numbers.items()}

    def of(name: str) -> tuple[float, ...]:
        return tuple(means[kind] for kind in sorted(means) if kind[0] == name)

    def paraphrases(name: str) -> tuple[float, ...]:
        return tuple(means.get((name, i), nan) for i in range(probes.n_paraphrases))

    return Measured(
        means["rewrite", 0],
        paraphrases("paraphrase"),
        of("neighborhood"),
        of(probes.new),
        of("essence"),
        means.get(("rewrite_other", 0), nan),
        paraphrases("paraphrase_other"),
        of("neighborhood_other"),
    )


def _exp(x: float) -> float:
    """e^x; infinite if that is too large for a float, as after an edit that breaks a model."""
    return exp(x) if x < 700 or isnan(x) else inf
