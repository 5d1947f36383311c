"""kata hint: the next hint, never the answer."""

import click

from dojo.cli.records import opened_history
from dojo.files import revision
from dojo.kata import catalogue
from dojo.learner.player import Player
from dojo.practice.session import refuse_in_interview
from dojo.project import Project
from dojo.runner.runner import Runner


@click.command(name="hint")
@click.argument("name", metavar="KATA")
@click.option(
    "--bug",
    "number",
    type=click.IntRange(min=1),
    metavar="N",
    help="A hint on the Nth planted bug.",
)
@click.pass_obj
def command(project: Project, name: str, number: int | None) -> None:
    """Give the next hint on a bug that is still in your file, below those given before.

    \b
    Example: kata hint softmax
    Example: kata hint softmax --bug 2
    """
    kata = catalogue.find(project, name)
    with opened_history(project) as history:
        player = Player(project, kata, history)
        refuse_in_interview(player)
        if not _is_counted(player):
            with Runner(project) as runner:
                player.judge(runner.run(kata), runner)
        for line in player.hints_given():
            click.secho(line, dim=True)
        click.echo(player.give_hint(number))


def _is_counted(player: Player) -> bool:
    """Say whether what is gone from the file as it is now is known from its last run."""
    last = player.history.last_run(player.attempt().id)
    text = player.workspace.content() or b""
    return last is not None and last.revision == revision(text) and last.gone is not None
