"""Causal Tracing of one prompt (`trace`) or of many (`trace_many`), in batches that fit into memory.

`question` forms groups of facts and computes their clean and corrupted runs; `groups` measures the restored runs of a
group; `sweep` computes a batch of them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from loc_edit.arguments import Count, Window, checked
from loc_edit.localization.hooks import site_name
from loc_edit.localization.question import NOT_A_NUMBER, Grids, Questions, localize_by
from loc_edit.localization.sweep import Patch, Units
from loc_edit.localization.trace import Trace
from loc_edit.models.model import Hook, Model
from loc_edit.names import TRACING, Metric
from loc_edit.prompts.encoding import Prompt


@checked
def trace(
    model: Model,
    prompt: Prompt,
    target: str | Int[Tensor, " target"],
    *,
    noise: Float[Tensor, "sample subject d_model"],
    site: str = "mlp_out",
    window: Window = 5,
    metric: Metric = "probability",
    foil: str | None = None,
    batch_size: Count | None = None,
) -> Trace:
    """Causal Tracing of one prompt, at every layer and position.

    Args:
        model: any pre-norm or post-norm model.
        prompt: from `encode`.
        target: the text (or token ids) whose probability is traced; the probabilities of several tokens multiply.
        noise: what is added to the subject's embeddings, one row of the batch per sample.
        site: the hook point that is restored; `mlp_out`, `attn_out`, `resid_post`, or what follows
            `blocks.<l>.` in a hook name.
        window: the number of layers restored together, from `l - w // 2` to `l - w // 2 + w - 1`, clipped to the
            model; `resid_post` always takes 1.
        metric: `probability`, `log_probability` (mean over samples), or `logit_difference` (first token of the
            target minus first token of `foil`).
        foil: the other answer of `logit_difference`.
        batch_size: see `trace_many`.

    Raises:
        ValueError: an unknown site, a window below 1, noise of another shape, or a model whose logits are not numbers.
    """
    ((traced,),) = trace_many(
        model,
        [prompt],
        [target],
        noises=[noise],
        site=site,
        windows=[window],
        metric=metric,
        foils=[foil],
        batch_size=batch_size,
    )
    if traced.is_nan:
        raise ValueError(NOT_A_NUMBER.format(prompt.fact_id))
    return traced


@checked
def trace_many(
    model: Model,
    prompts: Sequence[Prompt],
    targets: Sequence[str | Int[Tensor, " _"]],
    *,
    noises: Sequence[Float[Tensor, "_ _ d_model"]],
    site: str = "mlp_out",
    windows: Sequence[int] = (5,),
    metric: Metric = "probability",
    foils: Sequence[str | None] | None = None,
    batch_size: Count | None = None,
) -> list[list[Trace]]:
    """Causal Tracing of many prompts with many windows: the same traces as from `trace`, with shared work.

    Your own hooks on the model are part of all runs.  Prompts are then computed one by one and whole; only the final
    norm and the unembedding are limited to the positions that predict the target.

    Args:
        model: see `trace`.
        prompts: from `encode`.
        targets: one per prompt.
        noises: one per prompt.
        site: see `trace`.
        windows: the windows to trace with.
        metric: see `trace`.
        foils: one per prompt.
        batch_size: about how many token positions (rows times their length) one call of a layer computes; the default
            suits the device.  If memory does not suffice, it is halved, with a warning in the log; the final value
            is kept in `Trace.batch_size`.

    Returns:
        For each prompt its traces, one per window, in the given order.  If the model's logits are not numbers, the
        traces are not either, and a warning in the log names the fact.

    Raises:
        ValueError: see `trace`; lists of different lengths.
    """
    about: dict[str, Any] = {"site": site, "windows": windows, "metric": metric, "foils": foils}
    return localize_by(restored, TRACING, model, prompts, targets, noises, batch_size=batch_size, **about)


def restored(questions: Questions, severed: Literal["mlp", "attn"] | None = None) -> Grids:
    """Causal Tracing: how much more the metric is than in the corrupted run where a cell is restored.

    With a severed kind of module, the outputs of these modules are frozen at the cell's position, in all layers after
    the restored ones, at their corrupted values: so the restored state can reach the answer only through the other
    kind.  Source: Meng et al. 2022a, section 2.2 and figure 3, which restore `resid_post`.

    Args:
        questions: the prompts and targets.
        severed: the kind of module whose outputs are frozen.
    """
    facts, outputs = questions.facts, list[Tensor]()
    names = [site_name(f"{severed}_out", layer) for layer in range(questions.model.cfg.n_layers) if severed]
    keep: list[Hook] = [(name, lambda value, hook: outputs.append(value[len(facts) :].clone())) for name in names]
    base = questions.corrupted_base(keep)
    pairs = []
    for i, fact in enumerate(facts):
        positions = torch.arange(fact.prompt.subject.start, len(fact.prompt), device=base.fact.device)
        pairs.append(torch.cartesian_prod(positions, (base.fact == i).nonzero()[:, 0]))
    pos, row = torch.cat(pairs).T.contiguous()  # fact by fact, position by position, sample by sample
    n_pos, start = base.residual[0].shape[1], torch.zeros_like(pos) if base.whole else pos
    clean = Patch(base.site, [value.flatten(0, 1) for value in base.clean], base.fact[row] * n_pos + pos)
    frozen = Patch(f"{severed}_out", [value.flatten(0, 1) for value in outputs], row * n_pos + pos) if severed else None
    units = Units(base, row, pos, start, restored=clean, frozen=frozen)
    metrics = questions.measure(units, [len(fact.noise) for fact in facts])
    corrupted = [observed.metric.double().mean().item() for observed in questions.corrupted()]
    return [
        [pad(metric - p, (fact.prompt.subject.start, 0)) for metric in by_window]
        for fact, by_window, p in zip(facts, metrics, corrupted, strict=True)
    ]
