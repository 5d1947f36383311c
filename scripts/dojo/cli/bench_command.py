"""kata bench: how fast the references are beside torch's own operators."""

import importlib

import click

from dojo.benchmarks import references
from dojo.cli.table import render
from dojo.errors import DojoError
from dojo.kata import catalogue
from dojo.project import Project


@click.command(name="bench")
@click.argument("names", metavar="[KATA]...", nargs=-1)
@click.option(
    "--loop", is_flag=True, help="Time the way from save to verdict, and verify, in place of these."
)
@click.pass_obj
def command(project: Project, names: tuple[str, ...], loop: bool) -> None:
    """Time references (all unless named) beside the operators they imitate, on one thread.

    Without a name, also what `pytest katas/03_softmax` takes beside pytest on a one-line test
    that imports torch. With --loop: on a copy of the first kata named (else 03_softmax), a save
    beside pytest-watcher, a mutant beside cosmic-ray, practice's screen, and a thousand runs.

    \b
    Example: kata bench softmax conv1d
    """
    if loop:
        _loop(project, names[0] if names else "03_softmax")
        return
    katas = catalogue.named(project, names)
    references.use_one_thread()
    timings = [] if names else [("start", references.startup(project))]
    for kata in katas:
        timings += [(kata.name, timing) for timing in references.timings(project, kata)]
    rows = []
    for name, timing in timings:
        theirs = f"{1e3 * timing.theirs:.2f}" if timing.theirs else "-"
        ratio = f"{timing.ours / timing.theirs:.2f}" if timing.theirs else "-"
        rows.append((name, timing.label, f"{1e3 * timing.ours:.2f}", theirs, ratio))
    click.echo(render(("kata", "workload", "ours ms", "library ms", "ratio"), rows))


def _loop(project: Project, name: str) -> None:
    try:
        bench_loop = importlib.import_module("dojo.benchmarks.loop")
        importlib.import_module("pytest_watcher")
    except ModuleNotFoundError as error:
        raise DojoError(f"{error.name} is missing; scripts/test.sh installs it") from None
    kata = catalogue.find(project, name)
    with bench_loop.copied(project, kata.name) as copy:
        rows = []
        for label, tool, ours, theirs in (
            ("save to verdict", "pytest-watcher", "ours_from_save", "theirs_from_save"),
            ("a mutant", "cosmic-ray", "ours_per_mutant", "theirs_per_mutant"),
        ):
            click.echo(f"timing {label}, beside {tool} ...", err=True)
            us = getattr(bench_loop, ours)(*copy)
            try:
                them = getattr(bench_loop, theirs)(*copy)
            except DojoError as error:  # the other figures stand without it
                click.echo(f"{tool}: {error}", err=True)
                rows.append((label, f"{1e3 * us:.0f}", tool, "-", "-"))
                continue
            rows.append((label, f"{1e3 * us:.0f}", tool, f"{1e3 * them:.0f}", f"{them / us:.0f}"))
        header = (kata.name, "ours ms", "beside", "its ms", "times faster")
        click.echo(render(header, rows))
        screen, key = bench_loop.practice_screen(*copy)
        click.echo(f"practice: first screen after {screen:.2f} s")
        click.echo(f"a key, while tests run: {1e3 * key:.0f} ms")
        rate = bench_loop.verify_rate(*copy)
        click.echo(f"verify: {rate:.1f} variants a second on each core")
        click.echo("running 1,000 times in a row ...", err=True)
        growth = bench_loop.soak(*copy)
        click.echo(
            f"after {growth.runs:,} runs: {growth.files:+} open files, "
            f"{growth.children:+} processes, {growth.kilobytes:+,} KB of memory"
        )
