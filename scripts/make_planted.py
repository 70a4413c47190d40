"""Make `figures/planted/`: which localizers find the layer that learned a fact, and where its edits work.

python scripts/make_planted.py                      # built-in model, 40 facts in every layer, seeds 0, 1, 2: hours
python scripts/make_planted.py --seeds 0            # one of them
python scripts/make_planted.py --no-run             # from the rows that are there

Each seed plants other facts, in every layer at once, and is a run of its own, which can be stopped and continues.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

import loc_edit
from loc_edit.analysis.comparisons import planted_comparisons, write_comparisons
from loc_edit.analysis.regression.planted import group_name
from loc_edit.analysis.tables.paper import write_table
from loc_edit.events import ProgressLines, listening
from loc_edit.experiment.planting import (
    EDIT,
    FACTS,
    RECALL,
    RELEARN,
    choose_planted_facts,
    make_planted_model,
    save_planted_model,
)

CONFIGURATION = Path(__file__).parent / "experiments" / "planted.toml"
SEED = 1_000_000
"""What is added to the ids of a seed's facts, so that a fact that two seeds plant stands for two."""


STUDY, RELEARNING = "study", "relearning"
"""The runs of a seed: traces and edits of the planted facts; and edits that teach the object from before again."""


def study_planted(folder: Path, model: str, seed: int, facts: int, kept: int, workers: int | None) -> None:
    """Plant, unless it was done, then trace and edit what is missing."""
    if not (folder / RECALL).is_file():
        net, data = loc_edit.load_model(model), loc_edit.load_facts("builtin")
        planting = choose_planted_facts(data, [(layer,) for layer in range(net.cfg.n_layers)], facts, kept, seed)
        save_planted_model(
            folder, planting, *make_planted_model(net, planting, "mlp_out", loc_edit.PlantSettings(), seed)
        )
    config = loc_edit.ExperimentConfig.from_toml(CONFIGURATION)
    config = config.model_copy(update={"model": model, "seed": seed, "edit": str(folder / EDIT)})
    edits_only = {"localizers": (), "problems": ("error_injection",)}
    runs: list[tuple[str, str, dict[str, Any]]] = [(STUDY, FACTS, {}), (RELEARNING, RELEARN, edits_only)]
    for name, data, changes in runs:
        experiment = loc_edit.Experiment(config.model_copy(update={"data": str(folder / data), **changes}))
        experiment.run(folder / name, workers=workers or experiment.default_workers())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--facts", type=int, default=40, help="facts planted in each layer")
    parser.add_argument("--kept", type=int, default=40, help="facts that the model is held to")
    parser.add_argument("--runs", type=Path, default=Path("runs/planted"), help="the folder of the runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "figures" / "planted")
    parser.add_argument("--workers", type=int, help="processes; default: as many as cores and memory allow")
    parser.add_argument("--no-run", action="store_true", help="compute nothing, draw what is there")
    args = parser.parse_args()
    planted: dict[int, list[int]] = {}
    traces, edits, recall = [], [], []
    for seed in args.seeds:
        folder, first = args.runs / f"{args.model}-{seed}", SEED * seed
        if not args.no_run:
            with listening(ProgressLines()):
                study_planted(folder, args.model, seed, args.facts, args.kept, args.workers)
        run, relearning = loc_edit.load_run(folder / STUDY), loc_edit.load_run(folder / RELEARNING).edits
        planted |= {first + fact: layers for fact, layers in loc_edit.planted_in(run).items()}
        traces.append(run.traces.assign(fact_id=run.traces["fact_id"] + first))
        for rows in (run.edits, relearning.assign(problem="relearning")):
            edits.append(rows.assign(fact_id=rows["fact_id"] + first))
        recall.append(pd.read_csv(folder / RECALL))
    all_traces, all_edits = pd.concat(traces, ignore_index=True), pd.concat(edits, ignore_index=True)
    says = pd.concat(recall).drop(columns=["fact_id"]).groupby(["group"], sort=False).mean(numeric_only=False)
    write_table(says.reset_index(), args.out, "planted_recall")
    written, missing = write_comparisons(planted_comparisons(all_traces, all_edits, planted), args.out, args.out)
    for name, reason in missing.items():
        print(f"not made: {name}: {reason}")
    counts = pd.Series([group_name(layers) for layers in planted.values()]).value_counts()
    print(f"{len(planted)} planted facts, {counts.min()} to {counts.max()} of each group")
    print(f"{args.out}: {', '.join(written)}")


if __name__ == "__main__":
    main()
