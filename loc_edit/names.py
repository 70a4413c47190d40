"""The vocabulary of the study: problems, editing methods, localizers and scores, in the order of its tables.

Every other file reads these names here, so that a name, its label and its place in the order stand once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from typing import Any, Literal

from loc_edit.arguments import Window, fits, words
from loc_edit.files import Origin

Metric = Literal["probability", "log_probability", "logit_difference"]
"""What a localizer reads off the end of the model."""


@dataclass(frozen=True)
class Problem:
    """An editing problem (Hase et al. 2023, section 5).

    Attributes:
        label: for tables and figures.
        meaning: one line.
        objective: whether the edit raises or lowers the probability of the target.
        subject_noised: whether the subject is noised while editing and scoring.
        noise: whether the target depends on the subject noise.
        facts: whether the target depends on the other facts of the data set.
        origin: of a plug-in.
    """

    label: str
    meaning: str
    objective: Literal["raise", "lower"]
    subject_noised: bool = False
    noise: bool = False
    facts: bool = False
    origin: Origin | None = None

    @property
    def sees_noise(self) -> bool:
        """Whether its requests, or their scores, depend on the subject noise."""
        return self.subject_noised or self.noise


PROBLEMS = {
    "error_injection": Problem("Error injection", "make the model say a false object", "raise"),
    "tracing_reversal": Problem("Tracing reversal", "make the model say what it says under noise", "raise", noise=True),
    "fact_erasure": Problem("Fact erasure", "make the true object unlikely", "lower"),
    "fact_amplification": Problem("Fact amplification", "make the true object likelier", "raise"),
    "fact_forcing": Problem(
        "Fact forcing", "make the model say the true object despite a noised subject", "raise", subject_noised=True
    ),
}


@dataclass(frozen=True)
class Method:
    """An editing method.

    Attributes:
        label: for tables and figures; fine-tuning adds its window.
        meaning: one line.
        window: how many layers it edits if its name does not say.
        one_layer: whether it can edit only one layer.
        contexts: the style of the context texts that it gets; `None` for none.
        stats: whether it gets key statistics.
        origin: of a plug-in.
    """

    label: str
    meaning: str
    window: int = 1
    one_layer: bool = False
    contexts: Literal["rome", "memit"] | None = None
    stats: bool = False
    origin: Origin | None = None


METHODS = {
    "finetune": Method("FT", "Adam on W_out, every entry kept within a box around its start"),
    "finetune_free": Method("FT free", "Adam on W_out without a box"),
    "finetune_decay": Method("FT decay", "Adam on W_out, held back by weight decay toward the old weights"),
    "rome": Method("ROME", "a rank-one change of one layer", one_layer=True, contexts="rome", stats=True),
    "r_rome": Method("R-ROME", "ROME with one key throughout", one_layer=True, contexts="rome", stats=True),
    "emmet": Method(
        "EMMET", "many facts in one layer, each read out exactly", one_layer=True, contexts="rome", stats=True
    ),
    "memit": Method("MEMIT", "one change spread over a window of layers", window=5, contexts="memit", stats=True),
    "alphaedit": Method(
        "AlphaEdit", "MEMIT kept to what the old keys do not use", window=5, contexts="memit", stats=True
    ),
}

WAYS = {
    "alone": "each edit made for the model as edited so far, as if it were the first",
    "kept": "the same, with the keys of all earlier edits held to what they read out",
    "joint": "all facts so far in one edit of the unedited model",
}
"""How one model can be given many edits."""
WAYS_OF = {"memit": ("alone", "kept", "joint"), "alphaedit": ("alone", "kept")}
"""The ways of each method that has more than `alone`."""

CONTROLS = ("none", "random_layer")
"""How the method of a control row begins: `none`, `random_layer_rome`."""
NO_LAYER = -1
"""The layer of a row without an edit."""

TRACING = "causal_tracing"


@dataclass(frozen=True)
class Localizer:
    """A way to say which cells of the layer x position grid a fact hangs on.

    Attributes:
        meaning: one line.
        cost: in forward passes of one row; L layers, T positions, K noise samples.
        metric: of the target, in a grid.
        options: its own options in a grid.
        references: how many other facts' prompts it gets in a grid.
        seeded: whether it draws random numbers of its own.
        facts: whether it looks at the whole data set.
        sites: the hook points that it can look at; any, if none is named.
        origin: of a plug-in.
    """

    meaning: str
    cost: str
    metric: Metric = "probability"
    options: Mapping[str, Any] = field(default_factory=dict)
    references: int = 0
    seeded: bool = False
    facts: bool = False
    sites: tuple[str, ...] = ()
    origin: Origin | None = None


WRITES = ("mlp_out", "attn_out")
"""The sites whose output is added to the residual stream as it is."""

LOCALIZERS = {
    TRACING: Localizer("restore a clean output in the corrupted run", "K x L x T"),
    "attribution": Localizer("attribution patching: gradient times difference", "K forward, K backward"),
    "integrated_gradients": Localizer(
        "gradients averaged on the way from corrupted to clean", "8 times attribution", options={"steps": 8}
    ),
    "layer_integrated_gradients": Localizer(
        "gradients averaged on the way of a layer's output from corrupted to clean",
        "2.5 x L times attribution",
        options={"steps": 5},
    ),
    "relp": Localizer("relevance patching: relevance coefficient times difference", "K forward, K backward"),
    "zero_ablation": Localizer("replace an output by zero", "L x T"),
    "mean_ablation": Localizer(
        "replace an output by its mean over other prompts", "L x T, and one per reference prompt", references=20
    ),
    "resample_ablation": Localizer(
        "replace an output by that of other prompts",
        "10 x L x T, and one per reference prompt",
        options={"samples": 10},
        references=20,
        seeded=True,
    ),
    "severed_mlp": Localizer("restore the residual stream with the MLPs held corrupted", "K x L x T"),
    "severed_attn": Localizer("restore the residual stream with attention held corrupted", "K x L x T"),
    "direct": Localizer("direct effect on the logits", "K + 1", metric="logit_difference", sites=WRITES),
    "logit_lens": Localizer(
        "what can be read off an output at its own position", "K + 1, and 2 x L x T x K logits", sites=WRITES
    ),
    "tuned_lens": Localizer(
        "the same through translators between layers", "as logit_lens, and a fit", facts=True, sites=WRITES
    ),
    "random": Localizer("a random number: the control", "K + 1", seeded=True),
}


@dataclass(frozen=True)
class Score:
    """A score of an edit.

    Attributes:
        meaning: one line.
        low: the smallest possible value.
        high: the largest.
        better: which end is the better one.
        scorer: what a run is asked for, to have it (`--scores`); empty for the scores that every edit has.
        origin: of a plug-in.
    """

    meaning: str
    low: float = 0.0
    high: float = 1.0
    better: Literal["high", "low"] = "high"
    scorer: str = ""
    origin: Origin | None = None


SCORES = {
    "rewrite": Score("share of the possible change of p(target) on the edit prompt"),
    "paraphrase": Score("the same on the paraphrases"),
    "neighborhood": Score("how little p(target) changes on other subjects' prompts"),
    "overall": Score("mean of rewrite, paraphrase and neighborhood"),
    "essence": Score("how little the perplexity of texts about the subject rises"),
    "generation_rewrite": Score("whether what follows the edit prompt begins with the target", scorer="generation"),
    "generation_paraphrase": Score("the same of the paraphrases", scorer="generation"),
    "generation_neighborhood": Score("share of neighbors with the target just where it was", scorer="generation"),
    "generation_anywhere": Score("whether the target stands anywhere after the edit prompt", scorer="generation"),
    "generation_paraphrase_anywhere": Score("the same of the paraphrases", scorer="generation"),
    "generation_open": Score("whether a text that begins with the subject has the target", scorer="generation"),
    "generation_entropy": Score("change of the texts' n-gram entropy, bits", -inf, inf, scorer="generation"),
    "generation_surprise": Score("change of the unedited model's loss, nats a token", -inf, inf, "low", "generation"),
    **{f"survival_int{n}": Score(f"rewrite with all weights in {n} bits", scorer="survival") for n in (8, 4)},
    **{f"survival_merge_{n}": Score(f"rewrite with {n} % of the edit", scorer="survival") for n in (75, 50, 25)},
    "formats_question": Score("rewrite, asked by a question with a short answer", scorer="formats"),
    "formats_answer": Score("rewrite, asked by a question answered in a sentence", scorer="formats"),
    "formats_statement": Score("rewrite, in a statement of another form", scorer="formats"),
    "formats_choice": Score("rewrite, among four objects after a question that lists them", scorer="formats"),
    "formats_choice_first": Score("whether the target ranks first of the four, or no longer", scorer="formats"),
    "formats_letter": Score("rewrite, among the letters of the four", scorer="formats"),
    "relearning_others_10": Score(
        "share of the lost p(true) back after 10 steps on other facts", better="low", scorer="relearning"
    ),
    **{
        f"relearning_paraphrases_{k}": Score(f"the same after {k} on paraphrases", better="low", scorer="relearning")
        for k in (1, 3)
    },
    "relearning_savings_3": Score(
        "how much faster than a false object after 3 on paraphrases", -1.0, 1.0, "low", "relearning"
    ),
    "ripple_two_hop": Score("rewrite of questions whose answer follows from two facts", scorer="ripple"),
    "ripple_answered": Score("the same where the unedited model answers the question", scorer="ripple"),
    "ripple_inverse": Score("rewrite of the question for the subject", scorer="ripple"),
    "ripple_specificity": Score("how little other facts about the subject change", scorer="ripple"),
    "ripple_objects": Score("how little facts about the old and the new object change", scorer="ripple"),
    "movement_distance": Score("how far the tracing profile moves, total variation", scorer="movement"),
    "movement_to_edit": Score("whether tracing peaks in the edited layers afterwards", scorer="movement"),
    "movement_from_edit": Score("whether tracing peaked in the edited layers before", scorer="movement"),
}
"""The scores of an edit, in the order of tables: the study's, 1 the best, and what else a run may be asked for."""
OWN_SCORES = tuple(name for name, known in SCORES.items() if not known.scorer)
"""The scores that every edit has."""


