"""What follows from a fact in its data set: what has to change when its object changes, and what has to stay.

Where the object of one fact is the subject of another, the two make a chain: Lyon is in France, France pays with the
euro.  A question about the end of the chain that names only its beginning asks for both facts at once.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loc_edit.facts.fact import Fact
from loc_edit.facts.wording import relations

MOST = 20
"""How many questions of a kind are asked of one fact at most: the first by relation and id."""
MIN_FACTS, MIN_SHARE = 10, 0.9
"""A relation is nearly one to one if it has so many facts, and such a share of its objects has one subject only."""
DESCRIBES = re.compile(r"The ((?:[\w-]+ )+of \{\}) (?:is|was)(?: the)?")
"""A prompt such as "The capital of {} is": what stands before the verb describes the object."""


@dataclass(frozen=True)
class TwoHop:
    """A question about the object of a fact that does not name the object.

    Attributes:
        texts: its wordings, such as "The currency of the country that Lyon belongs to is the".
        old: the fact about the true object, which answers the question before an edit.
        new: the fact about the edit's target, which answers it afterwards; `old` if the target is the true object.
    """

    texts: tuple[str, ...]
    old: Fact
    new: Fact


@dataclass(frozen=True)
class Inverse:
    """A question for the subject of a fact.

    Attributes:
        old: about the true object, such as "Paris is the capital of".
        new: about the edit's target.
        answer: the subject.
    """

    old: str
    new: str
    answer: str


@dataclass(frozen=True)
class Consequences:
    """What follows from an edit of a fact.

    Attributes:
        two_hop: questions whose answer changes with the fact.
        inverse: the question for the subject; none unless the relation is nearly one to one.
        same_subject: other relations of the subject, which have to stay.
        about_objects: facts about the true object and the edit's target, which have to stay.
        without: why there are no two-hop or inverse questions, or fewer than there are chains; empty if there are.
    """

    two_hop: tuple[TwoHop, ...]
    inverse: tuple[Inverse, ...]
    same_subject: tuple[Fact, ...]
    about_objects: tuple[Fact, ...]
    without: str


def consequences(fact: Fact, target: str, facts: Sequence[Fact]) -> Consequences:
    """What follows from `fact` in a data set if an edit makes its object `target`, or makes `target` unlikely.

    A chain gives a question if the data set has a fact of the second relation about both objects, with different
    answers (the same fact twice if `target` is the true object), the first relation's wording describes its object
    (`description`), and the subject does not give the answer away: no other fact about the subject has this object, and
    the question does not contain it.  A relation in which an object has several answers is left out.  The order of the
    facts does not matter.

    Args:
        fact: the fact to edit.
        target: the object that the edit is about.
        facts: the whole data set.

    Source: Cohen et al. 2023 (RippleEdits), section 3: two-hop questions are their compositionality I, `same_subject`
    their relation specificity, `inverse` a part of their logical generalization.
    """
    objects, relation = {fact.target_true, target}, relation_of(fact)
    about: dict[str, list[Fact]] = {name: [] for name in (fact.subject, *objects)}
    pairs: set[tuple[str, str]] = {(fact.subject, fact.target_true)}
    for other in facts:
        if other.subject in about:
            about[other.subject].append(other)
        if relation_of(other) == relation:
            pairs.add((other.subject, other.target_true))
    others = [
        other
        for other in _in_order(about[fact.subject])
        if relation_of(other) != relation and other.target_true not in objects
    ]
    old, new = _by_relation(about[fact.target_true]), _by_relation(about[target])
    given_away = objects | {other.target_true for other in about[fact.subject]}
    two_hop, without = [], Counter[str]()
    for name in sorted(old):
        texts = _compose(fact, old[name])
        answers = {old[name].target_true, new[name].target_true} if name in new else set[str]()
        if fact.subject in objects:
            without["about the subject itself"] += 1
        elif not answers:
            without[f"without a fact about {target!r}"] += 1
        elif target != fact.target_true and len(answers) == 1:
            without["with the same answer after the edit"] += 1
        elif answers & given_away or any(answer in text for answer in answers for text in texts):
            without["whose answer the subject gives away"] += 1
        elif not texts:
            without["that the wording of the relation cannot ask for"] += 1
        else:
            two_hop.append(TwoHop(texts, old[name], new[name]))
    counts = ", ".join(f"{n} {why}" for why, n in without.items())
    reasons = [f"{len(old)} chains: {counts}" if counts else "" if old else f"no chain through {fact.target_true!r}"]
    inverse = _inverse(fact, target) if nearly_one_to_one(pairs) else ()
    if not inverse:
        reasons.append("no inverse question: the relation is not nearly one to one, or not worded for it")
    return Consequences(
        tuple(two_hop[:MOST]),
        inverse,
        tuple(others[:MOST]),
        tuple(_in_order([*old.values(), *new.values()])[:MOST]),
        "; ".join(filter(None, reasons)),
    )


def relation_of(fact: Fact) -> str:
    """The fact's relation, or its template where the data set names no relations."""
    return fact.relation or fact.template


