"""Regression: whether the tracing effect explains the success of edits beyond the layer."""
