"""kata list: which katas there are, and which are solved."""

from collections.abc import Sequence
from datetime import date, datetime

import click

from dojo.cli.records import opened_history
from dojo.errors import CatalogueError
from dojo.files import write_section
from dojo.kata import catalogue, kata_toml
from dojo.kata.kata import Kata
from dojo.practice import scheduler
from dojo.project import Project
from dojo.wording.quantities import count
from dojo.wording.tables import render


@click.command(name="list")
@click.option("--readme", is_flag=True, help="Write the katas' table into README.md instead.")
@click.pass_obj
def command(project: Project, readme: bool) -> None:
    """Show the katas with topic, level, minutes, how you stand, and when they should come again.

    A draft is a kata whose author has not filled in its skeleton yet.

    \b
    Example: kata list
    """
    if readme:
        katas = catalogue.finished(project)
        write_section(project.readme, "katas", readme_table(katas))
        click.echo(f"wrote {count(len(katas), 'row')} into {project.readme.name}")
        return
    with opened_history(project) as history:
        solved = history.solved_katas()
        sessions = history.sessions
        due = scheduler.due(sessions.exercises(), sessions.interview_on())
        rows = []
        malformed = []
        folders = catalogue.kata_folders(project)
        for folder in folders:
            if problem := catalogue.misnamed(folder, folders):
                malformed.append(problem)
            try:
                kata = kata_toml.load(folder)
            except CatalogueError as error:
                malformed.append(str(error))
                continue
            attempts = history.attempts(kata.name)
            if kata.draft:
                state = "draft"
            elif kata.name in solved:
                state = "solved"
            elif any(attempt.revealed_at for attempt in attempts):
                state = "revealed"
            else:
                state = "tried" if attempts else ""
            when = _days_from_now(due[kata.name]) if kata.name in due else ""
            rows.append((kata.name, kata.topic, kata.level, str(kata.minutes), state, when))
    click.echo(render(("kata", "topic", "level", "minutes", "state", "due"), rows))
    for message in malformed:
        click.secho(message, fg="red", err=True)


def _days_from_now(moment: datetime) -> str:
    days = (moment.astimezone().date() - date.today()).days
    if days <= 0:
        return "now"
    return "tomorrow" if days == 1 else f"in {days} days"


def readme_table(katas: Sequence[Kata]) -> str:
    """Return the katas as a Markdown table."""
    rows = ["| kata | topic | level | minutes | bugs |", "|---|---|---|---|---|"]
    rows += [
        f"| [{kata.name}](katas/{kata.name}/README.md) | {kata.topic} | {kata.level} "
        f"| {kata.minutes} | {len(kata.bugs)} |"
        for kata in katas
    ]
    return "\n".join(rows)
