"""kata handout: katas for a class, without answers."""

from pathlib import Path

import click

from dojo.classroom.assignment import Assignment
from dojo.classroom.handout import write_handout
from dojo.cli.assignment import assignment_options
from dojo.errors import typed
from dojo.kata import catalogue
from dojo.project import Project
from dojo.wording.handouts import hints, readme


@click.command(name="handout")
@click.argument("names", metavar="KATA...", nargs=-1, required=True)
@assignment_options
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path),
    metavar="FOLDER|FILE.zip",
    required=True,
    help="Where to write it: a new folder, or an archive.",
)
@click.option("--hints", "with_hints", is_flag=True, help="Add a page of folded hints to each.")
@click.pass_obj
def command(
    project: Project,
    names: tuple[str, ...],
    bugs: str | None,
    count: int | None,
    seed: int | None,
    target: Path,
    with_hints: bool,
) -> None:
    """Write what a class is given: briefs, botched files, tests, and no answers.

    Learners need pytest, torch and numpy. What is planted stands nowhere in it: the line that is
    printed grades by it.

    \b
    Example: kata handout softmax attention -o homework.zip
    Example: kata handout softmax --count 2 --seed 7 --hints -o homework
    """
    katas = list(dict.fromkeys(catalogue.find(project, name) for name in names))
    assignment = Assignment.of(bugs, count, seed)
    chosen = assignment.planted(katas)
    planted = {kata: chosen[kata.name] for kata in katas}
    pages = {"README.md": readme(katas)} | (hints(planted) if with_hints else {})
    write_handout(project, planted, target, pages)
    for kata, bug_ids in planted.items():
        click.echo(f"{kata.name}: {', '.join(bug_ids)}")
    grade = typed("grade", "SUBMISSIONS", *assignment.arguments)
    click.echo(f"wrote {target}; what comes back is graded by: {grade}")
