"""Texts for the key statistics: the built-in corpus, files, folders and hub data sets, read as a stream.

Nothing is held in memory but one document, and nothing that comes with a data set is ever executed.
"""

import codecs
import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loc_edit.keys import builtin_corpus as builtin

log = logging.getLogger(__name__)

IDENTITY = "identity"
"""The name that asks for no corpus at all: C = I, see `KeyStats.identity`."""
FORMATS = {".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
LONGEST = 1 << 16
"""Characters after which a document of a text file ends at the next line end."""
CHECKED = 20_000_000
"""Characters of a file that `check_corpus` reads."""
WANTED = (
    "'builtin', 'identity', a .txt, .jsonl or .parquet file (or .gz of the first two), a folder of such files, or "
    "hub:NAME[@REVISION][:CONFIG[:SPLIT]] is wanted, each with #FIELD after it where the text's field is not 'text'"
)


class BadCorpus(ValueError):
    """A corpus that is not there or cannot be read; the message names it, and the line where there is one."""


@dataclass(frozen=True)
class Corpus:
    """Texts, one document each.

    Attributes:
        name: as it was given.
        documents: starts reading from the first document.
        identity: a hash that changes whenever the documents may; `None` where only reading them would tell.
        size: about how many bytes of text there are; `None` where only reading them would tell.
        lasting: whether `documents` can be called again without a network and gives the same again.
    """

    name: str
    documents: Callable[[], Iterator[str]]
    identity: Callable[[], str | None]
    size: Callable[[], int | None]
    lasting: bool = True


def open_corpus(corpus: str | Path | Iterable[str]) -> Corpus:
    """The corpus that a name, a path or an iterable of texts means; reads little or nothing yet.

    A document of a text file ends at an empty line; of the other formats, each record is one.

    Raises:
        BadCorpus: no such corpus, or of no known format.
    """
    if not isinstance(corpus, str | Path):
        return Corpus("given texts", partial(_given, corpus), lambda: None, lambda: None, lasting=False)
    name = str(corpus)
    if name == "builtin":
        return Corpus(name, builtin.builtin_corpus, builtin.corpus_identity, _builtin_size)
    path, _, field = name.rpartition("#") if "#" in name and not Path(name).exists() else (name, "", "text")
    if not field or not path:
        raise BadCorpus(f"corpus {name!r}: the name of a field is wanted after '#'")
    if path.startswith("hub:") or Path(path).is_dir():
        return _hub(name, path.removeprefix("hub:"), field)
    file = Path(path)
    if not file.is_file():
        raise BadCorpus(f"corpus {name!r}: no such file; {WANTED}")
    ending = file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix
    kind = "parquet" if file.suffix == ".parquet" else FORMATS.get(ending.lower())
    if kind is None:
        raise BadCorpus(f"corpus {name!r}: what {file.suffix or 'a file without ending'} holds is not known; {WANTED}")
    read = {"text": _text, "jsonl": _json_lines, "parquet": _parquet}[kind]
    identity = partial(_hash, f"{kind}|{field}", [file])
    size = partial(_parquet_size, file, field) if kind == "parquet" else lambda: file.stat().st_size
    return Corpus(name, partial(read, file, field), identity, size)


def check_corpus(corpus: str | Path) -> None:
    """Refuse a corpus that cannot be used, before long work: at the cost of its first documents.

    Of a file, the first `CHECKED` characters are read; of a hub data set, the first document.

    Raises:
        BadCorpus: not there, of no known format, unreadable, without a text field, or without text.
    """
    if str(corpus) in ("builtin", IDENTITY):
        return
    found = open_corpus(corpus)
    n = 0
    for text in found.documents() if found.lasting else islice(found.documents(), 1):
        n += len(text)
        if n > CHECKED:
            break
    if not n:
        raise BadCorpus(f"corpus {found.name!r}: there is no text in it")


@cache
def corpus_content(corpus: str) -> str:
    """A short name of what a corpus holds: what is computed from it belongs to this, not to the file's name.

    Looked up once in a process.
    """
    if corpus in ("builtin", IDENTITY):
        return corpus
    return (open_corpus(corpus).identity() or corpus)[:16]


def _given(texts: Iterable[str]) -> Iterator[str]:
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadCorpus(f"document {n} of the given texts: a string is wanted, got {type(text).__name__}")
        yield text


def _builtin_size() -> int:
    return sum(len(text.encode()) for text in builtin.builtin_corpus())


def _hash(start: str, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(start.encode())
    for path in files:
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise BadCorpus(f"corpus {str(path)!r}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of UTF-8 with their numbers from 1; a line longer than 1 MiB comes in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number = 1
    try:
        with _open(path) as file:
            while piece := file.readline(1 << 20):
                yield number, decoder.decode(piece)
                number += piece.endswith(b"\n")
        yield number, decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise BadCorpus(f"corpus {str(path)!r}: line {number} is not UTF-8 ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise BadCorpus(f"corpus {str(path)!r}: cannot be read: {error}") from error


def _text(path: Path, field: str) -> Iterator[str]:
    document: list[str] = []
    length = 0
    for _, line in _lines(path):
        if line.strip():
            document.append(line)
            length += len(line)
        if document and (not line.strip() or length >= LONGEST):
            yield "".join(document).strip("\n")
            document, length = [], 0
    if document:
        yield "".join(document).strip("\n")


def _json_lines(path: Path, field: str) -> Iterator[str]:
    whole = ""  # a record may come in pieces
    for number, line in _lines(path):
        whole += line
        if not whole.endswith("\n") and line:
            continue
        if whole.strip():
            yield _field(_record(path, number, whole), field, f"corpus {str(path)!r}: line {number}")
        whole = ""


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadCorpus(f"corpus {str(path)!r}: line {number} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadCorpus(f"corpus {str(path)!r}: line {number}: one JSON object a line is wanted")
    return record


def _field(record: dict[str, Any], field: str, where: str) -> str:
    """The text of a record; a null is an empty text."""
    if field not in record:
        raise BadCorpus(f"{where} has no field {field!r}; it has {_names(record)} (name one with #FIELD)")
    text = record[field]
    if text is not None and not isinstance(text, str):
        raise BadCorpus(f"{where}: field {field!r} holds {type(text).__name__}, text is wanted")
    return text or ""


def _names(fields: Iterable[str]) -> str:
    return ", ".join(map(repr, fields)) or "none"


def _parquet(path: Path, field: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise BadCorpus(f"corpus {str(path)!r}: no column {field!r}; it has {_names(names)} (#COLUMN)")
            kind = file.schema_arrow.field(field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise BadCorpus(f"corpus {str(path)!r}: column {field!r} holds {kind}, text is wanted")
            for batch in file.iter_batches(1024, columns=[field]):
                yield from (text or "" for text in batch.column(0).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise BadCorpus(f"corpus {str(path)!r}: cannot be read as Parquet: {error}") from error
    except UnicodeDecodeError as error:
        raise BadCorpus(f"corpus {str(path)!r}: column {field!r} is not UTF-8 ({error.reason})") from error


def _parquet_size(path: Path, field: str) -> int | None:
    try:
        meta = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return None
    groups = (meta.row_group(i) for i in range(meta.num_row_groups))
    columns = (group.column(j) for group in groups for j in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field)


def _hub(name: str, spec: str, field: str) -> Corpus:
    """A data set of the hub, or a folder of data files, streamed by the `datasets` library."""
    source, revision, config, split = _parse(name, spec)

    def builder() -> Any:
        import datasets  # slow to import, and only this corpus needs it

        if int(datasets.__version__.split(".")[0]) < 4:
            raise BadCorpus(f"corpus {name!r}: datasets 4 or newer is wanted: {datasets.__version__} runs their code")
        try:
            return datasets.load_dataset_builder(source, config, revision=revision)
        except (OSError, ValueError, RuntimeError) as error:
            raise BadCorpus(f"corpus {name!r}: {error}") from error

    def documents() -> Iterator[str]:
        try:
            for n, record in enumerate(builder().as_streaming_dataset(split=split)):
                yield _field(record, field, f"corpus {name!r}: record {n}")
        except BadCorpus:
            raise
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            raise BadCorpus(f"corpus {name!r}: {error}") from error

    def identity() -> str:
        """Files here by their content; those of the hub by their address, which names the commit."""
        if len(revision or "") == 40 and not Path(source).is_dir():
            return _hash(f"hub|{source}|{revision}|{config}|{split}|{field}", [])
        files = [str(file) for file in builder().config.data_files.get(split, ())]
        here = sorted(Path(file) for file in files if "://" not in file)
        there = sorted(file for file in files if "://" in file)
        return _hash("|".join(["hub", split, field, *there, *(path.name for path in here)]), here)

    return Corpus(name, documents, identity, lambda: None, lasting=False)


def _parse(name: str, spec: str) -> tuple[str, str | None, str | None, str]:
    """(source, revision, config, split) of NAME[@REVISION][:CONFIG[:SPLIT]]."""
    if spec and Path(spec).is_dir():
        return spec, None, None, "train"
    parts = spec.split(":")
    source, _, revision = parts[0].partition("@")
    if len(parts) > 3 or not source:
        raise BadCorpus(f"corpus {name!r}: hub:NAME[@REVISION][:CONFIG[:SPLIT]] is wanted")
    config, split = [*parts[1:], "", ""][:2]
    return source, revision or None, config or None, split or "train"
