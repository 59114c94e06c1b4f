"""Commands that are no stages, by subject. Each imports what it needs when it runs."""
