"""The parts of `scripts/bench.py`: what is timed, plain code beside it, and the arithmetic that cannot be avoided."""
