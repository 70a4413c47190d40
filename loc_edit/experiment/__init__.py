"""The experiment: what is traced, edited and scored, where it is computed, and how it goes on after a stop."""
