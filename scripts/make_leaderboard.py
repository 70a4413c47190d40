"""Make `figures/leaderboard.csv`, `_editors` and `_rules`: everything that was graded on the benchmark.

python scripts/make_leaderboard.py              # grades what has no file yet, in half an hour or so, and ranks
python scripts/make_leaderboard.py --no-run     # ranks the files that are there
python scripts/make_leaderboard.py --no-run --rules smollm2     # and compares rules on the edits in figures/smollm2/run

A file in `figures/leaderboard/` is what `loc-edit benchmark --split held_out --submit FILE` writes; add yours.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from make_figures import CONFIGURATIONS, EXPERIMENTS

import loc_edit
from loc_edit.analysis.figures.leaderboard import plot_leaderboard
from loc_edit.analysis.tables.paper import markdown, rounded, write_table
from loc_edit.cli.main import main as run_command
from loc_edit.experiment.benchmark import Benchmark
from loc_edit.experiment.choosing import compare_rules
from loc_edit.experiment.setup import Setup
from loc_edit.views.style import save

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "figures" / "leaderboard"
EXAMPLES = {
    "localizer": {
        "heads": "head_localizer",
        "neurons": "neuron_localizer",
        "lens": "logit_lens",
        "probe": "linear_probe",
    },
    "editor": {"lora": "lora_editor"},
}
"""By kind, the name of each plug-in in `examples/`, and its file."""
SHOWN = {
    "localizer": ["localizer", "model", "planted", "partial", "within_r", "gain", "pairs_gaining"],
    "editor": [
        "editor",
        "model",
        *(f"error_injection_{name}" for name in ("layer", "rewrite", "paraphrase", "neighborhood")),
    ],
}
RANKED_BY = {"localizer": ["planted", "partial"], "editor": ["error_injection_rewrite"]}


def grade(kind: str, name: str, model: str, plugin: Path | None) -> None:
    """Write the file of a localizer or an editor, unless it is there."""
    file = FOLDER / f"{model}-{kind}-{name}.json"
    if file.is_file():
        return
    more = ["--plugin", str(plugin)] if plugin else []
    print(f"{kind} {name}", flush=True)
    status = run_command(
        ["benchmark", f"--{kind}", name, "--model", model, "--split", "held_out", "--submit", str(file), *more]
    )
    if status:
        raise SystemExit(status)


def ranked(kind: str) -> pd.DataFrame:
    """The rows of all files of a kind and of the present version, best first, models apart."""
    rows: list[dict[str, Any]] = []
    for path in sorted(FOLDER.glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))["summary"]
        if kind not in row:
            continue
        if row["split"] != "held_out" or row["benchmark"] != Benchmark(row["model"]).grid["version"]:
            print(f"{path.name} is left out: {row['split']} facts, version {row['benchmark']}")
            continue
        rows.append({key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()})
    by = RANKED_BY[kind]
    return pd.DataFrame(rows).sort_values(["model", *by], ascending=[True] + [False] * len(by), ignore_index=True)


def keep_rules(model: str, found: pd.DataFrame) -> None:
    """Put what the rules are worth on a model in the place of the model's earlier rows."""
    rows = pd.read_csv(FOLDER.parent / "leaderboard_rules.csv")
    found.insert(0, "model", model)
    rows = pd.concat([rows[rows["model"] != model], found], ignore_index=True).sort_values("model", kind="stable")
    write_table(rows, FOLDER.parent, "leaderboard_rules")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--no-run", action="store_true", help="grade nothing, rank the files that are there")
    parser.add_argument("--rules", choices=CONFIGURATIONS, help="also compare rules on this model's edits in figures/")
    args = parser.parse_args()
    names = {"localizer": list(loc_edit.LOCALIZERS), "editor": ["rome", "memit", "finetune-1", "finetune-5"]}
    for kind in names if not args.no_run else ():
        for name in names[kind]:
            grade(kind, name, args.model, None)
        for name, file in EXAMPLES[kind].items():
            grade(kind, name, args.model, ROOT / "examples" / f"{file}.py")
    for kind, table in (("localizer", "leaderboard"), ("editor", "leaderboard_editors")):
        rows = ranked(kind)
        write_table(rows, FOLDER.parent, table)
        text = markdown(rounded(rows[SHOWN[kind]]))  # the table of the page, which is narrower
        (FOLDER.parent / f"{table}.md").write_text(text, encoding="utf-8")
        if kind == "localizer":
            own = rows[rows["model"] == args.model]
            save(plot_leaderboard(own), own, FOLDER.parent, f"leaderboard_{args.model}")
        print(rows.to_string())
    if not args.no_run:
        keep_rules(args.model, Benchmark(args.model, "held_out").rules())
    if args.rules:
        run = loc_edit.load_run(FOLDER.parent / args.rules / "run")
        config = loc_edit.ExperimentConfig.from_toml(EXPERIMENTS / f"{CONFIGURATIONS[args.rules]}.toml")
        keep_rules(args.rules, compare_rules(Setup(config), run.traces, run.edits))


if __name__ == "__main__":
    main()
