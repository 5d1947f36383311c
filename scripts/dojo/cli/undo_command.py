"""kata undo: bring back an earlier text of the learner's file."""

import click

from dojo.kata import catalogue
from dojo.learner.workspace import Workspace
from dojo.project import Project
from dojo.wording.tables import render


@click.command(name="undo")
@click.argument("name", metavar="KATA")
@click.option("--list", "show", is_flag=True, help="List the texts that are kept.")
@click.option("--to", "number", type=int, metavar="N", help="Bring back text N of that list.")
@click.option("--proof", is_flag=True, help="Of proof.py, in place of botched.py.")
@click.pass_obj
def command(project: Project, name: str, show: bool, number: int | None, proof: bool) -> None:
    """Bring back your text from before the last reset, reveal or undo.

    The present text is kept too, so undo twice changes nothing.

    \b
    Example: kata undo softmax
    Example: kata undo softmax --to 3
    """
    kata = catalogue.find(project, name)
    workspace = Workspace(project, kata, proof=proof)
    if show:
        rows = [
            (
                str(backup.number),
                f"{backup.saved_at.astimezone():%Y-%m-%d %H:%M:%S}",
                backup.reason,
                str(len(backup.path.read_bytes().splitlines())),
                str(backup.path.relative_to(project.root)),
            )
            for backup in workspace.backups()
        ]
        click.echo(render(("text", "kept at", "before", "lines", "file"), rows))
        return
    backup = workspace.restore(number)
    click.echo(
        f"{kata.name}: your file is again as it was at "
        f"{backup.saved_at.astimezone():%Y-%m-%d %H:%M:%S}"
    )
