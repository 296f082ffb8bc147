"""`python -m scalesearch` is `scalesearch`."""

from scalesearch.cli import main

main()
