"""Parts of `scripts/bench_real.py` beside the ratios: memory, growth with a figure, and what bfloat16 changes."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import loc_edit
from benching.counts import trace_count
from benching.products import floor_seconds
from benching.real_cases import Case, load, row
from benching.real_floors import WINDOWS, edit_runs, trace_run
from benching.setup import SHAPES, make_model
from loc_edit.prompts.recall import answers
from loc_edit.scoring.score import score
from loc_edit.views.style import BLUE, GRAY, legend, panels, styled

MB = 2**20
LONGER = ", where the old river meets the sea and nobody lives any more,"
"""Text behind the subject, which makes tails longer."""
FEW = 3
"""Steps of an edit whose memory is measured: the first takes as much as any."""


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that tensors take at most during a call, beyond those at its start; on a CPU as torch's profiler counts."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def peaks(case: Case) -> dict[str, int]:
    """Bytes beyond the weights at the peak of one trace, one ROME edit at the first layer, and one FT-1."""
    device, facts = case.model.W_E.device, case.typical(1)
    runs = {"trace": trace_run(case, facts, [5], case.sizes["samples"])}
    runs |= {name: run for name, (run, _) in edit_runs(case, facts, 0, FEW).items() if name in ("ROME", "FT-1")}
    return {name: peak(run, device) for name, run in runs.items()}


def kept_by_a_trace(case: Case, n_layers: int) -> int:
    """Bytes that a trace of one fact must keep from layer to layer: of the corrupted rows the residual stream, keys and
    values of every layer, and the site's output of the clean row.
    """
    cfg, [asked] = case.model.cfg, case.asked(case.typical(1), case.sizes["samples"])
    heads = cfg.n_key_value_heads or cfg.n_heads
    of_noisy = asked.samples * (asked.length - asked.prompt.subject.start) * (cfg.d_model + 2 * heads * cfg.d_head)
    return cfg.dtype.itemsize * n_layers * (of_noisy + asked.length * cfg.d_model)


def memory(case: Case) -> Iterator[dict[str, Any]]:
    """The model itself; and a large shape, from copies of two and three layers and the line through both."""
    yield _memory_row(case.source, case, peaks(case), case.model.cfg.n_layers)
    shape = case.args.memory_shape
    for dtype in (torch.float32, torch.bfloat16) if shape else ():
        n_layers, by_layers = SHAPES[shape]["n_layers"], {}
        for n in (2, 3):
            copied = Case(shape, case.args, case.clock)
            copied.model = make_model(shape, case.args.device, dtype, n_layers=n)
            by_layers[n] = peaks(copied)
            if n == 2:
                yield _memory_row(f"{shape}, 2 layers, {dtype}", copied, by_layers[n], 2)
        line = {
            name: by_layers[2][name] + (n_layers - 2) * (by_layers[3][name] - by_layers[2][name])
            for name in by_layers[2]
        }
        yield _memory_row(f"{shape}, {n_layers} layers by the line through 2 and 3, {dtype}", copied, line, n_layers)


def _memory_row(what: str, case: Case, beyond: dict[str, int], n_layers: int) -> dict[str, Any]:
    parameters = sum(p.numel() for p in case.model.parameters())
    of_a_layer = sum(p.numel() for p in case.model.blocks[0].parameters())
    weights = (parameters + (n_layers - case.model.cfg.n_layers) * of_a_layer) * case.model.cfg.dtype.itemsize
    megabytes = {name: value / MB for name, value in beyond.items()}
    kept = kept_by_a_trace(case, n_layers) / MB
    note = f"weights {weights / MB:.0f} MB; beyond them at the peak: "
    note += ", ".join(f"{name} {value:.0f} MB" for name, value in megabytes.items())
    note += f"; a trace must keep {kept:.0f} MB"
    return {"part": "memory", "what": what, "weights, MB": weights / MB, "beyond, MB": megabytes, "note": note}


def growth(case: Case) -> Iterator[dict[str, Any]]:
    """Seconds and floors of traces over tokens, facts and windows, and of ROME over layers; and their figure."""
    samples, one = min(2, case.sizes["samples"]), case.typical(1)
    n_layers, quick = case.model.cfg.n_layers, case.args.quick
    series: dict[str, list[tuple[float, float, float]]] = {"tokens": [], "layer": [], "facts": [], "windows": []}

    def add(name: str, at: float, run: Callable[[], object], count: Counter[str]) -> None:
        case.warm_up(run)
        seconds = min(case.clock.seconds(run) for _ in range(1 if quick else 2))
        series[name].append((at, seconds, floor_seconds(count, case.products.seconds())))

    def trace(name: str, at: float, facts: list[loc_edit.Fact], windows: list[int]) -> None:
        count = trace_count(case.model, case.asked(facts, samples), windows)
        add(name, at, trace_run(case, facts, windows, samples), count)

    for n in (0, 1, 2) if quick else (0, 1, 2, 3):
        facts = [replace(one[0], template=one[0].template.replace("{}", "{}" + n * LONGER))]
        if case.asked(facts, samples)[0].length <= case.model.cfg.n_ctx:
            trace("tokens", case.asked(facts, samples)[0].length, facts, [5])
    for layer in sorted({0, n_layers // 3, 2 * n_layers // 3, n_layers - 2}):
        run, count = edit_runs(case, one, layer, FEW if quick else 2 * FEW)["ROME"]
        add("layer", layer, run, count)
    for n in (1, 2, 4) if quick else (1, 2, 4, 8, 16):
        trace("facts", n, case.typical(n), [5])
    for n in range(1, len(WINDOWS) + 1):
        trace("windows", n, one, list(WINDOWS[:n]))
    _draw(case, series, samples, FEW if quick else 2 * FEW)
    for name, points in series.items():
        note = ", ".join(f"{at:g}: {seconds:.2f} ({floor:.2f})" for at, seconds, floor in points)
        yield {"part": "growth", "what": f"seconds (floor) over {name}", "series": points, "note": note}


def _draw(case: Case, series: dict[str, list[tuple[float, float, float]]], samples: int, steps: int) -> None:
    titles = {
        "tokens": ("One trace, window 5", "Tokens of the prompt and its target"),
        "layer": (f"ROME of one fact, {steps} steps", "Edited layer"),
        "facts": ("Traces, window 5", "Facts"),
        "windows": ("One trace", "Windows: " + ", ".join(map(str, WINDOWS))),
    }
    with styled():
        figure, axes = panels(4, columns=2, height=1.8)
        for ax, (name, (title, label)) in zip(axes, titles.items(), strict=True):
            at, seconds, floors = zip(*series[name], strict=True)
            ax.plot(at, seconds, "o-", color=BLUE, label="Measured")
            ax.plot(at, floors, "s--", color=GRAY, label="Its weight products")
            ax.set(title=title, xlabel=label, ylabel="Seconds", ylim=(0, None))
            ax.xaxis.get_major_locator().set_params(integer=True)
        legend(figure, axes, axes[0].get_legend_handles_labels()[0])
        threads = f"{torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
        where = threads if case.args.device == "cpu" else torch.cuda.get_device_name(case.args.device)
        figure.supxlabel(f"{Path(case.source).name}, {case.args.dtype}, {where}; {samples} noise samples")
        figure.savefig(case.args.plot)


def halved(case: Case) -> Iterator[dict[str, Any]]:
    """The filter, a trace and a ROME edit in bfloat16 beside float32, and the largest differences of their numbers."""
    cases = {}
    for name, dtype in (("ours", torch.bfloat16), ("float32", torch.float32)):
        cases[name] = Case(case.source, case.args, case.clock)
        cases[name].model = load(case.source, case.args.device, dtype)
    exact = cases["float32"]
    known, [fact] = exact.spread(case.sizes["known"]), exact.typical(1)
    steps = FEW if case.args.quick else None

    def filtered(one: Case) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            return answers(one.model, known, cache=folder)

    runs = {name: edit_runs(one, [fact], one.layer, steps)["ROME"][0] for name, one in cases.items()}
    for what, versions in (
        (f"filter, {len(known)} facts", {name: lambda one=one: filtered(one) for name, one in cases.items()}),
        (
            "trace, window 5",
            {name: trace_run(one, [fact], [5], case.sizes["samples"]) for name, one in cases.items()},
        ),
        ("ROME, one fact", runs),
    ):
        numbers = {name: run() for name, run in versions.items()}
        found = row("bf16", what, case.clock.rounds(versions, case.args.rounds), "float32", 0.6)
        yield found | _differences(cases, fact, numbers["ours"], numbers["float32"])


def _differences(cases: dict[str, Case], fact: loc_edit.Fact, halved: Any, exact: Any) -> dict[str, Any]:
    """What bfloat16 changes in answers, in a trace's probabilities, or in the scores of an edit."""
    if isinstance(halved[0], list):
        error = float((halved[0][0].p_restored - exact[0][0].p_restored).abs().max())
        return {"error": error, "note": f"p_restored differs by up to {error:.1e}"}
    if not isinstance(halved[0], loc_edit.Edit):
        pairs = list(zip(halved, exact, strict=True))
        error = max(abs(a.p_true - b.p_true) for a, b in pairs)
        equal = sum(a.text == b.text for a, b in pairs)
        same = sum(a.known == b.known for a, b in pairs)
        note = f"p(true) differs by up to {error:.1e}; {equal} of {len(pairs)} answers, {same} verdicts the same"
        return {"error": error, "equal": equal, "note": note}
    scores = {}
    for name, edits in (("ours", halved), ("float32", exact)):
        model = cases[name].model
        request = loc_edit.pose(fact, "error_injection", model)
        scores[name] = score(model, fact, request, edits[0], essence=False)
    names = ("rewrite", "paraphrase", "neighborhood")
    gaps = {name: abs(getattr(scores["ours"], name) - getattr(scores["float32"], name)) for name in names}
    note = "scores differ by " + ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
    return {"error": max(gaps.values()), "note": note}
