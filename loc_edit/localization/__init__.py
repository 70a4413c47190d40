"""Localization: which layer and position matter for a fact, by Causal Tracing and nine other localizers."""
