"""``python -m equirl``: the command line."""

from equirl.cli import main

main()
