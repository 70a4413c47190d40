"""The version of TransformerLens that is installed: `HookedTransformer` of version 3, or `TransformerBridge` of 4.

Whatever differs between the two is in `hooked` and `bridged`, which have the same functions; this file chooses.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

VERSION = int(version("transformer-lens").split(".")[0])
"""The first number of TransformerLens' version: 3 or 4."""

if TYPE_CHECKING or VERSION < 4:
    from loc_edit.models import hooked as lens
else:
    from loc_edit.models import bridged as lens

__all__ = ["VERSION", "lens"]
