"""Models: loading, checking and identifying them, running their layers, and fitting batches into memory.

No other room knows how checkpoints, configurations and the model class behave.  The package runs on TransformerLens 3,
with `HookedTransformer`, and on 4, with `TransformerBridge`, which has the same hook names over Hugging Face's modules.
`Model` in `model` is what both have.  `hooked` and `bridged` are the two adapters, with the same functions, and
`adapter` chooses between them:

- Weights: `W_out` and `b_out` in `model` give tensors to write to in place.  On a bridge over transposed weights, the
  tensor is a view of the parameter, and an edit and its undo write through it.
- Layers: every room runs layers by `run_layers` in `passes`.
- Cached keys and values: a bridge takes none of single rows.  The fast paths of tracing, editing and sampling need
  them; they ask `lens.takes_past`, and without it compute whole rows: the same results, several times slower.
- Fingerprints: `fields` makes the configuration of version 3 for version 4, so that a model has the same in both.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loc_edit.models.model import Model as Model


def __getattr__(name: str) -> Any:
    """`models.Model`, the class that every signature names, loaded when it is first used."""
    if name != "Model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from loc_edit.models.model import Model

    return Model