def nearly_one_to_one(pairs: Iterable[tuple[str, str]]) -> bool:
    """Whether a relation, as subjects with their objects, is nearly one to one: judged by the data set alone.

    It needs at least 10 pairs, as small samples often look one to one; 90 % of the objects have one subject only, and
    90 % of the subjects one object.
    """
    distinct = set(pairs)
    shares = []
    for side in (0, 1):
        counts = Counter(pair[side] for pair in distinct)
        shares.append(sum(count == 1 for count in counts.values()) / max(1, len(counts)))
    return len(distinct) >= MIN_FACTS and min(shares) >= MIN_SHARE


def description(fact: Fact) -> str:
    """A phrase for the object with `{}` for the subject, such as "the capital of {}"; empty if the wording has none.

    The built-in relations have theirs in the table of wordings.  Other facts have one if their prompt is of the form
    "The capital of {} is"; wider forms are not all English ("the passport that {} carries" is no nationality).
    """
    known = relations().get(fact.relation)
    if known and known.edit_template == fact.template:
        return known.description
    match = DESCRIBES.fullmatch(fact.template)
    return f"the {match[1]}" if match else ""


def _templates(fact: Fact) -> list[str]:
    """The fact's prompt, and its paraphrases that name the subject once, with `{}` in the subject's place."""
    texts = (text for text in fact.paraphrases if text.count(fact.subject) == 1)
    return [fact.template, *(text.replace(fact.subject, "{}") for text in texts if "{" not in text)]


def _compose(first: Fact, second: Fact) -> tuple[str, ...]:
    """The wordings of the question for the object of `second` that names only the subject of `first`."""
    phrase = description(first).replace("{}", first.subject)
    wordings = dict.fromkeys(_fill(template, phrase) for template in _templates(second)) if phrase else {}
    return tuple(filter(None, wordings))


def _fill(template: str, phrase: str) -> str:
    """A template with a phrase in the subject's place; empty where that is not English."""
    before, _, after = template.partition("{}")
    if re.search(r"\b(?:the|a|an)\s*$", before, re.IGNORECASE) or after[:1] not in ("", " ", ",", "?", "."):
        return ""
    starts = not before.strip() or before.rstrip()[-1] in ".?!"
    return before + (phrase[0].upper() + phrase[1:] if starts else phrase) + after


def _inverse(fact: Fact, target: str) -> tuple[Inverse, ...]:
    phrase, end, rest = description(fact).partition(" {}")
    if not end or rest:
        return ()
    return (Inverse(f"{fact.target_true} is {phrase}", f"{target} is {phrase}", fact.subject),)


def _in_order(facts: Iterable[Fact]) -> list[Fact]:
    """The facts, each once, by relation and id."""
    return sorted(dict.fromkeys(facts), key=lambda fact: (relation_of(fact), fact.fact_id, fact.content))


def _by_relation(facts: Sequence[Fact]) -> dict[str, Fact]:
    """A fact of each relation in which all facts have the same object."""
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    for fact in _in_order(facts):
        by_relation[relation_of(fact)].append(fact)
    return {name: same[0] for name, same in by_relation.items() if len({fact.target_true for fact in same}) == 1}
