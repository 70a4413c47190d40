"""The folder in which what is costly to compute or fetch is kept."""

import os
from pathlib import Path


def cache_folder(name: str, given: str | Path | None = None) -> Path:
    """The folder `name` in `given`, else in `LOC_EDIT_CACHE`, else in `~/.cache/loc_edit`; it may not exist yet."""
    return Path(given or os.environ.get("LOC_EDIT_CACHE") or Path.home() / ".cache" / "loc_edit") / name
