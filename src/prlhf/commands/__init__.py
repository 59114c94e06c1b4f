"""Commands of `prlhf` besides the stages; each imports what it runs only when it runs."""
