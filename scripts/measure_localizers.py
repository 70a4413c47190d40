"""What each localizer costs beside Causal Tracing, and how far its layer profiles agree with Causal Tracing's.

    python scripts/measure_localizers.py                       # the built-in model, 20 facts, window 5
    python scripts/measure_localizers.py --facts 50 --rounds 5 --json localizers.json

Every fact is localized by one localizer after another, Causal Tracing before and after each, in one process: the cost
is the median over facts of the ratio to the mean of these two, so that whatever else the machine does meanwhile falls
on both.  Seconds are of the processor on a CPU, which a busy machine does not change much, and of the clock on a GPU.
The agreement is Spearman's correlation over the layers of a fact, its median and quartiles over facts.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

import loc_edit
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.localization.registry import grid_options
from loc_edit.names import LOCALIZERS, TRACING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="times that each fact is localized; the fastest counts")
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--site", default="mlp_out")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, data = loc_edit.load_model(args.model), loc_edit.load_facts(args.data)
    rows = []
    for fact in sample_by_relation(data, args.facts):
        rows += measure(model, fact, data, args)
    table = summary(pd.DataFrame(rows))
    about = f"{args.model}, {args.facts} facts, window {args.window} at {args.site}, {args.samples} samples"
    print(f"{about}; {machine(model)}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    if args.json:
        numbers = {"about": about, "machine": machine(model), "localizers": table.to_dict("records")}
        args.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def measure(model: Any, fact: Any, data: list[Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One fact: seconds of each localizer, of Causal Tracing around it, and the correlation of the profiles."""
    prompt = loc_edit.encode(model, fact)
    noise = loc_edit.subject_noise(model, prompt, scale="s3", facts=data, samples=args.samples)
    shared = {"noise": noise, "window": args.window, "site": args.site}

    def run(name: str, options: dict[str, Any]) -> Callable[[], Any]:
        return lambda: loc_edit.localize(model, prompt, fact.target_true, localizer=name, **shared, **options)

    traced = run(TRACING, {})
    rows = []
    for name, localizer in LOCALIZERS.items():
        if name == TRACING or (localizer.metric == "logit_difference" and fact.target_new is None):
            continue
        asked = run(name, grid_options(name, model, fact, data))
        before, reference = fastest(traced, args.rounds)
        seconds, found = fastest(asked, args.rounds)
        after, _ = fastest(traced, args.rounds)
        rows.append(
            {
                "localizer": name,
                "seconds": seconds,
                "ratio": seconds / (0.5 * (before + after)),
                "r": correlation(found.by_layer().numpy(), reference.by_layer().numpy()),
            }
        )
    return rows


def fastest(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """The least time of some rounds, and what was made."""
    best, made = np.inf, None
    for _ in range(rounds):
        start = now()
        made = work()
        best = min(best, now() - start)
    return float(best), made


def now() -> float:
    """Seconds by which work is told: of this process on a CPU, of the clock where a GPU works."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's; NaN where a profile is flat."""
    if np.ptp(one) == 0 or np.ptp(other) == 0 or np.isnan(one).any() or np.isnan(other).any():
        return float("nan")
    return float(stats.spearmanr(one, other).statistic)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians and quartiles over facts, a row per localizer."""
    found = []
    for name, mine in rows.groupby("localizer", sort=False):
        cost, r = mine["ratio"].quantile([0.25, 0.5, 0.75]), mine["r"].quantile([0.25, 0.5, 0.75])
        found.append(
            {
                "localizer": name,
                "ms": 1000 * mine["seconds"].median(),
                "times tracing": cost[0.5],
                "from": cost[0.25],
                "to": cost[0.75],
                "r": r[0.5],
                "r from": r[0.25],
                "r to": r[0.75],
                "facts": len(mine),
                "facts with r": int(mine["r"].notna().sum()),
            }
        )
    return pd.DataFrame(found)


def machine(model: Any) -> str:
    """The processor (or the device), and how much of it is used."""
    device = model.W_E.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} thread(s)"


if __name__ == "__main__":
    main()
