"""kata bench: how fast the references are beside torch's own operators."""

import click

from dojo import bench, catalogue
from dojo.cli.table import render
from dojo.project import Project


@click.command(name="bench")
@click.argument("names", metavar="[KATA]...", nargs=-1)
@click.pass_obj
def command(project: Project, names: tuple[str, ...]) -> None:
    """Time references (all unless named) beside the operators they imitate.

    \b
    Example: kata bench softmax conv1d
    """
    if names:
        katas = [catalogue.find(project, name) for name in names]
    else:
        katas = catalogue.load_all(project)
    rows = []
    for kata in katas:
        for timing in bench.timings(project, kata):
            theirs = f"{1e3 * timing.theirs:.2f}" if timing.theirs else "-"
            ratio = f"{timing.ours / timing.theirs:.2f}" if timing.theirs else "-"
            rows.append((kata.name, timing.label, f"{1e3 * timing.ours:.2f}", theirs, ratio))
    click.echo(render(("kata", "workload", "ours ms", "library ms", "ratio"), rows))
