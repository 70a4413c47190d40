"""How well an edit did: scores from the probabilities before and after (Hase et al. 2023, section 4)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import isnan, nan
from statistics import fmean
from typing import Any, Literal

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.update import Edit
from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model, W_out
from loc_edit.names import OWN_SCORES
from loc_edit.prompts.recall import next_tokens
from loc_edit.scoring.probes import Measured
from loc_edit.views.edit import EditView
from loc_edit.views.table import html_table


@dataclass(frozen=True)
class EditScore:
    """Scores of one edit, 1 the best; NaN where undefined, with the reason.

    Attributes:
        rewrite: share of the possible change of p(target) on the edit prompt, floored at 0.
        paraphrase: the same share, mean over the paraphrases.
        neighborhood: 1 - the share of the possible change on the neighbors' prompts, where change is unwanted.
        essence: 1 - the rise of the perplexity of texts about the subject, clipped to 0..5, over 5.
        overall: mean of rewrite, paraphrase and neighborhood.
        overall_essence: mean of rewrite, paraphrase, neighborhood and essence.
        neighborhood_new: neighborhood, measured on the fact's false target.
        magnitudes: see `magnitudes`.
        before: raw numbers of the unedited model.
        after: raw numbers of the edited model.
        reason: why a score is NaN; empty if none is.
        other_scores: what else a run was asked for, by name.
        fact: the edited fact; `show` needs it, and `request` and `edit`.  `None` in a grid.
        request: the request that the edit answers.
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
    other_scores: Mapping[str, float] = field(default_factory=dict)
    fact: Fact | None = field(default=None, repr=False, compare=False)
    request: EditRequest | None = field(default=None, repr=False, compare=False)
    edit: Edit | None = field(default=None, repr=False, compare=False)

    def to_row(self) -> dict[str, Any]:
        """Flat columns: scores, magnitudes, and the raw numbers as `<name>_before` and `<name>_after` lists."""
        names = (*OWN_SCORES, "overall_essence", "neighborhood_new", "reason")
        row = {name: getattr(self, name) for name in names} | self.magnitudes | dict(self.other_scores)
        for when, measured in (("before", self.before), ("after", self.after)):
            row |= {f"{each.name}_{when}": list(measured.of(each.name)) for each in fields(measured)}
        return row

    def show(self, model: Model, *, n: int = 5) -> EditView:
        """What the edit changes: next tokens and probabilities before and after, scores, the size of the update.

        A notebook shows it as tables, `print` as text.

        Args:
            model: the unedited model; the edit is applied and taken back.
            n: number of next tokens.

        Raises:
            ValueError: the score was not made by `loc_edit.score`, so that its fact and edit are not known.
        """
        if self.fact is None or self.request is None:
            raise ValueError("this score does not know its fact: expected one made by loc_edit.score")
        fact, request, edit = self.fact, self.request, self.edit or Edit(())
        before = next_tokens(model, request.prompt, n)
        with edit.applied(model):
            after = next_tokens(model, request.prompt, n)
        texts = {"rewrite": (fact.prompt,), "paraphrase": fact.paraphrases, "neighborhood": fact.neighbors}
        probabilities = [
            (kind, text, p, q)
            for kind, prompts in texts.items()
            for text, p, q in zip(prompts, self.before.of(kind), self.after.of(kind), strict=True)
        ]
        scores = {name: getattr(self, name) for name in OWN_SCORES if name != "essence"} | dict(self.other_scores)
        norms = {}
        for layer in edit.layers:
            norm = edit.delta(layer).double().norm().item()
            norms[layer] = (norm, norm / W_out(model, layer).double().norm().item())
        return EditView(
            fact.prompt,
            request.target,
            request.objective,
            before,
            after,
            probabilities=probabilities,
            scores=scores,
            norms=norms,
        )

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = []
        for name in ("rewrite", "paraphrase", "neighborhood"):
            means = [mean_of_numbers(measured.of(name)) for measured in (self.before, self.after)]
            rows.append((name, getattr(self, name), *means))
        rows += [(name, getattr(self, name), "", "") for name in OWN_SCORES if name not in {row[0] for row in rows}]
        rows += [(name, value, "", "") for name, value in self.other_scores.items()]
        return html_table(rows, header=("", "score", "p(target) before", "after"), title=self.reason)


