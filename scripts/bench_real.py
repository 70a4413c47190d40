"""How fast the package is on a real model, beside Hugging Face and beside the weight products it cannot avoid.

python scripts/bench_real.py                                        # SmolLM2 on this machine, all parts
python scripts/bench_real.py --models smollm2 gemma3-270m builtin --threads 1 2
python scripts/bench_real.py --parts filter trace --quick
python scripts/bench_real.py --models smollm2-135m gpt2-xl gptj --device cuda --tf32
python scripts/bench_real.py --models gptj --device cuda --dtype bfloat16

All versions run in one process with the same number of threads, in turn and then in reverse, so that each round gives
one ratio; printed are the median ratio and its range, beside the goal.  A ratio is of seconds, ours over the other's,
so that less is better, but for sampling, where it is of tokens per second.  One JSON file holds everything.

- filter, sampling: beside `generate` in left-padded batches of 16, with the same weights, not stopped by an EOS.
- keys: beside Hugging Face's first layers in their best batch, and one product k^T k for each batch.
- trace, edits, scoring, localizers: beside the weight products that cannot be avoided, each at the best throughput of
  `torch.mm` over 16 to 4,096 rows on that matrix.  `benching.counts` says what is counted and what is not.
- loading: a load after the first, beside 3 seconds.
- memory: what tensors take at most beyond the weights, in a trace and an edit; of GPT-J's shape from shallow copies.
- growth: seconds over tokens, edited layer, facts and windows, with their floors; a figure.
- bf16: seconds in bfloat16 over those in float32, and the error of probabilities and scores.

A model is a name that `load_model` knows, a directory, or a shape with random weights (speed does not depend on their
values; then Hugging Face's model has the same shape and other random weights).
"""

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from benching.real_cases import Case
from benching.real_decoding import filtering, keys, loading, sampling
from benching.real_floors import editing, localizing, scoring, tracing
from benching.real_more import growth, halved, memory
from benching.timing import Clock, add_options, new_result

PARTS = {
    "filter": filtering,
    "sampling": sampling,
    "keys": keys,
    "trace": tracing,
    "edits": editing,
    "scoring": scoring,
    "localizers": localizing,
    "loading": loading,
    "memory": memory,
    "growth": growth,
    "bf16": halved,
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="+", default=["smollm2"])
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--facts", type=int, help="of trace_many, edits, scoring and localizers; default: 20, then 8")
    made.add_argument("--data", help="facts; default: CounterFact beside the project, if it is there, else builtin")
    made.add_argument("--flops", action="store_true", help="also count the products computed, beside the floor's")
    made.add_argument("--quick", action="store_true", help="two facts instead of 20 and 8, fewer tokens")
    made.add_argument("--memory-shape", default="gptj", help="the large shape whose memory is extrapolated; '': none")
    made.add_argument("--plot", type=Path, default=Path("bench_real_growth.png"), help="the figure of `growth`")
    add_options(made, "bench_real.json")
    return made


def main() -> None:
    args = parser().parse_args()
    result: dict[str, Any] = {**new_result(args), "models": {}}
    for source, threads in itertools.product(args.models, args.threads):
        torch.set_num_threads(threads)
        case, name = Case(source, args, Clock(args.clock)), f"{Path(source).name}, {threads} threads"
        result["models"][name] = found = {"rows": []}
        print(f"\n{name}, {args.dtype}, {args.device}, {args.rounds} rounds, {args.clock} clock")
        print(f"  {'':<62}{'ours, s':>9}{'peer, s':>9}{'ratio':>8}{'low':>7}{'high':>7}{'goal':>6}  peer", flush=True)
        for part in args.parts:
            start = time.perf_counter()
            for row in PARTS[part](case):
                found["rows"].append(row)
                print_row(row)
                if "products" in vars(case):
                    found["GFLOP/s of the products"] = {k: v / 1e9 for k, v in case.products.throughput.items()}
                found.setdefault("seconds of the part", {})[part] = time.perf_counter() - start
                result["machine"]["load after"] = os.getloadavg()
                args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        speeds = ", ".join(
            f"{matrix} {speed:.0f}" for matrix, speed in found.get("GFLOP/s of the products", {}).items()
        )
        print(f"  GFLOP/s of the products at their best: {speeds}" if speeds else "")
    print(f"\nwritten to {args.out}")


def print_row(row: dict[str, Any]) -> None:
    if "ratio" not in row:
        print(f"  {row['part'] + ': ' + row['what']:<62}  {row['note']}", flush=True)
        return
    ratios = "".join(f"{row['ratio'][name]:{width}.2f}" for name, width in (("median", 8), ("low", 7), ("high", 7)))
    goal = f"{row['goal']:6.2f}" if row["goal"] is not None else f"{'':>6}"
    seconds = f"{row['ours, s']['median']:9.3f}{row['peer, s']['median']:9.3f}"
    about = f"; {row['note']}" if row.get("note") else ""
    print(f"  {row['part'] + ': ' + row['what']:<62}{seconds}{ratios}{goal}  {row['peer']}{about}", flush=True)


if __name__ == "__main__":
    main()
