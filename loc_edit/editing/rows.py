"""The prompts that an editor computes for a request: in every context, and for its subject's essence; with noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook, Model
from loc_edit.models.passes import run_layers
from loc_edit.prompts.batches import Batch, make_batch, run
from loc_edit.prompts.encoding import BadPrompt, Prompt, encode_context, encode_template
from loc_edit.prompts.randomness import generator

ESSENCE = "{} is a"


@dataclass(frozen=True)
class PromptRows:
    """The rows of many requests that values are optimized on: one prompt in each row, and its fixed noise.

    Attributes:
        requests: the requests.
        contexts: number of contexts; the first is the bare prompt.
        prompts: for each request in turn, its prompt in every context, then the essence row.
        noise: one fixed draw for each prompt, `None` for clean requests.
    """

    requests: tuple[EditRequest, ...]
    contexts: int
    prompts: tuple[Prompt, ...]
    noise: tuple[Tensor | None, ...]

    @property
    def targets(self) -> list[Int[Tensor, " _"]]:
        """The token ids after each prompt: the request's target, and none in the essence row."""
        tokens = [request.target_tokens for request in self.requests]
        return [ids for target in tokens for ids in (*[target] * self.contexts, target[:0])]

    @property
    def owner(self) -> Int[Tensor, " row"]:
        """The request that each row belongs to."""
        return torch.arange(len(self.requests)).repeat_interleave(self.contexts + 1)

    def select(self, chosen: Sequence[int]) -> "PromptRows":
        """The rows of the chosen requests."""
        rows, requests = self.rows_of(chosen), tuple(self.requests[i] for i in chosen)
        prompts, noise = tuple(self.prompts[row] for row in rows), tuple(self.noise[row] for row in rows)
        return PromptRows(requests, self.contexts, prompts, noise)

    def rows_of(self, chosen: Sequence[int]) -> list[int]:
        """The numbers of the rows of the chosen requests."""
        rows_per_request = self.contexts + 1
        return [i * rows_per_request + row for i in chosen for row in range(rows_per_request)]


def make_rows(model: Model, requests: Sequence[EditRequest], contexts: Sequence[str], method: str) -> PromptRows:
    """Every request in every context, and its essence row.

    Args:
        model: tokenizes the prompts.
        requests: any number.
        contexts: texts with one `{}` at their end, the bare `"{}"` first.
        method: seeds the noise of noised requests.

    Raises:
        BadPrompt: the first context is not the bare `{}`, or a row is too long.
    """
    if not contexts or contexts[0] != "{}":
        raise BadPrompt(f"contexts: expected the bare '{{}}' first, got {list(contexts[:2])!r}")
    prompts: list[Prompt] = []
    noise: list[Tensor | None] = []
    for request in requests:
        essence = encode_template(model, ESSENCE, request.prompt.subject_text, fact_id=request.fact_id)
        essence = replace(essence, tokens=essence.tokens[: essence.subject.stop])  # the rest is not read
        rows = [*(encode_context(model, context, request.prompt) for context in contexts), essence]
        draws = generator("fixed", request.seed, request.fact_id, method)
        first = [] if request.noise is None else [request.noise[0]]
        noise += first + [draw_noise(request, prompt, draws) for prompt in rows[len(first) :]]
        prompts += rows
    return PromptRows(tuple(requests), len(contexts), tuple(prompts), tuple(noise))


def draw_noise(request: EditRequest, prompt: Prompt, draws: torch.Generator) -> Float[Tensor, "subject d_model"] | None:
    """One draw of the request's noise for a row, as long as that row's own subject."""
    if request.noise is None or request.noise_scale is None:
        return None
    size = (prompt.subject.stop - prompt.subject.start, request.noise.shape[-1])
    return request.noise_scale * torch.randn(size, generator=draws).to(request.noise)


@dataclass(frozen=True)
class Prefix:
    """All rows below a layer: what no edit from that layer on can change.

    Attributes:
        rows: the rows.
        batch: the rows with their targets.
        layer: the layer.
        residual: the residual stream before it; 0 at padding.
        activations: by hook point, the activation at each row's last subject token, in float32; essence rows last.
    """

    rows: PromptRows
    batch: Batch
    layer: int
    residual: Float[Tensor, "row pos d_model"]
    activations: dict[str, Float[Tensor, "request row_of_request width"]]

    def select(self, chosen: Sequence[int]) -> "Prefix":
        """The rows of the chosen requests."""
        rows = torch.tensor(self.rows.rows_of(chosen), device=self.residual.device)
        batch = self.batch.select(rows)
        residual = self.residual[rows, : batch.tokens.shape[1]]
        activations = {name: value[chosen] for name, value in self.activations.items()}
        return Prefix(self.rows.select(chosen), batch, self.layer, residual, activations)


@torch.no_grad()
def run_prefix(
    model: Model, rows: PromptRows, layer: int, names: Sequence[str] = (), below: Prefix | None = None
) -> Prefix:
    """The rows below `layer`, with the activations at hook points `names` on the way; starts at `below` if given.

    Rows of similar length are computed together, as many at a time as stay in the cache.
    """
    batch = below.batch if below else make_batch(model, rows.prompts, rows.targets, rows.noise)
    order = batch.lengths.argsort()
    residual = torch.zeros(*batch.tokens.shape, model.cfg.d_model, device=order.device, dtype=model.cfg.dtype)
    activations: dict[str, Tensor] = {}

    def work(part: slice) -> None:
        chosen = order[part]
        batch_part = batch.select(chosen)
        n_pos, numbers = batch_part.tokens.shape[1], torch.arange(len(chosen), device=chosen.device)

        def keep(name: str) -> Hook:
            def hook_fn(value: Tensor, hook: object) -> None:
                at_subject = value[numbers, batch_part.last_subject].float()
                activations.setdefault(name, at_subject.new_empty(len(batch), at_subject.shape[1]))[chosen] = at_subject

            return (name, hook_fn)

        hooks = [keep(name) for name in names]
        if below is None:
            residual[chosen, :n_pos] = run(model, batch_part, stop_at_layer=layer, hooks=hooks)
        else:
            with model.hooks(fwd_hooks=hooks):
                stream = below.residual[chosen, :n_pos]
                residual[chosen, :n_pos] = run_layers(model, stream, start=below.layer, stop=layer)

    Budget(model).spend(len(batch), batch.tokens.shape[1], work)
    by_request = {name: value.unflatten(0, (-1, rows.contexts + 1)) for name, value in activations.items()}
    return Prefix(rows, batch, layer, residual, by_request)
