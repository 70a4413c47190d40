"""Localization: which layer and position matter for a fact, by Causal Tracing and thirteen other localizers."""
