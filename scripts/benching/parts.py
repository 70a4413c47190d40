"""The measured parts of the benchmark: tracing, editing, and how they grow."""

from argparse import Namespace
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

import loc_edit
from benching import plain
from benching.floors import BLOCKS, Floor, Work, finetune_work, scoring_work, tracing_work, value_work
from benching.setup import METHODS, SHAPES, Case, editing_bench, make_cases, make_model
from benching.timing import Clock, peak_memory, ratio, spread_of
from loc_edit.editing.finetune import Training, _train
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.settings import FinetuneSettings
from loc_edit.editing.update import Edit
from loc_edit.localization.hooks import window_layers
from loc_edit.localization.tracing import trace_many
from loc_edit.scoring.scores import compare

WINDOWS = (1, 3, 5, 10)
LONGER = "In the north of the country, where the old river meets the sea and nobody lives any more, "


def our_traces(model: HookedTransformer, cases: list[Case], windows: list[int]) -> list[Tensor]:
    """p_restored of the last window."""
    prompts, targets, noises = ([getattr(c, name) for c in cases] for name in ("prompt", "target", "noise"))
    return [found[-1].p_restored for found in trace_many(model, prompts, targets, noises=noises, windows=windows)]


def our_edits(bench: SimpleNamespace, method: str, layers: list[int]) -> list[tuple[Edit, float]]:
    """Each fact's edit and p(target) after it; all its scores are computed."""
    model, requests, settings = bench.model, bench.requests, bench.settings[method]
    if method == "rome":
        common = {"stats": bench.stats, "contexts": bench.contexts["rome"]}
        edits = loc_edit.rome(model, requests, layers[0], settings=settings, **common)
    elif method == "memit":
        common = {"stats": bench.stats, "contexts": bench.contexts["memit"]}
        edits = loc_edit.memit(model, requests, layers, settings=settings, **common)
    else:
        edits = loc_edit.finetune(model, requests, layers, settings=settings)
    after = bench.meter.measure(edits)
    for before, measured, request in zip(bench.meter.before, after, requests, strict=True):
        compare(before, measured, request.objective)
    return [(edit, measured.rewrite) for edit, measured in zip(edits, after, strict=True)]


def tracing(model: HookedTransformer, cases: list[Case], args: Namespace, clock: Clock) -> dict[str, Any]:
    """Ours beside the plain loop, TransformerLens's patching and the floors."""
    some = cases[: args.plain] if args.plain else []
    timed: dict[str, Callable[[], list[Tensor]]] = {
        "ours": lambda: our_traces(model, cases, [args.window]),
        "ours, window 1": lambda: our_traces(model, cases, [1]),
        "ours, 4 windows": lambda: our_traces(model, cases, list(WINDOWS)),
    }
    if some:
        timed["plain loop"] = lambda: [plain.trace(model, case, args.window) for case in some]
        timed["act patch, window 1"] = lambda: [plain.act_patch(model, case) for case in some]
    grids = {name: run() for name, run in timed.items()}
    worst = 0.0
    for ours, other in (("ours", "plain loop"), ("ours, window 1", "act patch, window 1")) if some else ():
        for a, b, case in zip(grids[ours], grids[other], some, strict=False):
            start = case.prompt.subject.start
            worst = max(worst, (a[:, start:].cpu() - b[:, start:].cpu()).abs().max().item())
    length = round(sum(len(case.prompt) for case in cases) / len(cases))
    floor = Floor(model, length, clock)
    pairs = [(case.prompt, case.noise) for case in cases]
    works = {"ours": [args.window], "ours, window 1": [1], "ours, 4 windows": list(WINDOWS)}
    counts = {name: tracing_work(model, pairs, windows) for name, windows in works.items()}
    rounds = clock.rounds(timed, args.rounds)
    for one in rounds:
        cost, fused, matrix = floor.block(), floor.block(fused=True), floor.matrix()
        for name, (alone, shared, rows) in counts.items():
            one[f"block floor of {name}"] = alone * cost
            one[f"shared floor of {name}"] = shared * cost
            one[f"fused block floor of {name}"] = alone * fused
            products = alone * floor.multiplications + rows * model.cfg.d_model * model.cfg.d_vocab_out
            one[f"matrix floor of {name}"] = products * matrix
        for name in ("plain loop", "act patch, window 1"):
            if name in one:
                one[name] *= len(cases) / len(some)
    ratios = [("ours", "block floor of ours"), ("ours", "shared floor of ours"), ("ours", "matrix floor of ours")]
    ratios += [("ours", "fused block floor of ours")]
    ratios += [("ours, 4 windows", "shared floor of ours, 4 windows"), ("ours, 4 windows", "ours")]
    if some:
        ratios += [("plain loop", "ours"), ("act patch, window 1", "ours, window 1")]
    return {
        "seconds per trace": {name: spread_of([r[name] / len(cases) for r in rounds]) for name in timed},
        "ratios": {f"{top} / {bottom}": ratio(rounds, top, bottom) for top, bottom in ratios},
        "largest difference": worst,
        "tokens": length,
        "microseconds per position and layer": floor.block() * 1e6,
        "peak memory, MB": peak_memory(),
    }


def edit_layers(model: HookedTransformer, n: int) -> list[int]:
    """`n` layers spread over the model, the first and the last among them."""
    last = model.cfg.n_layers - 1
    return sorted({round(i * last / max(1, n - 1)) for i in range(n)})


def window_of(model: HookedTransformer, method: str, layer: int) -> list[int]:
    return list(window_layers(layer, int(METHODS[method].rpartition("-")[2]), model.cfg.n_layers))


