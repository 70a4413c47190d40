"""What is measured for a request: prompts with their targets, and texts about its subject."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import draw_noise
from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model
from loc_edit.prompts.encoding import BadPrompt, Prompt, SubjectNotFound, encode_text, find_subject, target_tokens
from loc_edit.prompts.randomness import generator


@dataclass(frozen=True)
class Measured:
    """Raw numbers of one fact under one set of weights.

    Attributes:
        rewrite: p(target) on the edit prompt.
        paraphrase: p(target) on each paraphrase; NaN if the paraphrase needs noise and lacks the subject.
        neighborhood: p(target) on each neighbor's prompt.
        neighborhood_new: p(target_new) on each neighbor's prompt, if the fact has a false target.
        essence: perplexity of each essence text.
        rewrite_other: p(other) on the edit prompt, where other is o_true, or o_false if the target is o_true.
        paraphrase_other: p(other) on each paraphrase.
        neighborhood_other: p(other) on each neighbor's prompt.
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
        """The numbers of one kind, one for each prompt: `of("rewrite")` has one."""
        value: float | tuple[float, ...] = getattr(self, kind)
        return (value,) if isinstance(value, float) else value


@dataclass(frozen=True)
class Probe:
    """One probability to measure.

    Attributes:
        kind: a field of `Measured`, or another name, and the prompt's number in it; several probes of one kind are
            noise samples, whose probabilities are averaged.
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
        probes: the probabilities.
        n_paraphrases: number of paraphrases, with those that cannot be measured.
        new: the field of `Measured` that holds p(target_new) on the neighbors; empty if the fact has no false target.
        essence: texts about the subject, as token ids.
    """

    probes: tuple[Probe, ...]
    n_paraphrases: int
    new: str
    essence: tuple[Int[Tensor, " pos"], ...]


def make_probes(model: Model, fact: Fact, request: EditRequest, essence: Sequence[Int[Tensor, " _"]] = ()) -> Probes:
    """What a request is scored on.

    For a noised subject, the edit prompt and the paraphrases get one probe for each noise sample, noised where their
    own subject is; neighbors and essence texts stay clean.

    Raises:
        BadPrompt: a prompt does not fit the model's context.
    """
    other = fact.target_new if request.target == fact.target_true else fact.target_true
    targets = {"": request.target} | ({"_other": other} if other else {})
    new = {target: f"neighborhood{suffix}" for suffix, target in targets.items()}.get(fact.target_new or "")
    on_neighbors = targets | ({"_new": fact.target_new} if fact.target_new and not new else {})
    probes: list[Probe] = []

    def add(kind: str, number: int, prompt: Prompt, targets: dict[str, str], noises: Sequence[Tensor | None]) -> None:
        for suffix, target in targets.items():
            same = target == request.target
            ids = request.target_tokens if same else target_tokens(model, prompt.text, target)
            if len(prompt) + len(ids) - 1 > model.cfg.n_ctx:
                raise BadPrompt(f"fact {fact.fact_id}: with its target it does not fit the context: {prompt.text!r}")
            probes.extend(Probe((kind + suffix, number), prompt, ids, noise) for noise in noises)

    add("rewrite", 0, request.prompt, targets, [None] if request.noise is None else list(request.noise))
    for i, text in enumerate(fact.paraphrases):
        if request.noise is None:
            add("paraphrase", i, encode_text(model, text, fact_id=fact.fact_id), targets, [None])
            continue
        try:
            prompt = find_subject(model, text, fact.subject, fact_id=fact.fact_id)
        except SubjectNotFound:
            continue
        draws = generator("score", request.seed, fact.fact_id, i)
        add("paraphrase", i, prompt, targets, [draw_noise(request, prompt, draws) for _ in request.noise])
    for i, text in enumerate(fact.neighbors):
        add("neighborhood", i, encode_text(model, text, fact_id=fact.fact_id), on_neighbors, [None])
    new = (new or "neighborhood_new") if fact.target_new else ""
    return Probes(tuple(probes), len(fact.paraphrases), new, tuple(essence))
