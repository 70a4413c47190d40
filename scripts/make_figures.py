"""Make `figures/`: the whole grid on the built-in model with all localizers, its tables and figures copied flat.

python scripts/make_figures.py            # runs what is missing in runs/figures, an hour on two cores, then draws
python scripts/make_figures.py --facts 8  # quick look

"""

import argparse
import shutil
from pathlib import Path

from loc_edit.analysis.analyze import analyze
from loc_edit.analysis.run import load_run
from loc_edit.events import ProgressLines, listening
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.experiment import Experiment
from loc_edit.names import LOCALIZERS

HERE = Path(__file__).parent
FULL = HERE / "experiments" / "builtin_full.toml"
KINDS = (
    "figure_*",
    "layer_choice*",
    "table_*",
    "statistics*",
    "verdict.*",
    "sensitivity.*",
    "layer_correlations.*",
    "localizer_*",
    "compare_paper.*",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=200)
    parser.add_argument("--run", type=Path, default=Path("runs/figures"), help="the run's folder, kept for next time")
    parser.add_argument("--out", type=Path, default=HERE.parent / "figures")
    parser.add_argument("--no-run", action="store_true", help="draw what is there")
    args = parser.parse_args()
    if not args.no_run:
        more = {"facts": args.facts, "localizers": tuple(LOCALIZERS), "localizer_windows": (5,)}
        experiment = Experiment(ExperimentConfig.from_toml(FULL).model_copy(update=more))
        with listening(ProgressLines()):
            experiment.run(args.run, workers=experiment.default_workers())
    found = analyze(load_run(args.run), compare_paper=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for old in (path for kind in KINDS for path in args.out.glob(kind)):
        old.unlink()
    for paths in found.written.values():
        for path in paths:
            shutil.copyfile(path, args.out / path.name)
    print(f"{args.out}: {', '.join(sorted(found.written))}")
    for name, reason in sorted(found.missing.items()):
        print(f"not made: {name}: {reason}")


if __name__ == "__main__":
    main()
