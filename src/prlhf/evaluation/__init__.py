"""What the trained models are worth to their users: measures, judges, metrics and the report.

Nothing here runs a model. Log-probabilities and generated texts arrive as tables from the `score`
and `generate` stages, so that a changed measure costs seconds, not hours.
"""
