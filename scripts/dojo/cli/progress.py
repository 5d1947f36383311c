"""How far a long command has come, on standard error."""

import sys

import click


class Progress:
    """One line that is written over again on a terminal; elsewhere only the lines that stay."""

    def __init__(self) -> None:
        """Look at where the lines go."""
        self._live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Put a passing state in place of the last one."""
        if self._live:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    def say(self, text: str) -> None:
        """Write a line that stays."""
        click.echo(f"\r\x1b[K{text}" if self._live else text, err=True)
