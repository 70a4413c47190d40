"""Other facts and objects that a score needs, drawn from the data set per fact."""

from collections.abc import Sequence

import torch

from loc_edit.editing.problems import EditRequest
from loc_edit.facts.fact import Fact
from loc_edit.prompts.randomness import generator


def other_objects(fact: Fact, request: EditRequest, facts: Sequence[Fact], n: int) -> list[str]:
    """Up to `n` objects of the fact's relation, none of them true of its subject, its false object or the target.

    Args:
        fact: the fact.
        request: gives the target and the seed.
        facts: the data set.
        n: the most objects.
    """
    relatives = [other for other in facts if other.relation == fact.relation]
    excluded = {other.target_true for other in relatives if other.subject == fact.subject}
    excluded |= {fact.target_true, fact.target_new or "", request.target}
    pool = sorted({other.target_true for other in relatives} - excluded)
    return [pool[i] for i in _draw(len(pool), n, "other objects", request)]


def other_facts(fact: Fact, request: EditRequest, facts: Sequence[Fact], n: int) -> list[Fact]:
    """Up to `n` facts about other subjects, with other objects and of other relations (if the fact has a relation).

    Args:
        fact: the fact.
        request: gives the target and the seed.
        facts: the data set.
        n: the most facts.
    """
    objects = {fact.target_true, request.target}
    pool = sorted(
        (
            other
            for other in facts
            if other.subject != fact.subject
            and other.target_true not in objects
            and (other.relation != fact.relation or not fact.relation)
        ),
        key=lambda other: other.fact_id,
    )
    return [pool[i] for i in _draw(len(pool), n, "other facts", request)]


def _draw(size: int, n: int, purpose: str, request: EditRequest) -> list[int]:
    """Up to `n` of the numbers below `size`, in random order."""
    draws = generator(purpose, request.seed, request.fact_id)
    return torch.randperm(size, generator=draws)[:n].tolist()
