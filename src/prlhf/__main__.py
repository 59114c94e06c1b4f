"""`python -m prlhf`: the same as the `prlhf` command."""

from prlhf.cli import main

main()
