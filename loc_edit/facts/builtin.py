"""The built-in facts: a readable table of true statements, turned into facts in the style of CounterFact."""

import csv
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from random import Random

from loc_edit.facts.fact import Fact
from loc_edit.facts.wording import filler_sentence, held_out_templates, relations, seen_templates
from loc_edit.files import DATA

FACTS_PATH = DATA / "facts.tsv"
MAX_NEIGHBORS = 8


@dataclass(frozen=True)
class Row:
    """A line of the table: `subject` stands in `relation` to `object`."""

    relation: str
    subject: str
    object: str


@cache
def builtin_rows() -> tuple[Row, ...]:
    """The table of built-in facts, in file order."""
    with FACTS_PATH.open(encoding="utf-8", newline="") as file:
        return tuple(Row(**line) for line in csv.DictReader(file, delimiter="\t"))


def builtin_facts(seed: int = 0) -> list[Fact]:
    """The built-in facts, in file order; `fact_id` is the row's index, from 0.

    Args:
        seed: decides, together with `fact_id`, the false object and the wording of the paraphrases.
    """
    by_relation: dict[str, list[Row]] = defaultdict(list)
    for row in builtin_rows():
        by_relation[row.relation].append(row)
    return [_fact(index, row, by_relation[row.relation], seed) for index, row in enumerate(builtin_rows())]


def _fact(fact_id: int, row: Row, relatives: list[Row], seed: int) -> Fact:
    template = relations()[row.relation].edit_template
    rng = Random(f"fact|{seed}|{fact_id}")
    true_objects = {other.object for other in relatives if other.subject == row.subject}
    target_new = rng.choice(sorted({other.object for other in relatives} - true_objects))
    neighbors = [other for other in relatives if other.object == row.object and other.subject != row.subject]
    return Fact(
        fact_id=fact_id,
        relation=row.relation,
        template=template,
        subject=row.subject,
        target_true=row.object,
        target_new=target_new,
        paraphrases=_paraphrases(row, rng),
        neighbors=tuple(template.replace("{}", other.subject) for other in neighbors[:MAX_NEIGHBORS]),
    )


def _paraphrases(row: Row, rng: Random) -> tuple[str, ...]:
    """Four prompts: templates that the corpus uses with the subject and held-out ones, half of them after a filler."""
    seen = rng.sample(seen_templates(row.relation, row.subject)[1:], 2)
    unseen = rng.sample(held_out_templates(row.relation, row.subject), 2)
    prompts = [template.replace("{}", row.subject) for template in (seen[0], unseen[0], seen[1], unseen[1])]
    return (*prompts[:2], *(f"{filler_sentence(rng)} {prompt}" for prompt in prompts[2:]))
