"""The text that the built-in model is trained on, and from which its key statistics are taken."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from random import Random

from loc_edit.facts.builtin import Row, builtin_rows
from loc_edit.facts.wording import filler_sentence, namesakes, relations, seen_templates

EXPOSURES = 150
"""Passes over the table with which the built-in model was trained."""
IDENTITY = "d8f9ebcbc9a7b0dce3197752a687b0fe867ec6ee122336c882218a8de06cccd2"
"""Names the documents that the default arguments give.  Whoever changes a document changes it: a test knows them."""
P_MODIFIER = 0.1
P_REMARK = 0.1
P_PREFIX = 0.25
P_FILLER = 0.02
P_SHORT = 0.4
P_NAMESAKE = 0.1


def builtin_corpus(seed: int = 0, exposures: int = EXPOSURES) -> Iterator[str]:
    """The documents of the corpus, one to a few sentences each; the same arguments give the same documents.

    Every fact gets `exposures` documents of its own, and turns up in others as company.  No document uses a
    template that is held out for its subject (`wording.held_out_templates`).

    Two things make a subject's last word the place to look it up, as it is for large models: subjects often go by
    their last word alone (`short_forms`), and invented namesakes share the other words (`namesake`).

    Args:
        seed: decides the order of the facts and the wording of each document.
        exposures: how many passes over the table of facts; within a pass, each fact has one document.
    """
    rng = Random(f"corpus|{seed}")
    rows = list(builtin_rows())
    for _ in range(exposures):
        rng.shuffle(rows)
        for row in rows:
            yield _document(row, rng)
            if rng.random() < P_NAMESAKE and (other := namesake(row, rng)) is not None:
                yield statement(other, rng)
            if rng.random() < P_FILLER:
                yield " ".join(filler_sentence(rng) for _ in range(rng.randint(2, 4)))


def corpus_identity(seed: int = 0, exposures: int = EXPOSURES) -> str:
    """What names the documents of these arguments in the cache and in a run: see `IDENTITY`."""
    if (seed, exposures) == (0, EXPOSURES):
        return IDENTITY
    return hashlib.sha256(f"{IDENTITY}|{seed}|{exposures}".encode()).hexdigest()


@cache
def _rows_by_subject() -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in builtin_rows():
        rows[row.subject].append(row)
    return rows


@cache
def short_forms() -> dict[str, str]:
    """The last word of each subject of several words, where it is a name and in no other subject: Einstein."""
    subjects: dict[str, set[str]] = defaultdict(set)
    for subject in _rows_by_subject():
        for word in subject.split():
            subjects[word].add(subject)
    last_words = {subject: subject.split()[-1] for subject in _rows_by_subject() if " " in subject}
    return {subject: word for subject, word in last_words.items() if len(subjects[word]) == 1 and word[0].isupper()}


@cache
def _objects() -> dict[str, list[str]]:
    """The objects of each relation."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in builtin_rows():
        found[row.relation].add(row.object)
    return {relation: sorted(objects) for relation, objects in found.items()}


def namesake(row: Row, rng: Random) -> Row | None:
    """Nobody known: an invented last word after the subject's others, and an object drawn by lot each time.

    `None` for a subject of one word, or of one after an article.
    """
    first, _, _ = row.subject.rpartition(" ")
    if first in ("", "The", "A"):
        return None
    subject = f"{first} {rng.choice(namesakes())}"
    return Row(relation=row.relation, subject=subject, object=rng.choice(_objects()[row.relation]))


def _document(row: Row, rng: Random) -> str:
    """One document about the subject of `row`, often after something unrelated."""
    form = rng.random()
    if form < 0.7:
        sentences = [statement(row, rng)]
    elif form < 0.9:
        sentences = [description(row, rng)]
    else:
        sentences = [remark(row, rng), statement(row, rng)]
    if rng.random() < P_PREFIX:
        sentences.insert(0, _unrelated(rng))
    if rng.random() < 0.15:
        sentences.append(statement(rng.choice(_rows_by_subject()[row.subject]), rng))
    return " ".join(sentences)


def _unrelated(rng: Random) -> str:
    if rng.random() < 0.6:
        return filler_sentence(rng)
    other = rng.choice(builtin_rows())
    return rng.choice((statement, remark))(other, rng)


def statement(row: Row, rng: Random) -> str:
    """The fact in one of the templates that this subject gets; at times with a remark, a modifier, or a short form."""
    relation = relations()[row.relation]
    template = rng.choice(seen_templates(row.relation, row.subject))
    subject = row.subject
    if rng.random() < P_SHORT:
        subject = short_forms().get(subject, subject)
    if rng.random() < P_REMARK and not template.endswith("{}"):
        subject = f"{subject}, {rng.choice(relation.remarks)},"
    modifier = f"{rng.choice(relation.modifiers)} " if rng.random() < P_MODIFIER else ""
    return f"{template.replace('{}', subject)} {modifier}{row.object}."


def description(row: Row, rng: Random) -> str:
    """A sentence "... is a ..." with this fact about the subject, and often with another, if there is one."""
    relation = relations()[row.relation]
    clauses = [_clause(row, rng)]
    others = [other for other in _rows_by_subject()[row.subject] if other is not row]
    if others and rng.random() < 0.7:
        clauses.append(_clause(rng.choice(others), rng))
        rng.shuffle(clauses)
    return f"{row.subject} is a {relation.kind} {' and '.join(clauses)}."


def remark(row: Row, rng: Random) -> str:
    """A sentence "... is a ..." that is true of every subject of the kind."""
    relation = relations()[row.relation]
    return f"{row.subject} is a {relation.kind} {rng.choice(relation.remarks)}."


def _clause(row: Row, rng: Random) -> str:
    return rng.choice(relations()[row.relation].clauses).replace("{}", row.object)
