"""Files of facts: found, read record by record, written."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from loc_edit.facts.download import PUBLIC, fetch
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.facts.formats import BadRecord, FalseTarget, check_limit, detect_format, read_records

log = logging.getLogger(__name__)
_SPACE = re.compile(r"[ \t\n\r]*")


def load_facts(
    source: str | Path = "builtin",
    *,
    format: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    skip_invalid: bool = False,
    skipped: str | Path | None = None,
    false_target: FalseTarget = "drawn",
) -> list[Fact]:
    """Facts in the order of their file.

    Args:
        source: `"builtin"`; a public data set by name (`loc_edit.download.PUBLIC`: `counterfact`,
            `multi_counterfact`, `zsre`, `known_1000`), fetched once and kept; or a file: JSON (a list of
            records) or JSON lines.
        format: one of `FORMATS`, or `"auto"` to tell by the first record's fields.
        limit: the first so many records only.
        seed: of the false targets that zsRE facts draw.
        skip_invalid: leave malformed records out, count them in the log, and go on.
        skipped: a file for the list of what was left out, one JSON object (`record`, `reason`) a line; it is
            written, empty, also where nothing was.
        false_target: of zsRE facts: `"drawn"` from the other records' answers, or the record's `"alt"`
            (`None` where that is among its answers).

    Raises:
        BadFact: a record is malformed or has another's id (its index and field are named), or there is no fact.
        FileNotFoundError: there is no such file.
        ValueError: the file is no JSON, or its format is unknown.
        DownloadFailed: a public data set is not in the cache and cannot be fetched.
    """
    if str(source) == "builtin":
        from loc_edit.facts.builtin import builtin_facts  # it makes `Fact`s, so it imports this room

        check_limit(limit)
        facts, errors = builtin_facts()[:limit], list[BadRecord]()
    else:
        file = read_file(source, format=format, limit=limit, seed=seed, false_target=false_target)
        facts, errors = file.facts, file.errors
    if errors and not skip_invalid:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise BadFact(f"{source}: {errors[0]}{more}")
    if skipped is not None:
        save_skipped(errors, skipped)
    if errors:
        where = f"; they are listed in {skipped}" if skipped is not None else ""
        n = len(facts) + len(errors)
        log.warning("%s: %d of %d records skipped, the first: %s%s", source, len(errors), n, errors[0], where)
    for error in errors:
        log.info("skipped: %s", error)
    if not facts:
        raise BadFact(f"{source}: no usable fact among {len(errors)} records; the first: {errors[0]}")
    return facts


@dataclass(frozen=True)
class FactFile:
    """What is in a file of facts.

    Attributes:
        path: the file.
        format: one of `FORMATS`.
        facts: those of the sound records, in file order.
        errors: one for each record that makes no fact.
    """

    path: Path
    format: str
    facts: list[Fact]
    errors: list[BadRecord]

    def counts(self) -> dict[str, int]:
        """What a user of the facts would want to know beforehand, in words and numbers."""
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
            "without a neighbour": sum(not fact.neighbors for fact in facts),
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
    """The facts of a file or public data set, and one error for each record that makes none; see `load_facts`."""
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
    _write(path, (json.dumps({"record": e.index, "reason": e.reason}, ensure_ascii=False) + "\n" for e in errors))


def save_facts(facts: Sequence[Fact], path: str | Path) -> None:
    """Write facts as JSON lines, the format `own`."""
    _write(path, (json.dumps(asdict(fact), ensure_ascii=False) + "\n" for fact in facts))


def _write(path: str | Path, lines: Iterable[str]) -> None:
    """Write a file whole or not at all."""
    partial = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _first_format(records: Iterable[Any], path: Path) -> tuple[str, Iterator[Any]]:
    """The format of the first record that has one (a malformed one before it is named later), and all records."""
    rest, seen = iter(records), []
    for record in rest:
        seen.append(record)
        with suppress(ValueError):
            return detect_format(record, path), chain(seen, rest)
    if not seen:
        raise BadFact(f"{path}: no facts in it")
    return detect_format(seen[0], path), iter(seen)


def _records(path: Path) -> Iterator[Any]:
    """The values of a JSON list or of JSON lines, one at a time: a large file's records are never all in memory.

    A line that is no JSON comes as its error, in its place, unless it is the first: then the file is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of facts at {path}; data sets by name: {', '.join(('builtin', *PUBLIC))}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            file.seek(0)
            yield from _from_list(file.read()) if start == "[" else _from_lines(file)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: neither a JSON list nor JSON lines: {error}") from error


def _from_lines(lines: Iterable[str]) -> Iterator[Any]:
    first = True
    for line in lines:
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                if first:
                    raise
                record = BadFact(f"no JSON: {error.msg} at character {error.pos} of the line")
            first = False
            yield record


def _from_list(text: str) -> Iterator[Any]:
    decode = json.JSONDecoder().raw_decode
    at = _skip_space(text, text.index("[") + 1)
    while text[at : at + 1] != "]":
        record, at = decode(text, at)
        yield record
        at = _skip_space(text, at)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
    if rest := text[at + 1 :].strip():
        raise json.JSONDecodeError(f"Extra data {rest[:20]!r}", text, at + 1)


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
