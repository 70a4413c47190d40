"""Edits per second, one fact at a time and batched, side by side in one process.

python scripts/benchmark_editing.py                      # built-in model, 12 facts, one thread
python scripts/benchmark_editing.py --facts 25 --rounds 5

Each round times both ways of every method, one after the other, scores included (essence texts are sampled before); the
ratio is of each round's times.  Both ways give the same edits: the largest difference of their scores is printed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from loc_edit.config import ExperimentConfig
from loc_edit.experiment import Experiment
from loc_edit.units import Cell, Chunk, edit_rows

METHODS = ("rome", "memit", "finetune-1", "finetune-5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--facts", type=int, default=12)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--problem", default="error_injection")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = ExperimentConfig(
        model=args.model, facts=args.facts, layers=(args.layer,), methods=METHODS, problems=(args.problem,)
    )
    experiment = Experiment(config)
    bench = experiment.bench()
    together = Chunk(bench, experiment.facts)
    alone = [Chunk(bench, [fact]) for fact in experiment.facts]
    for chunk in (together, *alone):
        chunk.posed(args.problem)
    _ = experiment.stats.solve(args.layer, torch.ones(1, experiment.model.cfg.d_mlp))  # factored once for all
    found = {}
    print(f"{platform.platform()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print(f"{'method':12} {'one a time':>12} {'batched':>12}   ratio (range)      difference of scores")
    for cell in experiment.cells:
        name = f"{cell.method}-{cell.window}"
        found[name] = compare(cell, together, alone, args.rounds)
        one, many, ratios = (found[name][key] for key in ("alone", "batched", "ratios"))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:12} {one:9.2f}/s  {many:9.2f}/s    {spread:18} {found[name]['difference']:.1e}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": platform.platform(), "facts": args.facts, **found}, indent=1))


def compare(cell: Cell, together: Chunk, alone: list[Chunk], rounds: int) -> dict[str, Any]:
    """Edits per second of both ways, the ratio of each round, and how far the scores are apart."""
    batched_rows, batched_seconds, alone_seconds, alone_rows = [], [], [], []
    for _ in range(rounds):
        seconds, batched_rows = timed(lambda: edit_rows(together, cell))
        batched_seconds.append(seconds)
        seconds, alone_rows = timed(lambda: [row for chunk in alone for row in edit_rows(chunk, cell)])
        alone_seconds.append(seconds)
    pairs = zip(batched_rows, alone_rows, strict=True)
    return {
        "alone": len(alone_rows) / statistics.median(alone_seconds),
        "batched": len(batched_rows) / statistics.median(batched_seconds),
        "ratios": [a / b for a, b in zip(alone_seconds, batched_seconds, strict=True)],
        "difference": max((abs(p["rewrite"] - q["rewrite"]) for p, q in pairs if p["status"] == "done"), default=0.0),
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
