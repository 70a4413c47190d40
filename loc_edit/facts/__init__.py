"""Facts: what one is, and readers for the formats in which data sets hold them.  No torch in this room."""

from loc_edit.facts.fact import BadFact, Fact
from loc_edit.facts.files import FactFile, load_facts, read_file, save_facts, save_skipped
from loc_edit.facts.formats import FORMATS, BadRecord, FalseTarget, detect_format, read_records

__all__ = [
    "FORMATS",
    "BadFact",
    "BadRecord",
    "Fact",
    "FactFile",
    "FalseTarget",
    "detect_format",
    "load_facts",
    "read_file",
    "read_records",
    "save_facts",
    "save_skipped",
]
