"""The checks and measurements of `benchmarks/gpu.py`, by what they look at."""
