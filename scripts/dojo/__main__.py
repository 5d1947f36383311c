"""Runs the command line: `python -m dojo`."""

from dojo.cli import main

main(prog_name="scripts/kata.sh")
