"""Reference prompts of ablation: those of other facts, drawn for each fact by itself."""

from collections.abc import Sequence

import torch

from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model
from loc_edit.prompts.encoding import Prompt, encode
from loc_edit.prompts.randomness import generator

FEWEST = 5
"""Other subjects of the relation, below which prompts of all relations are drawn."""


def references(model: Model, fact: Fact, facts: Sequence[Fact], most: int = 20, seed: int = 0) -> list[Prompt]:
    """Prompts of other subjects, drawn per (seed, fact): of the fact's relation, or of any where it has too few.

    Args:
        model: whose tokens they are.
        fact: the fact that is localised.
        facts: the data set; its order counts, the choice of a grid's facts among it does not.
        most: how many prompts.
        seed: of the draw.

    Raises:
        ValueError: no other fact's prompt can be had.
    """
    others = [other for other in facts if other.fact_id != fact.fact_id and other.subject != fact.subject]
    alike = [other for other in others if other.relation == fact.relation]
    pool = alike if len(alike) >= FEWEST else others
    order = torch.randperm(len(pool), generator=generator("reference", seed, fact.fact_id)).tolist()
    found: list[Prompt] = []
    for index in order:
        if len(found) == most:
            break
        try:
            found.append(encode(model, pool[index]))
        except ValueError:  # its subject cannot be found in its prompt, or the prompt is too long
            continue
    if not found:
        raise ValueError(f"fact {fact.fact_id}: none of {len(facts)} facts has another subject to take prompts from")
    return found
