"""kata new: the skeleton of a kata."""

import click

from dojo.errors import typed
from dojo.kata import skeleton
from dojo.project import Project


@click.command(name="new")
@click.argument("name")
@click.option("--system", is_flag=True, help="A whole system: symptoms first, checks sealed.")
@click.pass_obj
def command(project: Project, name: str, system: bool) -> None:
    """Make the folder of a new kata; `kata verify` then says what is still missing.

    \b
    Example: kata new alibi
    Example: kata new 60_alibi
    Example: kata new 61_plateau --system
    """
    folder = skeleton.create(project, name, system=system)
    made = folder.relative_to(project.root)
    click.echo(f"made {made}; write it, then: {typed('verify', folder.name)}")
