"""Colours a unified diff."""

import click

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def colour_diff(diff: str) -> str:
    """Return the diff with colours, which click takes out again where none are wanted."""
    return "\n".join(
        click.style(line, fg=_COLOURS[line[0]]) if line[:1] in _COLOURS else line
        for line in diff.splitlines()
    )
