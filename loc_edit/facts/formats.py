"""The record formats of public data sets of facts: how to recognize a format, and how to read a record of it."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from itertools import islice
from typing import Any, Literal

from loc_edit.facts.fact import BadFact, Fact, check_types

log = logging.getLogger(__name__)
Record = dict[str, Any]
FalseTarget = Literal["drawn", "alt"]


class BadRecord(BadFact):
    """A record that cannot be read as a fact.

    Attributes:
        index: its place in the file, from 0 (in JSON lines, empty lines do not count).
        reason: what is wrong, and in which field.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"record {index}: {reason}")
        self.index, self.reason = index, reason


def read_records(
    records: Iterable[Any], format: str, *, seed: int = 0, limit: int | None = None, false_target: FalseTarget = "drawn"
) -> tuple[list[Fact], list[BadRecord]]:
    """The facts of the sound records, and one error for each record that is not sound.

    Args:
        records: JSON values; in place of a value that could not be read, the error.
        format: one of `FORMATS`.
        seed: see `load_facts`.
        limit: see `load_facts`.
        false_target: see `load_facts`.

    Raises:
        ValueError: `format` is unknown, or does not go with `false_target`.
    """
    if format not in FORMATS:
        raise ValueError(f"expected a format among auto, {', '.join(FORMATS)}, got {format!r}")
    if false_target == "alt" and format != "zsre":
        raise ValueError(f"false_target 'alt': only zsre records have a field alt, and this file's format is {format}")
    _, read = FORMATS[format]
    if format == "zsre":
        records = list(records)
        read = _zsre_reader(records, seed, false_target)
    facts: list[Fact] = []
    errors: list[BadRecord] = []
    index_of_id: dict[int, int] = {}
    for index, record in enumerate(islice(records, limit)):
        try:
            if isinstance(record, Exception):
                raise record
            if not isinstance(record, dict):
                raise BadFact(f"expected a JSON object, got {record!r}")
            fact = read(record, index)
            if (first := index_of_id.setdefault(fact.fact_id, index)) != index:
                raise BadFact(f"its id {fact.fact_id} already belongs to record {first}")
            facts.append(fact)
        except ValueError as error:
            errors.append(BadRecord(index, str(error)))
    return facts, errors


def detect_format(record: Any, source: object = "") -> str:
    """The name of the format whose characteristic fields a record has."""
    names = set(record) if isinstance(record, dict) else set()
    for name, (marks, _) in FORMATS.items():
        if marks <= names:
            return name
    raise ValueError(f"{source}: fields {sorted(names)} match no known format ({', '.join(FORMATS)})")


def _own(record: Record, index: int) -> Fact:
    """The package's own format: the attributes of `Fact`."""
    for name in ("template", "subject", "target_true"):
        if name not in record:
            raise BadFact(f"field {name!r} is missing")
    if unknown := sorted(set(record) - {field.name for field in fields(Fact)}):
        raise BadFact(f"unknown field {unknown[0]!r}")
    check_types(record)
    values: Record = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    return Fact(**values)


def _counterfact(record: Record, index: int) -> Fact:
    """The original CounterFact format (Meng et al. 2022a)."""
    return Fact(
        fact_id=_number(record, "case_id"),
        template=_text(record, "requested_rewrite.prompt"),
        subject=_text(record, "requested_rewrite.subject"),
        target_true=_text(record, "requested_rewrite.target_true.str"),
        target_new=_text(record, "requested_rewrite.target_new.str"),
        relation=_optional(record["requested_rewrite"], "relation_id"),
        paraphrases=_texts(record, "paraphrase_prompts"),
        neighbors=_texts(record, "neighborhood_prompts"),
    )


def _flat(record: Record, index: int) -> Fact:
    """The flat CounterFact format of EasyEdit: finished prompts, one paraphrase, one neighbor."""
    return Fact(
        fact_id=_number(record, "case_id"),
        template=_template(_text(record, "prompt"), _text(record, "subject")),
        subject=_text(record, "subject"),
        target_true=_text(record, "ground_truth"),
        target_new=_text(record, "target_new"),
        paraphrases=tuple(filter(None, [_optional(record, "rephrase_prompt")])),
        neighbors=tuple(filter(None, [_optional(record, "locality_prompt")])),
        searched=True,
    )


def _known(record: Record, index: int) -> Fact:
    """The format of known_1000 (Meng et al. 2022a); a prompt there may be longer than its template, and is kept."""
    return Fact(
        fact_id=_number(record, "known_id"),
        template=_template(_text(record, "prompt"), _text(record, "subject")),
        subject=_text(record, "subject"),
        target_true=_text(record, "attribute"),
        relation=_optional(record, "relation_id"),
        searched=True,
    )


