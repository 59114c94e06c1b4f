"""The campaign of bad days: what hostile inputs and interruptions do to the pipeline."""
