"""Writes the report of a run as one HTML file."""

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from loc_edit.analysis.regression.verdict import QUESTIONS
from loc_edit.analysis.run import Run, load_run
from loc_edit.analysis.status import run_progress
from loc_edit.analysis.tables.localized import of_localizer
from loc_edit.analysis.tables.rows import DEFAULT_WINDOW, RowsMissing, StudyRows
from loc_edit.arguments import checked
from loc_edit.facts.fact import Fact
from loc_edit.files import signed_page, write_atomic
from loc_edit.names import first_few
from loc_edit.report import page, sections, summary
from loc_edit.report.explorer import Continuations, changed_facts, explorer
from loc_edit.report.packing import embedded
from loc_edit.report.texts import facts_of

log = logging.getLogger(__name__)

NAME = "report.html"
HEAVIEST = 16_000_000
"""The largest size of the explorer's data in bytes: with figures and scripts, the page stays below 20 MB."""


@checked
def write_report(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    facts: int = 1000,
    window: int | None = None,
    draws: int = 2000,
    texts: Mapping[int, Fact] | None = None,
    next_tokens: Continuations | None = None,
) -> Path:
    """Writes a run's report: one HTML file that opens anywhere and loads nothing.

    It holds the answer in words, every table and figure that the rows allow, the run's provenance, and an explorer
    of its facts.  The same run and arguments give the same bytes.

    Args:
        run: from `load_run`, or its folder.
        out: the file, or a folder for `report.html`; by default `report.html` in the run's folder.
        facts: the largest number of facts in the explorer, taken evenly over the run's.
        window: the restoration window of tables and figures; by default 5, or the only one, or the first.
        draws: resamples and permutations of the statistics; 0 leaves the answer out.
        texts: the facts by id, for the prompts' texts; by default the facts that the run's configuration names.
        next_tokens: next tokens before and after edits, which need the model (`loc-edit report --model`).

    Returns:
        The file.

    Raises:
        BadRun: there is no run, or this version cannot read it.
        RowsMissing: the run has no rows yet, or no traces with this window.
        StoreError: the disk refused.
    """
    run = run if isinstance(run, Run) else load_run(run)
    rows, notes = _rows(run, window)
    if texts is None:
        texts, reason = facts_of(run.config)
        if reason:
            notes.append(f"Prompts are spelled from tokens, and paraphrases and neighbors have no text: {reason}.")
    if changed := changed_facts(rows.localized, rows.edits, texts):
        ids = first_few(changed, 5)
        notes.append(f"Facts that have changed since the run, whose texts are left out: {len(changed)} (ids {ids}).")
    path = _place(run, out)
    path.parent.mkdir(parents=True, exist_ok=True)  # an error is better known before the work
    explorer_data = _explorer(rows, texts, facts, next_tokens)
    html = page.render(_content(run, rows, notes, draws, explorer_data))
    write_atomic(path, signed_page(html.encode("utf-8", "replace").decode()).encode())
    return path


def _place(run: Run, out: str | Path | None) -> Path:
    if out is None:
        return run.path / NAME
    path = Path(out).expanduser()
    return path / NAME if path.is_dir() or str(out).endswith(os.sep) else path


def _rows(run: Run, window: int | None) -> tuple[StudyRows, list[str]]:
    """The run's rows of one metric and seed with the main window and site, and notes about rows left out."""
    localized, edits = run.traces, run.read("edits", lists=True)
    traces = of_localizer(localized)
    if localized.empty and edits.empty:
        raise RowsMissing(f"{run.path}: the run has no rows yet, so there is nothing to report")
    notes = [_unfinished(run)]
    site = "mlp_out"
    if len(traces):
        traces, site, metric_notes = _one_kind(traces)
        windows = sorted(int(w) for w in traces.loc[traces["site"] == site, "window"].unique())
        if window is not None and window not in windows:
            raise RowsMissing(f"{run.path}: no traces with window {window}; expected one of {windows}")
        window = window or (DEFAULT_WINDOW if DEFAULT_WINDOW in windows else windows[0])
        notes += metric_notes
    seeds = sorted(edits["seed"].unique())
    if len(seeds) > 1:
        edits = edits[edits["seed"] == seeds[0]]
        notes.append(f"The run has edits of {len(seeds)} seeds; only edits of seed {seeds[0]} are shown.")
    if run.damaged:
        notes.append(f"Damaged files of rows, which are left out: {len(run.damaged)}.")
    others = localized[~localized.index.isin(of_localizer(localized).index)]
    return StudyRows(traces, edits, window, site, pd.concat([traces, others])), [note for note in notes if note]


