"""``python -m graphopt``: the command line."""

from .cli import main

main()
