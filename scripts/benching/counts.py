"""Counts of the weight products that cannot be avoided: how many rows each matrix must be multiplied with.

A count is a `Counter` of rows by matrix: `q`, `k`, `v`, `o`, `gate`, `up`, `down` of all layers, and `unembed`.  Only
products with weights are counted: no attention scores, norms, softmax, GELU, optimizer or copies.  The rules:

- A position of a row is computed from itself and earlier positions, so rows that begin with the same tokens share
  these positions, whatever row they are in (`distinct`).  Corrupted rows begin at the subject.
- In the last layer, positions whose logits nobody reads need keys and values only.
- The backward pass to the activations has as many products as the forward pass.  Gradients of trained weights add one
  product with `down` for each position, layer and step.
- A trace: the clean row and the corrupted rows; then, layer by layer, every state that differs, on the tail from the
  restored position on.  Runs with the same first layer are one state as long as the layers so far restore the same.
  A run starts after its first layer, where its restored position is the corrupted stream plus the clean output; in the
  next layer only that position has new queries, keys and values.  At a restored position no MLP is computed.  What
  only the last layer restores matters where the position is an answer.
- An edit of a value (ROME, MEMIT): all rows up to the edited layer, and above it what comes before the subject's last
  token, once; at each step that token and what follows it through the layers above, forward and backward.  MEMIT's
  context rows go once more through its window, and its bare row once more for each layer.
- Fine-tuning: the prompt up to the first trained layer once; at each step `down` of that layer and all layers above.
- Scores after an edit: all positions of all probes above the edited layer; each request's own, as its edit differs.
- Localizers: every one needs the clean and the corrupted rows.  Attribution and RelP add one backward pass of the
  corrupted rows, integrated gradients one forward and one backward pass for each step, and layer integrated gradients
  these from each layer on.  A lens unembeds two streams at each layer and position.  Ablation is counted like a trace
  of clean rows at all positions, once for each draw, and a forward pass of the reference prompts.  A severed state
  needs, at its position, no MLP, or no queries and no `o`, in the layers where that module is frozen.  Direct
  attribution and the random control need nothing more.

Counted although it could be avoided: what local attention cuts off; and in models whose MLP reads the same stream as
attention, states that restore the first layer behind the subject, where it is not corrupted yet.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import make_rows
from loc_edit.localization.hooks import window_layers
from loc_edit.prompts.encoding import Prompt
from loc_edit.scoring.probes import Probes

Count = Counter
ATTN_IN = ("q", "k", "v")
MLP = ("gate", "up", "down")
BLOCK = (*ATTN_IN, "o", *MLP)


@dataclass(frozen=True)
class Asked:
    """A prompt, the number of its target's tokens, and of its noise samples."""

    prompt: Prompt
    n_target: int
    samples: int

    @property
    def length(self) -> int:
        return len(self.prompt) + self.n_target - 1

    def tails(self, start: int) -> list[int]:
        """The lengths of the tails from each position of the prompt on, from `start` on."""
        return [self.length - pos for pos in range(start, len(self.prompt))]


class Row(NamedTuple):
    """A row of tokens, of which the positions from `start` on are computed, and `read` are unembedded."""

    tokens: tuple[int, ...]
    start: int = 0
    read: tuple[int, ...] = ()
    owner: int = 0


def block(n: int, names: Iterable[str] = BLOCK) -> Count[str]:
    return Counter(dict.fromkeys(names, n))


def reading(model: HookedTransformer) -> tuple[str, ...]:
    """The products that read the residual stream before a layer."""
    return (*ATTN_IN, *MLP) if model.cfg.parallel_attn_mlp else ATTN_IN


def times(count: Count[str], n: int) -> Count[str]:
    return Counter({name: n * rows for name, rows in count.items()})


def through(positions: int, answers: int, n_layers: int) -> Count[str]:
    """Positions through the last `n_layers` layers of a model, and the unembedding of the answers among them."""
    total = Counter({"unembed": answers})
    if n_layers:
        total += block(positions * (n_layers - 1) + answers) + block(positions - answers, ("k", "v"))
    return total


