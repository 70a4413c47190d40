"""The editors' context texts, saved with a run, so that a resumed run takes the same texts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loc_edit.arguments import fitted
from loc_edit.files import write_atomic
from loc_edit.store.layout import CONTEXTS

Contexts = Mapping[str, Sequence[str]]
"""Texts by style, `rome` and `memit`."""


def saved_contexts(folder: Path, seed: int) -> Contexts | None:
    """The context texts in a run's folder that were sampled with this seed, so that a resumed run takes the same.

    Raises:
        ValueError: the file is damaged.
    """
    return _all_contexts(folder / CONTEXTS).get(str(seed))


def save_contexts(folder: Path, seed: int, contexts: Contexts) -> None:
    """Save context texts, unless texts of this seed are saved already; the texts of other seeds stay."""
    path = folder / CONTEXTS
    by_seed = _all_contexts(path)
    if str(seed) not in by_seed:
        by_seed[str(seed)] = {style: list(texts) for style, texts in contexts.items()}
        write_atomic(path, json.dumps(by_seed, indent=1, ensure_ascii=False).encode())


def _all_contexts(path: Path) -> dict[str, Any]:
    """The texts of all seeds in a file; none if there is no file."""
    if not path.is_file():
        return {}
    try:
        return dict(
            fitted(json.loads(path.read_text(encoding="utf-8")), dict[str, dict[str, list[str]]], "its content")
        )
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; without it, context texts are sampled again") from error
