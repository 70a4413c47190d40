"""Collects the data of the page's explorer: facts with their traces and edits, in a compact form."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
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
"""The kinds of raw probabilities that are shown, in the order of their columns."""

Key = tuple[str, str, int]
"""Problem, method, window."""


@dataclass(frozen=True)
class Continuations:
    """The likeliest next tokens after an edit prompt, with their probabilities, which no row holds.

    Attributes:
        before: the tokens of the unedited model, by fact.
        after: the edited layer and the tokens of the edited model, by fact and (problem, method, window).
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
    """Returns the explorer's data as plain values without NaN; long arrays of numbers are packed.

    Args:
        traces: trace rows.
        edits: edit rows with their list columns; controls are left out.
        facts: known facts by id; a fact that has changed since the run is not used (see `changed_facts`), nor one whose
            subject is not in the traced tokens.
        most: the largest number of facts, taken evenly over the ids.
        window: the restoration window that is chosen when the page opens.
        next_tokens: see `Continuations`.
    """
    edits = in_paper_order(without_controls(edits))
    ids = np.union1d(traces["fact_id"], edits["fact_id"]).astype(int)
    changed = changed_facts(traces, edits, facts)
    records = {int(fact): {"id": int(fact), "traces": {}, "edits": {}} for fact in thinned(ids, most)}
    grids = _grids(traces)
    for grid, rows in grids:
        _add_traces(records, grid, rows)
    combinations: dict[Key, dict[str, Any]] = {}
    for (problem, method, edit_window), rows in _groups(edits, ["problem", "method", "window"]):
        names = {"problem": problem_label(problem), "method": method_label(method, edit_window)}
        combination = {**names, "layers": np.unique(rows["layer"]).tolist()}
        _add_edits(records, str(len(combinations)), combination["layers"], rows)
        combinations[problem, method, edit_window] = combination
    for fact, record in records.items():
        _add_texts(record, None if fact in changed else facts.get(fact))
        if next_tokens is not None:
            _add_next(record, list(combinations), next_tokens)
    usual = [i for i, (grid, _) in enumerate(grids) if (grid["localizer"], grid["window"]) == (TRACING, window)]
    return {
        "total": len(ids),
        "outcomes": list(OUTCOMES),
        "grids": [grid for grid, _ in grids],
        "grid": max(usual, default=0),
        "combos": list(combinations.values()),
        "facts": list(records.values()),
    }


def changed_facts(traces: pd.DataFrame, edits: pd.DataFrame, facts: Mapping[int, Fact]) -> list[int]:
    """Returns the ids of the facts whose content is another than in the rows: they have changed since the run.

    Rows of old versions, which do not name the content, tell nothing.
    """
    pairs = pd.concat([rows.reindex(columns=["fact_id", "fact_content"]) for rows in (traces, edits)]).drop_duplicates()
    contents = pairs[pairs["fact_content"].fillna("") != ""].itertuples(index=False)
    return sorted({int(i) for i, content in contents if i in facts and facts[i].content != content})


def thinned(ids: np.ndarray, most: int) -> np.ndarray:
    """Returns at most `most` of the ids, evenly spread.

    Raises:
        ValueError: `most` is less than 1.
    """
    if most < 1:
        raise ValueError(f"facts {most}: expected at least 1")
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(int))]


def _groups(rows: pd.DataFrame, columns: str | list[str], sort: bool = False) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The groups of rows by the values of columns, in the order of the rows or sorted by the values."""
    yield from rows.groupby(columns, sort=sort)


def _grids(traces: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Every localizer, site and window with its label and its rows; Causal Tracing first."""
    grids = []
    for name in localizers_in(traces):
        prefix = "" if name == TRACING else name
        for (site, window), rows in _groups(of_localizer(traces, name), ["site", "window"], sort=True):
            key, label = f"{site}/{window}", f"{window} ({site})"
            names = (
                {"key": f"{prefix}/{key}", "label": f"{prefix}, {label}"} if prefix else {"key": key, "label": label}
            )
            grids.append(({"localizer": name, "site": site, "window": int(window), **names}, rows))
    return grids


