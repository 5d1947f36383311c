"""Opens the learner's history for a command, and tells last what is wrong with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from dojo.history.history import History
from dojo.project import Project


@contextmanager
def opened_history(project: Project) -> Iterator[History]:
    """Open the history for the block; what the person should know of it comes after the rest."""
    with History(project.history) as history:
        try:
            yield history
        finally:
            for notice in history.notices():
                click.echo(notice, err=True)
