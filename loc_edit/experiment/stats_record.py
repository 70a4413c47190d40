"""The record of a run's key statistics: a resumed run is refused if it would compute rows with other ones."""

from pathlib import Path

import numpy as np

from loc_edit.experiment.setup import Setup
from loc_edit.files import read_json, write_json
from loc_edit.store.folder import RunMismatch
from loc_edit.store.layout import KEY_STATS

Record = dict[str, dict[str, dict[str, list[float]]]]
"""By corpus, layer and checksum, the sketch of the statistics (see `KeyStats.sketch`)."""
ROUNDING = 1e-4
"""How far sketches of the same key statistics differ at most from machine to machine, as a share of their size."""


def save_key_stats(folder: Path, setup: Setup) -> None:
    """Record which key statistics rows are computed with, unless earlier starts had other ones."""
    write_json(folder / KEY_STATS, refuse_other_key_stats(folder, setup))


def refuse_other_key_stats(folder: Path, setup: Setup) -> Record:
    """Compares key statistics with those behind a run's rows.

    Statistics are the same if their checksum is, or if they differ by no more than the rounding of another machine.

    Returns what the run's record is to say, the statistics of the setup among the others.

    Args:
        folder: the run's.
        setup: has the statistics, and the layers at which they are needed.

    Raises:
        RunMismatch: a layer has other statistics than the rows in the folder were computed with.
        Damaged: the file is damaged, or was edited.
    """
    record = recorded_key_stats(folder)
    earlier, others = record.get(setup.stats_name, {}), []
    by_layer = dict(earlier)
    for layer in setup.layers_of_stats:
        checksum, known = setup.stats.checksum(layer), earlier.get(str(layer), {})
        if known.get(checksum):
            continue
        sketch = setup.stats.sketch(layer)
        if known and checksum not in known and not _agrees(sketch, known):
            others.append((layer, known, checksum))
        by_layer[str(layer)] = {**known, checksum: sketch}
    if others:
        layer, known, here = others[0]
        why = "they differ by more than rounding"
        if not any(known.values()):
            why = "its record is too old to say whether they differ by rounding only"
        layers = ", ".join(str(layer) for layer, *_ in others)
        raise RunMismatch(
            f"{folder} holds rows of other key statistics: at layer {layer} their checksum is {next(iter(known))} "
            f"there and {here} here, and {why} (layers that differ: {layers}).  Copy the file of statistics from the "
            "cache of the machine that began the run, or choose another folder; to go on with both, remove "
            f"{KEY_STATS}: the column key_stats of the rows then tells them apart"
        )
    return {**record, setup.stats_name: by_layer}


def _agrees(sketch: list[float], known: dict[str, list[float]]) -> bool:
    """Whether a sketch is one of the known ones, up to the rounding of another machine."""
    return any(np.allclose(sketch, other, rtol=ROUNDING, atol=0) for other in known.values() if other)


def recorded_key_stats(folder: Path) -> Record:
    """Reads the record in a run's folder; the record of an old run has empty sketches.

    Raises:
        Damaged: the file is damaged, or was edited.
    """
    path = folder / KEY_STATS
    record = read_json(path) if path.is_file() else {}
    return {
        corpus: {layer: {known: []} if isinstance(known, str) else known for layer, known in layers.items()}
        for corpus, layers in record.items()
    }
