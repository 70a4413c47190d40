"""The commands about one fact: trace it, edit it."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape
from rich.table import Table

import loc_edit
from loc_edit.cli.options import FactSource, like_config
from loc_edit.cli.show import numbers, out, probability_table, top_tokens
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.names import LOCALIZERS, METHODS, PROBLEMS

LOCALIZER = tyro.conf.arg(help=f"The localizer: {', '.join(LOCALIZERS)}.")
METHOD = tyro.conf.arg(help=f"The editing method: {', '.join(METHODS)}; memit-3 and finetune-5 name a window.")
PROBLEM = tyro.conf.arg(help=f"The editing problem: {', '.join(PROBLEMS)}.")


def trace(
    fact: int,
    source: FactSource,
    window: int = 5,
    site: Annotated[str, like_config("site")] = "mlp_out",
    localizer: Annotated[str, LOCALIZER] = "causal_tracing",
    samples: Annotated[int, like_config("noise_samples")] = 10,
    folder: Path = Path("runs/traces"),
) -> None:
    """Trace one fact: print the layer x token grid, and save it as CSV, PNG and PDF.

    Args:
        fact: The fact's id (see `loc-edit facts`).
        window: The number of layers restored together.
        folder: The folder for the files.
    """
    from loc_edit.analysis.tables.rows import EffectDefinition, cell_effects
    from loc_edit.localization.registry import grid_options
    from loc_edit.views.style import save

    facts = loc_edit.load_facts(source.data, seed=source.seed)
    chosen, model = _chosen(facts, fact, source.data), loc_edit.load_model(source.model)
    prompt = loc_edit.encode(model, chosen)
    noise = loc_edit.subject_noise(model, prompt, scale=source.noise, facts=facts, samples=samples, seed=source.seed)
    options = grid_options(localizer, model, chosen, facts, source.seed) if localizer in LOCALIZERS else {}
    about = {"localizer": localizer, "site": site, "window": window}
    traced = loc_edit.localize(model, prompt, chosen.target_true, noise=noise, **about, **options)
    _print_trace(traced)
    rows = cell_effects(traced.to_frame(), EffectDefinition(traced.window, site, localizer=localizer))
    paths = save(traced.plot(), rows, folder, f"trace_{fact}")
    out.print("saved " + ", ".join(str(path) for path in paths))


def _print_trace(trace: "loc_edit.Trace") -> None:
    """Prints the layer x token grid, with the tokens of the subject starred."""
    metric = {"probability": "p", "logit_difference": "logit difference"}[trace.metric]
    ends = f"{metric} clean {trace.p_clean:.3f}, corrupted {trace.p_corrupted:.3f}"
    out.print(f"{escape(trace.prompt.text)} -> [bold]{escape(trace.target)}[/]   {ends}")
    title = f"{trace.localizer}: restored {metric}, {trace.site}, window {trace.window}; * subject"
    layers = numbers(*map(str, range(len(trace.p_restored))))
    table = Table("token", *layers, title=title, title_justify="left")
    subject = range(trace.prompt.subject.start, trace.prompt.subject.stop)
    for pos, token in enumerate(trace.token_texts):
        cells = (f"{p:.3f}" for p in trace.p_restored[:, pos].tolist())
        table.add_row(escape(token) + "*" * (pos in subject), *cells)
    out.print(table)


def edit(
    fact: int,
    layer: int,
    method: Annotated[str, METHOD] = "rome",
    problem: Annotated[str, PROBLEM] = "error_injection",
    model: Annotated[str, like_config("model")] = "builtin",
    data: Annotated[str, like_config("data")] = "builtin",
    preset: Annotated[str, like_config("preset")] = "auto",
    noise: Annotated[str, like_config("noise")] = "s3",
    seed: Annotated[int, like_config("seed")] = 0,
    corpus_tokens: int = 200_000,
    save: Path | None = None,
) -> None:
    """Edit one fact at one layer, and show the effect: probabilities, next tokens and scores.

    Args:
        fact: The fact's id (see `loc-edit facts`).
        layer: The layer, or the center of the window.
        corpus_tokens: Tokens for the key statistics, which are cached.
        save: A safetensors file for the edit.
    """
    from loc_edit.experiment.experiment import Experiment
    from loc_edit.experiment.units import edit_all

    values = {
        "model": model,
        "data": data,
        "preset": preset,
        "noise": noise,
        "seed": seed,
        "corpus_tokens": corpus_tokens,
    }
    config = ExperimentConfig.from_values({**values, "methods": [method], "problems": [problem], "layers": [layer]})
    experiment = Experiment(config)
    [cell] = experiment.cells
    net, chosen = experiment.model, _chosen(loc_edit.load_facts(data, seed=seed), fact, data)
    drawn = experiment.corruption.draw(net, loc_edit.encode(net, chosen), samples=config.noise_samples, seed=seed)
    request = loc_edit.pose(chosen, problem, net, noise=drawn, noise_scale=experiment.sigma, seed=seed)
    [made] = edit_all(experiment.bench(), cell, [request])
    if isinstance(made, Exception):
        raise made
    score = loc_edit.score(net, chosen, request, made)
    out.print(f"{escape(request.prompt.text)} -> [bold]{escape(request.target)}[/] ({request.objective})")
    out.print(escape(repr(made)))
    before = top_tokens(net, chosen)
    with made.applied(net):
        after = top_tokens(net, chosen)
    out.print(f"next tokens before: {escape(before)}\nnext tokens after:  {escape(after)}")
    out.print(probability_table(chosen, score))
    out.print(
        "   ".join(
            f"{name} {getattr(score, name):.3f}"
            for name in ("rewrite", "paraphrase", "neighborhood", "essence", "overall")
        )
    )
    if save:
        made.save(save)
        out.print(f"saved {save}")


def _chosen(facts: "list[loc_edit.Fact]", fact_id: int, data: str) -> "loc_edit.Fact":
    for fact in facts:
        if fact.fact_id == fact_id:
            return fact
    raise ValueError(f"no fact {fact_id} in {data}; `loc-edit facts` lists them")
