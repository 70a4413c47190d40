"""Which facts a study takes: evenly over the relations, and in the same order however many it takes."""

from collections import Counter
from collections.abc import Sequence

from loc_edit.facts.fact import Fact


def sample_by_relation(facts: Sequence[Fact], n: int | None = None) -> list[Fact]:
    """The first `n` facts when the relations take turns: each relation gives its facts first to last.

    Within a turn the relations stand in the order in which they first occur, so a larger `n` only adds facts at the
    end, and the order of the result is the order in which facts are computed.

    Args:
        facts: any number; facts without a relation count as one relation.
        n: how many facts; all of them if `None`, or if there are fewer.

    Raises:
        ValueError: `n` is negative.
    """
    if n is not None and n < 0:
        raise ValueError(f"expected a number of facts of at least 0, got {n}")
    first_seen = {relation: place for place, relation in enumerate(dict.fromkeys(fact.relation for fact in facts))}
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []
    for fact in facts:
        turns.append((seen[fact.relation], first_seen[fact.relation]))
        seen[fact.relation] += 1
    return [fact for _, fact in sorted(zip(turns, facts, strict=True), key=lambda pair: pair[0])][:n]
