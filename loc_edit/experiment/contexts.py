"""The editors' context texts, saved with a run: a run that goes on elsewhere takes the same."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from loc_edit.files import write_atomic

NAME = "contexts.json"

Contexts = Mapping[str, Sequence[str]]
"""Method -> texts."""


def saved_contexts(folder: Path | None, seed: int) -> Contexts | None:
    """Those saved in a run's folder that were sampled with this seed.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / NAME if folder else None
    if path is None or not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))).get(str(seed))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; without it, context texts are sampled again") from error


def save_contexts(folder: Path, seed: int, contexts: Contexts) -> None:
    """Save texts beside those of other seeds, where they are not saved yet."""
    path = folder / NAME
    there = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    if str(seed) not in there:
        there[str(seed)] = {method: list(texts) for method, texts in contexts.items()}
        write_atomic(path, json.dumps(there, indent=1, ensure_ascii=False).encode())
