"""Whether the consequences of an edit follow it: questions that need two facts, inverse questions, and what must stay.

Cohen et al. 2023 (RippleEdits, arXiv 2307.12976) and Zhong et al. 2023 (MQuAKE, arXiv 2305.14795) ask this of editors;
here the questions are made of the data set's own chains (`loc_edit.facts.consequences`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean

from loc_edit.editing.problems import MIN_ERASURE, EditRequest
from loc_edit.facts.consequences import Consequences, TwoHop, consequences
from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model
from loc_edit.scoring.contract import scorer
from loc_edit.scoring.measuring import text_probabilities
from loc_edit.scoring.scores import kept, mean_of_numbers, share_of_change

KNOWN = 0.5
"""The unedited model knows an answer if it gives it at least this probability: then no other answer is likelier."""

Probabilities = Mapping[tuple[str, str], float]
"""The probability of an answer after a text, by text and answer."""


@dataclass(frozen=True)
class Believed:
    """What a model makes of the consequences of an edit.

    Attributes:
        consequences: the questions.
        p: the probability of each answer.
    """

    consequences: Consequences
    p: Probabilities

    def knows(self, fact: Fact) -> bool:
        """Whether the model knows a fact."""
        return self.p[fact.prompt, fact.target_true] >= KNOWN

    def p_old(self, question: TwoHop) -> float:
        """The probability of what answers a two-hop question before an edit, mean over its wordings."""
        return fmean(self.p[text, question.old.target_true] for text in question.texts)


def compare(before: Believed, after: Believed, request: EditRequest) -> dict[str, float | str]:
    """The scores of what the unedited and the edited model make of the consequences, or why there are none.

    Only what the unedited model knows counts.  Shares of change are computed as in the rewrite score, in the direction
    of the request: an edit that lowers the probability of its target is to lower what follows from it.
    """
    questions, raised = before.consequences, request.objective == "raise"
    known = [question for question in questions.two_hop if before.knows(question.old) and before.knows(question.new)]
    counted = [question for question in known if raised or before.p_old(question) >= MIN_ERASURE]
    answered = [question for question in known if before.p_old(question) >= KNOWN]
    inverse = [question for question in questions.inverse if before.p[question.old, question.answer] >= KNOWN]

    def share(text: str, answer: str) -> float:
        return share_of_change(before.p[text, answer], after.p[text, answer], request.objective)

    def followed(two_hop: Sequence[TwoHop]) -> float:
        return mean_of_numbers(
            mean_of_numbers(share(text, question.new.target_true) for text in question.texts) for question in two_hop
        )

    def stayed(facts: Sequence[Fact]) -> float:
        pairs = [(fact.prompt, fact.target_true) for fact in facts if before.knows(fact)]
        return mean_of_numbers(kept([before.p[pair] for pair in pairs], [after.p[pair] for pair in pairs]))

    scores = {
        "ripple_two_hop": followed(counted),
        "ripple_answered": followed(answered),
        "ripple_inverse": mean_of_numbers(share(question.new, question.answer) for question in inverse),
        "ripple_specificity": stayed(questions.same_subject),
        "ripple_objects": stayed(questions.about_objects),
    }
    n = len(questions.two_hop)
    asked = f"of {n} two-hop questions the model knows both facts of {len(known)}, and answers {len(answered)}"
    reasons = {
        "ripple_two_hop": asked if n else questions.without,
        "ripple_answered": asked if n else questions.without,
        "ripple_inverse": "the model does not answer the inverse question" if questions.inverse else questions.without,
        "ripple_specificity": "the model knows no other fact about the subject",
        "ripple_objects": "the model knows no fact about the old or the new object",
    }
    return {name: (reasons[name] or value) if isnan(value) else value for name, value in scores.items()}


@scorer("ripple", compare=compare)
def ripple(model: Model, fact: Fact, request: EditRequest, facts: Sequence[Fact]) -> Believed:
    """What the model makes of what follows from the edit; no subject is noised."""
    questions = consequences(fact, request.target, facts)
    pairs = {(other.prompt, other.target_true) for other in (*questions.same_subject, *questions.about_objects)}
    for two_hop in questions.two_hop:
        hops = (two_hop.old, two_hop.new)
        pairs |= {(hop.prompt, hop.target_true) for hop in hops}
        pairs |= {(text, hop.target_true) for hop in hops for text in two_hop.texts}
    for inverse in questions.inverse:
        pairs |= {(inverse.old, inverse.answer), (inverse.new, inverse.answer)}
    return Believed(questions, probabilities(model, pairs))


def probabilities(model: Model, pairs: Iterable[tuple[str, str]]) -> Probabilities:
    """The probability of each answer after its text, the product over the answer's tokens."""
    answers: dict[str, list[str]] = {}
    for text, answer in sorted(pairs):
        answers.setdefault(text, []).append(answer)
    measured = text_probabilities(model, list(answers.items()))
    return {
        (text, answer): p
        for (text, own), ps in zip(answers.items(), measured, strict=True)
        for answer, p in zip(own, ps, strict=True)
    }
