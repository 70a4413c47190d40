"""Grades localizers and edits where it is known which layer learned a fact: models with planted facts."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from loc_edit.analysis.regression.effect_sizes import common_slope
from loc_edit.analysis.regression.profiles import Profiles
from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.localized import localizers_in, of_localizer
from loc_edit.analysis.tables.rows import EffectDefinition, RowsMissing, by_combination, by_layer, without_controls

Planted = Mapping[int, Sequence[int]]
"""By fact, the layers that learned it."""


def planted_in(run: Run) -> dict[int, list[int]]:
    """The planted facts of a run, by id, with their layers.

    Raises:
        RowsMissing: the run is not of a model with planted facts (`loc-edit plant`, then `run --edit`).
    """
    planted = run.config.get("planted")
    if not planted:
        raise RowsMissing(f"{run.path}: its model has no planted facts (loc-edit plant, then run --edit)")
    return {int(fact_id): list(layers) for fact_id, layers in planted.items()}


def group_name(layers: Sequence[int]) -> str:
    """`[1, 4]` -> "1+4"."""
    return "+".join(map(str, layers))


def planted_accuracy(traces: pd.DataFrame, planted: Planted, level: float = 0.95) -> pd.DataFrame:
    """How often each localizer peaks at a layer that learned the fact.

    Args:
        traces: trace rows, any number of localizers and windows.
        planted: see `planted_in`; other facts are left out.
        level: coverage of the intervals (Wilson's).

    Returns:
        A row per localizer, window and group, and one for all groups: n, found (a share; layers that tie
        share the peak), low, high, chance: what a layer drawn by lot finds; distance: the mean distance of the peak
        from the nearest of the fact's layers.
    """
    rows = []
    for name in localizers_in(traces):
        of_name = of_localizer(traces, name)
        for window in sorted(of_name["window"].unique()):
            effects = by_layer(of_name, EffectDefinition(int(window), str(of_name["site"].iloc[0]), localizer=name))
            wide = effects.pivot(index="fact_id", columns="layer", values="trace").dropna()
            graded = pd.DataFrame(
                {
                    "group": [group_name(planted[fact]) for fact in wide.index if fact in planted],
                    **_graded(wide[wide.index.isin(list(planted))], planted),
                }
            )
            parts = [*graded.groupby("group", sort=False), ("all", graded)]
            for group, part in sorted(parts, key=lambda pair: (pair[0] == "all", str(pair[0]))):
                low, high = proportion_confint(part["found"].sum(), len(part), 1 - level, "wilson")
                means = {column: float(part[column].mean()) for column in ("found", "chance", "distance")}
                place = {"localizer": name, "window": int(window), "group": group, "n": len(part)}
                rows.append({**place, **means, "low": float(low), "high": float(high)})
    if not rows:
        raise RowsMissing("no planted fact has a trace")
    columns = ["localizer", "window", "group", "n", "found", "low", "high", "chance", "distance"]
    return pd.DataFrame(rows)[columns]


def _graded(effects: pd.DataFrame, planted: Planted) -> dict[str, list[float]]:
    """For each fact: the share of its peak at its layers, its layers' share of all, the distance of the two."""
    found, chance, distance = [], [], []
    layers = effects.columns.to_numpy()
    for fact, values in effects.iterrows():
        own = planted[int(str(fact))]
        peak = layers[values.to_numpy() >= values.max()]
        found.append(float(np.isin(peak, own).mean()))
        chance.append(len(set(own) & set(layers)) / len(layers))
        distance.append(float(np.abs(peak[:, None] - np.asarray(own)[None]).min(1).mean()))
    return {"found": found, "chance": chance, "distance": distance}


def planted_edits(edits: pd.DataFrame, planted: Planted, outcome: str = "rewrite") -> pd.DataFrame:
    """The mean score of edits by the layers that learned a fact and the layer that is edited.

    Returns:
        A row per problem x method x window x group x layer: n, mean; planted: whether the group learned at that layer.
    """
    rows = without_controls(edits)
    rows = rows[(rows["status"] == "done") & rows["fact_id"].isin(list(planted))]
    if rows.empty:
        raise RowsMissing("no planted fact has a finished edit")
    here = [layer in planted[fact] for fact, layer in zip(rows["fact_id"], rows["layer"], strict=True)]
    groups = rows.assign(group=[group_name(planted[fact]) for fact in rows["fact_id"]], planted=here)
    keys = ["problem", "method", "window", "group", "layer"]
    means = groups.groupby(keys).agg(n=(outcome, "count"), mean=(outcome, "mean"), planted=("planted", "first"))
    return means.reset_index().assign(outcome=outcome)


def planted_gain(edits: pd.DataFrame, planted: Planted, outcome: str = "rewrite", level: float = 0.95) -> pd.DataFrame:
    """How much better an edit is at a layer that learned the fact than elsewhere: is the diagonal special?

    The means of each edited layer and of each fact are taken off first.  So neither a layer that is good for every fact
    counts, nor a group of facts that is easy to edit at every layer.

    Returns:
        A row per problem x method x window: n_facts; gain, low, high (jackknife over facts, CR3), p.
    """
    rows = without_controls(edits)
    rows = rows[rows["fact_id"].isin(list(planted))]
    here = [float(layer in planted[fact]) for fact, layer in zip(rows["fact_id"], rows["layer"], strict=True)]
    rows = rows.assign(trace=here, layer=rows["layer"].astype("int64"))
    table = []
    for key, part in by_combination(rows):
        profiles = Profiles.of(part, outcome).within_facts()
        slope = common_slope(profiles, level)
        columns = {"gain": slope.middle, "low": slope.low, "high": slope.high, "p": slope.p}
        table.append({**key, "outcome": outcome, "n_facts": len(profiles.trace), **columns})
    if not table:
        raise RowsMissing("no planted fact has an edit")
    return pd.DataFrame(table)
