"""Runs for the tests of the report: usual ones, and ones in which every text is hostile."""

from contextlib import contextmanager

import numpy as np
import pytest
import synthetic

import loc_edit
from loc_edit.analysis.figures.paper import FIGURES
from loc_edit.analysis.regression.paper import TABLES
from loc_edit.analysis.run import Run
from loc_edit.facts.fact import Fact

CONFIG = {"model": "tiny", "data": "nowhere.json", "facts": 12, "seed": 0, "site": "mlp_out", "windows": [5]}
HOSTILE = (
    "</script><script>window.ran=1</script>",
    '"><img src=x onerror="window.ran=2">',
    "'; window.ran = 3; //",
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd",
    "\U0001f99c <!-- <script>",
    "{{ 7 * 7 }} ${window.ran=4}",
)


def make_run(folder, traces, edits, **config):
    with Run.create(folder, CONFIG | config, {"model_fingerprint": "abc", "seed": 0}) as run:
        if len(traces):
            run.write("traces", "t", traces)
        if len(edits):
            run.write("edits", "e", edits)
    return loc_edit.load_run(folder)


def rows_of_a_run():
    """Trace and edit rows of twelve facts, with probabilities before and after."""
    traces = synthetic.trace_rows(windows=(1, 5))
    edits = synthetic.edit_rows(traces, methods=(("rome", 1), ("memit", 5)))
    n = len(edits)
    edits["paraphrase_before"], edits["paraphrase_after"] = [[0.1, 0.2]] * n, [[0.6, 0.7]] * n
    edits["neighborhood_before"], edits["neighborhood_after"] = [[0.3]] * n, [[0.4]] * n
    return traces, edits


@contextmanager
def few_pictures():
    """Some of the tables and figures, one of which cannot be made: all of them take ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        some = ("figure_1", "figure_2", "figure_7", "figure_13")
        patch.setattr("loc_edit.report.sections.FIGURES", {name: FIGURES[name] for name in some})
        patch.setattr("loc_edit.report.sections.TABLES", {name: TABLES[name] for name in ("table_1", "table_3")})
        yield


def hostile_run(folder, rows):
    """A run in which every text that data can bring is hostile."""
    traces, edits = (frame.copy() for frame in rows)
    traces["token"] = [HOSTILE[pos % len(HOSTILE)] for pos in traces["pos"]]
    traces["relation"] = HOSTILE[0]
    edits["target"], edits["reason"] = HOSTILE[1], HOSTILE[0]
    edits.loc[edits["layer"] == 2, ["status", "rewrite"]] = ["failed", np.nan]
    return make_run(folder, traces, edits, data=HOSTILE[0], model=HOSTILE[1], note=HOSTILE[4])


def hostile_facts(run):
    """Facts for that run, each with the traced subject, hostile in everything."""
    facts = {}
    for i, cells in run.traces.query("window == 5 and layer == 0").groupby("fact_id"):
        begin, end = cells[["subject_begin", "subject_end"]].iloc[0]
        facts[i] = Fact(
            fact_id=int(i),
            template="{}" + HOSTILE[i % len(HOSTILE)],
            subject="".join(cells.sort_values("pos")["token"].iloc[begin:end]),
            target_true=HOSTILE[(i + 1) % len(HOSTILE)],
            target_new=HOSTILE[2],
            relation=HOSTILE[1],
            paraphrases=HOSTILE[:2],
            neighbors=HOSTILE[4:5],
        )
    return facts
