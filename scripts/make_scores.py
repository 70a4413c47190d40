"""Make `figures/erasure/` or `figures/after_edits/`: further scores by edited layer, and by what localizers say.

python scripts/make_scores.py erasure               # built-in model, 60 facts: about an hour on one core
python scripts/make_scores.py after_edits           # built-in model, 100 facts: about an hour on one core
python scripts/make_scores.py erasure --no-run      # from the rows that are there

In `erasure`, erased facts are asked for in other formats and taught again, and injected facts are asked for in other
formats.  In `after_edits`, the edited model writes, its weights are rounded and merged, and the fact is traced again.
"""

import argparse
from pathlib import Path

import pandas as pd

import loc_edit
from loc_edit.analysis.comparisons import further_scores, write_comparisons
from loc_edit.analysis.regression.localizers import localizer_choices
from loc_edit.analysis.regression.paper import resampled_tables
from loc_edit.analysis.tables.paper import write_table
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows, join_by_localizer
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.events import ProgressLines, listening
from loc_edit.names import scores_of

EXPERIMENTS = Path(__file__).parent / "experiments"
STUDIES = {
    "erasure": {"fact_erasure": ("formats", "relearning"), "error_injection": ("formats",)},
    "after_edits": {"error_injection": ("generation", "survival", "movement")},
}
"""By configuration and problem, what the edits are scored by; each problem is a run."""
FIGURES = Path(__file__).parents[1] / "figures"

SCORED = 0.8
"""The least share of edits that have a score, for a layer to be compared: nothing returns where nothing was lost."""


def where_scored(edits: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """The edits of the layers where most edits of a method have the score."""
    is_scored = edits[outcome].notna()
    return edits[is_scored.groupby([edits["method"], edits["window"], edits["layer"]]).transform("mean") >= SCORED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--facts", type=int, help="fewer or more facts than the configuration has")
    parser.add_argument("--runs", type=Path, help="the folder with a run for each problem; default: runs/STUDY")
    parser.add_argument("--out", type=Path, help="the folder of the tables; default: figures/STUDY")
    parser.add_argument("--workers", type=int, help="processes; default: as many as cores and memory allow")
    parser.add_argument("--no-run", action="store_true", help="compute nothing, make the tables of what is there")
    args = parser.parse_args()
    config = loc_edit.ExperimentConfig.from_toml(EXPERIMENTS / f"{args.study}.toml")
    out = args.out or FIGURES / args.study
    by_layer, choices, verdicts = [], [], []
    for problem, scores in STUDIES[args.study].items():
        folder = (args.runs or Path("runs") / args.study) / problem
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
        write_comparisons(further_scores(run.edits), out, out)
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
        write_table(pd.concat(parts, ignore_index=True), out, name)
    print(f"{out}: {', '.join(tables)}")


if __name__ == "__main__":
    main()
