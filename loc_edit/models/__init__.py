"""Models: loading them without weight processing, their parts, what they must be, and their identity.

The only room that knows how checkpoints, configurations and the model class behave.
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
