"""Reads the texts for the key statistics as a stream: the built-in corpus, files, folders and hub data sets.

Nothing is held in memory but one document, and nothing that comes with a data set is ever executed.  The `datasets`
library reads folders and hub data sets.  Single files are read here, because `datasets` turns texts that look like
dates into dates, cannot name the line of a mistake, and takes a second to import.
"""

import codecs
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loc_edit.keys.builtin_corpus import builtin_corpus, corpus_identity

IDENTITY = "identity"
"""The name that asks for no corpus and C = I, see `KeyStats.identity`."""
FORMATS = {".txt": "text", ".text": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
LONGEST = 1 << 16
"""Characters after which a document of a text file ends at the next line end."""
CHECKED = 20_000_000
"""Characters of a file that `check_corpus` reads."""
HUB_NAME = "hub:NAME[@REVISION][:CONFIG[:SPLIT]]"
EXPECTED = (
    "expected 'builtin', 'identity', a .txt, .jsonl or .parquet file (or .gz of the first two), a folder of such "
    f"files, or {HUB_NAME}, each followed by #FIELD if the text's field is not 'text'"
)


class BadCorpus(ValueError):
    """A corpus that does not exist or cannot be read; the message names it, and the line where there is one."""


@dataclass(frozen=True)
class Corpus:
    """Texts, one document each.

    Attributes:
        name: the name or path that the user gave.
        documents: starts reading from the first document.
        identity: returns a hash that changes whenever the documents may; `None` if only reading them would tell.
        size: returns about how many bytes of text there are; `None` if only reading them would tell.
        lasting: whether `documents` can be called again, without a network, and gives the same texts again.
    """

    name: str
    documents: Callable[[], Iterator[str]]
    identity: Callable[[], str | None]
    size: Callable[[], int | None] = lambda: None
    lasting: bool = True


def open_corpus(corpus: str | Path | Iterable[str]) -> Corpus:
    """Returns the corpus of a name, a path or an iterable of texts; reads little or nothing yet.

    A document of a text file ends at an empty line; in the other formats, each record is a document.

    Raises:
        BadCorpus: there is no such corpus, or its format is unknown.
    """
    if not isinstance(corpus, str | Path):
        return Corpus("given texts", partial(_given, corpus), lambda: None, lasting=False)
    name = str(corpus)
    if name == "builtin":
        return Corpus(name, builtin_corpus, corpus_identity, lambda: sum(len(t.encode()) for t in builtin_corpus()))
    path, _, field = name.rpartition("#") if "#" in name and not Path(name).exists() else (name, "", "text")
    if not field or not path:
        raise BadCorpus(f"corpus {name!r}: expected the name of a field after '#'")
    if path.startswith("hub:") or Path(path).is_dir():
        return _hub(name, path.removeprefix("hub:"), field)
    file = Path(path)
    if not file.is_file():
        raise BadCorpus(f"corpus {name!r}: no such file; {EXPECTED}")
    ending = file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix
    kind = "parquet" if file.suffix == ".parquet" else FORMATS.get(ending.lower())
    if kind is None:
        raise BadCorpus(f"corpus {name!r}: unknown format {file.suffix or 'of a file without ending'}; {EXPECTED}")
    read = {"text": _text, "jsonl": _json_lines, "parquet": _parquet}[kind]
    size = partial(_parquet_size, file, field) if kind == "parquet" else lambda: file.stat().st_size
    return Corpus(name, partial(read, file, field), partial(_hash, f"{kind}|{field}", [file]), size)


def check_corpus(corpus: str | Path) -> None:
    """Refuses a corpus that cannot be used, before long work and at the cost of its first documents.

    Of a file, the first `CHECKED` characters are read; of a hub data set, the first document.

    Raises:
        BadCorpus: the corpus does not exist, has an unknown format, cannot be read, or has no text field or no text.
    """
    if str(corpus) in ("builtin", IDENTITY):
        return
    source = open_corpus(corpus)
    n_characters = 0
    for text in source.documents() if source.lasting else islice(source.documents(), 1):
        n_characters += len(text)
        if n_characters > CHECKED:
            break
    if not n_characters:
        raise BadCorpus(f"corpus {source.name!r}: there is no text in it")


@cache
def corpus_content(corpus: str) -> str:
    """Returns a short hash of a corpus's content, so that results belong to the content and not to the file's name.

    It is computed once in a process.
    """
    if corpus in ("builtin", IDENTITY):
        return corpus
    return (open_corpus(corpus).identity() or corpus)[:16]


@contextmanager
def _refusing(name: str | Path, kind: str) -> Iterator[None]:
    """Turns every error of reading inside the block into a `BadCorpus` that names the corpus."""
    try:
        yield
    except BadCorpus:
        raise
    except (OSError, EOFError, RuntimeError, ValueError, zlib.error, pa.ArrowException) as error:
        raise BadCorpus(f"corpus {str(name)!r}: cannot be read as {kind}: {error}") from error


def _given(texts: Iterable[str]) -> Iterator[str]:
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadCorpus(f"document {n} of the given texts: expected a string, got {type(text).__name__}")
        yield text


def _hash(start: str, files: Iterable[Path]) -> str:
    """Returns a hash of a text and of the content of files."""
    digest = hashlib.sha256(start.encode())
    for path in files:
        with _refusing(path, "a file"), open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _lines(path: Path, longest: int) -> Iterator[tuple[int, str]]:
    """Yields lines of UTF-8 with their numbers from 1; a line longer than `longest` bytes comes in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number = 1
    with _refusing(path, "text"), gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        try:
            while piece := file.readline(longest):
                yield number, decoder.decode(piece)
                number += piece.endswith(b"\n")
            yield number, decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise BadCorpus(f"corpus {str(path)!r}: line {number} is not UTF-8 ({error.reason})") from error


def _text(path: Path, _field: str) -> Iterator[str]:
    document: list[str] = []
    length = 0
    for _, line in _lines(path, 1 << 20):
        if line.strip():
            document.append(line)
            length += len(line)
        if document and (not line.strip() or length >= LONGEST):
            yield "".join(document).strip("\n")
            document, length = [], 0
    if document:
        yield "".join(document).strip("\n")


def _json_lines(path: Path, field: str) -> Iterator[str]:
    for number, line in _lines(path, -1):
        if not line.strip():
            continue
        where = f"corpus {str(path)!r}: line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadCorpus(f"{where} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise BadCorpus(f"{where}: expected one JSON object per line, got {type(record).__name__}")
        yield _value(record, field, where)


def _value(record: dict[str, Any], field: str, where: str) -> str:
    """Returns the text of a record; a null is an empty text."""
    if field not in record:
        raise BadCorpus(f"{where} has no field {field!r}; it has {_names(record)} (name one with #FIELD)")
    text = record[field]
    if text is not None and not isinstance(text, str):
        raise BadCorpus(f"{where}: expected text in field {field!r}, got {type(text).__name__}")
    return text or ""


def _names(fields: Iterable[str]) -> str:
    return ", ".join(map(repr, fields)) or "none"


def _parquet(path: Path, field: str) -> Iterator[str]:
    with _refusing(path, "Parquet"), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if field not in names:
            raise BadCorpus(f"corpus {str(path)!r}: no column {field!r}; it has {_names(names)} (#COLUMN)")
        kind = file.schema_arrow.field(field).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise BadCorpus(f"corpus {str(path)!r}: expected text in column {field!r}, got {kind}")
        for batch in file.iter_batches(1024, columns=[field]):
            yield from (text or "" for text in batch.column(0).to_pylist())


def _parquet_size(path: Path, field: str) -> int:
    metadata = pq.read_metadata(path)
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    columns = (group.column(j) for group in groups for j in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field)


def _hub(name: str, address: str, field: str) -> Corpus:
    """Returns a data set of the hub, or a folder of data files, which the `datasets` library streams."""
    source, revision, config, split = _parse(name, address)

    def builder() -> Any:
        import datasets  # slow to import, and only these corpora need it

        if int(datasets.__version__.split(".")[0]) < 4:
            raise BadCorpus(f"corpus {name!r}: expected datasets 4 or newer; {datasets.__version__} runs their code")
        with _refusing(name, "a data set"):
            return datasets.load_dataset_builder(source, config, revision=revision)

    def documents() -> Iterator[str]:
        with _refusing(name, "a data set"):
            for n, record in enumerate(builder().as_streaming_dataset(split=split)):
                yield _value(record, field, f"corpus {name!r}: record {n}")

    def identity() -> str:
        """Hashes the content of local files; the address of a file on the hub names its commit and is enough."""
        if len(revision or "") == 40 and not Path(source).is_dir():
            return _hash(f"hub|{source}|{revision}|{config}|{split}|{field}", [])
        files = [str(file) for file in builder().config.data_files.get(split, ())]
        local = sorted(Path(file) for file in files if "://" not in file)
        remote = sorted(file for file in files if "://" in file)
        return _hash("|".join(["hub", split, field, *remote, *(path.name for path in local)]), local)

    return Corpus(name, documents, identity, lasting=False)


def _parse(name: str, address: str) -> tuple[str, str | None, str | None, str]:
    """Splits NAME[@REVISION][:CONFIG[:SPLIT]] into source, revision, config and split."""
    if address and Path(address).is_dir():
        return address, None, None, "train"
    parts = re.fullmatch(r"([^:@]+)(?:@([^:]*))?(?::([^:]*))?(?::([^:]*))?", address)
    if not parts:
        raise BadCorpus(f"corpus {name!r}: expected {HUB_NAME}")
    source, revision, config, split = parts.groups()
    return source, revision or None, config or None, split or "train"
