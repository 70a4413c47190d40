"""How well an edit did: probabilities before and after, and the scores made of them (Hase et al. 2023, section 4)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import exp, inf, isnan, nan
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.batching import make_batch, run, target_log_probs
from loc_edit.editing.update import Edit, edit_hooks
from loc_edit.editing.value import draw_noise
from loc_edit.facts import Fact
from loc_edit.noise import generator
from loc_edit.problems import EditRequest
from loc_edit.prompts import BadPrompt, Prompt, SubjectNotFound, encode_text, find_subject, target_tokens
from loc_edit.sampling import sample_essences


@dataclass(frozen=True)
class Measured:
    """Raw numbers of one fact under one set of weights.

    Attributes:
        rewrite: p(target) on the edit prompt.
        paraphrase: p(target) on each paraphrase; NaN where the subject is not found in one that needs noise.
        neighborhood: p(target) on each neighbour's prompt.
        neighborhood_new: p(target_new) on each neighbour's prompt, where the fact has a false target.
        essence: perplexity of each essence text.
    """

    rewrite: float
    paraphrase: tuple[float, ...]
    neighborhood: tuple[float, ...]
    neighborhood_new: tuple[float, ...]
    essence: tuple[float, ...]


@dataclass(frozen=True)
class EditScore:
    """Scores of one edit, 1 the best; NaN where undefined, with the reason.

    Attributes:
        rewrite: share of the possible change of p(target) on the edit prompt, floored at 0.
        paraphrase: likewise, mean over the paraphrases.
        neighborhood: 1 - the share of the possible change on the neighbours, which is unwanted.
        essence: 1 - the rise of the perplexity of texts about the subject, clipped to 0..5, over 5.
        overall: mean of rewrite, paraphrase and neighborhood.
        overall_essence: mean of these and essence.
        neighborhood_new: neighborhood, measured on the fact's false target.
        before: raw numbers of the unedited model.
        after: raw numbers of the edited one.
        reason: why a score is NaN; empty if none is.
    """

    rewrite: float
    paraphrase: float
    neighborhood: float
    essence: float
    overall: float
    overall_essence: float
    neighborhood_new: float
    before: Measured = field(repr=False)
    after: Measured = field(repr=False)
    reason: str = ""

    def to_row(self) -> dict[str, Any]:
        """Flat columns: the scores, and the raw numbers as `<name>_before` and `<name>_after` lists."""
        row = {k: v for k, v in asdict(self).items() if k not in ("before", "after")}
        for when, measured in (("before", self.before), ("after", self.after)):
            for name, value in asdict(measured).items():
                row[f"{name}_{when}"] = list(value) if isinstance(value, tuple) else [value]
        return row


@dataclass(frozen=True)
class Probes:
    """What is measured for one request: rows of (prompt, target, noise), and essence texts.

    Attributes:
        rows: prompts with target ids and subject noise.
        kinds: `rewrite`, `paraphrase`, `neighborhood` or `neighborhood_new`, and the prompt's number, by row;
            rows with the same one are noise samples, whose probabilities are averaged.
        n_paraphrases: how many there are, with those that cannot be measured.
        targets_new: whether the request's target is the fact's false one; both neighbourhoods are then one.
        essence: texts as token ids.
    """

    rows: tuple[tuple[Prompt, Tensor, Tensor | None], ...]
    kinds: tuple[tuple[str, int], ...]
    n_paraphrases: int
    targets_new: bool
    essence: tuple[Tensor, ...]


def score(
    model: HookedTransformer,
    fact: Fact,
    request: EditRequest,
    edit: Edit | None = None,
    *,
    essence: bool = True,
) -> EditScore:
    """All scores of one edit of one fact.

    Args:
        model: the unedited model; the edit is applied to its activations, no weight is written.
        fact: gives paraphrases and neighbours.
        request: gives the target, the objective and, for a noised subject, the noise.
        edit: from `rome`, `memit` or `finetune`; `None` measures the unedited model against itself.
        essence: whether to sample and measure essence texts.
    """
    texts = sample_essences(model, [fact.subject], [fact.fact_id], seed=request.seed)[0] if essence else []
    probes = make_probes(model, fact, request, texts)
    before, after = measure(model, [probes, probes], [None, edit])
    return compare(before, after, request)


def make_probes(
    model: HookedTransformer, fact: Fact, request: EditRequest, essence: Sequence[Int[Tensor, " pos"]] = ()
) -> Probes:
    """The rows that a request is scored on.

    For a noised subject, the rewrite prompt and the paraphrases get one row per noise sample, noised at their
    own subject's place; neighbours and essence texts stay clean.

    Raises:
        BadPrompt: a prompt does not fit the model's context.
    """
    targets_new = fact.target_new == request.target
    rows: list[tuple[Prompt, Tensor, Tensor | None]] = []
    kinds: list[tuple[str, int]] = []

    def add(kind: str, number: int, prompt: Prompt, target: str, noises: Sequence[Tensor | None] = (None,)) -> None:
        ids = request.target_tokens
        if target != request.target:
            ids = target_tokens(model, prompt.text, target)
        if len(prompt) + len(ids) - 1 > model.cfg.n_ctx:
            raise BadPrompt(f"fact {fact.fact_id}: with its target it does not fit the context: {prompt.text!r}")
        rows.extend((prompt, ids, noise) for noise in noises)
        kinds.extend((kind, number) for _ in noises)

    add("rewrite", 0, request.prompt, request.target, [None] if request.noise is None else list(request.noise))
    for i, text in enumerate(fact.paraphrases):
        if request.noise is None:
            add("paraphrase", i, encode_text(model, text, fact_id=fact.fact_id), request.target)
            continue
        try:
            prompt = find_subject(model, text, fact.subject, fact_id=fact.fact_id)
        except SubjectNotFound:
            continue
        draws = generator("score", request.seed, fact.fact_id, i)
        add("paraphrase", i, prompt, request.target, [draw_noise(request, prompt, draws) for _ in request.noise])
    for i, text in enumerate(fact.neighbors):
        prompt = encode_text(model, text, fact_id=fact.fact_id)
        add("neighborhood", i, prompt, request.target)
        if fact.target_new and not targets_new:
            add("neighborhood_new", i, prompt, fact.target_new)
    return Probes(tuple(rows), tuple(kinds), len(fact.paraphrases), targets_new, tuple(essence))


@torch.inference_mode()
def measure(
    model: HookedTransformer, probes: Sequence[Probes], edits: Sequence[Edit | None], *, batch_size: int = 512
) -> list[Measured]:
    """Raw numbers of many (probes, edit) pairs, in shared batches: each row runs under its own edit."""
    rows = [(row, i) for i, one in enumerate(probes) for row in one.rows]
    log_p = _log_probs(model, [row for row, _ in rows], [i for _, i in rows], edits, batch_size)
    texts = [((_text_prompt(text), text[1:], None), i) for i, one in enumerate(probes) for text in one.essence]
    log_t = _log_probs(model, [row for row, _ in texts], [i for _, i in texts], edits, max(1, batch_size // 8))
    perplexity = [_exp(-total / len(row[1])) for total, (row, _) in zip(log_t, texts, strict=True)]
    probability, results = iter(map(exp, log_p)), []
    essences = iter(perplexity)
    for one in probes:
        results.append(_collect(one, [next(probability) for _ in one.rows], [next(essences) for _ in one.essence]))
    return results


def compare(before: Measured, after: Measured, request: EditRequest) -> EditScore:
    """The scores of raw numbers before and after (spec section 4)."""
    reasons: list[str] = []
    rewrite = _change(before.rewrite, after.rewrite, request.objective)
    if isnan(before.rewrite) or isnan(after.rewrite):
        reasons.append(f"rewrite: p goes from {before.rewrite:g} to {after.rewrite:g}")
    elif isnan(rewrite):
        reasons.append(f"rewrite: p before is {before.rewrite:g}, nothing to {request.objective}")
    changes = [_change(p, q, request.objective) for p, q in zip(before.paraphrase, after.paraphrase, strict=True)]
    paraphrase = _mean(changes, "paraphrase", reasons)
    neighborhood = _mean(_kept(before.neighborhood, after.neighborhood), "neighborhood", reasons)
    neighborhood_new = _mean(_kept(before.neighborhood_new, after.neighborhood_new), "", [])
    essence = nan
    if before.essence:
        rise = fmean(after.essence) - fmean(before.essence)
        essence = 1 - min(max(rise, 0.0), 5.0) / 5 if not isnan(rise) else nan
    three = (rewrite, paraphrase, neighborhood)
    return EditScore(
        rewrite,
        paraphrase,
        neighborhood,
        essence,
        overall=fmean(three),
        overall_essence=fmean((*three, essence)),
        neighborhood_new=neighborhood_new,
        before=before,
        after=after,
        reason="; ".join(reasons),
    )


def _log_probs(
    model: HookedTransformer,
    rows: Sequence[tuple[Prompt, Tensor, Tensor | None]],
    owners: Sequence[int],
    edits: Sequence[Edit | None],
    batch_size: int,
) -> list[float]:
    """Log p(target) of each row under its owner's edit; rows of like length share a batch."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    result = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        batch = make_batch(model, [rows[i][0] for i in some], [rows[i][1] for i in some], [rows[i][2] for i in some])
        owner = torch.tensor([owners[i] for i in some], device=batch.tokens.device)
        final = run(model, batch, hooks=edit_hooks(edits, owner))
        totals = target_log_probs(model, batch, final).double().sum(1).tolist()
        for i, total in zip(some, totals, strict=True):
            result[i] = total
    return result


