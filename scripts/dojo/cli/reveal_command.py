"""kata reveal: the diff to a correct file, and the story of each planted bug."""

import sys

import click

from dojo.cli.diff import colour_diff
from dojo.cli.records import opened_history
from dojo.errors import typed
from dojo.kata import catalogue
from dojo.learner.player import Player, unknown_line
from dojo.project import Project
from dojo.wording.stories import aside_lines, story_lines


@click.command(name="reveal")
@click.argument("name", metavar="KATA")
@click.option("--apply", is_flag=True, help="Also put the correct text into your file.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.pass_obj
def command(project: Project, name: str, apply: bool, yes: bool) -> None:
    """Show the diff from your file to a correct one, and tell each planted bug's story.

    \b
    Example: kata reveal softmax
    """
    kata = catalogue.find(project, name)
    with opened_history(project) as history:
        player = Player(project, kata, history)
        _confirm(player, yes)
        player.history.reveal(player.attempt().id)
        diff = player.diff_to_correct()
        click.echo(colour_diff(diff) if diff else f"{kata.name}: your file is the reference")
        planting = player.planting()
        for bug in planting.bugs:
            click.echo("\n" + "\n".join(story_lines(bug)))
        for line in aside_lines(kata, planting.bugs):
            click.echo(line)
        if unknown := unknown_line(kata.name, planting):
            click.echo(f"\n{unknown}")
        if apply:
            backup = player.put_right()
            kept = f"; your text is kept: {typed('undo', kata.name)}" if backup else ""
            click.echo(f"\n{kata.name}: fixed{kept}")


def _confirm(player: Player, yes: bool) -> None:
    attempt = player.attempt()
    if yes or attempt.revealed_at or attempt.solved_at:
        return
    name = player.kata.name
    if not sys.stdin.isatty():
        raise click.UsageError(f"this shows the answer to {name}, unsolved yet; add --yes to go on")
    click.confirm(f"{name} is not solved yet. Show the answer?", abort=True)
