"""Colours a unified diff."""

import click

from dojo.wording.events import COLOURS


def colour_diff(diff: str) -> str:
    """Return the diff with colours, which click takes out again where none are wanted."""
    return "\n".join(
        click.style(line, fg=COLOURS[line[0]]) if line[:1] in COLOURS else line
        for line in diff.splitlines()
    )
