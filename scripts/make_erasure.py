"""Make `figures/erasure/`: whether an erased fact is gone, by edited layer and by what localizers say.

python scripts/make_erasure.py                      # built-in model, 60 facts: about an hour on one core
python scripts/make_erasure.py --no-run             # from the rows that are there

Erased facts are asked for in other formats and taught again; injected facts are asked for in other formats.
"""

import argparse
from pathlib import Path

import pandas as pd

import loc_edit
from loc_edit.analysis.regression.localizers import localizer_choices
from loc_edit.analysis.regression.paper import resampled_tables
from loc_edit.analysis.tables.paper import write_table
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows, join_by_localizer
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.events import ProgressLines, listening
from loc_edit.names import scores_of

CONFIGURATION = Path(__file__).parent / "experiments" / "erasure.toml"
STUDIES = {"fact_erasure": ("formats", "relearning"), "error_injection": ("formats",)}
"""By problem, what its edits are scored by."""
FIGURES = Path(__file__).parents[1] / "figures" / "erasure"


SCORED = 0.8
"""The least share of edits that have a score, for a layer to be compared: nothing returns where nothing was lost."""


def where_scored(edits: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """The edits of the layers where most edits of a method have the score."""
    is_scored = edits[outcome].notna()
    return edits[is_scored.groupby([edits["method"], edits["window"], edits["layer"]]).transform("mean") >= SCORED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, help="fewer or more facts than the configuration has")
    parser.add_argument("--runs", type=Path, default=Path("runs/erasure"), help="the folder of the two runs")
    parser.add_argument("--out", type=Path, default=FIGURES, help="the folder of the tables")
    parser.add_argument("--workers", type=int, help="processes; default: as many as cores and memory allow")
    parser.add_argument("--no-run", action="store_true", help="compute nothing, make the tables of what is there")
    args = parser.parse_args()
    config = loc_edit.ExperimentConfig.from_toml(CONFIGURATION)
    by_layer, choices, verdicts = [], [], []
    for problem, scores in STUDIES.items():
        folder = args.runs / problem
        if not args.no_run:
            changes = {"problems": (problem,), "scores": scores, "facts": args.facts or config.facts}
            experiment = loc_edit.Experiment(config.model_copy(update=changes))
            with listening(ProgressLines()):
                experiment.run(folder, workers=args.workers or experiment.default_workers())
        if not folder.is_dir():
            print(f"no rows of {problem} in {folder}")
            continue
        run = loc_edit.load_run(folder)
        outcomes = ["rewrite", "paraphrase", *(name for scorer in scores for name in scores_of(scorer))]
        by_layer.append(mean_scores(run.edits, outcomes))
        for outcome in outcomes:
            try:
                choices.append(
                    localizer_choices(join_by_localizer(where_scored(run.edits, outcome), run.traces), outcome)
                )
            except RowsMissing as error:
                print(f"{problem}: {error}")
        rows = StudyRows.of(run.traces, run.edits)
        verdict = resampled_tables()["verdict"].build(rows)
        verdicts.append(verdict[verdict["outcome"].isin(outcomes)])
    tables = {"scores_by_layer": by_layer, "localizer_choices": choices, "verdict": verdicts}
    for name, parts in tables.items():
        write_table(pd.concat(parts, ignore_index=True), args.out, name)
    print(f"{args.out}: {', '.join(tables)}")


if __name__ == "__main__":
    main()
