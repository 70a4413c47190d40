"""Figures: they turn a frame into a matplotlib figure; the paper's figures are listed by name."""
