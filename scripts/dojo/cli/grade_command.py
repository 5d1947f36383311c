"""kata grade: what a class has handed in."""

from collections.abc import Sequence
from pathlib import Path

import click

from dojo.classroom.assignment import Assignment
from dojo.classroom.files import Format, as_csv, as_json, write_format
from dojo.classroom.gradebook import Run, grade_class, on_this_machine
from dojo.classroom.grading import Grade
from dojo.classroom.journal import Journal
from dojo.classroom.submissions import find_submissions
from dojo.cli import output
from dojo.cli.assignment import assignment_options
from dojo.cli.progress import grading
from dojo.errors import DojoError
from dojo.kata import catalogue
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.testrun.device import cores
from dojo.wording.grades import grade_table, summary_lines


@click.command(name="grade")
@click.argument("source", metavar="FOLDER|ZIP|CSV", type=click.Path(path_type=Path))
@click.argument("names", metavar="[KATA]...", nargs=-1)
@assignment_options
@click.option(
    "--pattern",
    metavar="PATH",
    help="Where solutions lie, such as 'group/{learner}/*/{kata}.py'; * is any name, ** any "
    "folders. The common layouts need none.",
)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write results.csv, results.json and index.html there. The same command again grades only "
    "what is new, or what a kill left over; take the folder away to grade all anew.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([str(form) for form in Format]),
    help="Also write, in that folder, a file of results for each learner, as Gradescope or GitHub "
    "Classroom take it.",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Run N at a time; the cores by default."
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Have a Dask cluster do the work; its machines see this checkout at the same path.",
)
@click.pass_obj
def command(
    project: Project,
    source: Path,
    names: tuple[str, ...],
    bugs: str | None,
    count: int | None,
    seed: int | None,
    pattern: str | None,
    folder: Path | None,
    form: str | None,
    jobs: int | None,
    cluster: str | None,
) -> None:
    """Grade what a class has handed in: a folder, a zip, or a table with learner, kata and path.

    Learner and kata are told from the paths: LEARNER/03_softmax/botched.py, LEARNER/03_softmax.py,
    LEARNER_03_softmax.py, a checkout a learner, and what Moodle and Canvas make of these. Name the
    kata if the paths do not. Say by --bugs, or --count and --seed, what was handed out.

    \b
    Example: kata grade submissions.zip softmax
    Example: kata grade homework --count 2 --seed 7 -o grades --format gradescope
    Example: kata grade homework -o grades --cluster tcp://10.0.0.1:8786
    Exit status: 0 all were graded, whatever came of it; 1 there was nothing to grade.
    """
    if form and not folder:
        raise click.UsageError("--format writes into the folder of -o: name one")
    if count is not None and seed is None:
        raise click.UsageError("--count goes with the --seed of the handout, which it printed")
    if jobs and cluster:
        raise click.UsageError("--jobs is for this machine; a cluster has its own number")
    named = [catalogue.find(project, name) for name in dict.fromkeys(names)]
    asked = named or catalogue.finished(project)
    found = find_submissions(source, asked, one=len(named) == 1, pattern=pattern)
    met = {one.kata for one in found}
    katas = [kata for kata in asked if kata.name in met]
    planted = Assignment.of(bugs, count, seed).planted(katas)
    journal = _journal(folder) if folder else None
    with grading(len(found)) as graded:
        try:
            grades = grade_class(
                found,
                {kata: planted[kata.name] for kata in katas},
                _run(project, jobs, cluster),
                journal=journal,
                graded=graded,
            )
        except KeyboardInterrupt:
            kept = "; the same command goes on from here" if folder else ""
            raise DojoError(f"stopped{kept}") from None
    click.echo(grade_table(grades))
    for line in summary_lines(grades, {kata.name: kata for kata in katas}):
        click.echo(line)
    if folder:
        _write(folder, grades, katas, Format(form) if form else None)


def _run(project: Project, jobs: int | None, cluster: str | None) -> Run:
    if cluster is None:
        return on_this_machine(project, jobs or cores(), _warn)
    from dojo.classroom.cluster import on_cluster  # not above: Dask is an extra

    return on_cluster(project, cluster)


def _warn(text: str) -> None:
    click.echo(f"Warning: {text}", err=True)


def _journal(folder: Path) -> Journal:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DojoError(f"{folder} cannot be made: {error.strerror}") from None
    return Journal(folder / "results.jsonl")


def _write(
    folder: Path, grades: Sequence[Grade], katas: Sequence[Kata], form: Format | None
) -> None:
    from dojo.wording.class_page import render_class  # not above: `--help` needs no templates

    output.write(folder / "results.csv", as_csv(grades))
    output.write(folder / "results.json", as_json(grades))
    output.write(folder / "index.html", render_class(grades, {kata.name: kata for kata in katas}))
    if form:
        write_format(folder, form, grades)
    click.echo(f"wrote {folder / 'index.html'}, results.csv and results.json")
