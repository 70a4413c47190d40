"""What is measured of a request: prompts with their targets and essence texts, under one set of edits after another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, inf, isnan, nan
from statistics import fmean
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import draw_noise
from loc_edit.editing.update import Edit, changes_at, edit_hooks
from loc_edit.facts.fact import Fact
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook, Model, logits_at
from loc_edit.prompts.batches import NO_TARGET, Batch, make_batch, resume, run
from loc_edit.prompts.encoding import BadPrompt, Prompt, SubjectNotFound, encode_text, find_subject, target_tokens
from loc_edit.prompts.randomness import generator

BATCH_TOKENS = 6400
"""Most token positions of a batch, and fewer where a layer is given fewer at a time (`Budget`)."""
KEPT_BYTES = 2**31
"""Most memory for residual streams that are kept to start from."""


@dataclass(frozen=True)
class Measured:
    """Raw numbers of one fact under one set of weights.

    Attributes:
        rewrite: p(target) on the edit prompt.
        paraphrase: p(target) on each paraphrase; NaN where the subject is not found in one that needs noise.
        neighborhood: p(target) on each neighbour's prompt.
        neighborhood_new: p(target_new) on each neighbour's prompt, where the fact has a false target.
        essence: perplexity of each essence text.
        rewrite_other: p(other) on the edit prompt, where other is o_true, or o_false if the target is o_true.
        paraphrase_other: likewise on each paraphrase.
        neighborhood_other: likewise on each neighbour's prompt.
    """

    rewrite: float
    paraphrase: tuple[float, ...]
    neighborhood: tuple[float, ...]
    neighborhood_new: tuple[float, ...]
    essence: tuple[float, ...]
    rewrite_other: float = nan
    paraphrase_other: tuple[float, ...] = ()
    neighborhood_other: tuple[float, ...] = ()

    def of(self, kind: str) -> tuple[float, ...]:
        """The numbers of one kind, one per prompt: `of("rewrite")` has one."""
        value: float | tuple[float, ...] = getattr(self, kind)
        return (value,) if isinstance(value, float) else value


@dataclass(frozen=True)
class Row:
    """One probability to measure.

    Attributes:
        kind: a field of `Measured`, and the prompt's number in it; rows of one kind are noise samples, and averaged.
        prompt: the prompt.
        target: token ids.
        noise: subject noise, at the prompt's own subject.
    """

    kind: tuple[str, int]
    prompt: Prompt
    target: Int[Tensor, " target"]
    noise: Float[Tensor, "subject d_model"] | None = None


@dataclass(frozen=True)
class Probes:
    """What is measured for one request.

    Attributes:
        rows: probabilities.
        n_paraphrases: how many there are, with those that cannot be measured.
        new: the kind of probability that is also that of the fact's false target, if one is.
        essence: texts as token ids.
    """

    rows: tuple[Row, ...]
    n_paraphrases: int
    new: str
    essence: tuple[Int[Tensor, " pos"], ...]


def make_probes(
    model: Model, fact: Fact, request: EditRequest, essence: Sequence[Int[Tensor, " _"]] = ()
) -> Probes:
    """What a request is scored on.

    For a noised subject, the rewrite prompt and the paraphrases get one row per noise sample, noised at their
    own subject's place; neighbours and essence texts stay clean.

    Raises:
        BadPrompt: a prompt does not fit the model's context.
    """
    other = fact.target_new if request.target == fact.target_true else fact.target_true
    rows: list[Row] = []

    def add(kind: str, number: int, prompt: Prompt, target: str, noises: Sequence[Tensor | None] = (None,)) -> None:
        ids = request.target_tokens
        if target != request.target:
            ids = target_tokens(model, prompt.text, target)
        if len(prompt) + len(ids) - 1 > model.cfg.n_ctx:
            raise BadPrompt(f"fact {fact.fact_id}: with its target it does not fit the context: {prompt.text!r}")
        rows.extend(Row((kind, number), prompt, ids, noise) for noise in noises)

    def add_both(kind: str, number: int, prompt: Prompt, noises: Sequence[Tensor | None] = (None,)) -> None:
        add(kind, number, prompt, request.target, noises)
        if other:
            add(f"{kind}_other", number, prompt, other, noises)

    add_both("rewrite", 0, request.prompt, [None] if request.noise is None else list(request.noise))
    for i, text in enumerate(fact.paraphrases):
        if request.noise is None:
            add_both("paraphrase", i, encode_text(model, text, fact_id=fact.fact_id))
            continue
        try:
            prompt = find_subject(model, text, fact.subject, fact_id=fact.fact_id)
        except SubjectNotFound:
            continue
        draws = generator("score", request.seed, fact.fact_id, i)
        add_both("paraphrase", i, prompt, [draw_noise(request, prompt, draws) for _ in request.noise])
    new = {request.target: "neighborhood", other: "neighborhood_other"}.get(fact.target_new, "neighborhood_new")
    for i, text in enumerate(fact.neighbors):
        prompt = encode_text(model, text, fact_id=fact.fact_id)
        add_both("neighborhood", i, prompt)
        if fact.target_new and new == "neighborhood_new":
            add("neighborhood_new", i, prompt, fact.target_new)
    return Probes(tuple(rows), len(fact.paraphrases), new if fact.target_new else "", tuple(essence))


class Meter:
    """Rows of many requests laid out in batches, ready to be measured under one set of edits after another.

    Rows that differ only in their target's last token are one run.  An edit changes nothing before its first layer's
    `W_out`: with `layers`, the unedited model's keys in each of them and the residual stream after it are kept, and a
    measurement starts there.  Where memory does not suffice for the keys, streams before as many layers as possible are
    kept.

    Args:
        model: the unedited model.
        probes: of many requests.
        layers: where measurements may start.
        batch_tokens: most token positions of a batch; by default what suits the device.

    Attributes:
        before: raw numbers of the unedited model, by request.
    """

    def __init__(
        self,
        model: Model,
        probes: Sequence[Probes],
        layers: Iterable[int] = (),
        *,
        batch_tokens: int | None = None,
    ) -> None:
        self.model, self.probes = model, list(probes)
        runs = [one for i, mine in enumerate(self.probes) for one in _runs(i, mine)]
        batch_tokens = batch_tokens or min(BATCH_TOKENS, Budget(model).positions)
        self.batches = [_lay_out(model, some) for some in _batches(runs, batch_tokens)]
        layers, cfg = sorted(set(layers)), model.cfg
        size = sum(b.batch.tokens.numel() for b in self.batches) * cfg.dtype.itemsize
        self.keys = layers if len(layers) * size * (cfg.d_model + (cfg.d_mlp or 0)) <= KEPT_BYTES else []
        every = max(1, -(-len(layers) * size * cfg.d_model // KEPT_BYTES))
        self.streams = (
            [i + 1 for i in layers] if self.keys else layers[::every] if size * cfg.d_model <= KEPT_BYTES else []
        )
        self.before = self._measure([None] * len(self.probes), keep=True)

    def measure(self, edits: Sequence[Edit | None]) -> list[Measured]:
        """Raw numbers of each request under its own edit; the weights are not touched."""
        if len(edits) != len(self.probes):
            raise ValueError(f"{len(edits)} edits for {len(self.probes)} requests; one each is wanted")
        return self._measure(edits)

    @torch.inference_mode()
    def _measure(self, edits: Sequence[Edit | None], keep: bool = False) -> list[Measured]:
        found: dict[int, dict[tuple[str, int], list[float]]] = {i: {} for i in range(len(self.probes))}
        for laid in self.batches:
            final = self._final(laid, edits, keep)
            for one, log_ps in zip(laid.runs, laid.log_probs(self.model, final), strict=True):
                for (kind, _), log_p in zip(one.targets, log_ps, strict=False):
                    number = _exp(-log_p / (len(one.prefix) + 1)) if kind[0] == "essence" else exp(log_p)
                    found[one.owner].setdefault(kind, []).append(number)
        return [_collect(probes, found[i]) for i, probes in enumerate(self.probes)]

    def _final(self, laid: "_Laid", edits: Sequence[Edit | None], keep: bool) -> Float[Tensor, "row pos d_model"]:
        """The final residual stream of a batch, computed from as late on as what is kept of it allows."""
        hooks = edit_hooks(edits, laid.owner)
        if keep:
            return run(self.model, laid.batch, hooks=[*hooks, *laid.keeping(self.keys, self.streams)])
        first = min((layer for edit in edits if edit for layer in edit.layers), default=0)
        if first in laid.keys:
            stream = changes_at(edits, laid.owner, first)(laid.keys[first], laid.streams[first + 1])
            return resume(self.model, stream, first + 1, hooks)
        start = max((layer for layer in laid.streams if layer <= first), default=None)
        if start is None:
            return run(self.model, laid.batch, hooks=hooks)
        return resume(self.model, laid.streams[start], start, hooks)


def measure(model: Model, probes: Sequence[Probes], edits: Sequence[Edit | None]) -> list[Measured]:
    """Raw numbers of many (probes, edit) pairs, each under its own edit."""
    return Meter(model, probes).measure(edits)


@dataclass(frozen=True)
class _Run:
    """One row of a batch: a prompt and a target but for its last token, of which there may be several."""

    owner: int
    prompt: Prompt
    prefix: Int[Tensor, " prefix"]
    noise: Tensor | None
    targets: list[tuple[tuple[str, int], Tensor]]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.prefix)


@dataclass(frozen=True)
class _Laid:
    """A batch of runs, all their targets; kept of the unedited model: keys by layer, residual streams by layer before.

    Rows of one owner stand together.
    """

    runs: list[_Run]
    batch: Batch
    targets: Int[Tensor, "row alternative target"]
    owner: Int[Tensor, " row"]
    keys: dict[int, Float[Tensor, "row pos d_mlp"]] = field(default_factory=dict)
    streams: dict[int, Float[Tensor, "row pos d_model"]] = field(default_factory=dict)

    def keeping(self, keys: Sequence[int], streams: Sequence[int]) -> list[Hook]:
        """Hooks that keep the keys of some layers, and the streams before some (after the last: its number plus 1)."""

        def keep(name: str, into: dict[int, Tensor], layer: int) -> Hook:
            return (name, lambda value, hook: into.__setitem__(layer, value))

        of_keys = [keep(f"blocks.{layer}.mlp.hook_post", self.keys, layer) for layer in keys]
        names = {i: f"blocks.{i - 1}.hook_resid_post" if i else "blocks.0.hook_resid_pre" for i in streams}
        return of_keys + [keep(name, self.streams, layer) for layer, name in names.items()]

    def log_probs(self, model: Model, final: Float[Tensor, "row pos d_model"]) -> list[list[float]]:
        """Log p of each alternative target of each row, padded alternatives included."""
        rows = torch.arange(len(final), device=final.device)[:, None]
        log_p = logits_at(model, self.batch.answers(final)).float().log_softmax(-1)
        found = log_p[rows[..., None], torch.arange(log_p.shape[1], device=log_p.device), self.targets.clamp(min=0)]
        return cast(list[list[float]], found.masked_fill(self.targets == NO_TARGET, 0.0).double().sum(-1).tolist())


def _runs(owner: int, probes: Probes) -> list[_Run]:
    """The runs of a request; rows that share all but the last token of their targets share one."""
    runs: dict[object, _Run] = {}
    for row in probes.rows:
        prefix = row.target[:-1]
        key = (id(row.prompt), tuple(prefix.tolist()), id(row.noise))
        one = runs.setdefault(key, _Run(owner, row.prompt, prefix, row.noise, []))
        one.targets.append((row.kind, row.target))
    texts = [
        _Run(owner, Prompt(0, "", "", "", text[:1], slice(0, 0)), text[1:-1], None, [(("essence", i), text[1:])])
        for i, text in enumerate(probes.essence)
    ]
    return [*runs.values(), *texts]


def _batches(runs: Sequence[_Run], batch_tokens: int) -> list[list[_Run]]:
    """Runs of like length together."""
    batches: list[list[_Run]] = []
    for one in sorted(runs, key=len):
        if not batches or (len(batches[-1]) + 1) * len(one) > batch_tokens or len(one) > 1.3 * len(batches[-1][0]) + 2:
            batches.append([])
        batches[-1].append(one)
    return batches


def _lay_out(model: Model, runs: list[_Run]) -> _Laid:
    runs = sorted(runs, key=lambda one: one.owner)
    firsts = [one.targets[0][1] for one in runs]
    batch = make_batch(model, [one.prompt for one in runs], firsts, [one.noise for one in runs])
    n_alternatives = max(len(one.targets) for one in runs)
    targets = batch.targets.new_full((len(runs), n_alternatives, batch.targets.shape[1]), NO_TARGET)
    for row, one in enumerate(runs):
        for i, (_, target) in enumerate(one.targets):
            targets[row, i, : len(target)] = target
    owner = torch.tensor([one.owner for one in runs], device=batch.tokens.device)
    return _Laid(runs, batch, targets, owner)


def _collect(probes: Probes, found: dict[tuple[str, int], list[float]]) -> Measured:
    """Probabilities by kind and prompt, noise samples averaged."""
    numbers = {kind: fmean(ps) for kind, ps in found.items()}

    def of(name: str) -> tuple[float, ...]:
        return tuple(numbers[kind] for kind in sorted(numbers) if kind[0] == name)

    def paraphrases(name: str) -> tuple[float, ...]:
        return tuple(numbers.get((name, i), nan) for i in range(probes.n_paraphrases))

    return Measured(
        numbers["rewrite", 0],
        paraphrases("paraphrase"),
        of("neighborhood"),
        of(probes.new),
        of("essence"),
        numbers.get(("rewrite_other", 0), nan),
        paraphrases("paraphrase_other"),
        of("neighborhood_other"),
    )


def _exp(x: float) -> float:
    """e^x; infinite where that is too large for a float, as after an edit that breaks a model."""
    return exp(x) if x < 700 or isnan(x) else inf
