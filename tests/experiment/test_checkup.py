"""What `loc-edit doctor` looks at, where all is well and where something is broken."""

import errno
import json
import os
import shutil
from importlib import metadata
from types import SimpleNamespace

import psutil
import pytest
import torch
from commands import call

from loc_edit.cli.exits import Exit
from loc_edit.experiment import checkup as module
from loc_edit.experiment.checkup import EXPECTED, TOLERANCE, checkup


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LOC_EDIT_CACHE", str(folder))
    return folder


def told(name, **options):
    """The check of a name."""
    [check] = [check for check in checkup(self_test=False, **options) if check.name == name]
    return check


@pytest.mark.slow
def test_all_is_well_where_the_tests_run(cache):
    result = call("doctor", "--json")
    found = json.loads(result.out)
    assert result.status == Exit.DONE, result.err
    assert found["ok"] is True
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert {"python", "packages", "processor", "cache", "memory", "load", "trace", "edit", "weights"} <= set(states)
    assert "problem" not in states.values()
    assert list(cache.iterdir()) == [], "the probe of the cache is gone, and the self-test keeps nothing"


def test_the_lines_say_the_same(monkeypatch):
    monkeypatch.setattr(module, "LOOKS", {"python": module._python, "memory": module._memory})
    result = call("doctor", "--no-self-test")
    assert result.status == 0
    first, second, last = result.out.splitlines()
    assert first.startswith("ok       python              Python 3.")
    assert "GB free" in second
    assert last == "everything works here"


def test_an_error_in_one_look_is_told_and_the_others_go_on(monkeypatch):
    def broken():
        yield module.Check("half", "ok", "done before")
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(module, "LOOKS", {"graphics": broken, "memory": module._memory})
    result = call("doctor", "--no-self-test")
    assert result.status == Exit.UNWELL
    lines = result.out.splitlines()
    assert [line.split()[1] for line in lines] == ["half", "graphics", "memory"]
    assert "problem" in lines[1]
    assert "OSError: libcudart.so.12: cannot open shared object file" in lines[1]
    assert result.err == "loc-edit: 1 of 3 checks found a problem: graphics\n"
    found = json.loads(call("doctor", "--no-self-test", "--json").out)
    assert found["ok"] is False
    assert "raise OSError" in found["checks"][1]["traceback"]


def test_a_package_that_is_missing_or_too_old_is_told_with_the_line_that_mends_it(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "einops":
            raise metadata.PackageNotFoundError(name)
        return "2.0.0" if name == "transformer-lens" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert told("einops").found == "not installed"
    lens = told("transformer-lens")
    assert lens.state == "problem"
    assert "version 2.0.0, expected" in lens.found
    assert lens.advice.startswith("pip install 'transformer-lens")


def test_a_missing_extra_is_no_problem(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "ray":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    ray = told("extra ray")
    assert (ray.state, ray.found) == ("ok", "ray is not installed")
    assert ray.advice.endswith("pip install 'loc-edit[ray]'")
    assert not [check for check in checkup(self_test=False) if check.name in ("extra dev", "extra servers")]


def test_a_cache_that_cannot_be_written_is_told(cache):
    cache.write_text("a file")
    check = told("cache")
    assert check.state == "problem"
    assert str(cache) in check.found
    assert "LOC_EDIT_CACHE" in check.advice


def test_a_full_disk_is_told(cache, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert "No space left on device" in told("cache").found
    assert not list(cache.iterdir())
    assert told("disk of the cache").state == told("disk of this folder").state == "problem"


def test_little_disk_and_memory_are_worth_a_warning(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9, total=8 * 10**9))
    assert told("disk of the cache").state == "warning"
    assert told("memory").state == "warning"
    monkeypatch.setattr(module, "LOOKS", {"memory": module._memory})
    assert call("doctor", "--no-self-test").status == Exit.DONE


def test_the_cache_is_measured(cache):
    (cache / "models" / "one").mkdir(parents=True)
    (cache / "models" / "one" / "weights").write_bytes(b"x" * 20_000_000)
    assert "0.02 GB, models 0.02" in told("cache").found


def test_more_threads_than_cores_are_told(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert "OMP_NUM_THREADS=" in told("processor").advice


def test_a_graphics_card_that_torch_does_not_see_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert told("cuda").state == "warning"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert told("cuda").state == "ok"


@pytest.mark.parametrize("wrong", [0.02, -0.02, float("nan")])
def test_a_number_that_differs_is_a_problem(wrong):
    numbers = {"p_clean": EXPECTED["p_clean"], "p_corrupted": EXPECTED["p_corrupted"] + TOLERANCE / 2}
    assert module._compared("trace", numbers, 1.0).state == "ok"
    check = module._compared("trace", numbers | {"p_restored": EXPECTED["p_restored"] + wrong}, 1.0)
    assert check.state == "problem"
    assert f"expected p_restored {EXPECTED['p_restored']:.4f}" in check.found


@pytest.mark.slow
def test_weights_that_do_not_come_back_are_a_problem(monkeypatch):
    from loc_edit.models import identity

    names = iter(["before", "edited", "after"])
    monkeypatch.setattr(identity, "fingerprint", lambda model: next(names))
    [check] = [check for check in module._self_test() if check.name == "weights"]
    assert (check.state, check.found) == ("problem", "not as before the edit")