def distinct(rows: Iterable[Row]) -> tuple[int, int]:
    """How many positions differ between rows of one owner, in their token or in one before; and how many are read."""
    computed: set[tuple[int, tuple[int, ...]]] = set()
    read: set[tuple[int, tuple[int, ...]]] = set()
    for row in rows:
        computed |= {(row.owner, row.tokens[: i + 1]) for i in range(row.start, len(row.tokens))}
        read |= {(row.owner, row.tokens[: i + 1]) for i in row.read}
    return len(computed), len(read)


def base_count(model: HookedTransformer, asked: Sequence[Asked]) -> Count[str]:
    """The clean row and the corrupted rows, which before the first layer differ in the subject only."""
    total: Count[str] = Counter()
    for one in asked:
        noisy = one.length - one.prompt.subject.start
        total += through(one.length, one.n_target, model.cfg.n_layers)
        total += times(through(noisy, one.n_target, model.cfg.n_layers), one.samples)
        if model.cfg.n_layers > 1:
            total.subtract(block(one.samples * (one.length - one.prompt.subject.stop), reading(model)))
    return total


def sweep_count(
    model: HookedTransformer, one: Asked, windows: Sequence[int], *, rows: int, start: int, frozen: Sequence[str] = ()
) -> Count[str]:
    """All restored (or ablated) runs of some rows of a prompt, at every layer, and position from `start` on.

    `frozen`: the products that a state does not need at its position in layers after its window: `MLP`, or q and o.
    """
    last = model.cfg.n_layers - 1
    windows_of_cells = [window_layers(layer, size, last + 1) for size in windows for layer in range(last + 1)]
    runs = {(layers[0], layers[-1]) for layers in windows_of_cells}
    tails, total = one.tails(start), Counter({"unembed": 0})
    n, positions, answers = len(tails), sum(tails), len(tails) * one.n_target
    for layer in range(1, last + 1):
        ends: dict[tuple[int, int], list[int]] = {}  # by what a state has restored, the last layers of its runs
        for first, end in runs:
            if first < layer:
                ends.setdefault((first, min(end, layer - 1)), []).append(end)
        # What the layer below restored has reached one position so far: the others are another state's, or corrupted.
        fresh = sum(end == layer - 1 and (first == end or (first, end - 1) in ends) for first, end in ends)
        without_mlp = sum("up" in frozen or min(of_state) >= layer for of_state in ends.values())
        without_attn = sum("q" in frozen and max(of_state) < layer for of_state in ends.values())
        if layer == last:  # of the restored positions, one is an answer: the prompt's last
            total += block(len(ends) * answers) + block(len(ends) * (positions - answers), ("k", "v"))
            read_there = set(reading(model)) - {"k", "v"}
            total.subtract(block(fresh * (answers - 1), read_there) + block(fresh * (positions - n), ("k", "v")))
            total.subtract(block(without_mlp, MLP) + block(without_attn, ("q", "o")))
        else:
            total += block(len(ends) * positions)
            total.subtract(block(fresh * (positions - n), reading(model)))
            total.subtract(block(without_mlp * n, MLP) + block(without_attn * n, ("q", "o")))
    below = {(first, min(end, last - 1)) for first, end in runs if first < last}
    # What only the last layer restores changes one position, which matters where it is an answer.
    total["unembed"] += len(below) * answers + len(runs) - len(below)
    return times(total, rows)


def trace_count(model: HookedTransformer, asked: Sequence[Asked], windows: Sequence[int]) -> Count[str]:
    """Traces of many prompts with many windows."""
    total = base_count(model, asked)
    for one in asked:
        total += sweep_count(model, one, windows, rows=one.samples, start=one.prompt.subject.start)
    return total


def localizer_count(
    model: HookedTransformer,
    name: str,
    asked: Sequence[Asked],
    window: int,
    references: Sequence[Sequence[Prompt]] = (),
    draws: int = 1,
) -> Count[str]:
    """One localizer on many prompts; `draws`: steps of integrated gradients, samples of resample ablation."""
    if name == "causal_tracing":
        return trace_count(model, asked, [window])
    n_layers, total = model.cfg.n_layers, base_count(model, asked)
    for one in asked:
        start = one.prompt.subject.start
        backward = times(through(one.length - start, one.n_target, n_layers - 1), one.samples)
        if name in ("attribution", "relp"):
            total += backward
        elif name == "layer_integrated_gradients":
            for above in range(n_layers):
                total += times(through(one.length - start, one.n_target, above), 2 * one.samples * draws)
        elif name.endswith("lens"):
            total["unembed"] += 2 * n_layers * (len(one.prompt) - start) * (one.samples + 1)
        elif name == "integrated_gradients":
            forward = times(through(one.length - start, one.n_target, n_layers), one.samples)
            total += times(forward + backward, draws)
        elif name.startswith("severed"):
            frozen = MLP if name == "severed_mlp" else ("q", "o")
            total += sweep_count(model, one, [window], rows=one.samples, start=start, frozen=frozen)
        elif name.endswith("ablation"):
            total += sweep_count(model, one, [window], rows=draws, start=0)
    computed, _ = distinct(Row(tuple(p.tokens.tolist())) for prompts in references for p in prompts)
    return total + block(computed * n_layers)