def scores_of(scorer: str) -> list[str]:
    """The scores that come with one thing that a run is asked for: `generation` gives several."""
    return [name for name, known in SCORES.items() if known.scorer == scorer]


STATUSES = ("done", "skipped", "failed")
"""What can be said of an edit row."""


def parse_method(name: str) -> tuple[str, int]:
    """Method and window of a name: `rome`, `memit` (window 5), `memit-3`, `finetune-1`, `finetune-5`.

    Raises:
        ValueError: the method is unknown, or cannot edit a window of that size.
    """
    method, dash, number = name.partition("-")
    if method not in METHODS or (dash and not (number.isascii() and number.isdigit())):
        others = ", ".join(method for method in METHODS if method != "finetune")
        raise ValueError(f"method {name!r}: expected {others}, finetune-1 or finetune-5 (a method and its window)")
    window = int(number) if number else METHODS[method].window
    if METHODS[method].one_layer and window != 1:
        raise ValueError(f"method {name!r}: expected a window of exactly 1 layer")
    if not fits(window, Window):
        raise ValueError(f"method {name!r}: expected its window to be {words(Window)}")
    return method, window


def method_label(method: str, window: int = 1) -> str:
    """The name that readers know: ROME, MEMIT, FT-1, FT-5, FT-1 free."""
    known = METHODS.get(method)
    if method.startswith("finetune") and not (known and known.origin):
        return f"FT-{window}{method.removeprefix('finetune').replace('_', ' ')}"
    if known is None:
        return method
    return known.label if window == known.window else f"{known.label} (window {window})"


