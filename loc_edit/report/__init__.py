"""The report: a run as one HTML file that needs no network and no model.  No torch in this room."""

from loc_edit.report.explorer import Continuations, thinned
from loc_edit.report.write import write_report

__all__ = ["Continuations", "thinned", "write_report"]
