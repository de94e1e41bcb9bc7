"""`python -m raysys` is the console script `raysys`."""

from raysys.cli import main

main()
