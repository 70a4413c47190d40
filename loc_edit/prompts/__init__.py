"""Prompts: tokens and subject positions, batches, subject noise, sampled texts, and the answers of a model."""
