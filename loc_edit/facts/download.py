"""Public data sets of facts: downloaded once, checked against a digest, and kept in the cache folder."""

import codecs
import logging
import re
import sys
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from pathlib import Path

from loc_edit.arguments import checked
from loc_edit.files import cache_folder, write_atomic

log = logging.getLogger(__name__)
HOSTS = ("https://rome.baulab.info/data/dsets", "https://memit.baulab.info/data/dsets")
"""The servers of the authors of ROME and MEMIT; the second is asked when the first fails."""


class DownloadFailed(OSError):
    """A public file that could not be downloaded, or that is not the expected file; the message names it."""


@dataclass(frozen=True)
class PublicFile:
    """A file of facts on the authors' servers.  Nobody has published the digests of these files.

    Attributes:
        file: its name on the servers and in the cache.
        format: one of `loc_edit.facts.formats.FORMATS`.
        size: its size in bytes, if known; a warning names any other size.
    """

    file: str
    format: str
    size: int | None = None


PUBLIC = {
    "counterfact": PublicFile("counterfact.json", "counterfact", size=45_108_470),
    "multi_counterfact": PublicFile("multi_counterfact.json", "counterfact"),
    "zsre": PublicFile("zsre_mend_eval.json", "zsre"),
    "known_1000": PublicFile("known_1000.json", "known"),
}
"""The data sets that `load_facts` and `fetch` know by name."""


@checked
def fetch(
    name: str,
    *,
    sha256: str | None = None,
    cache: str | Path | None = None,
    hosts: tuple[str, ...] | None = None,
    timeout: float = 30.0,
) -> Path:
    """The local file of a public data set, downloaded if it is not in the cache or was damaged there.

    The file is written under a temporary name in the cache folder and gets its own name only when it is complete, is a
    JSON list from its first character to its last, and has the expected digest.

    Args:
        name: one of `PUBLIC`.
        sha256: the expected digest, 64 hexadecimal digits.  Without it, the first download is trusted: its digest is
            logged, kept in `<file>.sha256`, and expected from then on.
        cache: folder; `LOC_EDIT_CACHE`, or `~/.cache/loc_edit`.
        hosts: addresses of the folders in which the file is looked for, in turn; by default `HOSTS`.
        timeout: seconds without an answer after which a host is given up.

    Raises:
        ValueError: there is no such data set, or `sha256` is not a digest.
        DownloadFailed: no host has the file, the connection broke off, the digest is wrong, or the cache
            folder cannot be written; the message gives each host's reason.
    """
    if name not in PUBLIC:
        raise ValueError(f"expected a data set among {', '.join(PUBLIC)}, got {name!r}")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"data set {name}: expected a digest of 64 hexadecimal digits, got {sha256!r}")
    public, folder = PUBLIC[name], cache_folder("data", cache)
    path, record = folder / public.file, folder / f"{public.file}.sha256"
    expected = (sha256 or _recorded(record)).lower()
    if path.is_file() and expected in ("", _digest(path)):
        return _recording(path, record, public)
    import pooch  # it takes a third of a second, which only a download is worth

    def download_list(url: str, file: str, of: object) -> None:
        pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=timeout)(url, file, of)
        _check_list(Path(file))  # a page that asks for a password, for example, is not the data

    pooch.get_logger().setLevel(logging.ERROR)  # the messages here say the same
    known_hash, reasons = f"sha256:{expected}" if expected else None, []
    for url in [f"{host}/{public.file}" for host in hosts or HOSTS]:
        log.info("fetching %s", url)
        try:
            pooch.retrieve(url, known_hash, public.file, folder, downloader=download_list)
            return _recording(path, record, public)
        except (OSError, ValueError) as error:  # the connection, the server or the disk failed, or the digest is wrong
            reasons.append(f"{url}: {_reason(error, expected)}")
    raise DownloadFailed(f"data set {name} cannot be fetched; {'; '.join(reasons)}")


def _recording(path: Path, record: Path, public: PublicFile) -> Path:
    """The path of a file in the cache, after its digest is written beside it."""
    digest = _digest(path)
    if _recorded(record) != digest:
        log.warning("%s: sha256 %s; nobody has published a digest to compare it with", path, digest)
        if public.size not in (None, path.stat().st_size):
            log.warning("%s: expected %d bytes, got %d", path, public.size, path.stat().st_size)
        try:
            write_atomic(record, f"{digest}  {path.name}\n".encode())  # as `sha256sum -c` reads it
        except OSError as error:  # the cache may be read-only; its file is usable all the same
            log.warning("%s: its digest is not kept: %s", path, error)
    return path


def _recorded(record: Path) -> str:
    """The digest kept at the first download, or empty text."""
    try:
        digest = re.match("[0-9a-f]{64}(?= )", record.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    return digest[0] if digest else ""


def _check_list(path: Path) -> None:
    """Refuse a file that does not begin and end as a JSON list."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
    if not content.startswith(b"[") or not content.endswith(b"]"):
        raise DownloadFailed(f"not a whole JSON list: it begins with {content[:20]!r} and ends with {content[-20:]!r}")


def _digest(path: Path) -> str:
    return sha256_of(path.read_bytes()).hexdigest()


def _reason(error: Exception, expected: str) -> str:
    """Why a download failed, on one line; a `ValueError` comes from pooch's check of the digest."""
    from requests import exceptions

    if not isinstance(error, OSError):
        return f"expected a file with sha256 {expected}, got another"
    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection broke off before the whole file arrived"
    if isinstance(error, exceptions.ConnectionError):
        return "no connection; is there a network?"
    return str(error)
