"""Make the built-in model again, and all that is made with it: card, presets, figures, the report's picture.

python scripts/rebuild_builtin.py                    # everything, hours on two cores; goes on where it was stopped
python scripts/rebuild_builtin.py --steps presets figures

Each step is a script or a command of its own, and can be run alone.  What remains for a person: the sentences that read
the figures (`figures/README.md`, `docs/localizers_compared.md`, `README.md`), the numbers beside the examples of the
concept pages and of the quick start, and `scripts/bench.py` on a quiet machine.
"""

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

import tomli_w

from loc_edit.names import PROBLEMS

HERE = Path(__file__).parent
PRESETS = HERE.parent / "loc_edit" / "data" / "model" / "presets.toml"
FLOORS = {("rome", "memit"): "0.9", ("finetune-1", "finetune-5"): "0.7"}
"""The lowest neighborhood of the study's methods' settings, where that can be had."""
OTHERS = {("r_rome", "emmet", "alphaedit"): "0.9", ("finetune_free-1", "finetune_decay-1"): "0.7"}
"""Likewise of the others, which have the same settings for every problem."""
HEADING = """# The built-in model's settings: what `loc-edit tune` chose, {facts} facts, layer {layer}: the best rewrite
# score with a neighborhood of .9 (fine-tuning: .7) where that can be had.  Written by scripts/rebuild_builtin.py.
"""


def script(name: str, *options: str) -> None:
    """Run a script of this folder with this Python; its failure ends the whole."""
    print(f"+ {name} {' '.join(options)}", flush=True)
    subprocess.run([sys.executable, str(HERE / name), *options], check=True)


def tune(args: argparse.Namespace, methods: tuple[str, ...], floor: str, problems: tuple[str, ...]) -> dict:
    """What `loc-edit tune` chooses, by method and problem."""
    folder = args.runs / f"tuning_{'_'.join(methods)}"
    options = ["--methods", *methods, "--problems", *problems, "--facts", args.facts, "--layer", args.layer]
    options += ["--floor", floor, "--folder", str(folder)]
    print(f"+ loc-edit tune {' '.join(options)}", flush=True)
    subprocess.run([sys.executable, "-m", "loc_edit", "tune", *options], check=True)
    return tomllib.loads((folder / "chosen.toml").read_text(encoding="utf-8"))["settings"]


def presets(args: argparse.Namespace) -> None:
    """Tune the study's methods for each problem, the others for error injection alone, and write the presets."""
    chosen = {}
    for methods, floor in FLOORS.items():
        chosen |= tune(args, methods, floor, PROBLEMS)
    for methods, floor in OTHERS.items():
        found = tune(args, methods, floor, ("error_injection",))
        chosen |= {name: tables["error_injection"] for name, tables in found.items()}
    PRESETS.write_text(HEADING.format(**vars(args)) + tomli_w.dumps(chosen), encoding="utf-8")


STEPS = {
    "model": lambda args: script("train_builtin_model.py"),
    "card": lambda args: script("measure_builtin_model.py"),
    "presets": presets,
    "figures": lambda args: script("make_figures.py", "builtin", "--run", str(args.runs / "figures")),
    "picture": lambda args: script("picture_report.py", str(args.runs / "figures")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where tunings and the grid are kept")
    parser.add_argument("--facts", default="20", help="facts that settings are tuned on")
    parser.add_argument("--layer", default="2", help="layer at which they are tuned")
    args = parser.parse_args()
    for name in args.steps:
        STEPS[name](args)


if __name__ == "__main__":
    main()
