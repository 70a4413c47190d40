"""Models: loading them without weight processing, their parts, what they must be, and their identity.

The only room that knows how checkpoints, configurations and the model class behave.

The seam for TransformerLens 4, which replaces `HookedTransformer` by `TransformerBridge` (same hook names; Hugging
Face's modules underneath).  What has to change, tried in `tests/test_bridge.py`:

- The name: rooms import `HookedTransformer` from transformer_lens for their signatures.  A subclass of the bridge takes
  its place, which returns the final residual stream for `stop_at_layer=n_layers`; a bridge goes on to the logits.
- Loading: `loading_from_pretrained` is gone, and `TransformerBridge.boot_transformers(directory)` does what
  `loading` and `checkpoints` do here.  A loaded bridge is taken by `load_model` as it is.
- Writing: `W_out` and `b_out` in `parts` give what is to be written in place.  For a bridge over transposed weights
  this is a view, no parameter, and an edit and its undo go through it.
- The attention's cache: a bridge has Hugging Face's, and takes no `past_kv_cache`.  The fast paths of `tracing` and
  the value optimiser of `editing` are built on that; they need the plain path (whole rows) there.
"""

from loc_edit.models.checkpoints import MLP_OUTPUTS, MlpOutput, hf_state_dict, mlp_output, read_config
from loc_edit.models.checks import BadModel, check_editable, check_layers, check_unprocessed
from loc_edit.models.identity import fingerprint, tokenizer_fingerprint, versions
from loc_edit.models.loading import BUILTIN, load_model, quiet
from loc_edit.models.parts import W_out, b_out, embeddings, has_output_bias, logits_at, token_texts, tokenizer

__all__ = [
    "BUILTIN",
    "MLP_OUTPUTS",
    "BadModel",
    "MlpOutput",
    "W_out",
    "b_out",
    "check_editable",
    "check_layers",
    "check_unprocessed",
    "embeddings",
    "fingerprint",
    "has_output_bias",
    "hf_state_dict",
    "load_model",
    "logits_at",
    "mlp_output",
    "quiet",
    "read_config",
    "token_texts",
    "tokenizer",
    "tokenizer_fingerprint",
    "versions",
]
