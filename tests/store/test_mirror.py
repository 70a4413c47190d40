"""A run kept at an S3-like address too, which a machine with an empty disk goes on from."""

import shutil

import fsspec
import pytest
from runs import assert_same_rows, files

from loc_edit.analysis.run import load_run
from loc_edit.files import StoreError
from loc_edit.store.mirror import Mirror


@pytest.fixture(params=["memory", "file"])
def address(request, tmp_path):
    """An address in memory, which has no folders or renames, as S3; and one on the disk."""
    fsspec.filesystem("memory").store.clear()
    yield "memory://bucket/runs/mine" if request.param == "memory" else f"file://{tmp_path}/far/away"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.slow
def test_a_run_whose_disk_is_lost_goes_on_from_its_mirror(lab, tmp_path, address, computed):
    whole = lab(out=str(tmp_path / "whole")).run()
    at_work = lab(mirror=address).rows()
    for _ in range(5):
        next(at_work)
    at_work.close()  # the machine is gone, and its disk
    shutil.rmtree(tmp_path / "run")
    computed.clear()
    run = lab(mirror=address, out=str(tmp_path / "elsewhere")).run()
    assert len(computed) == 6 - 4  # of five units, one was the row without an edit
    assert_same_rows(run, whole)
    Mirror(address, tmp_path / "fetched").fetch()
    assert_same_rows(load_run(tmp_path / "fetched"), whole)
    assert files(tmp_path / "fetched") == {path: data for path, data in files(run.path).items() if path.name != ".lock"}
    computed.clear()
    assert Mirror(address, tmp_path / "elsewhere").fetch() == 0
    lab(mirror=address, out=str(tmp_path / "elsewhere")).run()
    assert computed == []


def test_a_mirror_that_refuses_for_a_while_costs_no_row(lab, tmp_path, monkeypatch, caplog):
    fsspec.filesystem("memory").store.clear()
    real, count = fsspec.implementations.memory.MemoryFileSystem.pipe_file, [0]

    def refusing(self, path, value, **options):
        count[0] += 1
        if 6 <= count[0] <= 9:
            raise ConnectionError("the network is gone")
        return real(self, path, value, **options)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "pipe_file", refusing)
    run = lab(mirror="memory://bucket/run").run()
    assert count[0] > 9
    assert "the network is gone; it is tried again at the end" in caplog.text
    Mirror("memory://bucket/run", tmp_path / "fetched").fetch()
    assert_same_rows(load_run(tmp_path / "fetched"), run)


def test_a_mirror_that_refuses_at_the_start_is_named_before_work(lab, monkeypatch, computed):
    def refusing(self, path, value, **options):
        raise PermissionError("access denied")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "pipe_file", refusing)
    with pytest.raises(StoreError, match=r"cannot write .*bucket/run.* of memory://bucket/run: access denied"):
        lab(mirror="memory://bucket/run").run()
    assert computed == []


def test_an_address_that_nothing_knows_is_refused(lab, tmp_path):
    with pytest.raises(ValueError, match=r"mirror 'nowhere://bucket'"):
        lab(mirror="nowhere://bucket").run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["traces/../../../stolen", "traces/..\\..\\stolen", "C:/stolen"])
def test_a_name_at_the_address_that_leads_outside_is_refused(tmp_path, monkeypatch, name):
    """An object store may hold any name; none of its files is written outside the run folder."""
    folder = tmp_path / "deep" / "run"
    folder.mkdir(parents=True)
    mirror = Mirror("memory://bucket/run", folder)
    monkeypatch.setattr(mirror._files, "find", lambda root: [f"{root}/config.toml", f"{root}/{name}"])
    monkeypatch.setattr(mirror._files, "cat_file", lambda place: b"evil")
    with pytest.raises(ValueError, match="expected a name inside"):
        mirror.fetch()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
