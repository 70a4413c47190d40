"""The choice of facts for a study: spread evenly over the relations, so that a larger study extends a smaller one."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest

from loc_edit.arguments import Index, checked
from loc_edit.facts.fact import Fact


@checked
def sample_by_relation(facts: Sequence[Fact], n: Index | None = None) -> list[Fact]:
    """The first `n` facts when the relations take turns: in each turn, every relation gives its next fact.

    The result is in the order of the turns, not of the file.  Within a turn, the relations stand in the order in which
    they first occur in the file.  So the choice for a smaller `n` is the beginning of the choice for a larger `n`.

    Args:
        facts: any number; facts without a relation count as one relation.
        n: the number of facts to choose; `None`, or a number above that of the facts, chooses all of them.
    """
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_relation[fact.relation].append(fact)
    return [fact for turn in zip_longest(*by_relation.values()) for fact in turn if fact is not None][:n]
