"""Localizers that run the model once per cell: ablation of the clean run, and tracing with severed modules."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from loc_edit.localization.question import Question
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook
from loc_edit.prompts.batches import make_batch, resume
from loc_edit.prompts.encoding import Prompt
from loc_edit.prompts.randomness import generator


def zero_ablation(question: Question) -> Float[Tensor, "layer pos"]:
    """How much of the metric the clean run loses when a cell's output is 0: `p_clean - p_ablated`.

    Cost: layers x positions runs of one row, each from the first layer of its window on.
    """
    return _ablated(question, [torch.zeros_like(output) for output in question.clean.site])


def mean_ablation(question: Question, reference: Sequence[Prompt]) -> Float[Tensor, "layer pos"]:
    """How much the clean run loses when a cell's output is the mean output over the tokens of other prompts.

    Args:
        question: the prompt and target.
        reference: other prompts, for example of the data set; prompts of the question's own fact are left out.

    Cost: as `zero_ablation`, and one run per reference prompt.  Source: Wang et al. 2023 (IOI).
    """
    by_layer = zip(*(outputs for _, outputs in _reference_outputs(question, reference)), strict=True)
    means = [torch.cat(outputs).mean(0) for outputs in by_layer]
    return _ablated(question, [m.expand_as(own) for m, own in zip(means, question.clean.site, strict=True)])


def resample_ablation(
    question: Question, reference: Sequence[Prompt], samples: int = 10, seed: int = 0
) -> Float[Tensor, "layer pos"]:
    """How much the clean run loses when a cell's output comes from another prompt, at a position of the same kind.

    The kinds are: before the subject, inside it, its last token, after it, the prompt's last token.  Prompts and
    positions are drawn per (seed, fact).

    Args:
        question: the prompt and target.
        reference: other prompts, for example of the data set; prompts of the question's own fact are left out.
        samples: the number of draws per cell, over which the loss is averaged.
        seed: of the draws.

    Cost: `samples` times that of `zero_ablation`, and one run per reference prompt.  Source: Chan et al. 2022.
    """
    if samples < 1:
        raise ValueError(f"resample ablation with {samples} samples: expected at least 1")
    references = _reference_outputs(question, reference)
    places = [(kind(prompt, pos), outputs, pos) for prompt, outputs in references for pos in range(len(prompt))]
    draws = generator("resample", seed, question.prompt.fact_id)
    replacements = [output.repeat(samples, *[1] * (output.ndim - 1)) for output in question.clean.site]
    for sample in range(samples):
        for pos in range(len(question.prompt)):
            alike = [place for place in places if place[0] == kind(question.prompt, pos)] or places
            _, outputs, source = alike[int(torch.randint(len(alike), (1,), generator=draws))]
            for replacement, output in zip(replacements, outputs, strict=True):
                replacement[sample, pos] = output[source]
    return _ablated(question, replacements)


def severed(question: Question, module: Literal["mlp", "attn"] = "mlp") -> Float[Tensor, "layer pos"]:
    """Causal Tracing with one kind of module severed: does a restored state act through these modules?

    A cell is restored as in `trace`; at its position the outputs of all later MLPs (or attention layers) are frozen
    at their corrupted values, so that the restored state can reach the answer only through the other kind of module.
    The source restores `resid_post`.

    Args:
        question: the prompt and target.
        module: `mlp` or `attn`, whose outputs are frozen.

    Cost: layers x positions runs of K rows, each from the first layer of its window on.
    Source: Meng et al. 2022a, section 2.2 and figure 3.
    """
    frozen, start = question.at_share(1.0, f"{module}_out").site, question.prompt.subject.start
    names, frozen_names = question.hook_names(), question.hook_names(f"{module}_out")

    def overwritten(layers: range) -> dict[str, Tensor]:
        values = {frozen_names[layer]: frozen[layer] for layer in range(layers[-1] + 1, len(names))}
        return {names[layer]: question.clean.site[layer] for layer in layers} | values

    metric = _run_cells(question, question.corrupted.residual, start, overwritten)
    return pad(metric - question.p_corrupted, (start, 0))


def kind(prompt: Prompt, pos: int) -> str:
    """What a position is: before, inside or last of the subject, after it, or the prompt's last."""
    if pos == len(prompt) - 1:
        return "last"
    if pos < prompt.subject.start:
        return "before"
    if pos < prompt.last_subject:
        return "inside"
    return "last subject" if pos == prompt.last_subject else "after"


