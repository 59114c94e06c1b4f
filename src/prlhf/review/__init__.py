"""A change of the pipeline as its reviewer sees it: what it does, and whether it was run."""
