"""How well an edit did: probabilities before and after, and the scores made of them (Hase et al. 2023, section 4)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan, nan
from statistics import fmean
from typing import Any

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.update import Edit
from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model, W_out
from loc_edit.names import SCORES
from loc_edit.prompts.recall import next_tokens
from loc_edit.prompts.sampling import sample_essences
from loc_edit.scoring.probes import Measured, Meter, make_probes
from loc_edit.views.edit import EditView


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
        magnitudes: see `magnitudes`.
        before: raw numbers of the unedited model.
        after: raw numbers of the edited one.
        reason: why a score is NaN; empty if none is.
        fact: the edited fact; with `request` and `edit` what `show` needs.  `None` in a grid.
        request: what the edit was asked for.
        edit: the edit; `None` for the unedited model.
    """

    rewrite: float
    paraphrase: float
    neighborhood: float
    essence: float
    overall: float
    overall_essence: float
    neighborhood_new: float
    magnitudes: dict[str, float] = field(repr=False)
    before: Measured = field(repr=False)
    after: Measured = field(repr=False)
    reason: str = ""
    fact: Fact | None = field(default=None, repr=False, compare=False)
    request: EditRequest | None = field(default=None, repr=False, compare=False)
    edit: Edit | None = field(default=None, repr=False, compare=False)

    def to_row(self) -> dict[str, Any]:
        """Flat columns: scores, magnitudes, and the raw numbers as `<name>_before` and `<name>_after` lists."""
        names = (*SCORES, "overall_essence", "neighborhood_new", "reason")
        row = {name: getattr(self, name) for name in names} | self.magnitudes
        for when, measured in (("before", self.before), ("after", self.after)):
            for name, value in asdict(measured).items():
                row[f"{name}_{when}"] = list(value) if isinstance(value, tuple) else [value]
        return row

    def show(self, model: Model, *, n: int = 5) -> EditView:
        """What the edit changes: next tokens and probabilities before and after, scores, the size of the update.

        A notebook shows it as tables, `print` as text.

        Args:
            model: the unedited model; the edit is applied and taken back.
            n: how many next tokens.

        Raises:
            ValueError: the score was not made by `loc_edit.score`, so that its fact and edit are not known.
        """
        if self.fact is None or self.request is None:
            raise ValueError("this score does not know its fact: expected one made by loc_edit.score")
        prompt, edit = self.request.prompt, self.edit or Edit(())
        before = next_tokens(model, prompt, n)
        with edit.applied(model):
            after = next_tokens(model, prompt, n)
        texts = {"rewrite": (self.fact.prompt,), "paraphrase": self.fact.paraphrases}
        texts["neighborhood"] = self.fact.neighbors
        norms = {}
        for layer in edit.layers:
            norm = edit.delta(layer).double().norm().item()
            norms[layer] = (norm, norm / W_out(model, layer).double().norm().item())
        return EditView(
            self.fact.prompt,
            self.request.target,
            self.request.objective,
            before,
            after,
            probabilities=[
                (kind, text, p, q)
                for kind, prompts in texts.items()
                for text, p, q in zip(prompts, self.before.of(kind), self.after.of(kind), strict=True)
            ],
            scores={name: getattr(self, name) for name in SCORES if name != "essence"},
            norms=norms,
        )


def score(
    model: Model,
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
    meter = Meter(model, [probes])
    [before], [after] = meter.before, meter.measure([edit])
    return replace(compare(before, after, request), fact=fact, request=request, edit=edit)


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
        magnitudes=magnitudes(after, request),
        before=before,
        after=after,
        reason="; ".join(reasons),
    )


def magnitudes(after: Measured, request: EditRequest) -> dict[str, float]:
    """Differences between the two objects after the edit, and the share of prompts where they are positive.

    `rewrite_magnitude` and `paraphrase_magnitude` are p(target) - p(other) where p(target) is to rise, and the
    reverse where it is to fall; `neighborhood_magnitude` is p(other) - p(target), reversed likewise.  Other is o_true,
    or o_false for a request about o_true; NaN where the fact has none.  Source: Meng et al. 2022a, section 3.2.
    """
    sign = 1 if request.objective == "raise" else -1
    pairs = {
        "rewrite": (sign, [after.rewrite], [after.rewrite_other]),
        "paraphrase": (sign, after.paraphrase, after.paraphrase_other),
        "neighborhood": (-sign, after.neighborhood, after.neighborhood_other),
    }
    found: dict[str, float] = {}
    for name, (direction, target, other) in pairs.items():
        both = zip(target, other, strict=True) if other else ()
        gaps = [direction * (p - q) for p, q in both if not isnan(p - q)]
        found[f"{name}_magnitude"] = fmean(gaps) if gaps else nan
        found[f"{name}_success"] = fmean(gap > 0 for gap in gaps) if gaps else nan
    return found


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
