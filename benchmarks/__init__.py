"""How fast training and generation are, and against what: `make bench` runs all of it.

Not part of the installed package: run it from the repository root, `python -m benchmarks.training`.
"""
