"""kata import: another machine's history merged into this one's, or a class's beside each other."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePath

import click

from dojo.cli.records import opened_history
from dojo.errors import DojoError
from dojo.history.export import import_history, opened
from dojo.history.statistics import Stats, gather
from dojo.kata import catalogue
from dojo.project import Project
from dojo.wording.histories import class_table
from dojo.wording.quantities import count


@click.command(name="import")
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@click.pass_obj
def command(project: Project, files: tuple[str, ...]) -> None:
    """Merge a history that `kata export` wrote into the one here; - is standard input.

    What is here already stays once, so the same file may be imported again.
    A session that was not finished there counts as ended.

    Several files are those of a class: nothing is merged, and a table shows them side by side, each
    by the name that it was exported with, or by its file's.

    \b
    Example: kata import history.json
    Example: kata import class/*.json
    """
    if len(files) > 1:
        _show_class(project, files)
        return
    (file,) = files
    content = _content(file)
    with opened_history(project) as history:
        new = import_history(history, content, _called(file))
    counts = [count(number, table) for table, number in new.items()]
    click.echo(f"imported {', '.join(counts)}" if counts else "nothing new in it")


def _show_class(project: Project, files: Sequence[str]) -> None:
    """Print what each history adds up to; a file that is none has a line, and the rest goes on."""
    katas, today = catalogue.finished(project), datetime.now().date()
    learners: list[tuple[str, Stats]] = []
    damaged = False
    for file in files:
        try:
            with opened(_content(file), _called(file)) as (history, learner):
                stats = gather(history, katas, today)
                learners.append((learner or PurePath(file).stem, stats))
        except DojoError as error:
            damaged = True
            click.echo(f"Error: {error}", err=True)
    if learners:
        click.echo(class_table(sorted(learners, key=lambda one: one[0])))
    if damaged:
        raise SystemExit(1)


def _content(file: str) -> bytes:
    with click.open_file(file, "rb") as stream:
        content: bytes = stream.read()
    return content


def _called(file: str) -> str:
    return "standard input" if file == "-" else file
