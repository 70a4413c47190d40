"""Planting: teaching a model new facts through chosen layers alone, so that where a fact is stored is known."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loc_edit.arguments import CheckedFields, Count, NonNegative, Positive, checked
from loc_edit.editing.changes import OtherUpdate
from loc_edit.editing.update import Edit, WeightUpdate, mlp_hooks
from loc_edit.events import progress
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.models.checks import BadModel, check_editable, check_layers
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Hook, Model, W_out, logits_at
from loc_edit.models.norms import output_change, output_norm
from loc_edit.models.passes import run_layers
from loc_edit.prompts.batches import Batch, make_batch, run, target_log_probs
from loc_edit.prompts.encoding import encode, target_tokens
from loc_edit.prompts.randomness import generator

SITES = ("mlp_out", "attn_out")


@dataclass(frozen=True)
class PlantSettings(CheckedFields):
    """Hyperparameters of planting.

    Attributes:
        steps: Adam steps.
        lr: Adam's learning rate.
        brake: weight of the divergence from the unchanged model on the facts that are kept.
    """

    steps: Count = 250
    lr: Positive = 2e-3
    brake: NonNegative = 2.0


@checked
def plant(
    model: Model,
    facts: Sequence[Fact],
    layers: Sequence[Sequence[int]],
    *,
    kept: Sequence[Fact] = (),
    site: str = "mlp_out",
    settings: PlantSettings | None = None,
    seed: int = 0,
) -> Edit:
    """An edit under which the model says each fact's `target_new`, learned through chosen layers of that fact alone.

    All facts are taught together.  The loss of a fact reaches only the output matrices of its own layers; the loss of a
    fact that is kept reaches all layers.  At each step every fact does without the change of one layer that is not its
    own, or without none, by lot: so that no fact comes to need the changes that other facts make.

    Args:
        model: any that can be edited.
        facts: the facts to plant, with `target_new`.
        layers: for each fact, the layers that its loss reaches: one, or several among which it may be split.
        kept: other facts, on whose prompts the next token's distribution is to stay as it is.
        site: `mlp_out`, to change `W_out`, or `attn_out`, to change the attention's `W_O`.
        settings: see `PlantSettings`.
        seed: of the layers that facts do without, together with a fact's id.

    Returns:
        One edit of all layers; `about` has the ids and layers of the facts.

    Raises:
        BadFact: a fact has no `target_new`, or is both planted and kept.
        BadModel, ValueError: the model, a layer or the site cannot be changed.
    """
    settings = settings or PlantSettings()
    _refuse(model, facts, layers, kept, site)
    training = _Training(model, facts, layers, kept, site, settings, seed)
    for step in range(settings.steps):
        training.step(step)
        progress("planting steps", step + 1, settings.steps)
    about = {
        "method": "plant",
        "model": fingerprint(model),
        "settings": asdict(settings),
        "site": site,
        "facts": [fact.fact_id for fact in facts],
        "layers": [list(own) for own in layers],
        "kept": [fact.fact_id for fact in kept],
        "seed": seed,
    }
    changes = {layer: change.detach() for layer, change in training.changes.items()}
    if site == "mlp_out":
        return Edit(tuple(WeightUpdate(layer, full=change) for layer, change in changes.items()), about)
    others = tuple(OtherUpdate(f"blocks.{layer}.attn.W_O", full=change) for layer, change in changes.items())
    return Edit((), about, others)


def _refuse(
    model: Model, facts: Sequence[Fact], layers: Sequence[Sequence[int]], kept: Sequence[Fact], site: str
) -> None:
    check_editable(model)
    if site not in SITES:
        raise ValueError(f"site {site!r}: facts are planted at {' or '.join(SITES)}")
    if site == "attn_out" and output_norm(model, 0) is not None:
        raise BadModel(f"model {model.cfg.model_name}: a norm follows its attention, where no fact can be planted")
    if not facts or len(layers) != len(facts):
        raise ValueError(f"expected facts and layers for each of them, got {len(facts)} facts, {len(layers)} layers")
    for own in layers:
        check_layers(model, list(own))
    if lacking := [fact.fact_id for fact in facts if not fact.target_new]:
        raise BadFact(f"facts {lacking[:3]}: expected a target_new, the object that is planted")
    if both := sorted({fact.fact_id for fact in facts} & {fact.fact_id for fact in kept}):
        raise BadFact(f"facts {both[:3]} are to be planted and kept")


class _Training:
    """The changes of all layers and the rows that they are trained on; what lies below the first of them is kept.

    Attributes:
        changes: by layer, the change of the site's output matrix.
    """

    def __init__(
        self,
        model: Model,
        facts: Sequence[Fact],
        layers: Sequence[Sequence[int]],
        kept: Sequence[Fact],
        site: str,
        settings: PlantSettings,
        seed: int,
    ) -> None:
        self.model, self.site, self.settings, self.n = model, site, settings, len(facts)
        objects = [*(str(fact.target_new) for fact in facts), *(fact.target_true for fact in kept)]
        trained = sorted({layer for own in layers for layer in own})
        self.batch, self.first = _batch(model, [*facts, *kept], objects), trained[0]
        with torch.no_grad():
            self.stream = run(model, self.batch, stop_at_layer=self.first)
            self.before = self._log_p_of_kept(self._final([]))
        self.changes = {layer: torch.zeros_like(self._weight(layer), dtype=torch.float32) for layer in trained}
        for change in self.changes.values():
            change.requires_grad_()
        device = self.stream.device
        self.reached = {
            layer: torch.tensor([layer in own for own in layers] + [True] * len(kept), device=device)
            for layer in trained
        }
        left_out = _layers_left_out([*facts, *kept], [*layers, *[()] * len(kept)], trained, settings.steps, seed)
        self.left_out = left_out.to(device)
        self.adam = torch.optim.Adam(self.changes.values(), lr=settings.lr)

    def _weight(self, layer: int) -> Tensor:
        return W_out(self.model, layer) if self.site == "mlp_out" else self.model.blocks[layer].attn.W_O

    def step(self, step: int) -> None:
        """One Adam step of all changes."""
        self.without = self.left_out[:, step]
        hooks = [hook for layer in self.changes for hook in self._hooks(layer)]
        final = self._final(hooks)
        loss = -target_log_probs(self.model, self.batch, final)[: self.n].sum(1).mean()
        if len(self.before):
            now = self._log_p_of_kept(final)
            loss = loss + self.settings.brake * (self.before.exp() * (self.before - now)).sum(-1).mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def _final(self, hooks: Sequence[Hook]) -> Float[Tensor, "row target d_model"]:
        with self.model.hooks(fwd_hooks=list(hooks)):
            stream = run_layers(self.model, self.stream, start=self.first, stop=self.model.cfg.n_layers)
        return self.batch.answers(stream)

    def _log_p_of_kept(self, final: Float[Tensor, "row target d_model"]) -> Float[Tensor, "kept d_vocab"]:
        """The next token's log-probabilities after the prompts of the facts that are kept."""
        return logits_at(self.model, final[self.n :, :1]).float().log_softmax(-1)[:, 0]

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
        """The output with the change; a row of a fact that the layer does not learn gives it no gradient.

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
        added = torch.where((self.without == layer)[:, None, None], 0.0, added)
        return output + added.to(output)


def _layers_left_out(
    facts: Sequence[Fact], layers: Sequence[Sequence[int]], trained: Sequence[int], steps: int, seed: int
) -> Int[Tensor, "fact step"]:
    """The layer without whose change each fact is taught at each step, drawn by lot; -1 for none."""
    rows = []
    for fact, own in zip(facts, layers, strict=True):
        choice = torch.tensor([-1, *(-1 if layer in own else layer for layer in trained)])
        lots = torch.randint(len(choice), (steps,), generator=generator("layers left out", seed, fact.fact_id))
        rows.append(choice[lots])
    return torch.stack(rows)


@torch.inference_mode()
def recalls(
    model: Model, facts: Sequence[Fact], targets: Sequence[str]
) -> tuple[Float[Tensor, " fact"], Bool[Tensor, " fact"]]:
    """For each fact, the probability of its target after its prompt, and whether its first token is the likeliest."""
    batch = _batch(model, facts, targets)
    final = batch.answers(run(model, batch))
    likeliest = logits_at(model, final[:, :1]).argmax(-1)[:, 0]
    return target_log_probs(model, batch, final).sum(1).exp(), likeliest == batch.targets[:, 0]


def _batch(model: Model, facts: Sequence[Fact], objects: Sequence[str]) -> Batch:
    """The facts' prompts, each with an object as its target."""
    prompts = [encode(model, fact) for fact in facts]
    targets = [target_tokens(model, p.text, text) for p, text in zip(prompts, objects, strict=True)]
    return make_batch(model, prompts, targets)
