"""Corpora: every format gives its documents, and an error in a corpus is named before any long work."""

import gzip
import json
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loc_edit.keys import corpora
from loc_edit.keys.builtin_corpus import builtin_corpus, corpus_identity
from loc_edit.keys.corpora import BadCorpus, check_corpus, open_corpus

TEXTS = ["The Golden Bridge is in Paris.", "Zürich, größer\nund älter; 東京", "Rome " * 50]


def write(path, field="text"):
    """Writes the texts to a file in the format that its ending names, and returns the path."""
    records = [{"id": n, field: text} for n, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.name.endswith("jsonl.gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    else:
        path.write_text(lines, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.ndjson", "a.json", "a.parquet", "a.jsonl.gz"])
def test_every_format_gives_its_documents_again_and_again(tmp_path, name):
    path = write(tmp_path / name)
    corpus = open_corpus(path)
    assert [text.strip() for text in corpus.documents()] == [text.strip() for text in TEXTS]
    assert list(corpus.documents()) == list(corpus.documents())
    assert corpus.size() > 0
    check_corpus(str(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_another_field_is_named_after_a_hash_sign(tmp_path, name):
    path = write(tmp_path / name, "content")
    assert list(open_corpus(f"{path}#content").documents()) == TEXTS
    with pytest.raises(BadCorpus, match=r"'text'.*'id', 'content'"):
        check_corpus(str(path))
    with pytest.raises(BadCorpus, match=r"expected text in (field|column) 'id', got int"):
        check_corpus(f"{path}#id")
    with pytest.raises(BadCorpus, match="expected the name of a field"):
        check_corpus(f"{path}#")


def test_the_identity_follows_the_content(tmp_path):
    path, copy = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl")
    first = open_corpus(path).identity()
    assert first == open_corpus(copy).identity()
    assert first != open_corpus(f"{path}#id").identity()
    path.write_text(path.read_text().replace("Rome", "Oslo"))
    assert first != open_corpus(path).identity()
    assert open_corpus("builtin").identity() == corpus_identity()
    assert list(islice(open_corpus("builtin").documents(), 9)) == list(islice(builtin_corpus(), 9))
    assert open_corpus(iter(TEXTS)).identity() is None
    assert list(open_corpus(iter(TEXTS)).documents()) == TEXTS


def test_a_text_file_is_read_in_pieces_however_long_its_lines_and_documents(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("é" * 3_000_001 + "\n" + "x\n" * 100_000, encoding="utf-8")
    documents = list(open_corpus(path).documents())
    assert "".join(documents).replace("\n", "") == "é" * 3_000_001 + "x" * 100_000
    assert max(map(len, documents)) <= 2**20 + corpora.LONGEST
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n\r\ntwo\n  \nthree")
    assert [text.strip() for text in open_corpus(path).documents()] == ["one", "two", "three"], "BOM, CRLF, blanks"


def bad(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "no text in it"),
        ("a.txt", b"\n \n\n", "no text in it"),
        ("a.txt", b"fine\nnot \xff fine\n", "line 2 is not UTF-8"),
        ("a.txt", b"fine\ncut \xc3", "line 2 is not UTF-8"),
        ("a.jsonl", b"", "no text in it"),
        ("a.jsonl", b'{"text": ""}\n', "no text in it"),
        ("a.jsonl", b'{"text": null}\n', "no text in it"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": 3}\n', "line 3: expected text in field 'text', got int"),
        ("a.jsonl", b'{"text": "fine"}\n{"txt": "fine"}\n', r"line 2 has no field 'text'; it has 'txt' \(name one"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', "line 2 is not JSON"),
        ("a.json", b'[{"text": "fine"}]', "line 1: expected one JSON object per line, got list"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        # A name of its own: compressed bytes hold the time, and two workers would not find the same test.
        pytest.param(
            "a.jsonl.gz", gzip.compress(b'{"text": "fine"}\n' * 99)[:-20], "cannot be read", id="a.jsonl.gz-cut"
        ),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.docx", b"words", "unknown format .docx"),
        ("LICENSE", b"words", "unknown format of a file without ending"),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path, name, content, message):
    path = bad(tmp_path, name, content)
    with pytest.raises(BadCorpus, match=message) as caught:
        check_corpus(path)
    assert name in str(caught.value)


def test_a_parquet_file_without_text_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), path)
    with pytest.raises(BadCorpus, match=r"no column 'text'; it has 'body', 'n'"):
        check_corpus(path)
    with pytest.raises(BadCorpus, match=r"expected text in column 'n', got int64"):
        check_corpus(f"{path}#n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(BadCorpus, match="no text in it"):
        check_corpus(path)


@pytest.mark.parametrize("name", ["absent.txt", "wikipedia", "bulitin", "folder/absent.jsonl#field"])
def test_a_missing_corpus_is_refused_with_a_list_of_the_possible_kinds(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadCorpus, match=r"no such file; expected 'builtin', .*, each followed by #FIELD"):
        check_corpus(name)


def test_given_documents_that_are_not_strings_are_refused():
    with pytest.raises(BadCorpus, match="document 1 of the given texts: expected a string, got int"):
        list(open_corpus(iter(["a", 3])).documents())


def test_builtin_and_identity_always_pass_the_check():
    check_corpus("builtin")
    check_corpus("identity")


def test_the_check_does_not_read_a_large_file_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CHECKED", 1000)
    path = bad(tmp_path, "a.txt", b"fine words\n\n" * 200 + b"\xff")
    check_corpus(path)
    with pytest.raises(BadCorpus, match="line 401 is not UTF-8"):
        list(open_corpus(path).documents())


# Folders and hub data sets, by the datasets library


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("prefix", ["", "hub:"])
def test_a_folder_of_files_is_a_data_set(tmp_path, name, prefix):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / name)
    corpus = open_corpus(f"{prefix}{folder}")
    assert list(corpus.documents()) == TEXTS
    check_corpus(f"{prefix}{folder}")
    first = corpus.identity()
    assert first == open_corpus(str(folder)).identity(), "twice the same"
    assert first != open_corpus(f"{folder}#id").identity()
    with pytest.raises(BadCorpus, match=r"record 0 has no field 'body'; it has 'id', 'text'"):
        check_corpus(f"{folder}#body")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content.replace(b"Golden", b"Silver"))
    assert first != open_corpus(str(folder)).identity(), "other content"


def test_splits_and_configurations_that_do_not_exist_are_named(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "test.jsonl")
    assert list(open_corpus(f"hub:{folder}:default:test").documents()) == TEXTS
    with pytest.raises(BadCorpus, match="train"):
        check_corpus(f"hub:{folder}:default:train")
    with pytest.raises(BadCorpus, match="none"):
        check_corpus(f"hub:{folder}:none")
    with pytest.raises(BadCorpus, match="expected hub:NAME"):
        check_corpus("hub:a:b:c:d")
    with pytest.raises(BadCorpus, match="expected hub:NAME"):
        check_corpus("hub:")


def test_a_script_in_a_data_set_is_never_run(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit('it ran')\n")
    with pytest.raises(BadCorpus, match="set"):
        check_corpus(str(folder))
    assert not (tmp_path / "ran").exists()


def test_an_empty_folder_and_a_data_set_that_cannot_be_reached_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadCorpus, match="empty"):
        check_corpus(str(tmp_path / "empty"))
    with pytest.raises(BadCorpus, match="nobody/nothing-at-all"):
        check_corpus("hub:nobody/nothing-at-all")


def test_a_library_that_would_run_code_is_refused(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(BadCorpus, match="datasets 4 or newer"):
        check_corpus(str(tmp_path))