def _text_prompt(text: Int[Tensor, " pos"]) -> Prompt:
    """A text's first token as the prompt of all the others."""
    return Prompt(0, "", "", "", text[:1], slice(0, 0))


def _collect(probes: Probes, probability: list[float], perplexity: list[float]) -> Measured:
    """Probabilities by kind and prompt, noise samples averaged."""
    found: dict[tuple[str, int], list[float]] = {}
    for kind, p in zip(probes.kinds, probability, strict=True):
        found.setdefault(kind, []).append(p)
    numbers = {kind: fmean(ps) for kind, ps in found.items()}

    def of(name: str) -> tuple[float, ...]:
        return tuple(p for (kind, _), p in numbers.items() if kind == name)

    paraphrase = tuple(numbers.get(("paraphrase", i), nan) for i in range(probes.n_paraphrases))
    neighborhood = of("neighborhood")
    neighborhood_new = neighborhood if probes.targets_new else of("neighborhood_new")
    return Measured(numbers["rewrite", 0], paraphrase, neighborhood, neighborhood_new, tuple(perplexity))


def _exp(x: float) -> float:
    """e^x; infinite where that is too large for a float, as after an edit that breaks a model."""
    return exp(x) if x < 700 or isnan(x) else inf


def _change(p: float, q: float, objective: str) -> float:
    """The share of the possible change from p to q that the objective wanted; NaN where none was possible."""
    if isnan(p) or isnan(q):
        return nan
    room = 1 - p if objective == "raise" else p
    gained = q - p if objective == "raise" else p - q
    return max(0.0, gained / room) if room > 0 else nan


def _kept(before: Sequence[float], after: Sequence[float]) -> list[float]:
    return [1 - abs(q - p) / (0.5 + abs(p - 0.5)) for p, q in zip(before, after, strict=True)]


def _mean(values: Sequence[float], name: str, reasons: list[str]) -> float:
    """The mean of what is a number; what is not is counted among the reasons."""
    numbers = [value for value in values if not isnan(value)]
    if len(numbers) < len(values) or not values:
        reasons.append(
            f"{name}: {len(values) - len(numbers)} of {len(values)} undefined" if values else f"{name}: none"
        )
    return fmean(numbers) if numbers else nan
