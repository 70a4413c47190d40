"""The commands about one fact and a finished run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.markup import escape
from rich.table import Table

from loc_edit.cli.show import err, out, probability_table, r2_table, score_table, top_tokens
from loc_edit.experiment.config import ExperimentConfig

if TYPE_CHECKING:
    from loc_edit.analysis.run import Run
    from loc_edit.facts.fact import Fact


def trace(
    fact: int,
    model: str = "builtin",
    data: str = "builtin",
    window: int = 5,
    site: str = "mlp_out",
    localizer: str = "causal_tracing",
    noise: str = "s3",
    samples: int = 10,
    seed: int = 0,
    folder: Path = Path("runs/traces"),
) -> None:
    """Trace one fact: print the layer x token grid, and save it as CSV, PNG and PDF.

    Args:
        fact: the fact's id (see `loc-edit facts`).
        model: the built-in model, a hub name, or a local Hugging Face directory.
        data: the built-in facts, or a file of facts.
        window: layers restored together.
        site: mlp_out, attn_out, resid_post, or what follows `blocks.<l>.` in a hook name.
        localizer: causal_tracing, attribution, integrated_gradients, zero_ablation, mean_ablation, resample_ablation,
            severed_mlp, severed_attn, direct, random.
        noise: a standard deviation, or s3; u0.5 (uniform), m1 (full covariance), swap (another subject).
        samples: noise samples.
        seed: start of the random draws.
        folder: where the files go.
    """
    import loc_edit
    from loc_edit.analysis.tables.rows import effects
    from loc_edit.localization.cells import grid_options
    from loc_edit.names import LOCALIZERS
    from loc_edit.views.style import save as plot_save

    facts = loc_edit.load_facts(data, seed=seed)
    chosen, net = _chosen(facts, fact, data), loc_edit.load_model(model)
    prompt = loc_edit.encode(net, chosen)
    drawn = loc_edit.subject_noise(net, prompt, scale=noise, facts=facts, samples=samples, seed=seed)
    found = loc_edit.localize(
        net,
        prompt,
        chosen.target_true,
        noise=drawn,
        localizer=localizer,
        site=site,
        window=window,
        **(grid_options(localizer, net, chosen, facts, seed) if localizer in LOCALIZERS else {}),
    )
    what = {"probability": "p", "logit_difference": "logit difference"}[found.metric]
    numbers = f"{what} clean {found.p_clean:.3f}, corrupted {found.p_corrupted:.3f}"
    out.print(f"{escape(prompt.text)} -> [bold]{escape(chosen.target_true)}[/]   {numbers}")
    table = Table(title=f"{localizer}: restored {what}, {site}, window {found.window}; * subject", title_justify="left")
    table.add_column("token")
    for layer in range(len(found.p_restored)):
        table.add_column(str(layer), justify="right")
    for pos, token in enumerate(found.token_texts):
        star = "*" if prompt.subject.start <= pos < prompt.subject.stop else ""
        table.add_row(escape(token) + star, *(f"{p:.3f}" for p in found.p_restored[:, pos].tolist()))
    out.print(table)
    rows = effects(found.to_frame(), found.window, site, localizer=localizer)
    paths = plot_save(found.plot(), rows, folder, f"trace_{fact}")
    out.print("saved " + ", ".join(str(path) for path in paths))


def edit(
    fact: int,
    layer: int,
    method: str = "rome",
    problem: str = "error_injection",
    model: str = "builtin",
    data: str = "builtin",
    preset: str = "auto",
    noise: str = "s3",
    seed: int = 0,
    corpus_tokens: int = 200_000,
    save: Path | None = None,
) -> None:
    """Edit one fact at one layer, and show what that does: probabilities, next tokens, scores.

    Args:
        fact: the fact's id (see `loc-edit facts`).
        layer: the layer, or the centre of the window.
        method: rome, memit, finetune-1, finetune-5.
        problem: what is asked of the edit.
        model: the built-in model, a hub name, or a local Hugging Face directory.
        data: the built-in facts, or a file of facts.
        preset: the method's settings: builtin, gpt-j, gpt2-xl, none, or auto.
        noise: subject noise, for tracing_reversal and fact_forcing.
        seed: start of the random draws.
        corpus_tokens: tokens for the key statistics, which are cached.
        save: a safetensors file for the edit.
    """
    import loc_edit
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


def analyze(
    run: Annotated[Path, tyro.conf.Positional],
    more: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    out_folder: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    window: int | None = None,
    draws: int = 2000,
    compare_paper: bool = False,
    second: Path | None = None,
) -> None:
    """Write the tables and figures of a run, and say what is missing for the others.

    Args:
        run: the run's folder.
        more: further runs of the same model and settings, whose rows are taken together with the first's.
        out_folder: where tables/ and figures/ go; the run's folder by default.
        window: the restoration window of the main ones; by default the only one, or 5.
        draws: resamples and permutations of the statistics; 0 leaves them out.
        compare_paper: also set the study's numbers (GPT-J) beside ours.
        second: the run of another model, for Figure 13.
    """
    from loc_edit.analysis.analyze import analyze as analyze_run
    from loc_edit.analysis.run import load_run

    runs = [load_run(path) for path in (run, *more)]
    for one in runs:
        if left := _remaining(one):
            err.print(f"{escape(str(one.path))} is not finished: {left:,} rows and traces remain", soft_wrap=True)
    found = analyze_run(
        runs,
        out_folder,
        window=window,
        draws=draws,
        compare_paper=compare_paper,
        second=None if second is None else load_run(second),
    )
    out.print(r2_table(found))
    out.print(score_table(found))
    out.print(f"written: {', '.join(sorted(found.written))}")
    for name, reason in sorted(found.missing.items()):
        out.print(f"not made: {name}: {escape(reason)}")


def _remaining(run: "Run") -> int:
    """How many rows and traces a run lacks; 0 where its configuration does not say."""
    from loc_edit.analysis.status import run_progress
    from loc_edit.store.folder import BadRun

    try:
        return run_progress(run).remaining
    except BadRun:
        return 0


def _chosen(facts: "list[Fact]", fact_id: int, data: str) -> "Fact":
    for fact in facts:
        if fact.fact_id == fact_id:
            return fact
    raise ValueError(f"no fact {fact_id} in {data}; `loc-edit facts` lists them")
