"""Checks whether everything works here: versions, devices, cache, disk, memory, and a short study with known results.

Each check is guarded: an error in it is reported as a problem, and the others go on.  Nothing heavy is imported before
it is needed, so that a broken installation can be checked, too.
"""

import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loc_edit.files import StoreError, cache_folder, write_atomic

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "loc-edit"
SHOWN = ("torch", "transformer-lens", "transformers", "numpy", "pandas")
"""The packages whose versions are always shown."""
FOR_DEVELOPERS = ("dev", "servers")
"""Extras that users do not need."""

MB, GB = 10**6, 10**9
LITTLE_DISK, LITTLE_MEMORY = 2 * GB, 2 * GB
"""What is free below this many bytes is worth a warning."""
NO_DISK = GB // 10
SLOW = 60.0
"""Seconds after which the self-test, which takes about ten, is worth a warning."""

EXPECTED = {
    "p_clean": 0.9736,
    "p_corrupted": 0.3684,
    "p_restored": 0.7866,
    "rewrite": 0.9763,
    "paraphrase": 0.7611,
    "neighborhood": 0.9882,
    "essence": 0.9919,
}
"""The numbers of the self-test, on the CPU in float32."""
TOLERANCE = 0.01


@dataclass(frozen=True)
class Check:
    """What was looked at.

    Attributes:
        name: of the thing.
        state: `ok`; `warning`: it works, but look at it; `problem`: something will not work.
        found: what is there, or what went wrong.
        advice: what to do; empty if there is nothing to do.
        traceback: of an error.
    """

    name: str
    state: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""
    traceback: str = ""


