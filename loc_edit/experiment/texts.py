"""What a run takes from texts, saved with it: the editors' context texts, and checksums of the key statistics.

A resumed run takes the same texts, and is refused if the statistics are others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loc_edit.arguments import fitted
from loc_edit.files import Damaged, read_json, set_aside, write_json
from loc_edit.store.folder import RunMismatch
from loc_edit.store.layout import CONTEXTS, KEY_STATS

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


def save_key_stats(folder: Path, corpus: str, checksums: Mapping[int, str]) -> None:
    """Save the checksums of the key statistics, unless earlier starts had other statistics."""
    write_json(folder / KEY_STATS, refuse_other_key_stats(folder, corpus, checksums))


def refuse_other_key_stats(folder: Path, corpus: str, checksums: Mapping[int, str]) -> dict[str, dict[str, str]]:
    """Compares key statistics with those behind a run's rows.

    Returns the checksums of all key statistics of the run, by corpus and layer, the given ones among them.

    Args:
        folder: the run's.
        corpus: a name for what the statistics are computed from.
        checksums: by layer, of its second moment.

    Raises:
        RunMismatch: a layer has other statistics than the rows in the folder were computed with.
        Damaged: the file is damaged, or was edited.
    """
    path = folder / KEY_STATS
    by_corpus = read_json(path) if path.is_file() else {}
    new, earlier = {str(layer): checksum for layer, checksum in checksums.items()}, by_corpus.get(corpus, {})
    if others := [layer for layer in new if earlier.get(layer, new[layer]) != new[layer]]:
        raise RunMismatch(
            f"{folder} holds rows of other key statistics: at layer {others[0]} their checksum is "
            f"{earlier[others[0]]} there and {new[others[0]]} here (layers that differ: {', '.join(others)}).  Copy "
            "the file of statistics from the cache of the machine that began the run, or choose another folder; to go "
            f"on with both, remove {KEY_STATS}: the column key_stats of the rows then tells them apart"
        )
    return {**by_corpus, corpus: {**earlier, **new}}
