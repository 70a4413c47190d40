"""The command about the keys' second moments: compute them, say how reliable they are, or estimate what they cost."""

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.markup import escape
from rich.table import Table

import loc_edit
from loc_edit.cli.models import fetch
from loc_edit.cli.options import AcceptTerms, like_config
from loc_edit.cli.show import numbers, out, progress, size
from loc_edit.events import duration

if TYPE_CHECKING:
    from loc_edit.keys.planning import StatsPlan


def stats(
    model: Annotated[str, like_config("model")] = "builtin",
    corpus: str = "builtin",
    tokens: int = 200_000,
    layers: tuple[int, ...] | None = None,
    ridge: float = 0.0,
    dtype: Literal["float32", "float64"] = "float32",
    plan: bool = False,
    figure: Path | None = None,
    save: Path | None = None,
    accept_terms: AcceptTerms = False,
) -> None:
    """Compute the keys' second moments, which ROME and MEMIT need.

    They are kept in the cache, and the command says how reliable they are.  Stop it when you like: the same command
    continues from the last checkpoint and arrives at the same bits.

    Examples:
        loc-edit stats --tokens 50000
        loc-edit stats --model smollm2 --corpus texts.jsonl --plan

    Args:
        corpus: builtin; identity (no corpus: C = I); a .txt, .jsonl or .parquet file; a folder of such files; or
            hub:NAME[@REVISION][:CONFIG[:SPLIT]].  Add #FIELD if the text is not in the field "text".
        tokens: The number of tokens used at most.
        layers: Layers, 0-based; all if None.
        ridge: A share of the diagonal's mean that is added to the diagonal when solving; for small samples.
        dtype: The type of the products and of the file; float64 for condition numbers beyond 1e7.
        plan: Only estimate tokens, memory, disk and time.
        figure: A folder for a figure of the convergence.
        save: A safetensors file for the statistics.
    """
    import torch

    from loc_edit.keys.corpora import check_corpus
    from loc_edit.keys.planning import plan_stats

    check_corpus(corpus)
    fetch(model, accept_terms)
    net = loc_edit.load_model(model)
    chosen_layers = list(range(net.cfg.n_layers)) if layers is None else list(layers)
    torch_dtype = getattr(torch, dtype)
    if plan:
        _print_plan(plan_stats(net, chosen_layers, corpus, tokens=tokens, dtype=torch_dtype))
        return
    with progress():
        key_stats = loc_edit.key_stats(net, chosen_layers, corpus, tokens=tokens, ridge=ridge, dtype=torch_dtype)
    _print_stats(key_stats, int(net.cfg.d_mlp or 0))
    if save:
        key_stats.save(save)
        out.print(f"saved {escape(str(save))}")
    if figure:
        _save_figure(key_stats, corpus, figure)


def _print_stats(stats: "loc_edit.KeyStats", d_mlp: int) -> None:
    """Prints how well the statistics determine C^-1 k at each layer, and warns of those that do not determine it."""
    if stats.is_identity:
        title = f"C = I by choice, d_mlp {d_mlp}"
    else:
        title = f"{stats.n_tokens:,} tokens, d_mlp {d_mlp}" + (f", ridge {stats.ridge:g}" if stats.ridge else "")
    names = ("layer", "rank", "condition number", "mean squared key", "change", "cosine")
    table = Table(*numbers(*names), title=title, title_justify="left")
    table.caption = "change and cosine: C^-1 k from half of the sample against all of it, mean over 16 keys"
    singular = []
    for layer in stats.layers:
        mean = f"{stats.second_moment(layer).diagonal().mean().item():.4g}"
        shares = stats.convergence.query("layer == @layer").to_dict("records")  # of the sample, the last is all of it
        if not shares:
            table.add_row(str(layer), str(d_mlp), "1", mean, "", "")
            continue
        whole, half = shares[-1], shares[-2] if len(shares) > 1 else None
        rank, condition = _number(whole["rank"], ".0f", unknown="?"), f"{whole['condition']:.3g}"
        change = _number(half["change"], ".1%", unknown="not solvable") if half else ""
        table.add_row(str(layer), rank, condition, mean, change, _number(half["cosine"], ".4f") if half else "")
        if whole["rank"] != d_mlp:
            singular.append(str(layer))
    out.print(table)
    if singular and not stats.ridge:
        layers = ", ".join(singular)
        out.print(f"[bold yellow]not of full rank: layers {layers}:[/] use more tokens, or a ridge")


def _number(value: float | int, form: str, unknown: str = "") -> str:
    """A number as text, or `unknown` for NaN."""
    return unknown if isnan(value) else format(value, form)


def _save_figure(stats: "loc_edit.KeyStats", corpus: str, folder: Path) -> None:
    """Saves the figure of how C^-1 k converges as the sample grows."""
    from loc_edit.analysis.figures.convergence import key_convergence
    from loc_edit.views.style import save

    rows = stats.convergence
    if rows.empty:
        raise ValueError(f"corpus {corpus!r}: there is nothing that converges, so there is no figure of convergence")
    paths = save(key_convergence(rows), rows, folder, "key_convergence")
    out.print("saved " + ", ".join(escape(str(path)) for path in paths))


def _print_plan(plan: "StatsPlan") -> None:
    corpus = "an unknown number" if plan.tokens_there is None else f"about {plan.tokens_there:,}"
    lines = {
        "layers": f"{plan.layers}, each {plan.d_mlp} x {plan.d_mlp}",
        "tokens used": f"{plan.tokens:,}  (the corpus has {corpus})",
        "full rank": f"at least {plan.full_rank:,} tokens",
        "error": f"about {plan.error:.0%} of C^-1 k; 10% takes {plan.tokens_for(0.1):,} tokens, "
        f"1% takes {plan.tokens_for(0.01):,}  (sqrt(d_mlp / tokens))",
        "memory": f"{size(plan.memory)} for the pass, {size(plan.solving)} per layer to solve  "
        f"({size(plan.memory_free)} are free)",
        "disk": f"{size(plan.disk)} for the pass, {size(plan.result)} afterwards  ({size(plan.disk_free)} are free)",
        "time": f"{duration(plan.seconds)}  ({plan.speed:,.0f} tokens/s on this machine, measured on a few tokens)",
    }
    for name, words in lines.items():
        out.print(f"{name:<12} {words}", soft_wrap=True)
    if plan.tokens < plan.full_rank:
        out.print("[bold yellow]too few tokens for full rank:[/] use more text, a larger --tokens, or --ridge 0.01")
