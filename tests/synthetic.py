"""Rows with a known structure: regressions with exact R^2, traces with a hump, edits of the same facts."""

import numpy as np
import pandas as pd

WORDS = ("The", "old", "city", "of", "river", "north", "tower", "garden")


def regression_rows(
    n_facts=60,
    layers=(0, 2, 4, 6),
    r2_layer=0.6,
    r2_added=0.1,
    seed=0,
    problem="error_injection",
    method="rome",
    window=1,
):
    """Rows in which R^2 of layer is exactly `r2_layer`; the tracing effect adds exactly `r2_added`."""
    rng = np.random.default_rng(seed)
    n_layers = len(layers)
    between = _standard(rng.normal(size=n_layers)[None, :]).ravel()  # one number per layer
    trace = rng.gamma(1.5, 0.1, size=(n_facts, n_layers)) + 0.05 * np.arange(n_layers)
    within = _standard(trace - trace.mean(0))
    noise = rng.normal(size=(n_facts, n_layers))
    for layer in range(n_layers):  # what neither layer nor a line per layer can explain
        design = np.stack([np.ones(n_facts), trace[:, layer]], 1)
        noise[:, layer] -= design @ np.linalg.lstsq(design, noise[:, layer], rcond=None)[0]
    shares = (r2_layer, r2_added, 1 - r2_layer - r2_added)
    parts = (np.broadcast_to(between, trace.shape), within, _standard(noise))
    score = 0.5 + 0.1 * sum(np.sqrt(share) * part for share, part in zip(shares, parts, strict=True))
    return pd.DataFrame(
        {
            "fact_id": np.repeat(np.arange(n_facts), n_layers),
            "problem": problem,
            "method": method,
            "window": window,
            "layer": np.tile(layers, n_facts),
            "status": "done",
            "rewrite": score.ravel(),
            "trace": trace.ravel(),
        }
    )


def trace_rows(n_facts=12, n_layers=6, windows=(5,), sites=("mlp_out",), seed=0):
    """Trace rows of prompts `prefix + subject + rest`: a hump over the layers at the last subject token."""
    rng = np.random.default_rng(seed)
    rows = []
    for fact in range(n_facts):
        begin, width, tail = int(rng.integers(0, 2)), int(rng.integers(1, 4)), int(rng.integers(2, 4))
        n_pos, end = begin + width + tail, begin + width
        clean, corrupted = rng.uniform(0.5, 0.95), rng.uniform(0.01, 0.1)
        center = rng.integers(min(1, n_layers - 1), n_layers)
        for site in sites:
            for window in windows:
                layer, pos = np.meshgrid(np.arange(n_layers), np.arange(n_pos), indexing="ij")
                hump = np.exp(-((layer - center) ** 2) / (2 * (0.7 + 0.3 * window) ** 2))
                where = np.where(pos == end - 1, 0.8, 0.1) * (1 - np.exp(-window / 3))
                fraction = hump * where + rng.normal(0, 0.02, size=layer.shape)
                fraction = np.where(pos < begin, 0.0, fraction)
                rows.append(
                    pd.DataFrame(
                        {
                            "fact_id": fact,
                            "layer": layer.ravel(),
                            "pos": pos.ravel(),
                            "window": window,
                            "site": site,
                            "p_clean": clean,
                            "p_corrupted": corrupted,
                            "p_restored": corrupted + (fraction * (clean - corrupted)).ravel(),
                            "subject_begin": begin,
                            "subject_end": end,
                            "token": [" " + WORDS[(fact + p) % len(WORDS)] for p in pos.ravel()],
                            "relation": f"relation {fact % 3}",
                            "degenerate": False,
                        }
                    )
                )
    return pd.concat(rows, ignore_index=True)


def edit_rows(
    traces,
    problems=("error_injection", "fact_forcing"),
    methods=(("finetune", 1), ("finetune", 5), ("rome", 1), ("memit", 5)),
    layers=None,
    slope=0.0,
    seed=0,
    controls=True,
):
    """Edit rows for the facts of the traces: a hump over the layers, `slope` x restored p, noise."""
    rng = np.random.default_rng(seed)
    facts = np.unique(traces["fact_id"])
    layers = np.unique(traces["layer"]) if layers is None else np.asarray(layers)
    restored = traces[traces["window"] == traces["window"].iloc[0]].groupby(["fact_id", "layer"])["p_restored"].max()
    rows = []
    for p, problem in enumerate(problems):
        for m, (method, window) in enumerate(methods):
            for fact in facts:
                for layer in layers:
                    middle = 0.9 - 0.06 * m - 0.1 * p - 0.02 * (layer - 2) ** 2
                    score = middle + slope * restored[fact, layer] + rng.normal(0, 0.08)
                    rows.append(
                        _edit_row(rng, problem, method, window, int(fact), int(layer), float(np.clip(score, 0, 1)))
                    )
    if controls:
        rows += [_edit_row(rng, problem, "none", 0, int(fact), -1, 0.0) for problem in problems for fact in facts]
    return pd.DataFrame(rows)


def _edit_row(rng, problem, method, window, fact, layer, rewrite):
    before = float(rng.uniform(0.01, 0.1))
    paraphrase, neighborhood, essence = np.clip(rewrite * 0.8 + rng.normal(0, 0.1, 3), 0, 1)
    return {
        "fact_id": fact,
        "problem": problem,
        "method": method,
        "layer": layer,
        "window": window,
        "seed": 0,
        "status": "done",
        "reason": "",
        "target": " Rome",
        "objective": "lower" if problem == "fact_erasure" else "raise",
        "rewrite": rewrite,
        "paraphrase": paraphrase,
        "neighborhood": neighborhood,
        "essence": essence,
        "overall": (rewrite + paraphrase + neighborhood) / 3,
        "overall_essence": (rewrite + paraphrase + neighborhood + essence) / 4,
        "rewrite_before": [before],
        "rewrite_after": [before + rewrite * (1 - before)],
    }


def _standard(values):
    values = values - values.mean()
    return values / values.std()


def dependent_rows(n_facts=40, n_layers=6, slope=0.0, shared=0.6, rng=None):
    """Rows of facts that differ from each other in both columns at every layer; `slope` ties the two together."""
    rng = np.random.default_rng(rng)
    shape = (n_facts, n_layers)

    def draw():
        return np.sqrt(shared) * rng.normal(size=(n_facts, 1)) + np.sqrt(1 - shared) * rng.normal(size=shape)

    trace = draw()
    score = np.linspace(0, 1, n_layers) + 0.3 * draw() + slope * trace
    facts, layers = np.indices(shape)
    return pd.DataFrame(
        {"fact_id": facts.ravel(), "layer": layers.ravel(), "trace": trace.ravel(), "rewrite": score.ravel()}
    ).assign(problem="error_injection", method="rome", window=1, status="done")


def holm_by_hand(p):
    """Holm's correction: each p times the number of p-values at least as large, never below a smaller p's result."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)
    corrected = np.minimum(1, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return corrected[np.argsort(order)]