def checkup(self_test: bool = True) -> Iterator[Check]:
    """Everything that is looked at, one after another.

    Args:
        self_test: whether to trace and edit a fact of the built-in model as well.
    """
    for name, look in (LOOKS | SELF_TEST if self_test else LOOKS).items():
        yield from _guarded(name, look)


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of one look; an error in it is a problem."""
    try:
        yield from look()
    except Exception as error:
        advice = "install it again: pip install --force-reinstall loc-edit" if isinstance(error, ImportError) else ""
        yield Check(name, "problem", f"{type(error).__name__}: {error}", advice, traceback.format_exc())


def _advised(name: str, found: str, advice: str) -> Check:
    """A check that is a warning if there is advice."""
    return Check(name, "warning" if advice else "ok", found, advice)


def _python() -> Iterator[Check]:
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata(PACKAGE)["Requires-Python"]
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    found = f"Python {platform.python_version()} on {platform.platform()}, {sys.executable}"
    yield Check("python", "ok" if fits else "problem", found, "" if fits else f"take Python {wanted}")


def _packages() -> Iterator[Check]:
    """The packages that loc_edit needs, in versions that it takes."""
    versions = {}
    for needed in _required():
        version = versions[needed.name] = _version(needed.name)
        if not version or not needed.specifier.contains(version, prereleases=True):
            found = f"version {version}, expected {needed.specifier}" if version else "not installed"
            yield Check(needed.name, "problem", found, f"pip install '{needed}'")
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if versions.get(name))
    yield Check("packages", "ok", f"{PACKAGE} {metadata.version(PACKAGE)}, {shown}; {len(versions)} looked at")


def _extras() -> Iterator[Check]:
    """The optional packages, by the name of the extra that installs them."""
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or ():
        versions = {needed.name: _version(needed.name) for needed in _required(extra)}
        if extra not in FOR_DEVELOPERS and versions:
            advice = "" if all(versions.values()) else f"only if you want it: pip install '{PACKAGE}[{extra}]'"
            found = ", ".join(f"{name} {version or 'is not installed'}" for name, version in versions.items())
            yield Check(f"extra {extra}", "ok", found, advice)


def _required(extra: str = "") -> "list[Requirement]":
    """What the package needs without extras, or what an extra adds."""
    from packaging.requirements import Requirement

    every = [*map(Requirement, metadata.requires(PACKAGE) or ())]
    basic = [needed for needed in every if not needed.marker or needed.marker.evaluate({"extra": ""})]
    if not extra:
        return basic
    others = (needed for needed in every if needed not in basic)
    return [needed for needed in others if needed.marker and needed.marker.evaluate({"extra": extra})]


def _version(package: str) -> str:
    """The version of an installed package, or nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> Iterator[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    advice = f"set OMP_NUM_THREADS={cores}: more threads than cores are slow" if threads > cores else ""
    yield _advised("processor", f"{cores} cores, {threads} threads of torch", advice)


def _graphics() -> Iterator[Check]:
    """CUDA and Apple's devices: what is there, how much of its memory is free, and whether it computes."""
    import torch

    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(n)
        ones = torch.ones(8, 8, device=f"cuda:{n}")
        if (ones @ ones).sum().item() != 512:
            raise RuntimeError(f"cuda:{n} multiplies wrongly")
        name = torch.cuda.get_device_name(n)
        yield Check(f"cuda:{n}", "ok", f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free")
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda or '(none)'}"
        driver = shutil.which("nvidia-smi")
        found = f"no device{', but nvidia-smi is there' if driver else ''}; {built}"
        yield _advised("cuda", found, "install torch for its driver" if driver else "")
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", 'there; commands take the CPU, load_model(device="mps") takes it')


def _cache() -> Iterator[Check]:
    """Where the cache is, how large it is, and whether it can be written."""
    folder = cache_folder("").resolve()
    origin = "LOC_EDIT_CACHE" if os.environ.get("LOC_EDIT_CACHE") else "the default"
    probe = folder / f".doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(probe, b"loc_edit was here")
        probe.unlink()
    except OSError as error:
        why = str(error).partition(". What was")[0] if isinstance(error, StoreError) else str(error)
        advice = "set LOC_EDIT_CACHE to a folder that you may write to; without one, everything is made again each time"
        yield Check("cache", "problem", f"{folder} ({origin}) cannot be written: {why}", advice)
        return
    sizes = {entry.name: _size(entry) for entry in sorted(folder.iterdir())}
    parts = [f"{sum(sizes.values()) / GB:.2f} GB", *(f"{name} {n / GB:.2f}" for name, n in sizes.items() if n >= MB)]
    yield Check("cache", "ok", f"{folder} ({origin}): {', '.join(parts)}")


def _size(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; links are not followed."""
    total = path.lstat().st_size if not path.is_dir() else 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:  # somebody works there
                continue
    return total


def _disk() -> Iterator[Check]:
    """What is free where the cache is, and where runs are written."""
    cache = cache_folder("").resolve()
    for name, folder in (("disk of the cache", cache), ("disk of this folder", Path.cwd())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        found = f"{free / GB:.1f} GB free at {there}"
        advice = "free some space, or choose another disk (LOC_EDIT_CACHE, --out)" if free < LITTLE_DISK else ""
        yield Check(name, "problem", found, advice) if free < NO_DISK else _advised(name, found, advice)


def _memory() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"
    little = memory.available < LITTLE_MEMORY
    yield _advised("memory", found, "close other programs, or give fewer --workers" if little else "")


def _self_test() -> Iterator[Check]:
    """Loads the built-in model, traces and edits one fact, compares the numbers, and puts the weights back."""
    start = time.perf_counter()
    from loc_edit.editing.problems import pose
    from loc_edit.editing.rome import rome
    from loc_edit.facts.loading import load_facts
    from loc_edit.keys.compute import key_stats
    from loc_edit.localization.tracing import trace
    from loc_edit.models.identity import fingerprint
    from loc_edit.models.loading import load_model
    from loc_edit.prompts.encoding import encode
    from loc_edit.prompts.noise import subject_noise
    from loc_edit.scoring.score import score

    model, facts = load_model("builtin"), load_facts("builtin")
    fact, before = facts[1], fingerprint(model)
    loaded = time.perf_counter()
    yield Check("load", "ok", f"the built-in model on {model.W_E.device}, {len(facts)} facts, {loaded - start:.1f} s")

    prompt = encode(model, fact)
    noise = subject_noise(model, prompt, scale="s3", facts=facts, samples=4, seed=0)
    traced = trace(model, prompt, fact.target_true, noise=noise, window=3)
    traces = {name: getattr(traced, name) for name in ("p_clean", "p_corrupted")}
    traces["p_restored"] = traced.p_restored.max().item()
    yield _compared("trace", traces, time.perf_counter() - loaded)

    since = time.perf_counter()
    request = pose(fact, "error_injection", model)
    edit = rome(model, request, layer=2, stats=key_stats(model, [2], "identity"), contexts=["{}"])
    scored = score(model, fact, request, edit)
    names = ("rewrite", "paraphrase", "neighborhood", "essence")
    yield _compared("edit", {name: getattr(scored, name) for name in names}, time.perf_counter() - since)

    with edit.applied(model):
        changed = fingerprint(model) != before
    if not changed:
        yield Check("weights", "problem", "an edit did not change them", "report this, with the output of --json")
    elif fingerprint(model) != before:
        yield Check("weights", "problem", "not as before the edit", "report this, with the output of --json")
    else:
        yield Check("weights", "ok", "changed by the edit, and bit for bit as before after it")
    seconds = time.perf_counter() - start
    slow = "the machine is busy, or OMP_NUM_THREADS is too high" if seconds > SLOW else ""
    yield _advised("self-test", f"{seconds:.0f} s in all", slow)


def _compared(name: str, numbers: Mapping[str, float], seconds: float) -> Check:
    """The check of some numbers against `EXPECTED`."""
    found = ", ".join(f"{key} {value:.4f}" for key, value in numbers.items()) + f", {seconds:.1f} s"
    wrong = [key for key, value in numbers.items() if not abs(value - EXPECTED[key]) <= TOLERANCE]  # NaN is wrong
    if not wrong:
        return Check(name, "ok", found)
    expected = ", ".join(f"{key} {EXPECTED[key]:.4f}" for key in wrong)
    return Check(name, "problem", f"{found}; expected {expected}", "compare versions with constraints.txt")


LOOKS: dict[str, Callable[[], Iterator[Check]]] = {
    "python": _python,
    "packages": _packages,
    "extras": _extras,
    "processor": _processor,
    "graphics": _graphics,
    "cache": _cache,
    "disk": _disk,
    "memory": _memory,
}
"""What is looked at."""
SELF_TEST: dict[str, Callable[[], Iterator[Check]]] = {"self-test": _self_test}
