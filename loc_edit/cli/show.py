"""What the commands print: progress, tables of rows and scores."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from loc_edit.events import ProgressLines
from loc_edit.names import method_label, problem_label

if TYPE_CHECKING:
    from loc_edit.analysis.analyze import Analysis
    from loc_edit.facts.fact import Fact
    from loc_edit.models.model import Model
    from loc_edit.scoring.scores import EditScore

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def size(n: int) -> str:
    """Bytes in words."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n} B"


@contextmanager
def progress() -> Iterator[Any]:
    """What shows progress, told by calls of (words, done, total): a bar on a terminal, else a line now and then."""
    if not err.is_terminal:
        yield ProgressLines(lambda line: err.print(line, markup=False, soft_wrap=True))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("preparing", total=None)
        yield lambda words, done, total: bar.update(task, description=words, completed=done, total=total)


def top_tokens(model: "Model", fact: "Fact", n: int = 5) -> str:
    """The likeliest next tokens of a fact's edit prompt, with their probabilities."""
    import loc_edit
    from loc_edit.prompts.recall import next_tokens

    found = next_tokens(model, loc_edit.encode(model, fact), n)
    return "  ".join(f"{text.strip()!r} {p:.3f}" for text, p in found)


def probability_table(fact: "Fact", score: "EditScore") -> Table:
    """p(target) before and after, prompt by prompt."""
    table = Table()
    for name in ("", "prompt", "before", "after"):
        table.add_column(name)
    texts = {"rewrite": (fact.prompt,), "paraphrase": fact.paraphrases, "neighborhood": fact.neighbors}
    for kind, prompts in texts.items():
        pair = getattr(score.before, kind), getattr(score.after, kind)
        before, after = ((p,) if isinstance(p, float) else p for p in pair)
        for text, p, q in zip(prompts, before, after, strict=True):
            table.add_row(kind, escape(text), f"{p:.4f}", f"{q:.4f}")
    return table


def r2_table(found: "Analysis") -> Table:
    """R^2 of layer, tracing effect and both, a row per problem x method."""
    table = _plain_table("variance of the rewrite score explained")
    for name in ("problem", "method", "R² layer", "R² tracing", "R² both", "added", "p (naive)", "n"):
        table.add_column(name, justify="left" if name in ("problem", "method") else "right")
    for row in found.fits.to_dict("records"):
        numbers = (f"{row[k]:.3f}" for k in ("r2_layer", "r2_trace", "r2_both", "r2_added"))
        label = method_label(row["method"], row["window"])
        table.add_row(problem_label(row["problem"]), label, *numbers, f"{row['p']:.2g}", str(row["n"]))
    if why := [reason for reason in found.fits["reason"].unique() if reason]:
        table.caption, table.caption_justify = "nan: " + escape("; ".join(why)), "left"
    return table


def score_table(found: "Analysis") -> Table:
    """Mean scores, a column per layer, a section per problem x method."""
    layers = sorted(found.scores["layer"].unique())
    table = _plain_table("mean scores by edited layer (0-based)")
    table.add_column("", no_wrap=True)
    for layer in layers:
        table.add_column(str(layer), justify="right", no_wrap=True)
    for keys, rows in found.scores.groupby(["problem", "method", "window"], sort=False):
        problem, method, window = str(keys[0]), str(keys[1]), int(str(keys[2]))
        table.add_row(f"{problem_label(problem)}, {method_label(method, window)}", style="bold")
        for outcome, scores in rows.groupby("outcome", sort=False):
            means = scores.set_index("layer")["mean"]
            table.add_row(f"  {outcome}", *(f"{means[layer]:.2f}" if layer in means else "" for layer in layers))
        table.add_section()
    return table


def _plain_table(title: str) -> Table:
    """A wide table: no frame, little room between columns."""
    return Table(title=title, title_justify="left", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
