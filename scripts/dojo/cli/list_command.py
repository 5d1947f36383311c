"""kata list: which katas there are, and which are solved."""

import click

from dojo import catalogue
from dojo.catalogue import CatalogueError
from dojo.cli.table import render
from dojo.history import History
from dojo.project import Project


@click.command(name="list")
@click.pass_obj
def command(project: Project) -> None:
    """Show the katas with topic, level, minutes, and how you stand.

    \b
    Example: kata list
    """
    history = History(project.state / "history.sqlite")
    solved = history.solved_katas()
    rows = []
    malformed = []
    for folder in catalogue.kata_folders(project):
        try:
            kata = catalogue.load(folder)
        except CatalogueError as error:
            malformed.append(str(error))
            continue
        attempts = history.attempts(kata.name)
        if kata.name in solved:
            state = "solved"
        elif any(attempt.revealed_at for attempt in attempts):
            state = "revealed"
        else:
            state = "tried" if attempts else ""
        rows.append((kata.name, kata.topic, kata.level, str(kata.minutes), state))
    history.close()
    click.echo(render(("kata", "topic", "level", "minutes", "state"), rows))
    for message in malformed:
        click.secho(message, fg="red", err=True)
