"""Engines: where cells are computed, in this process, in processes beside it, or on a Ray cluster."""
