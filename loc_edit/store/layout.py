"""The names of the files in a run folder.  Shards of rows are in a folder per kind: `traces`, `edits`, `sequences`."""

from pathlib import Path

CONFIG = "config.toml"
"""The resolved configuration of the last start; it makes the folder a run."""
PROVENANCE = "provenance.json"
"""Versions, seed and model fingerprint of the first start, and the version of the rows' schema."""
SELECTION = "selection.json"
"""The cells and facts of the configuration."""
HISTORY = "history"
"""The folder of the configurations and selections of earlier starts."""
LOG = "log.jsonl"
"""The log: one JSON object per line, with its time."""
CONTEXTS = "contexts.json"
"""The context texts before which edit prompts are put."""
KEY_STATS = "key_stats.json"
"""The checksums of the key statistics that the rows were computed with, by corpus and layer."""
LOCK = ".lock"
"""The file that the writer locks; it is never removed."""
WRITER = ".writer"
"""The name of the process that holds the lock; it means nothing while nobody holds it."""


class BadRun(ValueError):
    """The folder holds no run, or no run that this version can use; the message names the folder."""


def on_disk(path: str | Path) -> Path:
    """The folder that a path names.

    Raises:
        BadRun: it is an address, such as `s3://bucket/run`.
    """
    if "://" in str(path):
        raise BadRun(
            f"{path}: expected a folder on a disk; an address is a run's mirror, and a start fetches from there"
        )
    return Path(path).expanduser()
