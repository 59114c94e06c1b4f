"""Ablations: the same pipeline under settings that differ in one choice, and what it is worth.

`definition` reads `experiments/ablations/`, `runs` finds DVC's experiments, `runner` makes those
that are missing, `statistics` and `results` turn them into figures with intervals, `page` and
`figure` write these down.
"""
