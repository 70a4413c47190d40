"""Make `figures/MODEL/`: the study on a model, its rows, tables and figures; then the pages that speak of them.

python scripts/make_figures.py                      # built-in model: an hour or two on two cores
python scripts/make_figures.py smollm2              # a dozen hours; stop it at any time, and it continues from there
python scripts/make_figures.py smollm2 --no-run     # from the rows that are there; Figure 13: --second RUN
python scripts/make_figures.py --redraw             # every figure again from its CSV file, as after a change of style

The rows of a real model stay in `figures/MODEL/run`, compacted, so that a reader can check every table.
"""

import argparse
import shutil
from pathlib import Path

import make_pages

from loc_edit.analysis.analyze import analyze
from loc_edit.analysis.redraw import redraw
from loc_edit.analysis.run import load_run
from loc_edit.cli.status import compact
from loc_edit.events import ProgressLines, listening
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.experiment import Experiment

EXPERIMENTS = Path(__file__).parent / "experiments"
CONFIGURATIONS = {"builtin": "builtin_localizers", "smollm2": "smollm2", "gemma3-270m": "gemma3"}
"""By model, the configuration of its study."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=CONFIGURATIONS, default="builtin")
    parser.add_argument("--run", type=Path, help="the run's folder; default: figures/MODEL/run, builtin: runs/figures")
    parser.add_argument(
        "--second", type=Path, help="the run of another model, for Figure 13; builtin: figures/smollm2/run"
    )
    parser.add_argument("--facts", type=int, help="fewer or more facts than the configuration has")
    parser.add_argument("--out", type=Path, help="the folder of tables and figures; default: figures/MODEL")
    parser.add_argument("--workers", type=int, help="processes; default: as many as cores and memory allow")
    parser.add_argument("--no-run", action="store_true", help="compute nothing, draw what is there")
    parser.add_argument("--redraw", action="store_true", help="draw all committed figures again, without a run")
    args = parser.parse_args()
    if args.redraw:
        for place in sorted({path.parent for path in make_pages.FIGURES.rglob("*.pdf")}):
            print(f"{place}: {len(redraw(place)) // 2} figures")
        return
    folder = args.out or make_pages.FIGURES / args.model
    is_builtin = args.model == "builtin"
    run = args.run or (Path("runs/figures") if is_builtin else folder / "run")
    second = args.second or (make_pages.FIGURES / "smollm2" / "run" if is_builtin else None)
    config = ExperimentConfig.from_toml(EXPERIMENTS / f"{CONFIGURATIONS[args.model]}.toml")
    if not args.no_run:
        changes = {"workers": args.workers, "facts": args.facts or config.facts}
        experiment = Experiment(config.model_copy(update=changes))
        with listening(ProgressLines()):
            experiment.run(run, workers=experiment.default_workers())
    compact(run)
    found = analyze(load_run(run), folder / "new", compare_paper=True, second=load_run(second) if second else None)
    for old in (path for path in folder.iterdir() if path.suffix in (".csv", ".md", ".pdf", ".png", ".tex")):
        old.unlink()
    for paths in found.written.values():
        for path in paths:
            shutil.copyfile(path, folder / path.name)
    shutil.rmtree(folder / "new")
    print(f"{folder}: {', '.join(sorted(found.written))}")
    for name, reason in sorted(found.missing.items()):
        print(f"not made: {name}: {reason}")
    if folder == make_pages.FIGURES / args.model:
        make_pages.write()


if __name__ == "__main__":
    main()
