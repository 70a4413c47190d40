"""What each localizer costs, and how far it agrees with Causal Tracing.

    python scripts/measure_localizers.py                       # the built-in model, 100 known facts, windows 1 and 5
    python scripts/measure_localizers.py --model smollm2 --facts 6 --samples 3 --timed 1 --write
    python scripts/measure_localizers.py --noise swap --metric logit_difference   # nearer to the setting of RelP

All facts are localized at once, by one localizer after another in one process.  `times_tracing` is the ratio to Causal
Tracing of the time for the first facts, at the last of the windows alone; `scripts/bench_real.py` measures the ratio to
the weight products that cannot be avoided.  Seconds are of the processor on a CPU, which a busy machine does not change
much, and of the clock on a GPU.

Agreement is a correlation for each fact, and its median and quartiles over facts: Spearman's over all cells from the
subject on (`cells`), Pearson's over the same cells (`pearson`), and Spearman's over the effects by layer (`layers`).
`--write` makes `figures/agreement_MODEL.csv` and its two shorter forms.
"""

import argparse
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
from loc_edit.analysis.tables.paper import markdown, rounded, write_table
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.localization.registry import grid_options
from loc_edit.localization.trace import Trace
from loc_edit.names import LOCALIZERS, TRACING

FIGURES = Path(__file__).parents[1] / "figures"
SHOWN = ("median", "low", "high")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--timed", type=int, default=12, help="so many facts are timed")
    parser.add_argument("--rounds", type=int, default=1, help="times that each localizer runs; the fastest counts")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--site", default="mlp_out")
    parser.add_argument("--noise", default="s3")
    parser.add_argument("--metric", help="of all localizers; by default, of each its own in a grid")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--localizers", nargs="+", default=list(LOCALIZERS))
    parser.add_argument("--write", action="store_true", help="write the table into figures/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, data = loc_edit.load_model(args.model), loc_edit.load_facts(args.data)
    known = [fact for fact in loc_edit.known_facts(model, data) if fact.target_new is not None]
    cases = drawn(model, sample_by_relation(known, args.facts), data, args)
    table = pd.DataFrame(measure(model, cases, data, args))
    about = f"{args.model}, {len(cases)} facts, {args.site}, noise {args.noise}, {args.samples} samples"
    print(f"{about}; {processor(str(model.W_E.device))}, {args.threads} thread(s)")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    if args.write:
        name = f"agreement_{args.model}"
        write_table(table, FIGURES, name)
        (FIGURES / f"{name}.md").write_text(markdown(rounded(short(table))), encoding="utf-8")


def drawn(model: Any, facts: Sequence[Any], data: list[Any], args: argparse.Namespace) -> list[tuple[Any, Any, Any]]:
    """The facts with their prompts and noise; a fact that the rule has no noise for is left out."""
    cases = []
    for fact in facts:
        prompt = loc_edit.encode(model, fact)
        try:
            noise = loc_edit.subject_noise(model, prompt, scale=args.noise, facts=data, samples=args.samples)
        except ValueError as error:
            print(f"left out: {error}")
            continue
        cases.append((fact, prompt, noise))
    return cases


def measure(model: Any, cases: Sequence[Any], data: list[Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each localizer: milliseconds per fact, the ratio to tracing, and the correlations with tracing."""

    def run(name: str, cases: Sequence[Any], windows: list[int]) -> Callable[[], Any]:
        facts, prompts, noises = zip(*cases, strict=True)
        targets = [fact.target_true for fact in facts]
        each = [grid_options(name, model, fact, data) for fact in facts]
        options = {"foils": [own.pop("foil", None) for own in each], **each[0]}
        options["references"] = [own.pop("reference", ()) for own in each]
        options.pop("reference", None)
        if args.metric:
            options |= {"metric": args.metric, "foils": [fact.target_new for fact in facts]}
        shared = {"noises": noises, "windows": windows, "site": args.site, "localizer": name}
        return lambda: loc_edit.localize_many(model, prompts, targets, **shared, **options)

    rows, reference, traced = [], None, np.nan
    for name in args.localizers:
        found = run(name, cases, args.windows)()
        seconds = fastest(run(name, cases[: args.timed], args.windows[-1:]), args.rounds)
        row = {"localizer": name, "n_facts": len(cases), "ms": 1000 * seconds / min(args.timed, len(cases))}
        if name == TRACING:
            traced, reference = seconds, found
        row["times_tracing"] = seconds / traced
        for i, window in enumerate(args.windows if reference is not None else ()):
            pairs = [(own[i], other[i]) for own, other in zip(found, reference, strict=True)]
            row |= agreement(pairs, f"window_{window}")
        rows.append(row)
        print(row, flush=True)
    return rows


def agreement(pairs: Sequence[tuple[Trace, Trace]], name: str) -> dict[str, float]:
    """The median and the quartiles over facts of three correlations between two traces of a fact."""
    cells = [[trace.effect[:, trace.prompt.subject.start :].flatten().numpy() for trace in pair] for pair in pairs]
    layers = [[trace.by_layer().numpy() for trace in pair] for pair in pairs]
    kinds = {
        "cells": [correlation(*pair, stats.spearmanr) for pair in cells],
        "pearson": [correlation(*pair, stats.pearsonr) for pair in cells],
        "layers": [correlation(*pair, stats.spearmanr) for pair in layers],
    }
    quantiles = zip(SHOWN, (0.5, 0.25, 0.75), strict=True)
    return {
        f"{name}_{kind}_{label}": float(np.nanquantile(values, share))
        for label, share in quantiles
        for kind, values in kinds.items()
    }


def short(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of the page: the cost and the medians."""
    shown = table[["localizer", "times_tracing", *(name for name in table if name.endswith("_median"))]]
    return shown.rename(columns=lambda name: name.removesuffix("_median").replace("_", " "))


def fastest(task: Callable[[], Any], rounds: int) -> float:
    """The least time of some rounds."""
    times = []
    for _ in range(rounds):
        start = now()
        task()
        times.append(now() - start)
    return min(times)


def now() -> float:
    """Seconds by which work is told: of this process on a CPU, of the clock where a GPU works."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def correlation(one: np.ndarray, other: np.ndarray, by: Callable[..., Any]) -> float:
    """NaN where one of them is flat."""
    if np.ptp(one) == 0 or np.ptp(other) == 0 or np.isnan(one).any() or np.isnan(other).any():
        return float("nan")
    return float(by(one, other).statistic)


if __name__ == "__main__":
    main()
