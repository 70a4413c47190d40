"""The formats in which data sets hold facts: what marks one, and what makes a fact of a record."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any, Literal

from loc_edit.facts.fact import BadFact, Fact, check_types

log = logging.getLogger(__name__)
Record = dict[str, Any]
FalseTarget = Literal["drawn", "alt"]


class BadRecord(BadFact):
    """A record that makes no fact.

    Attributes:
        index: its place in the file, from 0 (in JSON lines, empty lines do not count).
        reason: what is wrong, and in which field.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"record {index}: {reason}")
        self.index, self.reason = index, reason


def read_records(
    records: Iterable[Any],
    format: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    false_target: FalseTarget = "drawn",
) -> tuple[list[Fact], list[BadRecord]]:
    """Facts of the records that are sound, and one error for each that is not.

    Args:
        records: JSON values, or the error in the place of one that could not be read.
        format: one of `FORMATS`.
        seed: see `load_facts`.
        limit: see `load_facts`.
        false_target: see `load_facts`.

    Raises:
        ValueError: the format, `limit` or `false_target` is unknown or does not fit.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: auto or one of {', '.join(FORMATS)} is wanted")
    check_limit(limit)
    if false_target not in ("drawn", "alt"):
        raise ValueError(f"false_target {false_target!r}: 'drawn' or 'alt' is wanted")
    if false_target == "alt" and format != "zsre":
        raise ValueError(f"false_target 'alt': only zsre records have one, and these are {format}")
    read = FORMATS[format][1]
    if format == "zsre":
        records = list(records)
        read = _zsre_reader(records, seed, false_target)
    facts: list[Fact] = []
    errors: list[BadRecord] = []
    first: dict[int, int] = {}
    for index, record in enumerate(islice(records, limit)):
        try:
            if isinstance(record, Exception):
                raise record
            if not isinstance(record, dict):
                raise BadFact(f"no JSON object: {record!r}")
            fact = read(record, index)
            if first.setdefault(fact.fact_id, index) != index:
                raise BadFact(f"its id {fact.fact_id} is that of record {first[fact.fact_id]} too")
            facts.append(fact)
        except ValueError as error:
            errors.append(BadRecord(index, str(error)))
    return facts, errors


def check_limit(limit: int | None) -> None:
    """Refuse a limit that no fact is within."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: at least 1 is wanted")


def detect_format(record: Any, source: object = "") -> str:
    """The format whose fields a record has."""
    found = set(record) if isinstance(record, dict) else set()
    for name, (marks, _) in FORMATS.items():
        if marks <= found:
            return name
    raise ValueError(f"{source}: fields {sorted(found)} are those of no known format ({', '.join(FORMATS)})")


def _own(record: Record, index: int) -> Fact:
    """Our own form: the attributes of `Fact`."""
    for name in ("template", "subject", "target_true"):
        if name not in record:
            raise BadFact(f"field {name!r} is missing")
    if unknown := sorted(set(record) - {field.name for field in fields(Fact)}):
        raise BadFact(f"unknown field {unknown[0]!r}")
    check_types(record)
    values: Record = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    return Fact(**values)


def _counterfact(record: Record, index: int) -> Fact:
    """The original CounterFact form (Meng et al. 2022a)."""
    return Fact(
        fact_id=_number(record, "case_id"),
        template=_text(record, "requested_rewrite", "prompt"),
        subject=_text(record, "requested_rewrite", "subject"),
        target_true=_text(record, "requested_rewrite", "target_true", "str"),
        target_new=_text(record, "requested_rewrite", "target_new", "str"),
        relation=_optional(record["requested_rewrite"], "relation_id"),
        paraphrases=_texts(record, "paraphrase_prompts"),
        neighbors=_texts(record, "neighborhood_prompts"),
    )


def _flat(record: Record, index: int) -> Fact:
    """The flat CounterFact form of EasyEdit: finished prompts, one paraphrase, one neighbour."""
    return Fact(
        fact_id=_number(record, "case_id"),
        template=_template(_text(record, "prompt"), _text(record, "subject")),
        subject=_text(record, "subject"),
        target_true=_text(record, "ground_truth"),
        target_new=_text(record, "target_new"),
        paraphrases=_one(_optional(record, "rephrase_prompt")),
        neighbors=_one(_optional(record, "locality_prompt")),
        searched=True,
    )


def _known(record: Record, index: int) -> Fact:
    """known_1000 (Meng et al. 2022a); its prompts may extend its templates, so the prompt counts."""
    return Fact(
        fact_id=_number(record, "known_id"),
        template=_template(_text(record, "prompt"), _text(record, "subject")),
        subject=_text(record, "subject"),
        target_true=_text(record, "attribute"),
        relation=_optional(record, "relation_id"),
        searched=True,
    )


