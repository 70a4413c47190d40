"""The command for the keys' second moments: compute or find them, say how sound they are, or what they would cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from loc_edit.cli import show
from loc_edit.events import duration

if TYPE_CHECKING:
    from loc_edit.keys.moments import KeyStats
    from loc_edit.keys.planning import StatsPlan


def stats(
    model: str = "builtin",
    corpus: str = "builtin",
    tokens: int = 200_000,
    layers: tuple[int, ...] | None = None,
    ridge: float = 0.0,
    dtype: Literal["float32", "float64"] = "float32",
    plan: bool = False,
    figure: Path | None = None,
    save: Path | None = None,
) -> None:
    """Compute the keys' second moments, or find them in the cache, and say how sound they are.

    Stop it when you like: the same command goes on from the last checkpoint and comes to the same bits.

    Args:
        model: the built-in model, a hub name, or a local Hugging Face directory.
        corpus: builtin, identity (no corpus: C = I), a .txt, .jsonl or .parquet file, a folder of such files, or
            hub:NAME[@REVISION][:CONFIG[:SPLIT]]; #FIELD after it where the text's field is not "text".
        tokens: tokens used at most.
        layers: 0-based; all if None.
        ridge: added to the diagonal when solving, as a share of its mean; for small samples.
        dtype: of the products and of the file; float64 for condition numbers beyond 1e7.
        plan: only say what it would take: tokens, memory, disk, time.
        figure: a folder for a figure of the convergence.
        save: a safetensors file for the statistics.
    """
    import torch

    import loc_edit
    from loc_edit.keys.corpora import check_corpus
    from loc_edit.keys.planning import plan_stats

    check_corpus(corpus)
    net = loc_edit.load_model(model)
    wanted = list(range(net.cfg.n_layers)) if layers is None else list(layers)
    kind = getattr(torch, dtype)
    if plan:
        _show_plan(plan_stats(net, wanted, corpus, tokens=tokens, dtype=kind))
        return
    with _progress() as advance:
        found = loc_edit.key_stats(net, wanted, corpus, tokens=tokens, ridge=ridge, dtype=kind, progress=advance)
    size = int(net.cfg.d_mlp or 0)
    show.out.print(_table(found, size))
    last = found.convergence.groupby("layer").last()
    singular = [str(layer) for layer in last.index[last["rank"] != size]]
    if singular and not found.ridge:
        show.out.print(f"[bold yellow]not of full rank: layers {', '.join(singular)}:[/] more tokens, or a ridge")
    if save:
        found.save(save)
        show.out.print(f"saved {escape(str(save))}")
    if figure:
        from loc_edit.analysis.figures.convergence import key_convergence
        from loc_edit.views.style import save as plot_save

        rows = found.convergence
        if rows.empty:
            raise ValueError(f"corpus {corpus!r}: there is nothing that converges, and no figure of it")
        paths = plot_save(key_convergence(rows), rows, figure, "key_convergence")
        show.out.print("saved " + ", ".join(escape(str(path)) for path in paths))


def _table(found: "KeyStats", size: int) -> Table:
    """A row per layer: how well the statistics determine C^-1 k."""
    about = f"{found.n_tokens:,} tokens, d_mlp {size}" + (f", ridge {found.ridge:g}" if found.ridge else "")
    title = f"C = I by choice, d_mlp {size}" if found.provenance.get("source") == "identity" else about
    table = Table(title=title, title_justify="left")
    table.caption = "change and cosine: C^-1 k from half of the sample against that from all of it, mean over 16 keys"
    names = ("layer", "rank", "condition number", "mean squared key", "change", "cosine")
    for name in names:
        table.add_column(name, justify="right")
    rows = found.convergence
    for layer in found.layers:
        mean = f"{found.second_moment(layer).diagonal().mean().item():.4g}"
        here = rows[rows["layer"] == layer]
        if here.empty:
            table.add_row(str(layer), str(size), "1", mean, "", "")
            continue
        whole = here.iloc[-1]
        half = here.iloc[-2] if len(here) > 1 else None
        table.add_row(
            str(layer),
            "?" if pd.isna(whole["rank"]) else f"{whole['rank']:.0f}",
            f"{whole['condition']:.3g}",
            mean,
            "" if half is None else _percent(half["change"]),
            "" if half is None or pd.isna(half["cosine"]) else f"{half['cosine']:.4f}",
        )
    return table


def _percent(share: float) -> str:
    return "not solvable" if pd.isna(share) else f"{share:.1%}"


def _show_plan(plan: "StatsPlan") -> None:
    """The plan in lines."""
    there = "not known without reading it" if plan.tokens_there is None else f"about {plan.tokens_there:,}"
    lines = {
        "layers": f"{plan.layers}, each {plan.d_mlp} x {plan.d_mlp}",
        "tokens used": f"{plan.tokens:,}  (the corpus has {there})",
        "full rank": f"at least {plan.full_rank:,} tokens",
        "error": f"about {plan.error:.0%} of C^-1 k; 10% takes {plan.tokens_for(0.1):,} tokens, "
        f"1% takes {plan.tokens_for(0.01):,}  (sqrt(d_mlp / tokens))",
        "memory": f"{show.size(plan.memory)} for the pass, {show.size(plan.solving)} per layer to solve  "
        f"({show.size(plan.memory_free)} are free)",
        "disk": f"{show.size(plan.disk)} for the pass, {show.size(plan.result)} afterwards  "
        f"({show.size(plan.disk_free)} are free)",
        "time": f"{duration(plan.seconds)}  ({plan.speed:,.0f} tokens/s on this machine, measured on a little)",
    }
    for name, words in lines.items():
        show.out.print(f"{name:<12} {words}", soft_wrap=True)
    if plan.tokens < plan.full_rank:
        show.out.print("[bold yellow]too few tokens for full rank:[/] more text, a larger --tokens, or --ridge 0.01")


class _Speed(ProgressColumn):
    """Tokens a second since this process started counting."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "")


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar with tokens, tokens a second and the time that remains; advanced by calls of (seen, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counted]}"),
        _Speed(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=show.err, speed_estimate_period=120) as bar:
        task = bar.add_task("reading the corpus", total=None, counted="")
        started = False

        def advance(seen: int, total: int) -> None:
            nonlocal started
            if not started:  # a pass that goes on starts in the middle: its speed counts from there
                bar.reset(task, description="tokens", completed=seen, total=total)
                started = True
            bar.update(task, completed=seen, counted=f"{seen:,}/{total:,}")

        yield advance
