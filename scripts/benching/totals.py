"""What the parts add up to: the whole study, the built-in grid, and the effect of fewer digits."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from benching.floors import Floor
from benching.parts import editing_work, our_edits, our_traces, window_of
from benching.setup import METHODS, Case, editing_bench, make_cases, make_model
from benching.timing import Clock

STUDY = {"facts": 652, "windows": 4, "layers": 9, "methods": 4, "problems": 5}
GRID = {"facts": 100, "layers": 8}
"""The full grid of the built-in model, with all methods and problems."""


def study(
    model: HookedTransformer, cases: list[Case], traced: dict[str, Any], edited: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    """Hours of the whole study, minutes of the built-in grid, and of its floors, on this machine and one process.

    Error injection was measured at several layers.  Of fact forcing, seconds and floor are taken at the middle layer in
    relation to error injection's there; the other three problems are taken to be like error injection.
    """
    layer, floor = model.cfg.n_layers // 2, Floor(model, traced["tokens"], clock)
    cost = floor.costs()
    forcing, forcing_floor = {}, {}
    for method in METHODS:
        window, times, floors = window_of(model, method, layer), [], []
        for problem in ("error_injection", "fact_forcing"):
            bench = editing_bench(model, cases, problem, [window[0]])
            floors.append(editing_work(bench, method, window).seconds(cost))
            times.append(
                clock.seconds(lambda bench=bench, method=method, window=window: our_edits(bench, method, window))
            )
        forcing[method], forcing_floor[method] = times[1] / times[0], floors[1] / floors[0]

    def total(name: str, factor: dict[str, float]) -> dict[str, float]:
        """Seconds of one fact at one layer under all problems."""
        each = {method: one["seconds per edit"][name]["median"] for method, one in edited["methods"].items()}
        return {method: (STUDY["problems"] - 1 + factor[method]) * seconds for method, seconds in each.items()}

    ours, least = total("ours", forcing), total("block floor", forcing_floor)
    tracing_hours = traced["seconds per trace"]["ours, 4 windows"]["median"] * STUDY["facts"] / 3600
    editing_hours = {name: STUDY["facts"] * STUDY["layers"] * seconds / 3600 for name, seconds in ours.items()}
    n_grid = GRID["facts"] * GRID["layers"] / 60
    return {
        **STUDY,
        "clock": clock.name,
        "forcing / injection": forcing,
        "forcing / injection, block floors": forcing_floor,
        "tracing, hours": tracing_hours,
        "editing, hours": editing_hours,
        "hours": tracing_hours + sum(editing_hours.values()),
        "built-in grid, minutes": n_grid * sum(ours.values()),
        "built-in grid, block floors, minutes": n_grid * sum(least.values()),
    }


def precision(shape: str, cases_wanted: int, args: Namespace) -> dict[str, Any]:
    """What TF32 products and bfloat16 weights do to traces, updates and scores: largest differences to float32."""
    torch.set_float32_matmul_precision("highest")
    exact = _numbers(make_model(shape, args.device, torch.float32), cases_wanted, args)
    found = {}
    for name, products, dtype in (("tf32", "high", torch.float32), ("bfloat16", "highest", torch.bfloat16)):
        torch.set_float32_matmul_precision(products)
        other = _numbers(make_model(shape, args.device, dtype), cases_wanted, args)
        gaps = {}
        for key, wanted in exact.items():
            difference = (other[key] - wanted).norm() / wanted.norm() if "update" in key else None
            gaps[key] = float(difference if difference is not None else (other[key] - wanted).abs().max())
        found[name] = gaps
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    return found


def _numbers(model: HookedTransformer, n: int, args: Namespace) -> dict[str, Tensor]:
    """Traces, updates (relative norm of the difference is taken) and p(target) after each edit."""
    cases, middle = make_cases(model, n, args.samples), model.cfg.n_layers // 2
    bench = editing_bench(model, cases, "error_injection", [0])
    traces = our_traces(model, cases, [args.window])
    numbers = {"restored p": torch.cat([grid.flatten() for grid in traces])}
    for method in METHODS:
        window = window_of(model, method, middle)
        edits = our_edits(bench, method, window)
        numbers[f"{method}: update, relative"] = torch.cat([e.delta(middle).flatten().cpu() for e, _ in edits])
        numbers[f"{method}: p after"] = torch.tensor([p for _, p in edits])
    return numbers