def _zsre(record: Record, index: int) -> Fact:
    """ZsRE in the MEND form, without a false target; `fact_id` is the record's index."""
    if not _answers(record):
        given = record.get("answers", "nothing")
        raise BadFact(f"field 'answers' is no list of texts: {given!r}")
    return Fact(
        fact_id=index,
        template=_template(f"Question: {_text(record, 'src')} Answer:", _text(record, "subject")),
        subject=_text(record, "subject"),
        target_true=_answers(record)[0],
        paraphrases=(f"Question: {_text(record, 'rephrase')} Answer:",),
        neighbors=(_text(record, "loc").replace("nq question:", "Question:", 1),),
        searched=True,
    )


def _zsre_reader(records: Sequence[Any], seed: int, false_target: FalseTarget) -> Callable[[Record, int], Fact]:
    """A reader of zsRE records that gives each fact a false target: its `alt`, or another record's answer.

    The draw is by (seed, question, subject, answer) from the answers of the whole file, sorted: neither the
    order of the records nor a limit changes it.  A false target that is also among the fact's own answers
    (whatever its case) is none.
    """
    pool = sorted({answer for record in records for answer in _answers(record)})
    folded = {answer.casefold() for answer in pool}

    def read(record: Record, index: int) -> Fact:
        fact = _zsre(record, index)
        own = {answer.casefold() for answer in _answers(record)}
        new: str | None = None
        if false_target == "alt":
            new = _text(record, "alt").strip()
            if new.casefold() in own:
                log.warning("record %d: alt %r is among its answers: the fact has no false target", index, new)
                new = None
        elif not folded <= own:
            identity = "\x1f".join(("zsre", str(seed), record["src"], fact.subject, fact.target_true))
            attempt = 0
            while new is None or new.casefold() in own:
                new = pool[_hash(f"{identity}\x1f{attempt}") % len(pool)]
                attempt += 1
        return replace(fact, target_new=new)

    return read


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big")


def _answers(record: Any) -> list[str]:
    """A zsRE record's answers; none where they are malformed."""
    answers = record.get("answers") if isinstance(record, dict) else None
    if not isinstance(answers, list) or not all(isinstance(a, str) and a.strip() for a in answers):
        return []
    return [answer.strip() for answer in answers]


def _template(prompt: str, subject: str) -> str:
    """A finished prompt with `{}` for the first occurrence of the subject."""
    if subject not in prompt:
        raise BadFact(f"subject {subject!r} is not in prompt {prompt!r}")
    if "{}" in prompt.replace(subject, "", 1):
        raise BadFact(f"prompt {prompt!r} holds {{}}, which would be taken for the subject's place")
    return prompt.replace(subject, "{}", 1)


def _text(record: Mapping[str, Any], *path: str) -> str:
    """The text at a path of fields."""
    value: Any = record
    for depth, name in enumerate(path):
        here = ".".join(path[: depth + 1])
        if not isinstance(value, dict):
            raise BadFact(f"field {'.'.join(path[:depth])!r} is no object: {value!r}")
        if name not in value:
            raise BadFact(f"field {here!r} is missing")
        value = value[name]
    if not isinstance(value, str):
        raise BadFact(f"field {here!r} is no text: {value!r}")
    if not value.strip():
        raise BadFact(f"field {here!r} is empty")
    return value


def _optional(record: Mapping[str, Any], name: str) -> str:
    """The text of a field that may be absent, null or empty."""
    return _text(record, name) if record.get(name) not in (None, "") else ""


def _one(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def _texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The texts of a field that may be absent."""
    value = record.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadFact(f"field {name!r} is no list of texts: {value!r}")
    return tuple(value)


def _number(record: Mapping[str, Any], name: str) -> int:
    """The id in a field: a whole number from 0, or the digits of one."""
    if name not in record:
        raise BadFact(f"field {name!r} is missing")
    value = record[name]
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**63:
        raise BadFact(f"field {name!r} is no whole number from 0: {value!r}")
    return value


FORMATS: dict[str, tuple[set[str], Callable[[Record, int], Fact]]] = {
    "own": ({"template", "subject", "target_true"}, _own),
    "counterfact": ({"requested_rewrite", "case_id"}, _counterfact),
    "flat": ({"ground_truth", "prompt", "subject"}, _flat),
    "known": ({"known_id", "attribute", "prompt"}, _known),
    "zsre": ({"src", "answers", "subject"}, _zsre),
}
"""Formats by name: the fields that mark one, and what makes a fact of a record."""
