"""Facts: what one is, and readers for the formats in which data sets hold them.  No torch in this room."""

import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class BadFact(ValueError):
    """A fact, or a record that should become one, that cannot be used; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact (subject, relation, object) with the prompts that test it.

    Attributes:
        template: the edit prompt, with one `{}` where the subject goes.
        subject: the subject's text.
        target_true: the right object, without a leading space.
        target_new: a false object of the same kind; `None` where the data set has none.
        relation: an identifier of the relation, such as `P103` or `capital`.
        paraphrases: prompts that ask for the same object in other words, subject filled in.
        neighbors: prompts about other subjects whose right object is also `target_true`.
        fact_id: an integer that names the fact in its data set; made from the content if not given.
        searched: whether the subject's place is its first occurrence in a finished prompt, as the format
            marks none.
    """

    template: str
    subject: str
    target_true: str
    target_new: str | None = None
    relation: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[str, ...] = ()
    fact_id: int = -1
    searched: bool = False

    def __post_init__(self) -> None:
        _check_types(vars(self))
        if self.fact_id < 0:
            content = "\x1f".join((self.template, self.subject, self.target_true)).encode()
            object.__setattr__(self, "fact_id", int.from_bytes(hashlib.sha256(content).digest()[:6], "big"))
        for name in ("paraphrases", "neighbors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.template.count("{}") != 1:
            raise BadFact(f"fact {self.fact_id}: template {self.template!r} needs exactly one {{}} for the subject")
        for name in ("subject", "target_true"):
            if not getattr(self, name).strip():
                raise BadFact(f"fact {self.fact_id}: {name} is empty")

    @property
    def prompt(self) -> str:
        """The edit prompt's text: the template with the subject filled in."""
        return self.template.replace("{}", self.subject)


def _check_types(values: Mapping[str, Any]) -> None:
    """Refuse by name what is no text, or no list of texts: a text in a list's place would be taken letter by letter."""
    about = f"fact {values.get('fact_id', -1)!r}"
    for name in ("template", "subject", "target_true", "target_new", "relation"):
        value = values.get(name, "")
        if not isinstance(value, str) and not (name == "target_new" and value is None):
            raise BadFact(f"{about}: {name} is no text: {value!r}")
    for name in ("paraphrases", "neighbors"):
        value = values.get(name, ())
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise BadFact(f"{about}: {name} is no list of texts: {value!r}")
    if type(values.get("fact_id", -1)) is not int:
        raise BadFact(f"{about}: fact_id is no integer")


def load_facts(
    source: str | Path = "builtin",
    *,
    format: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    skip_invalid: bool = False,
) -> list[Fact]:
    """Facts in the order of their file.

    Args:
        source: `"builtin"`, or a file: JSON (a list of records) or JSON lines.
        format: one of `FORMATS`, or `"auto"` to tell by the first record's fields.
        limit: the first so many records only.
        seed: of the false targets that zsRE facts draw.
        skip_invalid: leave malformed records out, count and name them in the log, and go on.

    Raises:
        BadFact: a record is malformed (its index and field are named), or there is no fact.
        FileNotFoundError: there is no such file.
        ValueError: the file is no JSON, or its format is unknown.
    """
    if str(source) == "builtin":
        from loc_edit.data.builtin import builtin_facts  # it makes `Fact`s, so it imports this room

        return builtin_facts()[:limit]
    records = _records(Path(source))
    if format == "auto":
        format = _first_format(records, source)
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: auto or one of {', '.join(FORMATS)} is wanted")
    facts, errors = read_records(records, format, seed=seed, limit=limit)
    if errors and not skip_invalid:
        raise errors[0]
    for error in errors:
        log.warning("skipped: %s", error)
    if not facts:
        raise BadFact(f"{source}: no usable fact among {len(records)} records")
    return facts


def save_facts(facts: Sequence[Fact], path: str | Path) -> None:
    """Write facts as JSON lines, the format `own`."""
    lines = (json.dumps(asdict(fact), ensure_ascii=False) + "\n" for fact in facts)
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_records(
    records: Sequence[Any], format: str, *, seed: int = 0, limit: int | None = None
) -> tuple[list[Fact], list[BadFact]]:
    """Facts of the records that are sound, and one error for each that is not."""
    read = _zsre_reader(records, seed) if format == "zsre" else FORMATS[format][1]
    facts: list[Fact] = []
    errors: list[BadFact] = []
    for index, record in enumerate(records[:limit]):
        try:
            if not isinstance(record, dict):
                raise BadFact(f"no JSON object: {record!r}")
            facts.append(read(record, index))
        except KeyError as error:
            errors.append(BadFact(f"record {index}: field {error} is missing"))
        except (TypeError, AttributeError, IndexError, ValueError) as error:
            errors.append(BadFact(f"record {index}: {error}"))
    return facts, errors


def _first_format(records: Sequence[Any], source: str | Path) -> str:
    """The format of the first record that has one: a malformed record before it is then named as such."""
    for record in records:
        with suppress(ValueError):
            return detect_format(record, source)
    return detect_format(records[0], source)


def detect_format(record: Any, source: str | Path = "") -> str:
    """The format whose fields a record has."""
    fields = set(record) if isinstance(record, dict) else set()
    for name, (marks, _) in FORMATS.items():
        if marks <= fields:
            return name
    raise ValueError(f"{source}: fields {sorted(fields)} are those of no known format ({', '.join(FORMATS)})")


def _records(path: Path) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no file of facts at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: neither a JSON list nor JSON lines: {error}") from error
    if not records:
        raise BadFact(f"{path}: no facts in it")
    return records


def _make(**values: Any) -> Fact:
    """A fact of a record's values, whose types nobody has checked yet."""
    _check_types(values)
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Fact(**(values | lists))


def _own(record: dict[str, Any], index: int) -> Fact:
    return _make(**record)


def _counterfact(record: dict[str, Any], index: int) -> Fact:
    """The original CounterFact form (Meng et al. 2022a)."""
    rewrite = record["requested_rewrite"]
    return _make(
        fact_id=int(record["case_id"]),
        template=rewrite["prompt"],
        subject=rewrite["subject"],
        target_true=rewrite["target_true"]["str"],
        target_new=rewrite["target_new"]["str"],
        relation=rewrite.get("relation_id", ""),
        paraphrases=record.get("paraphrase_prompts", ()),
        neighbors=record.get("neighborhood_prompts", ()),
    )


def _flat(record: dict[str, Any], index: int) -> Fact:
    """The flat CounterFact form of EasyEdit: finished prompts, one paraphrase, one neighbour."""
    return _make(
        fact_id=int(record["case_id"]),
        template=_template(record["prompt"], record["subject"]),
        subject=record["subject"],
        target_true=record["ground_truth"],
        target_new=record["target_new"],
        paraphrases=(record["rephrase_prompt"],) if record.get("rephrase_prompt") else (),
        neighbors=(record["locality_prompt"],) if record.get("locality_prompt") else (),
        searched=True,
    )


def _known(record: dict[str, Any], index: int) -> Fact:
    """known_1000 (Meng et al. 2022a); its prompts may extend its templates, so the prompt counts."""
    return _make(
        fact_id=int(record["known_id"]),
        template=_template(record["prompt"], record["subject"]),
        subject=record["subject"],
        target_true=record["attribute"],
        relation=record.get("relation_id", ""),
        searched=True,
    )


def _zsre_reader(records: Sequence[Any], seed: int) -> Callable[[dict[str, Any], int], Fact]:
    """ZsRE in the MEND form; the false target is drawn from the answers of the whole file, by (seed, question)."""
    pool = sorted({answer for record in records for answer in _answers(record)})

    def read(record: dict[str, Any], index: int) -> Fact:
        if not _answers(record):
            raise BadFact(f"field 'answers' is no list of texts: {record['answers']!r}")
        own = {answer.casefold() for answer in _answers(record)}
        others = [answer for answer in pool if answer.casefold() not in own]
        draw = random.Random(hashlib.sha256(f"zsre\x1f{seed}\x1f{record['src']}".encode()).digest())
        return _make(
            fact_id=index,
            template=_template(f"Question: {record['src']} Answer:", record["subject"]),
            subject=record["subject"],
            target_true=record["answers"][0],
            target_new=draw.choice(others) if others else None,
            paraphrases=(f"Question: {record['rephrase']} Answer:",),
            neighbors=(record["loc"].replace("nq question:", "Question:", 1),),
            searched=True,
        )

    return read


def _answers(record: Any) -> list[str]:
    """A zsRE record's answers; none where they are malformed."""
    answers = record.get("answers") if isinstance(record, dict) else None
    sound = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
    return answers if sound and answers else []


def _template(prompt: Any, subject: Any) -> str:
    """A finished prompt with `{}` for the first occurrence of the subject."""
    for name, text in (("prompt", prompt), ("subject", subject)):
        if not isinstance(text, str):
            raise BadFact(f"field {name!r} is no text: {text!r}")
    if not subject or subject not in prompt:
        raise BadFact(f"subject {subject!r} is not in prompt {prompt!r}")
    return prompt.replace(subject, "{}", 1)


FORMATS: dict[str, tuple[set[str], Callable[[dict[str, Any], int], Fact]]] = {
    "own": ({"template", "subject", "target_true"}, _own),
    "counterfact": ({"requested_rewrite", "case_id"}, _counterfact),
    "flat": ({"ground_truth", "locality_prompt", "prompt", "subject"}, _flat),
    "known": ({"known_id", "attribute", "prompt"}, _known),
    "zsre": ({"src", "answers", "subject"}, _own),  # read by a reader that knows all records
}
"""Formats by name: the fields that mark one, and what makes a fact of a record."""
