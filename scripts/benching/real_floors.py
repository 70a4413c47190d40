"""Parts of `scripts/bench_real.py` measured beside their weight products: traces, edits, scores, localizers."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

import loc_edit
from benching.counts import (
    finetune_count,
    localizer_count,
    scoring_count,
    trace_count,
    value_count,
)
from benching.real_cases import Case
from loc_edit.editing.settings import FinetuneSettings, MemitSettings, RomeSettings
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.experiment.batch import Batch
from loc_edit.localization.hooks import window_layers
from loc_edit.localization.references import references
from loc_edit.localization.tracing import trace_many
from loc_edit.models.model import W_out
from loc_edit.names import LOCALIZERS
from loc_edit.prompts.sampling import sample_essences
from loc_edit.scoring.measuring import Meter
from loc_edit.scoring.probes import make_probes

WINDOWS = (1, 3, 5, 10)
NARROW = 1e-5
"""Fine-tuning's box: so small that no loss falls far enough to stop early."""


def trace_run(case: Case, facts: list[loc_edit.Fact], windows: list[int], samples: int) -> Any:
    """A call of `trace_many`, ready to be timed."""
    model, targets = case.model, [fact.target_true for fact in facts]
    prompts, noises = [loc_edit.encode(model, f) for f in facts], [case.noise(f, samples) for f in facts]
    return lambda: trace_many(model, prompts, targets, noises=noises, windows=windows)


def tracing(case: Case) -> Iterator[dict[str, Any]]:
    """One fact with one window, and many facts with four."""
    samples = case.sizes["samples"]
    one, many = case.typical(1), case.typical(case.sizes["traced"])
    for facts, windows in ((one, [1]), (one, [5]), (many, list(WINDOWS))):
        asked = case.asked(facts, samples)
        about = f"{asked[0].length} tokens" if len(facts) == 1 else f"{len(facts)} facts"
        what = f"{about}, window {', '.join(map(str, windows))}, {samples} samples"
        count = trace_count(case.model, asked, windows)
        yield case.beside_floor("trace", what, trace_run(case, facts, windows, samples), count, 1.1)


def edit_runs(case: Case, facts: list[loc_edit.Fact], layer: int, steps: int | None = None) -> dict[str, Any]:
    """By method, a call that edits all facts at a layer, and the count of its products."""
    model, stats = case.model, loc_edit.KeyStats.identity(case.model)
    requests = [loc_edit.pose(fact, "error_injection", model) for fact in facts]
    contexts = {style: loc_edit.sample_contexts(model, style) for style in ("rome", "memit")}
    rome = RomeSettings(**({"steps": steps} if steps else {}))
    memit = MemitSettings(**({"steps": steps} if steps else {}))
    tuned = FinetuneSettings(eps=NARROW, **({"steps": steps} if steps else {}))
    n_layers, runs = model.cfg.n_layers, {}
    window = list(window_layers(layer, 5, n_layers))
    common = {"stats": stats, "contexts": contexts["rome"], "settings": rome}
    runs["ROME"] = (
        lambda: loc_edit.rome(model, requests, layer, **common),
        value_count(model, requests, contexts["rome"], [layer], rome.steps - 1),
    )
    runs["MEMIT"] = (
        lambda: loc_edit.memit(model, requests, window, stats=stats, contexts=contexts["memit"], settings=memit),
        value_count(model, requests, contexts["memit"], window, memit.steps - 1),
    )
    for size in (1, 5):
        layers = list(window_layers(layer, size, n_layers))
        runs[f"FT-{size}"] = (
            lambda layers=layers: loc_edit.finetune(model, requests, layers, settings=tuned),
            finetune_count(model, requests, layers, tuned.steps),
        )
    return runs


def editing(case: Case) -> Iterator[dict[str, Any]]:
    """A batch of facts by each method, at a layer in the first third."""
    facts = case.typical(case.sizes["facts"])
    what = f"{len(facts)} facts at layer {case.layer}"
    for method, (run, count) in edit_runs(case, facts, case.layer).items():
        yield case.beside_floor("edits", f"{method}, {what}", run, count, 1.2)


def small_edits(case: Case, n: int, layer: int) -> list[Edit]:
    """Rank-one edits with random factors: what they say does not matter for speed."""
    weight, draws = W_out(case.model, layer), torch.Generator().manual_seed(0)
    sides = [torch.randn(n, size, generator=draws).to(weight) * 1e-3 for size in weight.shape]
    return [Edit((WeightUpdate(layer, a[:, None], b[None]),)) for a, b in zip(*sides, strict=True)]


def scoring(case: Case) -> Iterator[dict[str, Any]]:
    """All probes of a batch with its essence texts: of the unedited model, then under edits of one layer."""
    model, layer, facts = case.model, case.layer, case.typical(case.sizes["facts"])
    requests = [loc_edit.pose(fact, "error_injection", model) for fact in facts]
    texts = sample_essences(model, [fact.subject for fact in facts], [fact.fact_id for fact in facts])
    probes = [make_probes(model, *of_fact) for of_fact in zip(facts, requests, texts, strict=True)]
    meter, edits = Meter(model, probes, [layer]), small_edits(case, len(facts), layer)
    what, count = f"{len(facts)} edits of layer {layer}", scoring_count(model, probes, layer + 1)
    whole = scoring_count(model, probes, 0, edited=False)
    yield case.beside_floor("scoring", what, lambda: meter.measure(edits), count, 1.3)
    yield case.beside_floor("scoring", "the unedited model before", lambda: Meter(model, probes, [layer]), whole, None)


def localizing(case: Case) -> Iterator[dict[str, Any]]:
    """Every localizer on a batch of facts, as the grid calls it."""
    model, facts, samples = case.model, case.typical(case.sizes["facts"]), case.sizes["samples"]
    config = SimpleNamespace(
        site="mlp_out", windows=(5,), localizer_windows=(5,), noise_samples=samples, seed=0, essence=False
    )
    setup = SimpleNamespace(model=model, config=config, corruption=case.corruption, references=case.facts)
    asked = case.asked(facts, samples)
    for name, known in LOCALIZERS.items():
        others = [references(model, fact, case.facts, known.references) for fact in facts] if known.references else ()
        draws = known.options.get("steps", known.options.get("samples", 1))
        count = localizer_count(model, name, asked, 5, others, draws)

        def run(name: str = name) -> None:
            Batch(setup, facts).traces(name, 5)

        yield case.beside_floor("localizers", f"{name}, {len(facts)} facts", run, count, 1.2)
