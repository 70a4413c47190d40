"""What the page's explorer shows: facts with their traces and edits, in a compact form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from loc_edit.analysis.tables.localized import localizers_in, of_localizer
from loc_edit.analysis.tables.rows import EffectDefinition, by_layer, in_paper_order, without_controls
from loc_edit.facts.fact import Fact
from loc_edit.names import TRACING, method_label, problem_label
from loc_edit.report.packing import number, packed
from loc_edit.report.texts import belongs

OUTCOMES = ("rewrite", "paraphrase", "neighborhood", "essence", "overall")
KINDS = ("rewrite", "rewrite_other", "paraphrase", "neighborhood")
"""Raw probabilities that are shown, in the order of their columns."""

Key = tuple[str, str, int]
"""Problem, method, window."""


@dataclass(frozen=True)
class Continuations:
    """The likeliest next tokens after an edit prompt, with their probabilities: the one thing that rows do not hold.

    Attributes:
        before: of the unedited model, by fact.
        after: by fact and (problem, method, window): the edited layer, and the tokens of the model so edited.
    """

    before: Mapping[int, Sequence[tuple[str, float]]] = field(default_factory=dict)
    after: Mapping[int, Mapping[Key, tuple[int, Sequence[tuple[str, float]]]]] = field(default_factory=dict)


def explorer(
    traces: pd.DataFrame,
    edits: pd.DataFrame,
    facts: Mapping[int, Fact],
    *,
    most: int,
    window: int | None = None,
    next_tokens: Continuations | None = None,
) -> dict[str, Any]:
    """The explorer's data: plain, without NaN, packed numbers where there are many.

    Args:
        traces: trace rows.
        edits: edit rows with their lists; controls are left out.
        facts: texts of the facts by id, where known; one whose subject is not in the traced tokens is not used.
        most: how many facts at most, evenly spread over the ids.
        window: the restoration window that is chosen at first.
        next_tokens: see `Continuations`.
    """
    edits = in_paper_order(without_controls(edits))
    ids = np.union1d(_ids(traces), _ids(edits))
    chosen = thinned(ids, most)
    combos = _combos(edits)
    records = {int(fact): {"id": int(fact), "traces": {}, "edits": {}} for fact in chosen}
    grids = _grids(traces)
    for grid, rows in grids:
        _add_traces(records, grid, rows)
    for i, combo in enumerate(combos):
        _add_edits(records, i, combo, edits)
    for fact, record in records.items():
        _add_texts(record, facts.get(fact))
        _add_next(record, combos, next_tokens)
    usual = [i for i, (grid, _) in enumerate(grids) if (grid["localizer"], grid["window"]) == (TRACING, window)]
    return {
        "total": len(ids),
        "outcomes": list(OUTCOMES),
        "grids": [grid for grid, _ in grids],
        "grid": max(usual, default=0),
        "combos": [{k: v for k, v in combo.items() if k != "key"} for combo in combos],
        "facts": list(records.values()),
    }


def thinned(ids: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the ids, evenly spread.

    Raises:
        ValueError: fewer than one is asked for.
    """
    if most < 1:
        raise ValueError(f"facts {most}: at least 1 is wanted")
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(int))] if len(ids) else ids


def _ids(rows: pd.DataFrame) -> np.ndarray:
    return np.unique(rows["fact_id"].to_numpy(dtype=np.int64)) if len(rows) else np.array([], dtype=np.int64)


def _groups(rows: pd.DataFrame, keys: list[str]) -> list[tuple[Any, pd.DataFrame]]:
    """The groups of a frame by plain keys, in order; none of an empty one."""
    if rows.empty:
        return []
    found = rows.groupby(keys, sort=True)
    return [(tuple(k.item() if isinstance(k, np.generic) else k for k in key), part) for key, part in found]


