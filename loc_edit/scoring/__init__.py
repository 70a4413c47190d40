"""Scoring: how well an edit did, as probabilities before and after and the scores made of them."""