def compare(before: Measured, after: Measured, objective: Literal["raise", "lower"]) -> EditScore:
    """The scores of raw numbers before and after.

    Args:
        before: of the unedited model.
        after: of the edited model.
        objective: whether the edit was to raise or to lower p(target).

    Source: spec section 4.
    """
    reasons: list[str] = []
    rewrite = share_of_change(before.rewrite, after.rewrite, objective)
    if isnan(before.rewrite) or isnan(after.rewrite):
        reasons.append(f"rewrite: p goes from {before.rewrite:g} to {after.rewrite:g}")
    elif isnan(rewrite):
        reasons.append(f"rewrite: p before is {before.rewrite:g}, nothing to {objective}")
    changes = [share_of_change(p, q, objective) for p, q in zip(before.paraphrase, after.paraphrase, strict=True)]
    paraphrase = _mean(changes, "paraphrase", reasons)
    neighborhood = _mean(kept(before.neighborhood, after.neighborhood), "neighborhood", reasons)
    rise = fmean(after.essence) - fmean(before.essence) if before.essence else nan
    essence = nan if isnan(rise) else 1 - min(max(rise, 0.0), 5.0) / 5
    return EditScore(
        rewrite,
        paraphrase,
        neighborhood,
        essence,
        overall=fmean((rewrite, paraphrase, neighborhood)),
        overall_essence=fmean((rewrite, paraphrase, neighborhood, essence)),
        neighborhood_new=_mean(kept(before.neighborhood_new, after.neighborhood_new), "", []),
        magnitudes=magnitudes(after, objective),
        before=before,
        after=after,
        reason="; ".join(reasons),
    )


def magnitudes(after: Measured, objective: Literal["raise", "lower"]) -> dict[str, float]:
    """Differences between the two objects after the edit, and the share of prompts where they are positive.

    `rewrite_magnitude` and `paraphrase_magnitude` are p(target) - p(other) if p(target) is to rise, and the reverse if
    it is to fall; `neighborhood_magnitude` is p(other) - p(target), or the reverse.  Other is o_true, or o_false for a
    request about o_true; NaN if the fact has none.  Source: Meng et al. 2022a, section 3.2.
    """
    columns: dict[str, float] = {}
    for name in ("rewrite", "paraphrase", "neighborhood"):
        sign = 1 if (objective == "raise") == (name != "neighborhood") else -1
        others = after.of(f"{name}_other")
        pairs = zip(after.of(name), others, strict=True) if others else ()
        gaps = [sign * (p - q) for p, q in pairs if not isnan(p - q)]
        columns[f"{name}_magnitude"] = fmean(gaps) if gaps else nan
        columns[f"{name}_success"] = fmean(gap > 0 for gap in gaps) if gaps else nan
    return columns


def share_of_change(p: float, q: float, objective: Literal["raise", "lower"]) -> float:
    """The share of the possible change from p to q in the direction of the objective; NaN if none was possible."""
    if isnan(p) or isnan(q):
        return nan
    possible = 1 - p if objective == "raise" else p
    gained = q - p if objective == "raise" else p - q
    return max(0.0, gained / possible) if possible > 0 else nan


def mean_of_numbers(values: Iterable[float]) -> float:
    """The mean of the values that are numbers; NaN if none is."""
    numbers = [value for value in values if not isnan(value)]
    return fmean(numbers) if numbers else nan


def kept(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """1 - the share of the possible change of each probability, in either direction."""
    return [1 - abs(q - p) / (0.5 + abs(p - 0.5)) for p, q in zip(before, after, strict=True)]


def _mean(values: Sequence[float], name: str, reasons: list[str]) -> float:
    """The mean of the values that are numbers; the others are counted among the reasons."""
    if not values:
        reasons.append(f"{name}: none")
    elif undefined := sum(map(isnan, values)):
        reasons.append(f"{name}: {undefined} of {len(values)} undefined")
    return mean_of_numbers(values)
