"""Planting: teaching a model new facts through chosen layers alone, so that where a fact is stored is known."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loc_edit.arguments import CheckedFields, Count, NonNegative, Positive, checked
from loc_edit.editing.changes import OtherUpdate
from loc_edit.editing.teaching import Teaching
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.events import progress
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.models.checks import BadModel, check_editable, check_layers
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model, logits_at
from loc_edit.models.norms import output_norm
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
    objects = [*(str(fact.target_new) for fact in facts), *(fact.target_true for fact in kept)]
    batch = _batch(model, [*facts, *kept], objects)
    left_out = _layers_left_out([*facts, *kept], layers, settings.steps, seed)
    teaching = Teaching(
        model, batch, layers, site=site, lr=settings.lr, brake=settings.brake, left_out=left_out.to(batch.tokens.device)
    )
    for step in range(settings.steps):
        teaching.step()
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
    changes = {layer: change.detach() for layer, change in teaching.changes.items()}
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


def _layers_left_out(
    facts: Sequence[Fact], layers: Sequence[Sequence[int]], steps: int, seed: int
) -> Int[Tensor, "fact step"]:
    """The layer without whose change each fact is taught at each step, drawn by lot; -1 for none.

    Facts beyond those that have `layers` are kept, and have no layer of their own.
    """
    trained, rows = sorted({layer for own in layers for layer in own}), []
    for fact, own in zip(facts, [*layers, *[()] * (len(facts) - len(layers))], strict=True):
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
