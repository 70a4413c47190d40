"""Prompts: texts as tokens with the subject's place, batches of them, noise, sampled texts, and what a model knows."""
