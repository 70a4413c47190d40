"""A batch: some facts, and what all cells share about them, computed once when it is first asked for."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.experiment.setup import Setup
from loc_edit.facts.fact import Fact
from loc_edit.localization.registry import grid_options, localize_many
from loc_edit.localization.trace import Trace, empty_trace
from loc_edit.names import LOCALIZERS, PROBLEMS, windows_of
from loc_edit.prompts.encoding import Prompt, encode
from loc_edit.prompts.sampling import sample_essences
from loc_edit.scoring.contract import measure
from loc_edit.scoring.measuring import Meter
from loc_edit.scoring.probes import Probes, make_probes

log = logging.getLogger(__name__)


@dataclass
class Posed:
    """A problem posed to a batch.

    Attributes:
        requests: what editors are asked for, for each fact that the problem makes sense for.
        meter: measures the requests' probes, and holds their numbers on the unedited model.
        skipped: the other facts, each with the reason.
        facts: the fact of each request.
        given: what scores get besides: the subject noise of each request's fact, and the data set.
        before: by score that the run is asked for, what it measures of the unedited model for each request.
    """

    requests: list[EditRequest]
    meter: Meter
    skipped: list[tuple[Fact, str]]
    facts: list[Fact] = field(default_factory=list)
    given: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, list[Any]] = field(default_factory=dict)


class Batch:
    """Facts that are computed together.

    Args:
        setup: what all batches share.
        facts: the facts, in order.
    """

    def __init__(self, setup: Setup, facts: Sequence[Fact]) -> None:
        self.setup, self.facts = setup, facts
        self.contents = {fact.fact_id: fact.content for fact in facts}
        self.noiseless: dict[int, str] = {}
        self._posed: dict[str, Posed] = {}
        self._traces: dict[str, dict[tuple[int, int], Trace]] = {}

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Each fact's edit prompt."""
        return [encode(self.setup.model, fact) for fact in self.facts]

    @cached_property
    def noise(self) -> list[Float[Tensor, "sample subject d_model"] | None]:
        """Each fact's subject noise; `noiseless` says why a fact has none."""
        return [self._draw(prompt) for prompt in self.prompts]

    def _draw(self, prompt: Prompt) -> Float[Tensor, "sample subject d_model"] | None:
        setup, config = self.setup, self.setup.config
        try:
            return setup.corruption.draw(setup.model, prompt, samples=config.noise_samples, seed=config.seed)
        except ValueError as error:  # no other subject can take the place of this one
            self.noiseless[prompt.fact_id] = str(error)
            log.warning("%s: it has no trace", error)
            return None

    @cached_property
    def essences(self) -> list[list[Int[Tensor, " pos"]]]:
        """Each fact's essence texts, sampled from the unedited model."""
        if not self.setup.config.essence:
            return [[] for _ in self.facts]
        subjects, ids = [fact.subject for fact in self.facts], [fact.fact_id for fact in self.facts]
        return sample_essences(self.setup.model, subjects, ids, seed=self.setup.config.seed)

    def traces(self, localizer: str, window: int) -> list[Trace]:
        """Each fact's trace; one of NaN if the fact has no noise, or no false object where the localizer needs it."""
        if localizer not in self._traces:
            self._traces[localizer] = self._localize(localizer)
        return [
            self._traces[localizer].get((fact.fact_id, window))
            or empty_trace(
                self.setup.model,
                prompt,
                fact.target_true,
                localizer=localizer,
                window=window,
                site=self.setup.config.site,
                metric=LOCALIZERS[localizer].metric,
            )
            for fact, prompt in zip(self.facts, self.prompts, strict=True)
        ]

    def leave_untraced(self, localizer: str) -> None:
        """Give every fact an empty trace of this localizer, which has failed."""
        self._traces[localizer] = {}

    def _localize(self, localizer: str) -> dict[tuple[int, int], Trace]:
        """Traces by fact and window; all facts and windows share work."""
        setup, config = self.setup, self.setup.config
        able = [
            (prompt, fact.target_true, noise, grid_options(localizer, setup.model, fact, setup.references, config.seed))
            for prompt, fact, noise in zip(self.prompts, self.facts, self.noise, strict=True)
            if noise is not None and (LOCALIZERS[localizer].metric != "logit_difference" or fact.target_new is not None)
        ]
        if not able:
            return {}
        prompts, targets, noises, options = zip(*able, strict=True)
        windows = windows_of(localizer, config.windows, config.localizer_windows)
        traces = localize_many(
            setup.model,
            prompts,
            targets,
            noises=noises,
            localizer=localizer,
            site=config.site,
            windows=windows,
            foils=[own.pop("foil", None) for own in options],
            references=[own.pop("reference", ()) for own in options],
            **options[0],
        )
        return {
            (prompt.fact_id, window): trace
            for prompt, traces_of_prompt in zip(prompts, traces, strict=True)
            for window, trace in zip(windows, traces_of_prompt, strict=True)
        }

    def posed(self, problem: str) -> Posed:
        """The requests of a problem, with their probes measured on the unedited model; only the last is kept."""
        if problem not in self._posed:
            self._posed = {problem: self._pose(problem)}
        return self._posed[problem]

    def _pose(self, problem: str) -> Posed:
        setup = self.setup
        requests: list[EditRequest] = []
        posed_facts: list[Fact] = []
        given: list[dict[str, Any]] = []
        probes: list[Probes] = []
        skipped: list[tuple[Fact, str]] = []
        facts_of_scores = setup.scored_with
        for fact, noise, texts in zip(self.facts, self.noise, self.essences, strict=True):
            if noise is None and PROBLEMS[problem].sees_noise:
                skipped.append((fact, self.noiseless[fact.fact_id]))
                continue
            try:
                request = setup.pose(fact, problem, noise)
                probes_of_fact = make_probes(setup.model, fact, request, texts)
            except ValueError as error:
                skipped.append((fact, str(error)))
            else:
                requests.append(request)
                posed_facts.append(fact)
                given.append({"noise": noise, "facts": facts_of_scores})
                probes.append(probes_of_fact)
        each = list(zip(posed_facts, requests, given, strict=True))
        before = {
            name: [measure(name, setup.model, fact, request, **more) for fact, request, more in each]
            for name in setup.config.scores
        }
        meter = Meter(setup.model, probes, setup.first_edited_layers)
        return Posed(requests, meter, skipped, posed_facts, given, before)
