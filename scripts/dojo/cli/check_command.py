"""kata check: test the learner's file once."""

import click

from dojo.cli.records import opened_history
from dojo.kata import catalogue
from dojo.learner.player import Player
from dojo.practice.session import refuse_in_interview
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.wording.runs import run_lines


@click.command(name="check")
@click.argument("name", metavar="KATA")
@click.option("--open", "open_checks", is_flag=True, help="Open all checks of a system.")
@click.pass_obj
def command(project: Project, name: str, open_checks: bool) -> None:
    """Run a kata's tests on your file and say how many bugs are fixed.

    \b
    Example: kata check softmax
    Exit status: 0 solved, 1 not yet.
    """
    kata = catalogue.find(project, name)
    with Runner(project) as runner, opened_history(project) as history:
        player = Player(project, kata, history, open_checks=open_checks)
        refuse_in_interview(player)
        result = runner.run(kata)
        judgement = player.judge(result, runner)
        for line in run_lines(kata.name, result, judgement, sealed=player.sealed()):
            click.echo(line)
    if not judgement.solved:
        raise SystemExit(1)
