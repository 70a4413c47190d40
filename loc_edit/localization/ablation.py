"""Localisers that run the model once per cell: ablation of the clean run, and tracing with severed modules."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.hooks import site_name
from loc_edit.localization.question import Question
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook
from loc_edit.prompts.batches import make_batch, resume
from loc_edit.prompts.encoding import Prompt
from loc_edit.prompts.randomness import generator


def zero_ablation(question: Question) -> Float[Tensor, "layer pos"]:
    """What the clean run loses where a cell's output is 0: `p_clean - p_ablated`.

    Cost: layers x positions runs of one row, each from its window's first layer on.
    """
    return _ablated(question, [[torch.zeros_like(value[0]) for value in question.clean.site]])


def mean_ablation(question: Question, reference: Sequence[Prompt]) -> Float[Tensor, "layer pos"]:
    """What the clean run loses where a cell's output is the mean over the tokens of other prompts.

    Args:
        question: what is asked.
        reference: prompts, those of the data set say; the question's own fact is left out.

    Cost: that of `zero_ablation`, and one run a reference prompt.  Source: Wang et al. 2023 (IOI).
    """
    values = [torch.cat([found[layer] for _, found in _others(question, reference)]) for layer in _layers(question)]
    return _ablated(question, [[v.mean(0).expand_as(c[0]) for v, c in zip(values, question.clean.site, strict=True)]])


def resample_ablation(
    question: Question, reference: Sequence[Prompt], samples: int = 10, seed: int = 0
) -> Float[Tensor, "layer pos"]:
    """What the clean run loses where a cell's output is that of another prompt, at a position of the same kind.

    Kinds: before the subject, inside it, its last token, after it, the last token.  Prompts and positions are drawn
    per (seed, fact).

    Args:
        question: what is asked.
        reference: prompts, those of the data set say; the question's own fact is left out.
        samples: draws per cell; the mean of the losses is taken.
        seed: of the draws.

    Cost: `samples` times that of `zero_ablation`, and one run a reference prompt.  Source: Chan et al. 2022.
    """
    if samples < 1:
        raise ValueError(f"resample ablation with {samples} samples: at least 1 is wanted")
    others = _others(question, reference)
    places = [(kind(prompt, pos), i, pos) for i, (prompt, _) in enumerate(others) for pos in range(len(prompt))]
    draws = generator("resample", seed, question.prompt.fact_id)
    drawn = []
    for _ in range(samples):
        values = [value[0].clone() for value in question.clean.site]
        for pos in range(len(question.prompt)):
            alike = [place for place in places if place[0] == kind(question.prompt, pos)] or places
            _, i, there = alike[int(torch.randint(len(alike), (1,), generator=draws))]
            for layer, value in enumerate(values):
                value[pos] = others[i][1][layer][there]
        drawn.append(values)
    return _ablated(question, drawn)


def severed(question: Question, module: Literal["mlp", "attn"] = "mlp") -> Float[Tensor, "layer pos"]:
    """Causal Tracing with one kind of module severed: does what is restored act through it?

    A cell is restored as in `trace`; at its position the outputs of all later MLPs (or attention layers) are frozen
    at their corrupted values, so that the restored state reaches the answer by the other way only.  The site of the
    source is `resid_post`.

    Args:
        question: what is asked.
        module: `mlp` or `attn`, whose outputs are frozen.

    Cost: layers x positions runs of K rows, each from its window's first layer on.
    Source: Meng et al. 2022a, section 2.2 and figure 3.
    """
    frozen = question.corrupted_outputs(f"{module}_out")
    clean = [value[0] for value in question.clean.site]
    start = question.prompt.subject.start
    effect = torch.zeros(question.model.cfg.n_layers, len(question.prompt), dtype=torch.float64)
    for center, layers in enumerate(question.windows):
        later = range(layers[-1] + 1, question.model.cfg.n_layers)
        metric = _run_cells(
            question,
            question.corrupted.residual[layers[0]],
            layers[0],
            torch.arange(start, len(question.prompt)),
            {
                **{site_name(question.site, layer): clean[layer][None] for layer in layers},
                **{site_name(f"{module}_out", layer): frozen[layer] for layer in later},
            },
        )
        effect[center, start:] = metric.mean(1) - question.p_corrupted
    return effect


def kind(prompt: Prompt, pos: int) -> str:
    """What a position is: before, inside or last of the subject, after it, or the prompt's last."""
    if pos == len(prompt) - 1:
        return "last"
    if pos < prompt.subject.start:
        return "before"
    if pos < prompt.last_subject:
        return "inside"
    return "last subject" if pos == prompt.last_subject else "after"


