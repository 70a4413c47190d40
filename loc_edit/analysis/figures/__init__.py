"""Figures: a tidy frame in, a matplotlib figure out; the paper's figures by name."""
