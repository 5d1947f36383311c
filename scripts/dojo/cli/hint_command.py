"""kata hint: the next hint, never the answer."""

import click

from dojo.files import revision
from dojo.history.history import History
from dojo.kata import catalogue
from dojo.learner.player import Player
from dojo.project import Project
from dojo.runner.runner import Runner


@click.command(name="hint")
@click.argument("name", metavar="KATA")
@click.pass_obj
def command(project: Project, name: str) -> None:
    """Give the next hint on a bug that is still in your file.

    \b
    Example: kata hint softmax
    """
    kata = catalogue.find(project, name)
    with History(project.history) as history:
        player = Player(project, kata, history)
        click.echo(player.give_hint(_gone(project, player)))


def _gone(project: Project, player: Player) -> tuple[str, ...]:
    """Return the bugs that the tests prove gone, from the last run if the file is as it was."""
    last = player.history.last_run(player.attempt().id)
    if last is not None and last.revision == revision(player.workspace.content() or b""):
        return last.gone
    with Runner(project) as runner:
        return player.record(runner.run(player.kata)).gone
