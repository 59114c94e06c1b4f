"""Preference data: the contract, sources, splits and validation."""
