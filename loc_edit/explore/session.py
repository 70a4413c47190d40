"""One reader's visit to the playground: a fact, its trace, and a stack of edits, without the page around it.

Every result comes from the package's own functions.  The model is shared by all visits and has its own weights
whenever nobody computes: a visit writes its edits for as long as it makes the next one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import isnan
from operator import add
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.settings import Settings
from loc_edit.editing.stack import EditStack
from loc_edit.editing.update import Edit
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.edits import edit_batch, texts_of
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import edit_cells
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.localization.registry import grid_options, localize
from loc_edit.localization.trace import Trace
from loc_edit.names import LOCALIZERS, PROBLEMS, TRACING, method_label, parse_method
from loc_edit.prompts.encoding import Prompt, encode, encode_text
from loc_edit.prompts.recall import next_tokens
from loc_edit.report.explorer import OUTCOMES, Continuations, explorer
from loc_edit.scoring.generation import generation
from loc_edit.scoring.score import score
from loc_edit.scoring.scores import EditScore
from loc_edit.views.edit import EditView


@dataclass(frozen=True)
class Made:
    """An edit, and what it was made for and with.

    Attributes:
        fact: the fact.
        problem: one of `loc_edit.PROBLEMS`.
        method: the method's name, perhaps with its window, such as `memit-3`.
        layer: the edited layer, or the center of the window.
        settings: the method's.
        request: what the editor was asked for, in the model with the edits before it.
        edit: the edit.
    """

    fact: Fact
    problem: str
    method: str
    layer: int
    settings: Settings
    request: EditRequest
    edit: Edit

    def __str__(self) -> str:
        to = {"raise": "→", "lower": "↛"}[self.request.objective]
        label = method_label(*parse_method(self.method))
        return f"{label}, layer {self.layer}: {self.fact.prompt} {to} {self.request.target}"


@dataclass(frozen=True)
class Comparison:
    """The unedited model beside the model with all edits, on one fact.

    Attributes:
        problem: what is asked of the fact.
        score: scores and probabilities.
        view: next tokens and probabilities.
        written: what the model writes after the prompt, greedily, before and after.
    """

    problem: str
    score: EditScore
    view: EditView
    written: tuple[str, str]


@dataclass
class Session:
    """What one reader has chosen, traced and edited.

    Attributes:
        setup: the model, the data set, the noise, the contexts and the settings, shared by all sessions.
        fact: the chosen fact.
        trace: its trace in the unedited model.
        made: the edits, in order; each was made for the model with those before it.
        comparison: the fact before and after the edits; `None` without edits.
    """

    setup: Setup
    fact: Fact | None = None
    trace: Trace | None = None
    made: tuple[Made, ...] = ()
    comparison: Comparison | None = field(default=None, repr=False)

    def choose(self, fact: Fact) -> None:
        """Take a fact; the trace of another one is put away."""
        if fact != self.fact:
            encode(self.setup.model, fact)  # refuses what the model cannot read
            self.fact, self.trace, self.comparison = fact, None, None

    def locate(self, localizer: str = TRACING, site: str = "mlp_out", window: int = 5) -> Trace:
        """Trace the fact in the unedited model, with the configuration's noise.

        Raises:
            ValueError: no fact is chosen, or the localizer cannot handle it.
        """
        fact, setup = self._chosen, self.setup
        prompt = encode(setup.model, fact)
        noise = _noise(setup, prompt)
        seed, known = setup.config.seed, localizer in LOCALIZERS
        options = grid_options(localizer, setup.model, fact, setup.data, seed) if known else {}
        self.trace = localize(
            setup.model, prompt, fact.target_true, noise=noise, localizer=localizer, site=site, window=window, **options
        )
        return self.trace

    def edit(self, problem: str = "error_injection", method: str = "rome", layer: int = 0) -> Made:
        """Edit the fact in the model with the edits so far, and put the edit on top of them.

        Raises:
            ValueError: no fact is chosen; the layer, method or problem does not exist, or makes no sense for the fact.
            EditFailed: the edit is not a number.
        """
        fact, setup = self._chosen, self._setup(problem, method, layer)
        [cell] = edit_cells(setup, problem)
        texts_of(setup, cell.method)  # of the unedited model: made before the edits are written
        with EditStack(setup.model) as stack:
            for earlier in self.made:
                stack.apply(earlier.edit)
            request = _posed(setup, fact, problem)
            [edit] = edit_batch(setup, [request], cell.method, cell.window, cell.layer, cell.settings)
        if isinstance(edit, Exception):
            raise edit
        made = Made(fact, problem, method, layer, cell.settings, request, edit)
        self.made = (*self.made, made)
        return made

    def undo(self, number: int = -1) -> None:
        """Take back an edit by its place, by default the last one; the others stay as they were made.

        Raises:
            ValueError: there is no such edit.
        """
        if not -len(self.made) <= number < len(self.made):
            raise ValueError(f"undo {number}: expected the place of an edit, and there are {len(self.made)}")
        self.made = tuple(made for made in self.made if made is not self.made[number])

    def compare(self, problem: str, *, essence: bool = False) -> Comparison | None:
        """Measure the fact in the unedited model and in the model with all edits; `None` without edits.

        Args:
            problem: one of `loc_edit.PROBLEMS`.
            essence: whether to measure essence too, for which texts about the subject are sampled.

        Raises:
            ValueError: the problem makes no sense for the fact.
        """
        self.comparison = None
        if self.made:
            fact, model = self._chosen, self.setup.model
            own = [made for made in self.made if made.fact == fact and made.problem == problem]
            request = own[-1].request if own else _posed(self.setup, fact, problem)
            scored = score(model, fact, request, self.together, essence=essence)
            alone = replace(fact, paraphrases=(), neighbors=())
            before = generation(model, alone)["rewrite"][0].text
            with self.together.applied(model):
                after = generation(model, alone)["rewrite"][0].text
            self.comparison = Comparison(problem, scored, scored.show(model), (before, after))
        return self.comparison

    @property
    def together(self) -> Edit:
        """All edits as one.

        Raises:
            ValueError: there is none.
        """
        if not self.made:
            raise ValueError("there is no edit yet")
        return reduce(add, (made.edit for made in self.made))

    def save(self, folder: Path) -> Path:
        """Write all edits as one safetensors file into a folder; its name says what they are.

        Raises:
            ValueError: there is no edit.
        """
        together, last = self.together, self.made[-1]
        name = f"{last.method}_layer{last.layer}" if len(self.made) == 1 else f"{len(self.made)}_edits"
        path = folder / f"{name}.safetensors"
        together.save(path)
        return path

    def shown(self, layer: int | None = None) -> dict[str, Any] | None:
        """Plain values for the report's panel (`loc_edit.report.page.panel`); `None` if there is nothing to show.

        Args:
            layer: the layer that is marked in the heatmap.
        """
        fact, compared = self.fact, self.comparison
        if fact is None or (self.trace is None and compared is None):
            return None
        last = self.made[-1] if self.made else None
        traces = pd.DataFrame(columns=["fact_id"]) if self.trace is None else self.trace.to_frame()
        row, following = ({}, None) if compared is None or last is None else _row(fact, compared, last)
        edits = pd.DataFrame([row] if row else [], columns=None if row else NO_EDITS)
        data = explorer(
            traces.assign(relation=fact.relation, fact_content=fact.content),
            edits,
            {fact.fact_id: fact},
            most=1,
            next_tokens=following,
        )
        shown: dict[str, Any] = {"explorer": data, "layer": layer}
        if compared is not None and last is not None:
            count = "" if len(self.made) == 1 else f" and {len(self.made) - 1} more"
            method = method_label(*parse_method(last.method))
            caption = f"Before and after {method} at layer {last.layer}{count}"
            shown |= {"edited": last.layer, "caption": caption, "written": compared.written}
        return shown

    @property
    def _chosen(self) -> Fact:
        if self.fact is None:
            raise ValueError("no fact is chosen yet")
        return self.fact

    def _setup(self, problem: str, method: str, layer: int) -> Setup:
        """The shared setup for one edit."""
        shared = self.setup
        values = {"problems": (problem,), "methods": (method,), "layers": (layer,)}
        config = ExperimentConfig.from_values({**shared.config.model_dump(), **values}, "the edit")
        return Setup(config).with_data(shared.data, shared.model).with_contexts(shared.contexts)


def _noise(setup: Setup, prompt: Prompt) -> Float[Tensor, "sample subject d_model"]:
    """The subject noise that the configuration asks for."""
    return setup.corruption.draw(setup.model, prompt, samples=setup.config.noise_samples, seed=setup.config.seed)


def _posed(setup: Setup, fact: Fact, problem: str) -> EditRequest:
    """The request that a problem makes of a fact in the model as it is."""
    noise = _noise(setup, encode(setup.model, fact)) if PROBLEMS[problem].sees_noise else None
    return setup.pose(fact, problem, noise)


NO_EDITS = ["fact_id", "problem", "method", "window", "layer", "status", "reason", "target", "objective", *OUTCOMES]
"""The columns of edit rows that the explorer asks for, where there are none."""


def _row(fact: Fact, compared: Comparison, last: Made) -> tuple[dict[str, Any], Continuations]:
    """The comparison as an edit row of the report, and the next tokens beside it."""
    method, window = parse_method(last.method)
    row = {
        **compared.score.to_row(),
        "fact_id": fact.fact_id,
        "fact_content": fact.content,
        "problem": compared.problem,
        "method": method,
        "window": window,
        "layer": last.layer,
        "status": "skipped" if isnan(compared.score.rewrite) else "done",
        "target": compared.view.target,
        "objective": compared.view.objective,
    }
    after = {fact.fact_id: {(compared.problem, method, window): (last.layer, compared.view.after)}}
    return row, Continuations({fact.fact_id: compared.view.before}, after)


def fact_of_texts(setup: Setup, known: Iterable[Fact], texts: Mapping[str, str]) -> Fact:
    """The fact that a reader typed.

    Args:
        setup: gives the model, which says the object if the reader does not.
        known: facts, one of which is meant if the texts are its own.
        texts: `prompt`, `subject`, `target_true`, `target_new`; `paraphrases` and `neighbors`, one on each line.

    Raises:
        BadFact: the prompt lacks the subject, or a text is empty that must not be.
    """
    for fact in known:
        if texts_of_fact(fact) == texts:
            return fact
    prompt, subject = texts["prompt"].strip(), texts["subject"].strip()
    if not subject or subject not in prompt:
        raise BadFact(f"expected the subject to be words of the prompt {prompt!r}, got {subject!r}")
    before, _, after = prompt.partition(subject)
    return Fact(
        template=f"{before}{{}}{after}",
        subject=subject,
        target_true=texts["target_true"].strip() or _said(setup, prompt),
        target_new=texts["target_new"].strip() or None,
        paraphrases=_lines(texts["paraphrases"]),
        neighbors=_lines(texts["neighbors"]),
    )


def texts_of_fact(fact: Fact) -> dict[str, str]:
    """A fact as the texts that a reader edits; `fact_of_texts` reads them back."""
    return {
        "prompt": fact.prompt,
        "subject": fact.subject,
        "target_true": fact.target_true,
        "target_new": fact.target_new or "",
        "paraphrases": "\n".join(fact.paraphrases),
        "neighbors": "\n".join(fact.neighbors),
    }


def _said(setup: Setup, prompt: str) -> str:
    """The likeliest next token that is not only space."""
    words: Sequence[str] = [
        text.strip() for text, _ in next_tokens(setup.model, encode_text(setup.model, prompt, fact_id=0))
    ]
    return next((word for word in words if word), "")


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