def _add_traces(records: dict[int, dict[str, Any]], grid: Mapping[str, Any], rows: pd.DataFrame) -> None:
    """Adds each fact's grid of one localizer, site and window: restored values [layer, pos] and a curve over layers."""
    rows = rows[rows["fact_id"].isin(records)]
    if rows.empty:
        return
    rows = rows.sort_values(["fact_id", "layer", "pos"], kind="stable")
    curves = by_layer(rows, EffectDefinition(grid["window"], grid["site"], localizer=grid["localizer"]))
    curve_of = {fact: part["trace"].to_numpy() for fact, part in _groups(curves, "fact_id")}
    for fact, cells in _groups(rows, "fact_id"):
        first, record = cells.iloc[0], records[fact]
        layers, n_pos = np.unique(cells["layer"]), cells["pos"].nunique()
        if len(cells) != len(layers) * n_pos:
            continue  # an incomplete grid: this package did not write its rows
        if "tokens" not in record:
            positions = cells[cells["layer"] == layers[0]]
            tokens = positions["token"].tolist()
            record["tokens"] = tokens if any(tokens) else [f"token {pos}" for pos in positions["pos"]]
            record["subject"] = [int(first["subject_begin"]), int(first["subject_end"])]
            record["relation"] = first["relation"]
        record["traces"][grid["key"]] = {
            "layers": layers.tolist(),
            "clean": number(first["p_clean"]),
            "corrupted": number(first["p_corrupted"]),
            "restored": packed(cells["p_restored"]),
            "curve": packed(curve_of[fact]),
            "metric": first["metric"] or "probability",
        }


def _add_edits(records: dict[int, dict[str, Any]], key: str, layers: list[int], rows: pd.DataFrame) -> None:
    """Adds each fact's edits of one problem and method."""
    probabilities = [f"{kind}_{time}" for kind in KINDS for time in ("before", "after")]
    columns = ["fact_id", "layer", "status", "reason", "target", "objective", *OUTCOMES]
    columns += [name for name in probabilities if name in rows]
    rows_of: dict[int, list[dict[Hashable, Any]]] = defaultdict(list)
    for row in rows.loc[rows["fact_id"].isin(records), columns].to_dict("records"):
        rows_of[row["fact_id"]].append(row)
    for fact, fact_rows in rows_of.items():
        records[fact]["edits"][key] = _edits_of(fact_rows, layers)


def _edits_of(rows: list[dict[Hashable, Any]], layers: list[int]) -> dict[str, Any]:
    """Returns one fact's edits: scores [layer, outcome] and probabilities [1 + layer, prompt], first before edits."""
    scores = np.full((len(layers), len(OUTCOMES)), np.nan)
    notes: dict[str, str] = {}
    probabilities: dict[int, tuple[list[float], list[float]]] = {}
    lengths = [0] * len(KINDS)
    for row in rows:
        place = layers.index(row["layer"])
        scores[place] = [row[name] for name in OUTCOMES]
        if row["status"] != "done":
            notes[str(row["layer"])] = f"{row['status']}: {row['reason'] or 'no reason given'}"
        before, after = ([_list(row.get(f"{kind}_{time}")) for kind in KINDS] for time in ("before", "after"))
        if any(after):
            lengths = [len(values) for values in after]
            probabilities[place] = list(chain(*before)), list(chain(*after))
    numbers = np.full((1 + len(layers), sum(lengths)), np.nan)
    for place, (p_before, p_after) in probabilities.items():
        if len(p_before) == len(p_after) == sum(lengths):
            numbers[0], numbers[1 + place] = p_before, p_after
    return {
        "target": rows[0]["target"].strip(),
        "objective": rows[0]["objective"] or "raise",
        "scores": packed(scores),
        "lengths": lengths,
        "numbers": packed(numbers),
        **({"notes": notes} if notes else {}),
    }


def _list(value: Any) -> list[float]:
    return [] if value is None else np.atleast_1d(np.asarray(value, dtype=float)).tolist()


def _add_texts(record: dict[str, Any], fact: Fact | None) -> None:
    """Adds the texts of the fact if it is known and is the traced one; else the prompt that its tokens spell."""
    tokens = record.get("tokens", [])
    if fact is not None and (not tokens or belongs(fact, tokens, *record["subject"])):
        record["prompt"], record["about"] = fact.prompt, fact.subject
        record["true"], record["new"] = fact.target_true, fact.target_new
        record["paraphrases"], record["neighbors"] = list(fact.paraphrases), list(fact.neighbors)
        record["relation"] = fact.relation or record.get("relation", "")
    else:
        record["prompt"] = "".join(tokens).replace("\u2581", " ").strip() or f"fact {record['id']}"


def _add_next(record: dict[str, Any], combinations: Sequence[Key], next_tokens: Continuations) -> None:
    if record["id"] not in next_tokens.before:
        return
    record["next"] = [[text, number(p)] for text, p in next_tokens.before[record["id"]]]
    for key, (layer, tokens) in next_tokens.after.get(record["id"], {}).items():
        place = str(combinations.index(key)) if key in combinations else ""
        if place in record["edits"]:
            record["edits"][place]["next"] = {"layer": layer, "tokens": [[text, number(p)] for text, p in tokens]}