def _zsre(record: Record, index: int) -> Fact:
    """The zsRE format of MEND, without a false target; `fact_id` is the record's index."""
    if not (answers := _answers(record)):
        raise BadFact(f"expected field 'answers' to be a list of texts, got {record.get('answers')!r}")
    return Fact(
        fact_id=index,
        template=_template(f"Question: {_text(record, 'src')} Answer:", _text(record, "subject")),
        subject=_text(record, "subject"),
        target_true=answers[0],
        paraphrases=(f"Question: {_text(record, 'rephrase')} Answer:",),
        neighbors=(_text(record, "loc").replace("nq question:", "Question:", 1),),
        searched=True,
    )


def _zsre_reader(records: Sequence[Any], seed: int, false_target: FalseTarget) -> Callable[[Record, int], Fact]:
    """A reader of zsRE records that gives each fact a false target: its `alt`, or the answer of another record.

    The answer is drawn by (seed, question, subject, answer) from the sorted answers of the whole file, so that
    neither the order of the records nor a limit changes it.  One of the fact's own answers, in whatever case, is
    never its false target.
    """
    pool = sorted({answer for record in records for answer in _answers(record)})
    folded_pool = {answer.casefold() for answer in pool}

    def read(record: Record, index: int) -> Fact:
        fact = _zsre(record, index)
        own = {answer.casefold() for answer in _answers(record)}
        target: str | None = None
        if false_target == "alt":
            target = _text(record, "alt").strip()
            if target.casefold() in own:
                log.warning("record %d: alt %r is among its answers: the fact has no false target", index, target)
                target = None
        elif not folded_pool <= own:
            question = "\x1f".join(("zsre", str(seed), record["src"], fact.subject, fact.target_true))
            attempt = 0
            while target is None or target.casefold() in own:
                digest = sha256(f"{question}\x1f{attempt}".encode("utf-8", "surrogatepass")).digest()
                target = pool[int.from_bytes(digest, "big") % len(pool)]
                attempt += 1
        return replace(fact, target_new=target)

    return read


def _answers(record: Any) -> list[str]:
    """A zsRE record's answers; an empty list if they are malformed."""
    answers = record.get("answers") if isinstance(record, dict) else None
    if not isinstance(answers, list) or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        return []
    return [answer.strip() for answer in answers]


def _template(prompt: str, subject: str) -> str:
    """A finished prompt with `{}` for the first occurrence of the subject."""
    if subject not in prompt:
        raise BadFact(f"subject {subject!r} is not in prompt {prompt!r}")
    if "{}" in prompt.replace(subject, "", 1):
        raise BadFact(f"prompt {prompt!r} holds {{}}, which would be taken for the subject's place")
    return prompt.replace(subject, "{}", 1)


def _text(record: Record, path: str) -> str:
    """The text at a dotted path of fields."""
    value: Any = record
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise BadFact(f"field {path!r} is missing" + ("" if value is record else f" in {value!r}"))
        value = value[name]
    if not isinstance(value, str):
        raise BadFact(f"expected field {path!r} to be text, got {value!r}")
    if not value.strip():
        raise BadFact(f"field {path!r} is empty")
    return value


def _optional(record: Record, name: str) -> str:
    """The text of a field; empty text if the field is absent, null or empty."""
    return _text(record, name) if record.get(name) not in (None, "") else ""


def _texts(record: Record, name: str) -> tuple[str, ...]:
    """The texts of a field that may be absent."""
    value = record.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadFact(f"expected field {name!r} to be a list of texts, got {value!r}")
    return tuple(value)


def _number(record: Record, name: str) -> int:
    """The id in a field: an integer of at least 0, or a text of its digits."""
    if name not in record:
        raise BadFact(f"field {name!r} is missing")
    value = record[name]
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if type(number) is not int or not 0 <= number < 2**63:
        raise BadFact(f"expected field {name!r} to be an integer of at least 0, got {value!r}")
    return number


FORMATS: dict[str, tuple[set[str], Callable[[Record, int], Fact]]] = {
    "own": ({"template", "subject", "target_true"}, _own),
    "counterfact": ({"requested_rewrite", "case_id"}, _counterfact),
    "flat": ({"ground_truth", "prompt", "subject"}, _flat),
    "known": ({"known_id", "attribute", "prompt"}, _known),
    "zsre": ({"src", "answers", "subject"}, _zsre),
}
"""For each format, the fields by which it is recognized, and the function that reads a record."""
