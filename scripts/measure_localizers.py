"""What each localizer costs, and how far its layer profiles agree with Causal Tracing's.

    python scripts/measure_localizers.py                       # the built-in model, 20 facts, window 5
    python scripts/measure_localizers.py --model smollm2 --facts 8 --rounds 1 --json localizers.json
    python scripts/measure_localizers.py --model smollm2 --facts 8 --localizers attribution direct   # without tracing

All facts are localized at once, by one localizer after another in one process.  "times tracing" is the ratio to Causal
Tracing, which comes first.  "over products" is the ratio to the weight products that cannot be avoided (`work` counts
them), at the best throughput of `torch.mm` over 16 to 4,096 rows on a layer's own matrices and on the unembedding.
Seconds are of the processor on a CPU, which a busy machine does not change much, and of the clock on a GPU.  The
agreement is Spearman's correlation over the layers of a fact, its median and quartiles over facts.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

import loc_edit
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.localization.groups import window_runs
from loc_edit.localization.registry import grid_options
from loc_edit.localization.sweep import plan
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
    print(f"{about}; {machine(model)}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    if args.json:
        numbers = {"about": about, "machine": machine(model), "localizers": table.to_dict("records")}
        args.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def measure(model: Any, facts: Sequence[Any], data: list[Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each localizer: milliseconds per fact, the two ratios, and the correlation of the profiles."""
    prompts = [loc_edit.encode(model, fact) for fact in facts]
    targets = [fact.target_true for fact in facts]
    noises = [loc_edit.subject_noise(model, p, scale="s3", facts=data, samples=args.samples) for p in prompts]

    def run(name: str) -> tuple[Callable[[], Any], list[dict[str, Any]]]:
        each = [grid_options(name, model, fact, data) for fact in facts]
        options = {"foils": [own.pop("foil", None) for own in each], **each[0]}
        options["references"] = [own.pop("reference", ()) for own in each]
        options.pop("reference", None)
        shared = {"noises": noises, "windows": [args.window], "site": args.site, "localizer": name}
        return lambda: loc_edit.localize_many(model, prompts, targets, **shared, **options), options["references"]

    rows, reference = [], None
    for name in args.localizers:
        asked, references = run(name)
        layer, unembedding = products(model)
        seconds, found = fastest(asked, args.rounds)
        positions, unembedded = work(name, model, prompts, targets, references, args)
        row = {"localizer": name, "ms": 1000 * seconds / len(facts)}
        row["over products"] = seconds / (positions * layer + unembedded * unembedding)
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


def work(
    name: str, model: Any, prompts: Sequence[Any], targets: Sequence[str], references: Sequence[Any], args: Any
) -> tuple[int, int]:
    """What cannot be avoided: positions times layers, and positions that are unembedded; a backward pass counts again.

    Of a corrupted run only what follows from the subject on, and of a patched run only what follows from the cell on.
    Layers that the runs of several cells share count once, and so does a reference prompt of several facts.
    """
    n_layers, runs = model.cfg.n_layers, sorted(set(window_runs(args.window, model.cfg.n_layers)))
    steps = plan(runs, n_layers, entered=True)
    states, n_first = sum(len(step.source) for step in steps[:n_layers]), len({first for first, _ in runs})
    patched = {"zero_ablation": 1, "mean_ablation": 1, "resample_ablation": 10}
    passes = {"attribution": 2, "integrated_gradients": 1 + 2 * 8}.get(name, 1)  # through the corrupted rows
    positions = unembedded = 0
    for prompt, target in zip(prompts, targets, strict=True):
        n_target = len(loc_edit.target_tokens(model, prompt.text, target))
        length = len(prompt) + n_target - 1
        begin = 0 if name in patched else prompt.subject.start
        rows = patched.get(name, args.samples if name == TRACING or name.startswith("severed") else 0)
        tails = [length - pos for pos in range(begin, len(prompt))]
        positions += n_layers * (length + passes * args.samples * (length - prompt.subject.start))
        positions += rows * (states * sum(tails) + n_first * len(tails))
        unembedded += n_target * (1 + passes * args.samples + rows * len(runs) * len(tails))
    different = {tuple(prompt.tokens.tolist()) for prompts_of_fact in references for prompt in prompts_of_fact}
    return positions + n_layers * sum(map(len, different)), unembedded


@torch.inference_mode()
def products(model: Any) -> tuple[float, float]:
    """Seconds per position of the weight products of a layer, and of the unembedding."""
    block = model.blocks[len(model.blocks) // 2]
    kept = dict(block.attn.named_parameters())  # the properties of grouped keys and values repeat them
    attn = [kept["W_Q"], *(kept.get(f"_{name}", kept.get(name)) for name in ("W_K", "W_V"))]
    layer = [weight.transpose(0, 1).flatten(1) for weight in attn] + [block.attn.W_O.flatten(0, 1)]
    layer += [weight for name, weight in block.mlp.named_parameters() if name.startswith("W_")]

    def least(weight: torch.Tensor) -> float:
        best = np.inf
        for n in (16, 64, 256, 1024, 4096):
            rows = torch.randn(n, len(weight)).to(weight)
            repeats = 1 + 2**27 // (n * weight.numel())
            seconds, _ = fastest(lambda rows=rows, repeats=repeats: [rows @ weight for _ in range(repeats)], 2)
            best = min(best, seconds / (n * repeats))
        return float(best)

    return sum(map(least, layer)), least(model.W_U)


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