def _grids(traces: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """What each localiser, site and window is called, with its rows; Causal Tracing first."""
    found = []
    for name in localizers_in(traces):
        for (site, window), rows in _groups(of_localizer(traces, name), ["site", "window"]):
            usual = name == TRACING
            key, label = f"{site}/{window}", f"{window} ({site})"
            names = {"key": key, "label": label} if usual else {"key": f"{name}/{key}", "label": f"{name}, {label}"}
            found.append(({"localizer": name, "site": site, "window": window, **names}, rows))
    return found


def _combos(edits: pd.DataFrame) -> list[dict[str, Any]]:
    """Every problem x method that there are edits of, in the paper's order, with its layers."""
    found = []
    for key in edits[["problem", "method", "window"]].drop_duplicates().itertuples(index=False, name=None):
        problem, method, window = str(key[0]), str(key[1]), int(key[2])
        layers = np.unique(edits["layer"][_is(edits, (problem, method, window))])
        label = {"problem": problem_label(problem), "method": method_label(method, window)}
        found.append({**label, "key": (problem, method, window), "layers": layers.tolist()})
    return found


def _is(edits: pd.DataFrame, key: Key) -> pd.Series:
    return (edits["problem"] == key[0]) & (edits["method"] == key[1]) & (edits["window"] == key[2])


def _add_traces(records: dict[int, dict[str, Any]], grid: Mapping[str, Any], rows: pd.DataFrame) -> None:
    """Each fact's grid of one localiser, site and window: restored numbers [layer, pos], its curve over the layers."""
    rows = rows[rows["fact_id"].isin(records)]
    rows = rows.sort_values(["fact_id", "layer", "pos"], kind="stable")
    definition = EffectDefinition(grid["window"], grid["site"], localizer=grid["localizer"])
    curves = by_layer(rows, definition) if len(rows) else rows
    by_fact = {fact: part["trace"].to_numpy() for (fact,), part in _groups(curves, ["fact_id"])}
    for (fact,), cells in _groups(rows, ["fact_id"]):
        first = cells.iloc[0]
        layers, n_pos = np.unique(cells["layer"]), cells["pos"].nunique()
        record = records[fact]
        if len(cells) != len(layers) * n_pos:
            continue  # half a grid: rows that this package did not write
        if "tokens" not in record:
            one = cells[cells["layer"] == layers[0]]
            known = "token" in one and one["token"].astype(bool).any()
            record["tokens"] = one["token"].tolist() if known else [f"token {pos}" for pos in one["pos"]]
            record["subject"] = [int(first["subject_begin"]), int(first["subject_end"])]
            record["relation"] = str(first.get("relation", ""))
        record["traces"][grid["key"]] = {
            "layers": layers.tolist(),
            "clean": number(first["p_clean"]),
            "corrupted": number(first["p_corrupted"]),
            "restored": packed(cells["p_restored"]),
            "curve": packed(by_fact[fact]),
            "metric": str(first.get("metric", "")) or "probability",
        }


def _add_edits(records: dict[int, dict[str, Any]], i: int, combo: dict[str, Any], edits: pd.DataFrame) -> None:
    """Each fact's edits of one problem and method: scores [layer, outcome], probabilities [1 + layer, prompt]."""
    outcomes = [name for name in OUTCOMES if name in edits]
    lists = [kind for kind in KINDS if {f"{kind}_before", f"{kind}_after"} <= set(edits)]
    texts = [name for name in ("fact_id", "layer", "status", "reason", "target", "objective") if name in edits]
    columns = [*texts, *outcomes, *(f"{kind}_{when}" for kind in lists for when in ("before", "after"))]
    rows = edits.loc[_is(edits, combo["key"]) & edits["fact_id"].isin(records), columns]
    by_fact: dict[int, list[dict[str, Any]]] = {}
    for row in rows.to_dict("records"):
        by_fact.setdefault(int(row["fact_id"]), []).append({str(name): value for name, value in row.items()})
    for fact, mine in by_fact.items():
        records[fact]["edits"][str(i)] = _edits_of(mine, combo["layers"], outcomes, lists)


def _edits_of(rows: list[dict[str, Any]], layers: list[int], outcomes: list[str], lists: list[str]) -> dict[str, Any]:
    """One fact's edits of one problem and method, from its rows."""
    places = {layer: 1 + place for place, layer in enumerate(layers)}
    where = [OUTCOMES.index(name) for name in outcomes]
    scores = np.full((len(layers), len(OUTCOMES)), np.nan)
    notes: dict[str, str] = {}
    found: dict[int, tuple[list[float], list[float]]] = {}
    lengths = [0] * len(KINDS)
    for row in rows:
        scores[places[row["layer"]] - 1, where] = [row[name] for name in outcomes]
        if row["status"] != "done":
            notes[str(row["layer"])] = f"{row['status']}: {row.get('reason') or 'no reason given'}"
        pairs = {kind: (_list(row[f"{kind}_before"]), _list(row[f"{kind}_after"])) for kind in lists}
        here = [len(pairs[kind][1]) if kind in pairs else 0 for kind in KINDS]
        if sum(here):
            lengths = here
            before, after = zip(*(pairs[kind] for kind in lists), strict=True)
            found[places[row["layer"]]] = list(chain(*before)), list(chain(*after))
    numbers = np.full((1 + len(layers), sum(lengths)), np.nan)
    for place, (p, q) in found.items():
        if len(p) == len(q) == sum(lengths):
            numbers[0], numbers[place] = p, q
    return {
        "target": str(rows[0].get("target", "")).strip(),
        "objective": str(rows[0].get("objective", "")) or "raise",
        "scores": packed(scores),
        "lengths": lengths,
        "numbers": packed(numbers),
        **({"notes": notes} if notes else {}),
    }


def _list(value: Any) -> list[float]:
    if value is None:
        return []
    return np.atleast_1d(np.asarray(value, dtype=float)).tolist()


def _add_texts(record: dict[str, Any], fact: Fact | None) -> None:
    """Texts of the fact where it is known and is the traced one; else the prompt as its tokens spell it."""
    tokens = record.get("tokens", [])
    if fact is not None and (not tokens or belongs(fact, tokens, *record["subject"])):
        record["prompt"], record["about"] = fact.prompt, fact.subject
        record["true"], record["new"] = fact.target_true, fact.target_new
        record["paraphrases"], record["neighbors"] = list(fact.paraphrases), list(fact.neighbors)
        record["relation"] = fact.relation or record.get("relation", "")
    else:
        record["prompt"] = "".join(tokens).replace("\u2581", " ").strip() or f"fact {record['id']}"


def _add_next(record: dict[str, Any], combos: list[dict[str, Any]], found: Continuations | None) -> None:
    if found is None or record["id"] not in found.before:
        return
    record["next"] = [[text, number(p)] for text, p in found.before[record["id"]]]
    after = found.after.get(record["id"], {})
    for i, combo in enumerate(combos):
        if combo["key"] in after and str(i) in record["edits"]:
            layer, tokens = after[combo["key"]]
            record["edits"][str(i)]["next"] = {"layer": layer, "tokens": [[text, number(p)] for text, p in tokens]}
