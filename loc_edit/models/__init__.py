"""Models: loading them without weight processing, their parts, what they must be, and their identity.

The only room that knows how checkpoints, configurations and the model class behave.

The seam for TransformerLens 4, which replaces `HookedTransformer` by `TransformerBridge` (same hook names; Hugging
Face's modules underneath).  What has to change, tried in `tests/test_bridge.py`:

- The name: rooms import `HookedTransformer` from transformer_lens for their signatures; `TransformerBridge` takes its
  place.
- Loading: `loading_from_pretrained` is gone, and `TransformerBridge.boot_transformers(directory)` does what
  `loading` and `checkpoints` do here.  A loaded bridge is taken by `load_model` as it is.
- Writing: `W_out` and `b_out` in `parts` give what is to be written in place.  For a bridge over transposed weights
  this is a view, no parameter, and an edit and its undo go through it.
- Running layers: all rooms call `run_layers` in `passes`.  A bridge goes on to the logits after its last layer, so the
  final residual stream is read off a hook there.  With `start` it also runs the layers below, on nothing, and hooks on
  them fire: what they are given does not count.
- The attention's keys and values: a bridge leaves them to Hugging Face's cache, and takes no `past_kv_cache`.  The fast
  paths of `tracing`, of the value optimiser in `editing` and of `sampling` are built on that.  They ask `takes_past`,
  and go on with whole rows where it says no: the same results, in several times the time.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loc_edit.models.model import Model as Model


def __getattr__(name: str) -> Any:
    if name == "Model":
        from loc_edit.models.model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
