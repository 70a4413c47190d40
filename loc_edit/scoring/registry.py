"""Registers the package's scores that a run is asked for, each in the file that measures it."""

from loc_edit.scoring import (
    formats as formats,
    generation as generation,
    relearning as relearning,
    ripple as ripple,
    survival as survival,
)
from loc_edit.scoring.contract import SCORERS as SCORERS
