"""The rows that an editor computes a request on: its prompt in every context, the essence row, and their noise."""

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
class Rows:
    """The rows of many requests that the value is optimised on, and their fixed noise.

    Attributes:
        requests: the requests.
        contexts: number of contexts; the first is the bare prompt.
        prompts: request by request, that of every context and at last the essence row.
        noise: one fixed draw per prompt, `None` for clean requests.
    """

    requests: tuple[EditRequest, ...]
    contexts: int
    prompts: tuple[Prompt, ...]
    noise: tuple[Tensor | None, ...]

    @property
    def targets(self) -> list[Int[Tensor, " _"]]:
        """What follows each prompt: the request's target, and nothing in the essence row."""
        each = (r.target_tokens for r in self.requests)
        return [ids for one in each for ids in (*[one] * self.contexts, one[:0])]

    @property
    def owner(self) -> Int[Tensor, " row"]:
        """The request that each row belongs to."""
        return torch.arange(len(self.requests)).repeat_interleave(self.contexts + 1)

    def select(self, some: Sequence[int]) -> "Rows":
        """The rows of some requests."""
        members = self.members(some)
        requests = tuple(self.requests[i] for i in some)
        return Rows(
            requests, self.contexts, tuple(self.prompts[i] for i in members), tuple(self.noise[i] for i in members)
        )

    def members(self, some: Sequence[int]) -> list[int]:
        """Which rows belong to some requests."""
        each = self.contexts + 1
        return [i * each + row for i in some for row in range(each)]


def make_rows(model: Model, requests: Sequence[EditRequest], contexts: Sequence[str], method: str) -> Rows:
    """Every request in every context.

    Raises:
        BadPrompt: the first context is not the bare `{}`, or a row is too long.
    """
    if not contexts or contexts[0] != "{}":
        raise BadPrompt(f"contexts {list(contexts[:2])!r}: the first must be the bare '{{}}'")
    prompts: list[Prompt] = []
    noise: list[Tensor | None] = []
    for request in requests:
        mine = [encode_context(model, context, request.prompt) for context in contexts]
        last = encode_template(model, ESSENCE, request.prompt.subject_text, fact_id=request.fact_id)
        last = replace(last, tokens=last.tokens[: last.subject.stop])  # what follows the subject cannot matter
        draws = generator("fixed", request.seed, request.fact_id, method)
        bare = [] if request.noise is None else [request.noise[0]]
        mine.append(last)
        noise += bare + [draw_noise(request, prompt, draws) for prompt in mine[len(bare) :]]
        prompts += mine
    return Rows(tuple(requests), len(contexts), tuple(prompts), tuple(noise))


def draw_noise(request: EditRequest, prompt: Prompt, draws: torch.Generator) -> Float[Tensor, "subject d_model"] | None:
    """One draw of the request's noise for a row, at the length of that row's own subject."""
    if request.noise is None or request.noise_scale is None:
        return None
    size = (prompt.subject.stop - prompt.subject.start, request.noise.shape[-1])
    return request.noise_scale * torch.randn(size, generator=draws).to(request.noise)


@dataclass(frozen=True)
class Prefix:
    """All rows below a layer: what no edit from that layer on can change.

    Attributes:
        rows: what is computed.
        batch: the rows with their targets.
        layer: the layer.
        residual: the residual stream before it; 0 at padding.
        found: by hook point, the activation at each row's last subject token, in float32; essence rows left out.
    """

    rows: Rows
    batch: Batch
    layer: int
    residual: Float[Tensor, "row pos d_model"]
    found: dict[str, Float[Tensor, "request context width"]]

    def select(self, some: Sequence[int]) -> "Prefix":
        """That of some requests."""
        rows = torch.tensor(self.rows.members(some), device=self.residual.device)
        batch = self.batch.select(rows)
        return Prefix(self.rows.select(some), batch, self.layer, self.residual[rows, : batch.tokens.shape[1]], {})


@torch.no_grad()
def run_prefix(
    model: Model, rows: Rows, layer: int, names: Sequence[str] = (), below: Prefix | None = None
) -> Prefix:
    """The rows below `layer`, and the activations of hook points `names` on the way; from `below` on, if given.

    Rows of like length go together, as many at a time as stay in the cache.
    """
    batch = below.batch if below else make_batch(model, rows.prompts, rows.targets, rows.noise)
    lengths = batch.lengths
    order = lengths.argsort()
    residual = torch.zeros(*batch.tokens.shape, model.cfg.d_model, device=lengths.device, dtype=model.cfg.dtype)
    found: dict[str, Tensor] = {}

    def work(some: slice) -> None:
        which = order[some]
        part = batch.select(which)
        n_pos, at = part.tokens.shape[1], torch.arange(len(which), device=which.device)

        def keep(name: str) -> Hook:
            def hook_fn(value: Tensor, hook: object) -> None:
                mine = value[at, part.last_subject].float()
                found.setdefault(name, mine.new_empty(len(batch), mine.shape[1]))[which] = mine

            return (name, hook_fn)

        hooks = [keep(name) for name in names]
        if below is None:
            residual[which, :n_pos] = run(model, part, stop_at_layer=layer, hooks=hooks)
        else:
            with model.hooks(fwd_hooks=hooks):
                residual[which, :n_pos] = run_layers(
                    model, below.residual[which, :n_pos], start=below.layer, stop=layer
                )

    Budget(model).spend(len(batch), batch.tokens.shape[1], work)
    each = {name: value.unflatten(0, (-1, rows.contexts + 1))[:, :-1] for name, value in found.items()}
    return Prefix(rows, batch, layer, residual, each)
