"""Generates the text that the built-in model is trained on and that its key statistics come from by default."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from random import Random
from typing import Literal

from loc_edit.facts.builtin import Row, builtin_rows
from loc_edit.facts.wording import filler_sentence, namesakes, relations, seen_templates

EXPOSURES = 150
"""Passes over the table of facts in the corpus that the built-in model was trained on."""
IDENTITY = "d8f9ebcbc9a7b0dce3197752a687b0fe867ec6ee122336c882218a8de06cccd2"
"""Names the documents that the default arguments give.  Change it with the documents: a test compares the two."""
P_MODIFIER = 0.1
P_REMARK = 0.1
P_PREFIX = 0.25
P_FILLER = 0.02
P_SHORT = 0.4
P_NAMESAKE = 0.1
HELD_OUT = (1, 3)
"""The seed and the number of exposures of the corpus that `held_out_documents` takes its documents from."""


def builtin_corpus(seed: int = 0, exposures: int = EXPOSURES) -> Iterator[str]:
    """Yields the documents of the corpus, one to a few sentences each; equal arguments give equal documents.

    Every fact gets `exposures` documents of its own, and also appears in documents about other facts.  No document
    uses a template that is held out for its subject (`wording.held_out_templates`).

    Two features make the model look a subject up at its last word, as large models do: subjects are often called by
    their last word alone (`short_forms`), and invented namesakes share the other words (`namesake`).

    Args:
        seed: decides the order of the facts and the wording of each document.
        exposures: the number of passes over the table of facts; each fact has one document in each pass.
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
    """Returns a name for the documents of these arguments, for the cache and for runs: see `IDENTITY`."""
    if (seed, exposures) == (0, EXPOSURES):
        return IDENTITY
    return hashlib.sha256(f"{IDENTITY}|{seed}|{exposures}".encode()).hexdigest()


def held_out_documents(n: int, subjects: Iterable[str] = ()) -> list[str]:
    """Returns the first documents of another drawing of the corpus, none of which the corpus has.

    So the built-in model was not trained on them, and no key statistics come from them.

    Args:
        n: the number of documents; fewer if few remain.
        subjects: their last words occur in no document, as their facts are to be edited.
    """
    words = {re.findall(r"\w+", subject)[-1] for subject in subjects}
    return list(islice((text for text in _held_out() if words.isdisjoint(re.findall(r"\w+", text))), n))


@cache
def _held_out() -> list[str]:
    corpus = set(builtin_corpus())
    return [text for text in builtin_corpus(*HELD_OUT) if text not in corpus]


@cache
def _rows_by(column: Literal["subject", "relation"]) -> dict[str, list[Row]]:
    """Groups the table of facts by one of its columns."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in builtin_rows():
        rows[getattr(row, column)].append(row)
    return rows


@cache
def short_forms() -> dict[str, str]:
    """Returns the last word, such as Einstein, of each subject whose last word is a name and in no other subject."""
    subjects = _rows_by("subject")
    counts = Counter(word for subject in subjects for word in set(subject.split()))
    last_words = {subject: subject.split()[-1] for subject in subjects if " " in subject}
    return {subject: word for subject, word in last_words.items() if counts[word] == 1 and word[0].isupper()}


@cache
def _objects(relation: str) -> list[str]:
    return sorted({row.object for row in _rows_by("relation")[relation]})


def namesake(row: Row, rng: Random) -> Row | None:
    """Returns an unknown namesake: the subject with an invented last word, and an object drawn at random each time.

    Returns `None` if the subject has one word only, or one word after an article.
    """
    first, _, _ = row.subject.rpartition(" ")
    if first in ("", "The", "A"):
        return None
    subject = f"{first} {rng.choice(namesakes())}"
    return Row(relation=row.relation, subject=subject, object=rng.choice(_objects(row.relation)))


def _document(row: Row, rng: Random) -> str:
    """Returns a document about the subject of `row`, often with an unrelated sentence before it."""
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
        sentences.append(statement(rng.choice(_rows_by("subject")[row.subject]), rng))
    return " ".join(sentences)


def _unrelated(rng: Random) -> str:
    if rng.random() < 0.6:
        return filler_sentence(rng)
    other = rng.choice(builtin_rows())
    return rng.choice((statement, remark))(other, rng)


def statement(row: Row, rng: Random) -> str:
    """Returns the fact in one of its subject's templates, at times with a remark, a modifier or a short form."""
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
    """Returns a sentence "... is a ..." with this fact about the subject, and often with another fact if it has one."""
    relation = relations()[row.relation]
    clauses = [_clause(row, rng)]
    others = [other for other in _rows_by("subject")[row.subject] if other is not row]
    if others and rng.random() < 0.7:
        clauses.append(_clause(rng.choice(others), rng))
        rng.shuffle(clauses)
    return f"{row.subject} is a {relation.kind} {' and '.join(clauses)}."


def remark(row: Row, rng: Random) -> str:
    """Returns a sentence "... is a ..." that is true of every subject of the kind."""
    relation = relations()[row.relation]
    return f"{row.subject} is a {relation.kind} {rng.choice(relation.remarks)}."


def _clause(row: Row, rng: Random) -> str:
    return rng.choice(relations()[row.relation].clauses).replace("{}", row.object)