def _reference_outputs(
    question: Question, reference: Sequence[Prompt]
) -> list[tuple[Prompt, list[Float[Tensor, "pos ..."]]]]:
    """The prompts of other facts, each with the site's output in every layer."""
    names, model = question.hook_names(), question.model
    others = [prompt for prompt in reference if prompt.fact_id != question.prompt.fact_id]
    if not others:
        raise ValueError(f"fact {question.prompt.fact_id}: ablation needs prompts of other facts (reference=)")
    tokens = make_batch(model, others).tokens
    outputs: list[tuple[Prompt, list[Tensor]]] = []

    def work(part: slice) -> None:
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens[part], names_filter=names, stop_at_layer=model.cfg.n_layers)
        for row, prompt in enumerate(others[part]):
            outputs.append((prompt, [cache[name][row, : len(prompt)] for name in names]))

    Budget(model).spend(len(others), tokens.shape[1], work)
    return outputs


def _ablated(question: Question, outputs: Sequence[Float[Tensor, "draw token ..."]]) -> Float[Tensor, "layer pos"]:
    """`p_clean - p` when a cell's output is replaced by these outputs of its layer, averaged over draws."""
    names = question.hook_names()
    residual = [stream.expand(len(outputs[0]), -1, -1) for stream in question.clean.residual]
    metric = _run_cells(question, residual, 0, lambda layers: {names[layer]: outputs[layer] for layer in layers})
    return question.p_clean - metric


@torch.no_grad()
def _run_cells(
    question: Question,
    residual: Sequence[Float[Tensor, "row token d_model"]],
    start: int,
    overwritten: Callable[[range], dict[str, Float[Tensor, "_ token ..."]]],
) -> Float[Tensor, "layer cell"]:
    """The metric of every cell, averaged over rows, when hook points are overwritten at the cell's position.

    Args:
        question: the prompt and target.
        residual: by layer, the residual stream of the rows before it; a cell's runs begin at its window's first layer.
        start: the first position that has cells; they go up to the prompt's last.
        overwritten: for the layers of a window, the new values by hook point: one for each of the rows, or one for all.
    """
    positions = torch.arange(start, len(question.prompt))
    n_rows, n_tokens = residual[0].shape[:2]
    metric = torch.empty(len(question.windows), len(positions), n_rows, dtype=torch.float64)

    def overwrite(value: Tensor, at: Int[Tensor, " cell"]) -> Callable[..., Tensor]:
        def hook_fn(activation: Tensor, hook: Any) -> Tensor:
            cells = rearrange(activation.clone(), "(cell row) ... -> cell row ...", row=n_rows)
            cells[torch.arange(len(at)), :, at] = value[:, at].transpose(0, 1).to(activation)
            return rearrange(cells, "cell row ... -> (cell row) ...")

        return hook_fn

    def work(center: int, layers: range, part: slice) -> None:
        first, at = layers[0], positions[part].to(residual[0].device)
        hooks: list[Hook] = [(name, overwrite(value, at)) for name, value in overwritten(layers).items()]
        rows = repeat(residual[first], "row pos d -> (cell row) pos d", cell=len(at))
        values = question.metric(resume(question.model, rows, first, hooks))
        metric[center, part] = rearrange(values.double(), "(cell row) -> cell row", row=n_rows).cpu()

    for center, layers in enumerate(question.windows):
        Budget(question.model).spend(len(positions), n_rows * n_tokens, partial(work, center, layers))
    return metric.mean(2)
