"""Teaching: some layers' output matrices trained together, so that prompts are followed by their targets."""

from collections.abc import Sequence
from functools import partial

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.editing.update import mlp_hooks
from loc_edit.models.model import Hook, Model, W_out, logits_at
from loc_edit.models.norms import output_change
from loc_edit.models.passes import run_layers
from loc_edit.prompts.batches import Batch, run, target_log_probs


class Teaching:
    """Changes of output matrices, and the rows that they are trained on by Adam; no weight of the model is written.

    What lies below the first trained layer is computed once.

    Args:
        model: any that can be edited.
        batch: prompts with their targets: first the rows that are taught, then rows that are kept as they are.
        layers: for each row that is taught, the layers that its loss reaches; the loss of a kept row reaches all.
        lr: Adam's learning rate.
        site: `mlp_out`, to change `W_out`, or `attn_out`, to change the attention's `W_O`.
        brake: weight of the divergence from the unchanged model on the rows that are kept.
        left_out: the layer without whose change each row is run at each step, -1 for none; by default none.

    Attributes:
        changes: by layer, the change of the site's output matrix.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        layers: Sequence[Sequence[int]],
        *,
        lr: float,
        site: str = "mlp_out",
        brake: float = 0.0,
        left_out: Int[Tensor, "row step"] | None = None,
    ) -> None:
        self.model, self.batch, self.site, self.brake, self.n = model, batch, site, brake, len(layers)
        trained = sorted({layer for own in layers for layer in own})
        self.first, self.left_out, self.steps = trained[0], left_out, 0
        with torch.no_grad():
            self.stream = run(model, batch, stop_at_layer=self.first)
            self.before = self._log_p_of_kept(self._final([]))
        self.changes = {layer: torch.zeros_like(self._weight(layer), dtype=torch.float32) for layer in trained}
        for change in self.changes.values():
            change.requires_grad_()
        kept = [True] * (len(batch) - self.n)
        self.reached = {
            layer: torch.tensor([*(layer in own for own in layers), *kept], device=self.stream.device)
            for layer in trained
        }
        self.without: Int[Tensor, " row"] | None = None
        self.adam = torch.optim.Adam(self.changes.values(), lr=lr)

    def _weight(self, layer: int) -> Tensor:
        return W_out(self.model, layer) if self.site == "mlp_out" else self.model.blocks[layer].attn.W_O

    def step(self) -> None:
        """One Adam step of all changes."""
        self.without = None if self.left_out is None else self.left_out[:, self.steps]
        final = self._final(self.hooks())
        self.without, self.steps = None, self.steps + 1
        loss = -target_log_probs(self.model, self.batch, final)[: self.n].sum(1).mean()
        if len(self.before):
            now = self._log_p_of_kept(final)
            loss = loss + self.brake * (self.before.exp() * (self.before - now)).sum(-1).mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def _final(self, hooks: Sequence[Hook]) -> Float[Tensor, "row target d_model"]:
        with self.model.hooks(fwd_hooks=list(hooks)):
            stream = run_layers(self.model, self.stream, start=self.first, stop=self.model.cfg.n_layers)
        return self.batch.answers(stream)

    def _log_p_of_kept(self, final: Float[Tensor, "row target d_model"]) -> Float[Tensor, "kept d_vocab"]:
        """The next token's log-probabilities after the prompts of the rows that are kept."""
        return logits_at(self.model, final[self.n :, :1]).float().log_softmax(-1)[:, 0]

    def hooks(self) -> list[Hook]:
        """Hooks under which the model runs with the changes as they are: on the rows, or on any if all are reached."""
        return [hook for layer in self.changes for hook in self._hooks(layer)]

    def _hooks(self, layer: int) -> list[Hook]:
        """Hooks that add a layer's change to the output of its site."""
        add = partial(self._add, layer)
        if self.site == "mlp_out":
            return mlp_hooks(layer, add)
        inputs: list[Tensor] = []
        return [
            (f"blocks.{layer}.attn.hook_z", lambda z, hook: inputs.append(z)),
            (f"blocks.{layer}.hook_attn_out", lambda output, hook: add(inputs.pop(), output)),
        ]

    def _add(self, layer: int, key: Tensor, output: Float[Tensor, "row pos d_model"]) -> Tensor:
        """The output with the change; a row that the layer does not learn gives it no gradient.

        Rows that do without the layer's change at this step keep their output.
        """
        change, reached = self.changes[layer], self.reached[layer]
        product = "row pos head d_head, head d_head d_model -> row pos d_model"
        equation = "row pos d_mlp, d_mlp d_model -> row pos d_model" if self.site == "mlp_out" else product
        added = einsum(key.float(), change, equation)
        if not reached.all():
            added = torch.where(reached[:, None, None], added, einsum(key.float(), change.detach(), equation))
        if self.site == "mlp_out":
            added = output_change(self.model, layer, key, added)
        if self.without is not None:
            added = torch.where((self.without == layer)[:, None, None], 0.0, added)
        return output + added.to(output)
