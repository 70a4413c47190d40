"""Editing: the five problems, the editing methods and their settings, and edits as things to apply, save and undo."""