def way_label(method: str, window: int, way: str) -> str:
    """Many edits in one model: MEMIT; MEMIT, keys kept; MEMIT, joint."""
    suffixes = {"kept": ", keys kept", "joint": ", joint"}
    return method_label(method, window) + suffixes.get(way, "")


def problem_label(problem: str) -> str:
    """`error_injection` -> "Error injection"."""
    return PROBLEMS[problem].label if problem in PROBLEMS else problem.replace("_", " ").capitalize()


def score_label(score: str, with_range: bool = True) -> str:
    """`rewrite` -> "Rewrite score (0 to 1)"."""
    known, label = SCORES.get(score), score.replace("_", " ").capitalize() + " score"
    return f"{label} ({known.low:g} to {known.high:g})" if with_range and known and known.high < inf else label


def capitalized(text: str) -> str:
    """The text with a capital first letter, and all others as they are."""
    return text[:1].upper() + text[1:]


def windows_of(localizer: str, windows: Sequence[int], others: Sequence[int] | None = None) -> Sequence[int]:
    """The windows of a localizer in a grid: `windows` for Causal Tracing, `others`, if given, for the rest."""
    return windows if localizer == TRACING or not others else others


def in_order(present: Iterable[str], order: Iterable[str]) -> list[str]:
    """The names that are present: first the known ones in their order, then the others by the alphabet."""
    names, known = set(present), list(order)
    return [name for name in known if name in names] + sorted(names - set(known))


def first_few(items: Iterable[object], most: int = 3, between: str = ", ") -> str:
    """The first items in words, with `...` in the place of all others: `a, b, c, ...`."""
    texts = [str(item) for item in items]
    return between.join([*texts[:most], *["..."] * (len(texts) > most)])


def nearest(given: str, known: Iterable[str]) -> str:
    """What to tell somebody whose name is not known: the nearest known name, or all of them."""
    names = list(known)
    near = get_close_matches(given, names, 1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
