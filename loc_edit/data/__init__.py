"""The built-in facts, corpus and model.  No torch in the Python files of this folder."""
