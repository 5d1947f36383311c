"""kata export: the history as one file."""

from pathlib import Path

import click

from dojo.cli import output
from dojo.cli.records import opened_history
from dojo.errors import typed
from dojo.history.export import export_history
from dojo.project import Project


@click.command(name="export")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@click.option("--name", metavar="NAME", help="Put your name in, for a class's table.")
@click.pass_obj
def command(project: Project, file: Path, force: bool, name: str | None) -> None:
    """Write your whole history to FILE, as JSON; - is standard output.

    Your texts are not in it: attempts, runs, hints and practice sessions are.

    \b
    Example: kata export history.json
    Example: kata export ada.json --name "Ada Lovelace"
    """
    with opened_history(project) as history:
        text = export_history(history, name) + "\n"
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    output.write(file, text, overwrite=force)
    click.echo(f"wrote {file}; {typed('import', file.name)} merges it on another machine")
