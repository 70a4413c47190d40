"""Make the grid of a model for `loc-edit benchmark`: the files in `loc_edit/data/benchmark/MODEL/`.

python scripts/make_benchmark.py --run runs/figures --planted runs/planted/builtin-0

The run gives the scores of finished edits and the configuration; the planted folder (`loc-edit plant`) gives a model in
which the place of facts is known.  Increase the version when a file changes: numbers of two versions do not compare.
"""

import argparse
import shutil
from pathlib import Path

import tomli_w

import loc_edit
from loc_edit.analysis.tables.rows import EDIT_KEY, without_controls
from loc_edit.experiment.benchmark import EDITED, EDITS, FOLDER, GRID, PLANTED, SHOWN
from loc_edit.experiment.planting import EDIT, FACTS
from loc_edit.files import writing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run")
    parser.add_argument("--planted", type=Path, required=True, help="the folder of a planted model")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--version", default="1")
    parser.add_argument("--problems", nargs="+", default=["error_injection", "fact_erasure"], help="for editors")
    args = parser.parse_args()
    folder, run = FOLDER / args.model, loc_edit.load_run(args.run)
    folder.mkdir(parents=True, exist_ok=True)
    edits = without_controls(run.edits)
    rows = edits.loc[edits["status"] == "done", [*EDIT_KEY, *SHOWN]].sort_values(EDIT_KEY, ignore_index=True)
    rows = rows.astype(dict.fromkeys(SHOWN, "float32")).round(dict.fromkeys(SHOWN, 4))
    with writing(folder / EDITS) as file:
        rows.to_parquet(file, index=False, compression="zstd")
    by_id = {fact.fact_id: fact for fact in loc_edit.load_facts(str(run.config["data"]))}
    loc_edit.save_facts([by_id[fact_id] for fact_id in sorted(rows["fact_id"].unique())], folder / EDITED)
    shutil.copyfile(args.planted / FACTS, folder / PLANTED)
    shutil.copyfile(args.planted / EDIT, folder / EDIT)
    same = ("noise_samples", "site", "seed", "essence", "corpus", "corpus_tokens", "layers", "chunk")
    config = {"model": args.model, "noise": str(run.config["sigma"]), "windows": [5]}
    grid = {
        "version": args.version,
        "planted_window": 1,
        "editor_problems": args.problems,
        "config": config | {name: run.config[name] for name in same},
    }
    (folder / GRID).write_text(tomli_w.dumps(grid), encoding="utf-8")
    sizes = ", ".join(f"{path.name} {path.stat().st_size:,} bytes" for path in sorted(folder.iterdir()))
    print(f"{folder}: {len(rows):,} edits of {rows['fact_id'].nunique()} facts; {sizes}")


if __name__ == "__main__":
    main()