def value_count(
    model: HookedTransformer,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layers: Sequence[int],
    steps: int,
) -> Count[str]:
    """ROME or MEMIT of requests without noise; `steps`: forward passes that have a backward pass."""
    above, once, tails, earlier, essences = model.cfg.n_layers - layers[-1] - 1, [], [], [], []
    window: Count[str] = Counter()
    for owner, request in enumerate(requests):
        made = make_rows(model, [request], contexts, "rome")
        for i, (prompt, target) in enumerate(zip(made.prompts, made.targets, strict=True)):
            tokens, is_essence = _tokens(prompt, target), i == made.contexts
            read = (prompt.last_subject,) if is_essence else tuple(range(len(prompt) - 1, len(tokens)))
            once.append(Row(tokens))
            earlier.append(Row(tokens[: prompt.last_subject]))
            tails.append(Row(tokens, prompt.last_subject, read, owner))
            essences += [tails[-1]._replace(owner=0)] * is_essence
            if not is_essence:
                window += block((prompt.last_subject + 1) * (len(layers) - 1))
        window += block((made.prompts[0].last_subject + 1) * sum(range(len(layers) - 1)))
    before, _ = distinct(earlier)
    total = block(distinct(once)[0] * (layers[-1] + 1)) + through(before, 0, above) + window
    total += through(*distinct(essences), above)  # what the essence rows say before the edit
    step = through(*distinct(tails), above)
    if above > 1:  # in the first layer above, queries, keys and values behind the subject do not change
        behind = [row._replace(start=row.start + 1) for row in tails]
        step.subtract(block(distinct(behind)[0], reading(model)))
        total += block(distinct(row._replace(owner=0) for row in behind)[0], reading(model))
    return total + times(step, 2 * steps)


def finetune_count(
    model: HookedTransformer, requests: Sequence[EditRequest], layers: Sequence[int], steps: int
) -> Count[str]:
    """Fine-tuning of requests without noise, for `steps` steps."""
    last, rows = model.cfg.n_layers - 1, []
    for owner, request in enumerate(requests):
        tokens = _tokens(request.prompt, request.target_tokens)
        rows.append(Row(tokens, 0, tuple(range(len(request.prompt) - 1, len(tokens))), owner))
    positions, answers = distinct(rows)
    gradients = sum(answers if layer == last else positions for layer in layers)
    first = answers if layers[0] == last else positions
    step = times(through(positions, answers, last - layers[0]), 2) + Counter({"down": first + gradients})
    shared, _ = distinct(Row(row.tokens) for row in rows)
    return block(shared * layers[0]) + block(shared, BLOCK[:-1]) + times(step, steps)


def scoring_count(model: HookedTransformer, probes: Sequence[Probes], first: int, *, edited: bool = True) -> Count[str]:
    """The probes of all requests from layer `first` on; `edited`: each under its own edit, which nothing can share."""
    rows = []
    for owner, of_request in enumerate(probes):
        lines = [(_tokens(probe.prompt, probe.target), len(probe.prompt) - 1) for probe in of_request.probes]
        lines += [(tuple(text[:-1].tolist()), 0) for text in of_request.essence]
        rows += [Row(tokens, 0, tuple(range(start, len(tokens))), owner * edited) for tokens, start in lines]
    return through(*distinct(rows), model.cfg.n_layers - first)


def _tokens(prompt: Prompt, target: Tensor) -> tuple[int, ...]:
    """The prompt's tokens and the target's but for its last."""
    return (*prompt.tokens.tolist(), *target[:-1].tolist())
