"""Make `figures/`: run the default experiment on the built-in model, and copy its tables and figures flat.

python scripts/make_figures.py            # runs what is missing in runs/figures, then draws
python scripts/make_figures.py --facts 20 # quick look

"""

import argparse
import shutil
from pathlib import Path

from loc_edit.analysis import analyze
from loc_edit.config import ExperimentConfig
from loc_edit.experiment import Experiment

HERE = Path(__file__).parent.parent / "figures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=ExperimentConfig().facts)
    parser.add_argument("--run", type=Path, default=Path("runs/figures"), help="the run's folder, kept for next time")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    experiment = Experiment(ExperimentConfig(facts=args.facts, windows=(1, 5)))
    run = experiment.run(
        args.run,
        progress=lambda words, done, total: print(f"\r{done}/{total} {words:60}", end="", flush=True),
        workers=experiment.default_workers(),
    )
    print()
    found = analyze(run)
    args.out.mkdir(parents=True, exist_ok=True)
    for old in (*args.out.glob("figure_*"), *args.out.glob("table_*")):
        old.unlink()
    for paths in found.written.values():
        for path in paths:
            shutil.copyfile(path, args.out / path.name)
    print(f"{args.out}: {', '.join(sorted(found.written))}")
    for name, reason in sorted(found.missing.items()):
        print(f"not made: {name}: {reason}")


if __name__ == "__main__":
    main()
