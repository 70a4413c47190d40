"""Files are written whole or not at all, and names from untrusted data stay inside their folder."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loc_edit.files import (
    TEMPORARY_SUFFIX,
    StoreError,
    cache_folder,
    disk_errors,
    join_inside,
    remove_temporaries,
    short_hash,
    temporary_name,
    write_atomic,
    writing,
)

# Writing


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "new.bin"
    with writing(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with writing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_in_the_block_leaves_the_old_file_and_no_temporary_one(tmp_path, failure):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(failure), writing(path) as file:  # noqa: PT012
        file.write(b"new")
        assert len(list(tmp_path.iterdir())) == 2  # there was a temporary file to remove
        raise failure
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_before_the_first_file_leaves_an_empty_folder(tmp_path):
    with pytest.raises(RuntimeError), writing(tmp_path / "file"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refusing_disk_is_named_with_its_file_and_changes_nothing(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(
            StoreError, match=r"cannot write .*file: No space left .* finished before is kept; free some"
        ):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "missing" / "file"
    with pytest.raises(StoreError, match="cannot write") as caught:
        write_atomic(path, b"x")
    assert caught.value.errno == errno.ENOENT
    assert str(path) in str(caught.value)


def test_a_killed_writer_leaves_the_old_file_and_a_temporary_one_that_can_be_removed(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    program = (
        "import os, sys; from pathlib import Path; from loc_edit.files import writing\n"
        "with writing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == -9
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path):
    path = tmp_path / "file"
    with writing(path) as first:
        with writing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"first")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_is_described_once(tmp_path):
    with pytest.raises(StoreError) as caught, disk_errors("list", tmp_path), disk_errors("read", tmp_path / "file"):
        (tmp_path / "file").read_bytes()
    assert "cannot read" in str(caught.value)
    assert "cannot list" not in str(caught.value)


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(KeyError), disk_errors("read", tmp_path):
        raise KeyError("x")


# Temporary files


def test_temporary_files_are_removed_by_name(tmp_path):
    other = temporary_name(tmp_path / "other.json")
    kept = [tmp_path / "a.json", tmp_path / ".a.json", tmp_path / f"a{TEMPORARY_SUFFIX}", other]
    for path in (temporary_name(tmp_path / "a.json"), temporary_name(tmp_path / "a.json"), *kept):
        path.write_bytes(b"?")
    remove_temporaries(tmp_path, "a.json")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    remove_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept[:-1])


def test_temporary_files_are_removed_by_age(tmp_path):
    old, young = temporary_name(tmp_path / "a"), temporary_name(tmp_path / "a")
    for path, age in ((old, 120), (young, 30)):
        path.write_bytes(b"?")
        os.utime(path, (time.time() - age,) * 2)
    remove_temporaries(tmp_path, older_than=60.0)
    assert list(tmp_path.iterdir()) == [young]
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Names from untrusted data


@pytest.mark.parametrize("name", ["a.txt", "traces/a.parquet", "a/b/c", "..a", "a..b", "traces\\a.parquet", "é/a"])
def test_names_inside_are_joined(tmp_path, name):
    assert join_inside(tmp_path, name) == tmp_path / name.replace("\\", "/")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../a",
        "a/../../b",
        "a/..",
        "/etc/passwd",
        "//server/share",
        "..\\a",
        "a\\..\\..\\b",
        "\\etc\\passwd",
        "C:\\Windows",
        "C:/Windows",
        "c:a",
        "a\0b",
        "\0",
        "NUL",
        "a/con.txt",
        "COM1",
        "a/b:stream",
        ".",
    ],
)
def test_names_that_lead_outside_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="expected a name inside"):
        join_inside(tmp_path, name)


@pytest.mark.parametrize("name", ["link", "link/secret", "folder/link"])
def test_a_link_that_leads_outside_is_refused(tmp_path, name):
    folder = tmp_path / "inside"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_text("?")
    (folder / "link").symlink_to(tmp_path)
    (folder / "folder" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="leads outside"):
        join_inside(folder, name)


def test_a_link_that_stays_inside_and_a_linked_folder_are_allowed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "link").symlink_to(tmp_path / "real" / "target")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    assert join_inside(tmp_path / "real", "link") == tmp_path / "real" / "link"
    assert join_inside(tmp_path / "alias", "file") == tmp_path / "alias" / "file"


# Hashes and the cache


def test_a_hash_is_the_beginning_of_sha256():
    assert short_hash(b"abc") == hashlib.sha256(b"abc").hexdigest()[:16]
    assert short_hash("é") == short_hash("é".encode())


def test_the_cache_is_where_it_is_given_then_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path / "variable"))
    assert cache_folder("data", tmp_path) == tmp_path / "data"
    assert cache_folder("data") == tmp_path / "variable" / "data"
    monkeypatch.delenv("LOC_EDIT_CACHE")
    assert cache_folder("data") == Path.home() / ".cache" / "loc_edit" / "data"
