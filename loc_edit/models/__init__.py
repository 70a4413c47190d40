"""Models: loading, checking and identifying them, running their layers, and fitting batches into memory.

No other room knows how checkpoints, configurations and the model class behave.  The package pins TransformerLens 3.
TransformerLens 4 replaces `HookedTransformer` by `TransformerBridge`, which has the same hook names over Hugging
Face's modules.  `tests/models/test_bridge.py` runs this package on a bridge, and shows what differs:

- Name: `Model` in `model` has to be `TransformerBridge`.
- Loading: `loading_from_pretrained` is gone, and `TransformerBridge.boot_transformers(directory)` does the work of
  `loading` and `checkpoints`.  `load_model` takes a loaded bridge as it is.
- Weights: `W_out` and `b_out` in `model` give tensors to write to in place.  On a bridge over transposed weights, the
  tensor is a view of the parameter, and an edit and its undo write through it.
- Layers: every room runs layers by `run_layers` in `passes`.  A bridge always goes on to the logits after its last
  layer, so a hook reads the final residual stream.  With `start`, a bridge also runs the layers below on meaningless
  input, and hooks on those layers fire.
- Cached keys and values: a bridge takes no `past_kv_cache`.  The fast paths of tracing, editing and sampling need it;
  they ask `takes_past`, and without it compute whole rows: the same results, several times slower.
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
