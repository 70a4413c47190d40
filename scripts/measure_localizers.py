"""What each localizer costs, and how far its layer profiles agree with Causal Tracing's.

    python scripts/measure_localizers.py                       # the built-in model, 20 facts, window 5
    python scripts/measure_localizers.py --model smollm2 --facts 8 --rounds 1 --json localizers.json
    python scripts/measure_localizers.py --model smollm2 --facts 8 --localizers attribution direct   # without tracing

All facts are localized at once, by one localizer after another in one process.  "times tracing" is the ratio to Causal
Tracing, which comes first; `scripts/bench_real.py` measures the ratio to the weight products that cannot be avoided.
Seconds are of the processor on a CPU, which a busy machine does not change much, and of the clock on a GPU.  The
agreement is Spearman's correlation over the layers of a fact, its median and quartiles over facts.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from benching.timing import processor
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
    parser.add_argument("--rounds", type=int, default=3, help="times that each localizer runs; the fastest counts")
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--site", default="mlp_out")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--localizers", nargs="+", default=list(LOCALIZERS))
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, data = loc_edit.load_model(args.model), loc_edit.load_facts(args.data)
    facts = [fact for fact in sample_by_relation(data, args.facts) if fact.target_new is not None]
    table = pd.DataFrame(measure(model, facts, data, args))
    about = f"{args.model}, {len(facts)} facts, window {args.window} at {args.site}, {args.samples} samples"
    machine = f"{processor(str(model.W_E.device))}, {args.threads} thread(s)"
    print(f"{about}; {machine}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    if args.json:
        numbers = {"about": about, "machine": machine, "localizers": table.to_dict("records")}
        args.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def measure(model: Any, facts: Sequence[Any], data: list[Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each localizer: milliseconds per fact, the ratio to tracing, and the correlation of the profiles."""
    prompts = [loc_edit.encode(model, fact) for fact in facts]
    targets = [fact.target_true for fact in facts]
    noises = [loc_edit.subject_noise(model, p, scale="s3", facts=data, samples=args.samples) for p in prompts]

    def run(name: str) -> Callable[[], Any]:
        each = [grid_options(name, model, fact, data) for fact in facts]
        options = {"foils": [own.pop("foil", None) for own in each], **each[0]}
        options["references"] = [own.pop("reference", ()) for own in each]
        options.pop("reference", None)
        shared = {"noises": noises, "windows": [args.window], "site": args.site, "localizer": name}
        return lambda: loc_edit.localize_many(model, prompts, targets, **shared, **options)

    rows, reference = [], None
    for name in args.localizers:
        seconds, found = fastest(run(name), args.rounds)
        row = {"localizer": name, "ms": 1000 * seconds / len(facts)}
        if name == TRACING:
            traced, reference = seconds, found
        if reference is not None:
            pairs = zip(found, reference, strict=True)
            r = [correlation(one.by_layer().numpy(), other.by_layer().numpy()) for (one,), (other,) in pairs]
            low, middle, high = np.nanquantile(r, [0.25, 0.5, 0.75])
            row |= {"times tracing": seconds / traced, "r": middle, "r from": low, "r to": high}
            row["facts with r"] = int(np.isfinite(r).sum())
        rows.append(row)
    return rows


def fastest(task: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """The least time of some rounds, and what was made."""
    best, made = np.inf, None
    for _ in range(rounds):
        start = now()
        made = task()
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


if __name__ == "__main__":
    main()