def editing(model: HookedTransformer, cases: list[Case], args: Namespace, clock: Clock) -> dict[str, Any]:
    """Edits per second by method, scores included, beside one fact at a time and the floors; means over layers."""
    layers = edit_layers(model, args.layers)
    lowest = sorted({window_of(model, method, layer)[0] for method in METHODS for layer in layers})
    bench = editing_bench(model, cases, "error_injection", lowest)
    some = editing_bench(model, cases[: args.plain], "error_injection", lowest) if args.plain else None
    length = round(sum(len(case.prompt) for case in cases) / len(cases))
    floor = Floor(model, length, clock)
    found: dict[str, Any] = {"layers": layers, "facts": len(cases), "methods": {}}
    for method in METHODS:
        rounds, worst, works = [{} for _ in range(args.rounds)], {"update": 0.0, "p": 0.0}, Work()
        for layer in layers:
            window = window_of(model, method, layer)
            timed = {"ours": lambda method=method, window=window: our_edits(bench, method, window)}
            if some:
                timed["plain"] = lambda method=method, window=window: plain.edit_and_score(some, method, window)
            results = {name: run() for name, run in timed.items()}
            if some:
                for (edit, p), (other, q) in zip(results["ours"], results["plain"], strict=False):
                    gap = max((edit.delta(k) - other.delta(k)).norm() / other.delta(k).norm() for k in window)
                    last = (
                        window[-1] == model.cfg.n_layers - 1
                    )  # a value there starts from rounding noise: nothing reads it
                    worst = {
                        "update": max(worst["update"], 0 if last else float(gap)),
                        "p": max(worst["p"], abs(p - q)),
                    }
            for one, more in zip(rounds, clock.rounds(timed, args.rounds), strict=True):
                for name, seconds in more.items():
                    one[name] = one.get(name, 0.0) + seconds
            works += editing_work(bench, method, window)
        for one in rounds:
            cost = floor.costs()
            one["block floor"] = works.seconds(cost)
            one["block floor without weights' gradients"] = works.seconds(cost, BLOCKS[:2])
            one["fused block floor"] = works.seconds(floor.costs(fused=True))
            one["floor with unembedding"] = works.seconds(cost, list(cost)[:-1])
            one["floor with unembedding and optimiser"] = works.seconds(cost, list(cost))
            if some:
                one["plain"] *= len(cases) / len(some.requests)
        floors = [name for name in rounds[0] if "floor" in name]
        pairs = [("ours", name) for name in floors] + ([("plain", "ours")] if some else [])
        n = len(cases) * len(layers)
        found["methods"][method] = {
            "edits per second": spread_of([n / one["ours"] for one in rounds]),
            "seconds per edit": {name: spread_of([one[name] / n for one in rounds]) for name in rounds[0]},
            "ratios": {f"{top} / {bottom}": ratio(rounds, top, bottom) for top, bottom in pairs},
            "largest difference": worst if some else None,
        }
    return {**found, "peak memory, MB": peak_memory()}


def editing_work(bench: SimpleNamespace, method: str, window: list[int]) -> Work:
    """The floor of one cell: its edits and their scores."""
    settings, requests = bench.settings[method], bench.requests
    scoring = scoring_work(bench.model, bench.meter, window[0])
    if method in ("rome", "memit"):
        return scoring + value_work(bench.model, requests, bench.contexts[method], window, settings.steps - 1)
    steps = [steps_taken(bench.model, request, window, settings) for request in requests]
    return scoring + finetune_work(bench.model, requests, window, steps)


def steps_taken(model: HookedTransformer, request: EditRequest, layers: list[int], settings: FinetuneSettings) -> int:
    """How many forward passes fine-tuning takes for one request by itself."""
    training = Training(model, [request], layers, settings)
    with model.hooks(fwd_hooks=training.hooks()):
        return _train(training, settings.steps)


def growth(model: HookedTransformer, shape: str, args: Namespace, clock: Clock) -> dict[str, Any]:
    """Seconds per trace and per edit as facts, tokens, layers and noise samples grow."""
    found: dict[str, dict[str, float]] = {"facts": {}, "tokens": {}, "layers": {}, "samples": {}}

    def seconds(some: HookedTransformer, cases: list[Case]) -> float:
        our_traces(some, cases[:1], [args.window])
        return clock.seconds(lambda: our_traces(some, cases, [args.window])) / len(cases)

    cases = make_cases(model, args.facts, args.samples)
    middle = model.cfg.n_layers // 2
    for n in sorted({1, 2, max(1, args.facts // 2), args.facts}):
        bench = editing_bench(model, cases[:n], "error_injection", [middle])
        edits = clock.seconds(lambda bench=bench: our_edits(bench, "rome", [middle])) / n
        found["facts"][str(n)] = {"trace": seconds(model, cases[:n]), "rome": edits}
    few = max(1, args.facts // 4)
    for before in ("", LONGER, LONGER * 2):
        long = make_cases(model, few, args.samples, before)
        found["tokens"][str(round(sum(len(c.prompt) for c in long) / len(long)))] = {"trace": seconds(model, long)}
    for samples in (1, args.samples, 3 * args.samples):
        found["samples"][str(samples)] = {"trace": seconds(model, make_cases(model, few, samples))}
    if shape in SHAPES:
        for n in sorted({max(1, model.cfg.n_layers // 4), model.cfg.n_layers // 2}):
            small = make_model(shape, args.device, getattr(torch, args.dtype), n_layers=n)
            found["layers"][str(n)] = {"trace": seconds(small, make_cases(small, few, args.samples))}
    found["layers"][str(model.cfg.n_layers)] = {"trace": seconds(model, cases[:few])}
    return found
