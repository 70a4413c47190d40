"""The playground: one page to trace a fact, edit it, and take the edit back, by hand."""
