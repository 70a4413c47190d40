"""What `scripts/attack.py` does to the package: kills and damage (`faults`), bad input (`feeds`)."""