def _one_kind(traces: pd.DataFrame) -> tuple[pd.DataFrame, str, list[str]]:
    """The traces of one metric, and the site for tables and figures."""
    notes = []
    metrics = sorted(traces["metric"].unique())
    if len(metrics) > 1:
        kept = "probability" if "probability" in metrics else metrics[0]
        traces = traces[traces["metric"] == kept]
        notes.append(f"The traces have several metrics ({', '.join(metrics)}); only {kept} is shown.")
    sites = sorted(traces["site"].unique())
    site = "mlp_out" if "mlp_out" in sites else sites[0]
    if len(sites) > 1:
        notes.append(f"Traced sites: {', '.join(sites)}; tables and figures show {site}.")
    return traces, site, notes


def _unfinished(run: Run) -> str:
    try:
        progress = run_progress(run)
    except (ValueError, OSError) as error:
        log.info("the progress of the run is unknown: %s", error)
        return ""
    if not progress.remaining:
        return ""
    remaining = {"edits": int(progress.edits["remaining"].sum()), "traces": int(progress.traces["remaining"].sum())}
    remaining["sequences"] = progress.sequences[1] - progress.sequences[0]
    parts = [f"{n:,} {kind}" for kind, n in remaining.items() if n]
    return f"The run is not finished: {' and '.join(parts)} remain. The report shows the rows so far."


def _content(run: Run, rows: StudyRows, notes: list[str], draws: int, explorer_data: dict[str, Any]) -> dict[str, Any]:
    verdicts, reason = summary.verdicts(rows, draws)
    word, sentence = summary.headline([row["answers"][0] for row in verdicts], reason)
    tables, missing_tables = sections.table_sections(rows, draws)
    figures, missing_figures = sections.figure_sections(rows)
    compared_tables, compared_figures, not_compared = sections.comparison_sections(rows, draws, run)
    return {
        "question": summary.QUESTION,
        "name": run.path.resolve().name,
        "model": str(run.config.get("model", "")),
        "data": str(run.config.get("data", "")),
        "fingerprint": str(run.provenance.get("model_fingerprint", "")),
        "window": rows.window,
        "site": rows.site,
        "word": word,
        "sentence": sentence,
        "verdicts": verdicts,
        "questions": [question.label.capitalize() for question in QUESTIONS.values()],
        "counts": summary.counts(rows),
        "notes": notes,
        "curves": summary.curves(rows),
        "reasons": sections.reasons(rows),
        "tables": tables + compared_tables,
        "figures": figures + compared_figures,
        "missing": missing_tables | missing_figures | not_compared,
        "provenance": sections.provenance(run.config, run.provenance),
        "explorer": explorer_data,
    }


def _explorer(
    rows: StudyRows, texts: Mapping[int, Fact], most: int, next_tokens: Continuations | None
) -> dict[str, Any]:
    """The explorer's data, with fewer facts if they would make the page heavy."""
    collect = partial(explorer, rows.localized, rows.edits, texts, window=rows.window, next_tokens=next_tokens)
    data = collect(most=most)
    heavy = len(embedded(data).encode("utf-8", "replace")) / HEAVIEST
    if heavy <= 1:
        return data
    fewer = max(1, int(len(data["facts"]) / heavy))
    log.warning("the explorer of %d facts would be too heavy for a page: it holds %d", len(data["facts"]), fewer)
    return collect(most=fewer)