def _layers(question: Question) -> range:
    return range(question.model.cfg.n_layers)


def _others(question: Question, reference: Sequence[Prompt]) -> list[tuple[Prompt, list[Float[Tensor, "pos ..."]]]]:
    """Other facts' prompts, with the site's output in each layer."""
    names = [site_name(question.site, layer) for layer in _layers(question)]
    others = [prompt for prompt in reference if prompt.fact_id != question.prompt.fact_id]
    if not others:
        raise ValueError(f"fact {question.prompt.fact_id}: ablation needs prompts of other facts (reference=)")
    batch, n_layers = make_batch(question.model, others), question.model.cfg.n_layers
    found: list[tuple[Prompt, list[Tensor]]] = []

    def work(some: slice) -> None:
        with torch.no_grad():
            _, cache = question.model.run_with_cache(batch.tokens[some], names_filter=names, stop_at_layer=n_layers)
        for row, prompt in enumerate(others[some]):
            found.append((prompt, [cache[name][row, : len(prompt)] for name in names]))

    Budget(question.model).spend(len(others), batch.tokens.shape[1], work)
    return found


def _ablated(question: Question, draws: Sequence[Sequence[Float[Tensor, "token ..."]]]) -> Float[Tensor, "layer pos"]:
    """`p_clean - p` with each cell's output replaced, the mean over draws (each gives every layer's outputs)."""
    effect = torch.zeros(question.model.cfg.n_layers, len(question.prompt), dtype=torch.float64)
    values = [torch.stack([draw[layer] for draw in draws]) for layer in _layers(question)]
    for center, layers in enumerate(question.windows):
        metric = _run_cells(
            question,
            question.clean.residual[layers[0]].expand(len(draws), -1, -1),
            layers[0],
            torch.arange(len(question.prompt)),
            {site_name(question.site, layer): values[layer] for layer in layers},
        )
        effect[center] = question.p_clean - metric.mean(1)
    return effect


@torch.no_grad()
def _run_cells(
    question: Question,
    residual: Float[Tensor, "row pos d_model"],
    layer: int,
    positions: Int[Tensor, " cell"],
    values: dict[str, Float[Tensor, "_ pos ..."]],
) -> Float[Tensor, "cell row"]:
    """The metric of every row with hook points overwritten at one position, for each of `positions`.

    Args:
        question: what is asked.
        residual: of the rows, before `layer`.
        layer: where the runs begin.
        positions: the one position that is overwritten in a cell's runs.
        values: by hook point, what stands there: a row for each of the rows, or one for all.
    """
    n_rows = len(residual)
    metric = torch.empty(len(positions), n_rows, dtype=torch.float64)

    def overwrite(value: Tensor, at: Tensor) -> Callable[..., Tensor]:
        def hook_fn(activation: Tensor, hook: Any) -> Tensor:
            cells = rearrange(activation.clone(), "(cell row) ... -> cell row ...", row=n_rows)
            cells[torch.arange(len(at)), :, at] = value[:, at].transpose(0, 1).to(activation)
            return rearrange(cells, "cell row ... -> (cell row) ...")

        return hook_fn

    def work(some: slice) -> None:
        at = positions[some].to(residual.device)
        hooks: list[Hook] = [(name, overwrite(value, at)) for name, value in values.items()]
        rows = repeat(residual, "row pos d -> (cell row) pos d", cell=len(at))
        found = question.metric(resume(question.model, rows, layer, hooks))
        metric[some] = rearrange(found.double(), "(cell row) -> cell row", row=n_rows).cpu()

    Budget(question.model).spend(len(positions), n_rows * residual.shape[1], work)
    return metric
