"""Files of facts: JSON lists and JSON lines are read record by record, and facts are written as JSON lines."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from loc_edit.arguments import Count, checked
from loc_edit.facts.builtin import FACTS_PATH, builtin_facts
from loc_edit.facts.download import PUBLIC, fetch
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.facts.formats import BadRecord, FalseTarget, detect_format, read_records
from loc_edit.files import write_atomic

log = logging.getLogger(__name__)
_OPENING = re.compile(r"\s*\[\s*(\]?)\s*")
_SEPARATOR = re.compile(r"\s*(,|\])\s*")


@checked
def load_facts(
    source: str | Path = "builtin",
    *,
    format: str = "auto",
    limit: Count | None = None,
    seed: int = 0,
    skip_invalid: bool = False,
    skipped: str | Path | None = None,
    false_target: FalseTarget = "drawn",
) -> list[Fact]:
    """Facts in the order of their file.

    Args:
        source: `"builtin"`; the name of a public data set (`loc_edit.facts.download.PUBLIC`: `counterfact`,
            `multi_counterfact`, `zsre`, `known_1000`), which is downloaded once and kept; or a file: JSON (a list of
            records) or JSON lines.
        format: one of `loc_edit.facts.formats.FORMATS`, or `"auto"` to recognize it by the first record's fields.
        limit: read only this many records.
        seed: of the false targets that are drawn for zsRE facts.
        skip_invalid: leave malformed records out, count them in the log, and go on.
        skipped: a file for the list of the records left out, one JSON object (`record`, `reason`) a line; if no record
            was left out, the file is empty.
        false_target: of zsRE facts: `"drawn"` from the other records' answers, or the record's `"alt"`
            (`None` if that is among its answers).

    Raises:
        BadFact: a record is malformed or has another record's id (the message gives its index and field), or there is
            no fact.
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or its format is unknown.
        DownloadFailed: a public data set is not in the cache and cannot be downloaded.
    """
    file = read_file(source, format=format, limit=limit, seed=seed, false_target=false_target)
    facts, errors = file.facts, file.errors
    if errors and not skip_invalid:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise BadFact(f"{source}: {errors[0]}{more}")
    if skipped is not None:
        save_skipped(errors, skipped)
    if errors:
        listed = f"; they are listed in {skipped}" if skipped is not None else ""
        n = len(facts) + len(errors)
        log.warning("%s: %d of %d records skipped, the first: %s%s", source, len(errors), n, errors[0], listed)
    for error in errors:
        log.info("skipped: %s", error)
    if not facts:
        raise BadFact(f"{source}: no usable fact among {len(errors)} records; the first: {errors[0]}")
    return facts


@dataclass(frozen=True)
class FactFile:
    """The content of a file of facts.

    Attributes:
        path: the file.
        format: one of `loc_edit.facts.formats.FORMATS`, or `builtin`.
        facts: the facts of the sound records, in file order.
        errors: one error for each malformed record.
    """

    path: Path
    format: str
    facts: list[Fact]
    errors: list[BadRecord]

    def counts(self) -> dict[str, int]:
        """Counts that a user of the facts should know before a study: a description and a number each."""
        n, facts = len(self.facts), self.facts
        return {
            "records": n + len(self.errors),
            "malformed": len(self.errors),
            "facts": n,
            "relations": len({fact.relation for fact in facts} - {""}),
            "said twice (template, subject, object)": n - len({(f.template, f.subject, f.target_true) for f in facts}),
            "without a false object": sum(fact.target_new is None for fact in facts),
            "false object equal to the true one": sum(fact.target_new == fact.target_true for fact in facts),
            "without a paraphrase": sum(not fact.paraphrases for fact in facts),
            "without a neighbor": sum(not fact.neighbors for fact in facts),
            "subject's place searched for": sum(fact.searched for fact in facts),
            "subject more than once in the prompt": sum(fact.prompt.count(fact.subject) > 1 for fact in facts),
            "prompt ends in a space": sum(fact.prompt[-1:].isspace() for fact in facts),
        }


def read_file(
    source: str | Path,
    *,
    format: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    false_target: FalseTarget = "drawn",
) -> FactFile:
    """The facts of a source and an error for each malformed record; see `load_facts` for the arguments."""
    if str(source) == "builtin":
        return FactFile(FACTS_PATH, "builtin", builtin_facts()[:limit], [])
    public = PUBLIC.get(str(source))
    path = fetch(str(source)) if public else Path(source)
    records = _records(path)
    if format == "auto" and public:
        format = public.format
    elif format == "auto":
        format, records = _first_format(records, path)
    facts, errors = read_records(records, format, seed=seed, limit=limit, false_target=false_target)
    if not facts and not errors:
        raise BadFact(f"{path}: no facts in it")
    return FactFile(path, format, facts, errors)


def save_skipped(errors: Iterable[BadRecord], path: str | Path) -> None:
    """Write the list of records that were left out, one JSON object (`record`, `reason`) a line."""
    _write_lines(path, [{"record": error.index, "reason": error.reason} for error in errors])


@checked
def save_facts(facts: Sequence[Fact], path: str | Path) -> None:
    """Write facts as JSON lines, in the format `own`."""
    _write_lines(path, map(asdict, facts))


def _write_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    write_atomic(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def _first_format(records: Iterator[Any], path: Path) -> tuple[str, Iterator[Any]]:
    """The format of the first record that has one, and all records; malformed records before it are named later."""
    unrecognized: list[Any] = []
    for record in records:
        with suppress(ValueError):
            return detect_format(record, path), chain(unrecognized, [record], records)
        unrecognized.append(record)
    if not unrecognized:
        raise BadFact(f"{path}: no facts in it")
    return detect_format(unrecognized[0], path), iter(unrecognized)


def _records(path: Path) -> Iterator[Any]:
    """The values of a JSON list or of JSON lines, one at a time: a large file's records are never all in memory.

    In place of a line that is not JSON comes its error; if it is the first line, the whole file is refused.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of facts at {path}; data sets by name: {', '.join(('builtin', *PUBLIC))}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            first_line = next(filter(str.strip, file), "")
            file.seek(0)
            yield from _from_list(file.read()) if first_line.lstrip().startswith("[") else _from_lines(file)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: neither a JSON list nor JSON lines: {error}") from error


def _from_lines(lines: Iterable[str]) -> Iterator[Any]:
    """The values of JSON lines; blank lines are passed over."""
    for number, line in enumerate(filter(str.strip, lines)):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == 0:
                raise
            yield BadFact(f"not JSON: {error.msg} at character {error.pos} of the line")


def _from_list(text: str) -> Iterator[Any]:
    """The elements of a JSON list, one at a time."""
    decode = json.JSONDecoder().raw_decode
    bracket = _OPENING.match(text)
    while bracket and bracket[1] != "]":
        record, end = decode(text, bracket.end())
        yield record
        bracket = _SEPARATOR.match(text, end)
        if bracket is None:
            raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
    if bracket and (rest := text[bracket.end() :]):
        raise json.JSONDecodeError(f"Extra data {rest[:20]!r}", text, bracket.end())
