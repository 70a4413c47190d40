"""Views for a notebook: a trace's tokens in colour, an edit before and after."""

from loc_edit.views.edits import EditView, view_edit
from loc_edit.views.tokens import colored_tokens

__all__ = ["EditView", "colored_tokens", "view_edit"]
