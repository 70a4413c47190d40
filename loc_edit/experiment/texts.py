"""The editors' context texts, saved with a run, so that a resumed run takes the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loc_edit.arguments import fitted
from loc_edit.files import Damaged, read_json, set_aside, write_json
from loc_edit.store.layout import CONTEXTS

Contexts = Mapping[str, Sequence[str]]
"""Texts by style, `rome` and `memit`."""


def saved_contexts(folder: Path, seed: int) -> Contexts | None:
    """The context texts in a run's folder that were sampled with this seed, so that a resumed run takes the same.

    Raises:
        Damaged: the file is damaged, or was edited.
    """
    return _all_contexts(folder / CONTEXTS).get(str(seed))


def set_damaged_contexts_aside(folder: Path) -> None:
    """Set the context texts of a run aside if they are damaged: sampling gives the same texts again."""
    try:
        saved_contexts(folder, 0)
    except Damaged:
        set_aside(folder / CONTEXTS)


def save_contexts(folder: Path, seed: int, contexts: Contexts) -> None:
    """Save context texts, unless texts of this seed are saved already; the texts of other seeds stay."""
    path = folder / CONTEXTS
    by_seed = _all_contexts(path)
    new = {style: list(texts) for style, texts in contexts.items()}
    write_json(path, {**by_seed, str(seed): by_seed.get(str(seed), new)})


def _all_contexts(path: Path) -> dict[str, Any]:
    """The texts of all seeds in a file; none if there is no file."""
    if not path.is_file():
        return {}
    again = "the next start of the run sets it aside and samples the context texts again"
    try:
        return dict(fitted(read_json(path), dict[str, dict[str, list[str]]], "its content"))
    except Damaged as error:
        raise Damaged(f"{error}; {again}") from error
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}; {again}") from error
