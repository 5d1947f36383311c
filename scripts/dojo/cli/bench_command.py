"""kata bench: how fast the references are beside torch's own operators."""

import click

from dojo import bench, catalogue
from dojo.cli.table import render
from dojo.project import Project


@click.command(name="bench")
@click.argument("names", metavar="[KATA]...", nargs=-1)
@click.pass_obj
def command(project: Project, names: tuple[str, ...]) -> None:
    """Time references (all unless named) beside the operators they imitate, on one thread.

    Without a name, also what `pytest katas/03_softmax` takes beside pytest on a one-line test
    that imports torch.

    \b
    Example: kata bench softmax conv1d
    """
    katas = catalogue.named(project, names)
    bench.use_one_thread()
    timings = [] if names else [("start", bench.startup(project))]
    for kata in katas:
        timings += [(kata.name, timing) for timing in bench.timings(project, kata)]
    rows = []
    for name, timing in timings:
        theirs = f"{1e3 * timing.theirs:.2f}" if timing.theirs else "-"
        ratio = f"{timing.ours / timing.theirs:.2f}" if timing.theirs else "-"
        rows.append((name, timing.label, f"{1e3 * timing.ours:.2f}", theirs, ratio))
    click.echo(render(("kata", "workload", "ours ms", "library ms", "ratio"), rows))
