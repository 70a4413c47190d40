"""Public data sets of facts: fetched once, checked, kept in the cache folder."""

import codecs
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from loc_edit.files import cache_folder

log = logging.getLogger(__name__)
HOSTS = ("https://rome.baulab.info/data/dsets", "https://memit.baulab.info/data/dsets")
"""Where the authors of ROME and MEMIT serve the files; the second is asked where the first does not answer."""


class DownloadFailed(OSError):
    """A public file that could not be fetched, or is not what was wanted; the message names it."""


class NotAList(ValueError):
    """What a server sent is no JSON list, or not the whole of one."""


@dataclass(frozen=True)
class PublicFile:
    """A file of facts on the authors' servers.

    Attributes:
        file: its name there and in the cache.
        format: one of `loc_edit.facts.FORMATS`.
        sha256: its digest, in hexadecimal; `None` where nobody has published one.  The digest of the first
            download is then logged, kept beside the file, and asked of the file ever after.
        size: its size in bytes, where that is known; another size is warned of.
    """

    file: str
    format: str
    sha256: str | None = None
    size: int | None = None


PUBLIC = {
    "counterfact": PublicFile("counterfact.json", "counterfact", size=45_108_470),
    "multi_counterfact": PublicFile("multi_counterfact.json", "counterfact"),
    "zsre": PublicFile("zsre_mend_eval.json", "zsre"),
    "known_1000": PublicFile("known_1000.json", "known"),
}
"""The data sets that `load_facts` and `fetch` know by name."""


def fetch(
    name: str,
    *,
    sha256: str | None = None,
    cache: str | Path | None = None,
    hosts: tuple[str, ...] | None = None,
    timeout: float = 30.0,
) -> Path:
    """The local file of a public data set, downloaded if it is not in the cache or was damaged there.

    The file is written under a temporary name in the cache folder and takes its own only when it is whole, a JSON
    list from its first character to its last, and its digest is right.

    Args:
        name: one of `PUBLIC`.
        sha256: the digest that the file must have, 64 hexadecimal digits.  Without it and without a recorded
            one, the first download is trusted: its digest is logged and kept in `<file>.sha256`.
        cache: folder; `LOC_EDIT_CACHE`, or `~/.cache/loc_edit`.
        hosts: addresses of folders in which the file is looked for, in turn; by default `HOSTS`.
        timeout: seconds without an answer after which a host is given up.

    Raises:
        ValueError: no such data set, or `sha256` is no digest.
        DownloadFailed: no host has the file, the connection broke off, the digest is wrong, or the cache
            folder cannot be written; each host's reason is named.
    """
    import pooch  # with `requests`: a third of a second, which only a download is worth

    if name not in PUBLIC:
        raise ValueError(f"data set {name!r}: one of {', '.join(PUBLIC)} is wanted")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"data set {name}: sha256 {sha256!r} is no digest of 64 hexadecimal digits")
    public, folder = PUBLIC[name], cache_folder("data", cache)
    path, record = folder / public.file, folder / f"{public.file}.sha256"
    wanted = (sha256 or public.sha256 or _recorded(record) or "").lower()
    if path.is_file() and (not wanted or _digest(path) == wanted):
        return _settled(path, record, public)
    pooch.get_logger().setLevel(logging.ERROR)  # what it has to say is said here
    reasons = []
    for host in hosts or HOSTS:
        url = f"{host}/{public.file}"
        log.info("fetching %s", url)
        download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=timeout)

        def download_list(url: str, file: str, of: object, download: Callable[..., None] = download) -> None:
            download(url, file, of)
            if not wanted:  # a page that asks for a password, say, must not pass for the data
                _check_list(Path(file))

        try:
            pooch.retrieve(url, f"sha256:{wanted}" if wanted else None, public.file, folder, downloader=download_list)
            return _settled(path, record, public)
        except (OSError, ValueError) as error:  # of the connection, the server, the disk; of the digest
            reasons.append(f"{url}: {_reason(error, wanted)}")
    raise DownloadFailed(f"data set {name} cannot be fetched; {'; '.join(reasons)}")


def _settled(path: Path, record: Path, public: PublicFile) -> Path:
    """The file in its place, with its digest kept beside it."""
    digest = _digest(path)
    if _recorded(record) != digest:
        if public.sha256 is None:
            log.warning("%s: sha256 %s; nobody has published one to compare it with", path, digest)
        if public.size not in (None, path.stat().st_size):
            log.warning("%s: %d bytes, where %d were expected", path, path.stat().st_size, public.size)
        partial = record.with_name(f"{record.name}.{os.getpid()}.tmp")
        try:
            partial.write_text(f"{digest}  {path.name}\n", encoding="utf-8")  # as `sha256sum -c` reads it
            partial.replace(record)
        except OSError as error:  # a cache that is only read: the file is there all the same
            log.warning("%s: its digest is not kept: %s", path, error)
    return path


def _recorded(record: Path) -> str | None:
    """The digest kept at the first download."""
    try:
        found = re.match("[0-9a-f]{64}(?= )", record.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return found[0] if found else None


def _check_list(path: Path) -> None:
    """Refuse a file that does not begin and end as a JSON list."""
    with path.open("rb") as file:
        begin = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        file.seek(max(0, path.stat().st_size - 64))
        end = file.read().rstrip()
    if not begin.startswith(b"[") or not end.endswith(b"]"):
        raise NotAList(f"no whole JSON list: it begins with {begin[:20]!r} and ends with {end[-20:]!r}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _reason(error: Exception, wanted: str) -> str:
    """One line that says why, without the inner life of the libraries."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection broke off before the whole file was there"
    if isinstance(error, exceptions.ConnectionError):
        return "no connection; is there a network?"
    if isinstance(error, exceptions.RequestException | NotAList) or not isinstance(error, ValueError):
        return str(error)
    return f"the file's sha256 is not the wanted {wanted}"
