"""The commands about one fact: trace it, edit it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.markup import escape
from rich.table import Table

import loc_edit
from loc_edit.cli.models import fetch
from loc_edit.cli.options import AcceptTerms, Assignments, Source, like_config
from loc_edit.cli.show import Json, numbers, out, plain_table, print_json
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.plugins import load_installed, load_plugins
from loc_edit.names import LOCALIZERS, METHODS, PROBLEMS

if TYPE_CHECKING:
    from loc_edit.views.edit import EditView

LOCALIZER = tyro.conf.arg(help=f"The localizer: {', '.join(LOCALIZERS)}.")
METHOD = tyro.conf.arg(help=f"The editing method: {', '.join(METHODS)}; memit-3 and finetune-5 name a window.")
PROBLEM = tyro.conf.arg(help=f"The editing problem: {', '.join(PROBLEMS)}.")


def trace(
    fact: int,
    source: Source,
    window: int = 5,
    site: Annotated[str, like_config("site")] = "mlp_out",
    localizer: Annotated[str, LOCALIZER] = "causal_tracing",
    samples: Annotated[int, like_config("noise_samples")] = 10,
    folder: Path = Path("runs/traces"),
    accept_terms: AcceptTerms = False,
    as_json: Json = False,
) -> None:
    """Trace one fact: print its layer x token grid, and save it.

    The grid is saved as CSV, PNG and PDF.

    Examples:
        loc-edit trace --fact 1
        loc-edit trace --fact 1 --localizer attribution --window 1
        loc-edit trace --fact 1 --model smollm2 --json

    Args:
        fact: The fact's id (see `loc-edit facts`).
        window: The number of layers restored together.
        folder: The folder for the files.
    """
    from loc_edit.analysis.tables.rows import EffectDefinition, cell_effects
    from loc_edit.localization.registry import grid_options
    from loc_edit.views.style import save

    load_plugins(source.plugins)
    if localizer not in LOCALIZERS:
        load_installed()
    fetch(source.model, accept_terms)
    facts = loc_edit.load_facts(source.data, seed=source.seed)
    chosen, model = _chosen(facts, fact, source.data), loc_edit.load_model(source.model)
    prompt = loc_edit.encode(model, chosen)
    noise = loc_edit.subject_noise(model, prompt, scale=source.noise, facts=facts, samples=samples, seed=source.seed)
    options = grid_options(localizer, model, chosen, facts, source.seed) if localizer in LOCALIZERS else {}
    traced = loc_edit.localize(
        model, prompt, chosen.target_true, noise=noise, localizer=localizer, site=site, window=window, **options
    )
    if not as_json:
        _print_trace(traced)
    rows = cell_effects(traced.to_frame(), EffectDefinition(traced.window, site, localizer=localizer))
    paths = save(traced.plot(), rows, folder, f"trace_{fact}")
    out.print("saved " + ", ".join(escape(str(path)) for path in paths))
    if as_json:
        ends = {"begin": prompt.subject.start, "end": prompt.subject.stop}
        more = {"fact_id": fact, "prompt": prompt.text, "tokens": traced.token_texts, "subject": ends}
        names = ("target", "localizer", "site", "window", "metric", "p_clean", "p_corrupted", "p_restored")
        print_json({**more, **{name: getattr(traced, name) for name in names}, "files": paths})


def _print_trace(trace: "loc_edit.Trace") -> None:
    """Prints the layer x token grid, with the tokens of the subject starred; the longer side goes downwards."""
    metric = {"probability": "p", "logit_difference": "logit difference"}[trace.metric]
    ends = f"{metric} clean {trace.p_clean:.3f}, corrupted {trace.p_corrupted:.3f}"
    out.print(f"{escape(trace.prompt.text)} -> [bold]{escape(trace.target)}[/]   {ends}")
    title = f"{trace.localizer}: restored {metric}, {trace.site}, window {trace.window}; * subject"
    subject = range(trace.prompt.subject.start, trace.prompt.subject.stop)
    tokens = [escape(token) + "*" * (pos in subject) for pos, token in enumerate(trace.token_texts)]
    layers, grid = [str(layer) for layer in range(len(trace.p_restored))], trace.p_restored
    corner, down, across = "layer", layers, tokens
    if len(layers) <= len(tokens):
        corner, down, across, grid = "token", tokens, layers, grid.T
    table = plain_table(corner, *numbers(*across), title=title)
    for name, values in zip(down, grid.tolist(), strict=True):
        table.add_row(name, *(f"{p:.2f}" for p in values))
    out.print(table)


def edit(
    fact: int,
    layer: int,
    source: Source,
    method: Annotated[str, METHOD] = "rome",
    problem: Annotated[str, PROBLEM] = "error_injection",
    preset: Annotated[str, like_config("preset")] = "auto",
    assignments: Assignments = (),
    corpus_tokens: int = 200_000,
    save: Path | None = None,
    accept_terms: AcceptTerms = False,
    as_json: Json = False,
) -> None:
    """Edit one fact at one layer, and show what that does.

    Shown are the next tokens and the probabilities before and after the edit, and its scores.

    Examples:
        loc-edit edit --fact 1 --layer 2
        loc-edit edit --fact 1 --layer 2 --method memit-3 --problem fact_erasure
        loc-edit edit --fact 1 --layer 2 --save edit.safetensors

    Args:
        fact: The fact's id (see `loc-edit facts`).
        layer: The layer, or the center of the window.
        corpus_tokens: How many tokens the key statistics take at most; they are cached.
        save: A safetensors file for the edit.
    """
    from loc_edit.experiment.edits import edit_batch
    from loc_edit.experiment.setup import Setup
    from loc_edit.experiment.study import edit_cells

    values = {"preset": preset, "corpus_tokens": corpus_tokens, "methods": [method], "problems": [problem]}
    config = ExperimentConfig.from_values({**asdict(source), **values, "layers": [layer]}).with_settings(assignments)
    fetch(source.model, accept_terms)
    setup = Setup(config)
    [cell] = edit_cells(setup, problem)
    chosen = _chosen(setup.data, fact, source.data)
    prompt = loc_edit.encode(setup.model, chosen)
    noise = setup.corruption.draw(setup.model, prompt, samples=config.noise_samples, seed=source.seed)
    request = setup.pose(chosen, problem, noise)
    [made] = edit_batch(setup, [request], cell.method, cell.window, cell.layer, cell.settings)
    if isinstance(made, Exception):
        raise made
    score = loc_edit.score(setup.model, chosen, request, made)
    view = score.show(setup.model)
    if not as_json:
        _print_edit(made, view, score.essence)
    if save:
        made.save(save)
        out.print(f"saved {escape(str(save))}")
    if as_json:
        cell_names = {name: getattr(cell, name) for name in ("problem", "method", "window", "layer")}
        tokens = {
            f"next_tokens_{when}": [{"token": token, "p": p} for token, p in getattr(view, when)]
            for when in ("before", "after")
        }
        norms = [{"layer": layer, "norm": norm, "share": share} for layer, (norm, share) in view.norms.items()]
        names = {"prompt": view.prompt, "target": view.target, "objective": view.objective}
        scores = {**view.scores, "essence": score.essence}
        numbers_of_edit = {"probabilities": view.to_frame(), "scores": scores, "norms": norms}
        print_json({"fact_id": fact, **cell_names, **names, **tokens, **numbers_of_edit, "file": save})


def _print_edit(edit: "loc_edit.Edit", view: "EditView", essence: float) -> None:
    """Prints the effect of an edit: next tokens, the probability of the target on each prompt, and the scores."""
    from loc_edit.views.edit import spelled

    out.print(f"{escape(view.prompt)} -> [bold]{escape(view.target)}[/] ({view.objective})")
    out.print(escape(repr(edit)))
    out.print(escape(f"next tokens before: {spelled(view.before)}\nnext tokens after:  {spelled(view.after)}"))
    table = Table("", "prompt", "before", "after")
    for kind, prompt, before, after in view.probabilities:
        table.add_row(kind, escape(prompt), f"{before:.4f}", f"{after:.4f}")
    out.print(table)
    out.print("   ".join(f"{name} {value:.3f}" for name, value in {**view.scores, "essence": essence}.items()))


def _chosen(facts: "list[loc_edit.Fact]", fact_id: int, data: str) -> "loc_edit.Fact":
    for fact in facts:
        if fact.fact_id == fact_id:
            return fact
    raise ValueError(f"no fact {fact_id} in {data}; `loc-edit facts` lists them")
