"""kata import: another machine's history merged into this one's."""

import click

from dojo.cli.records import opened_history
from dojo.history.export import import_history
from dojo.project import Project
from dojo.wording.quantities import count


@click.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.pass_obj
def command(project: Project, file: str) -> None:
    """Merge a history that `kata export` wrote into the one here; - is standard input.

    What is here already stays once, so the same file may be imported again.
    A session that was not finished there counts as ended.

    \b
    Example: kata import history.json
    """
    with click.open_file(file, "rb") as stream:
        content = stream.read()
    with opened_history(project) as history:
        new = import_history(history, content, "standard input" if file == "-" else file)
    counts = [count(number, table) for table, number in new.items()]
    click.echo(f"imported {', '.join(counts)}" if counts else "nothing new in it")
