"""Reference prompts for ablation: prompts of other facts, drawn for each fact separately."""

from collections.abc import Sequence

import torch

from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model
from loc_edit.prompts.encoding import Prompt, encode
from loc_edit.prompts.randomness import generator

FEWEST = 5
"""A relation with fewer other subjects than this takes its reference prompts from all relations."""


def references(model: Model, fact: Fact, facts: Sequence[Fact], most: int = 20, seed: int = 0) -> list[Prompt]:
    """Prompts of other subjects, drawn per (seed, fact): of the fact's relation, or of all if that has too few.

    Args:
        model: whose tokenizer is used.
        fact: the fact that is localized.
        facts: the whole data set, in its order; the facts of a grid may be any selection of it.
        most: the number of prompts, if there are as many.
        seed: of the draw.

    Raises:
        ValueError: no prompt of another fact can be used.
    """
    others = [other for other in facts if other.fact_id != fact.fact_id and other.subject != fact.subject]
    alike = [other for other in others if other.relation == fact.relation]
    pool = alike if len(alike) >= FEWEST else others
    prompts: list[Prompt] = []
    for index in torch.randperm(len(pool), generator=generator("reference", seed, fact.fact_id)).tolist():
        if len(prompts) == most:
            break
        try:
            prompts.append(encode(model, pool[index]))
        except ValueError:  # the subject is not in the prompt, or the prompt is too long
            continue
    if not prompts:
        raise ValueError(f"fact {fact.fact_id}: none of {len(facts)} facts has another subject to take prompts from")
    return prompts
