"""kata bench: how fast the references are beside torch's own operators."""

import importlib.util

import click

from dojo.benchmarks import references
from dojo.benchmarks.sizes import Sizes
from dojo.errors import DojoError
from dojo.kata import catalogue
from dojo.project import Project
from dojo.wording.tables import render


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
    beside a cold pytest and pytest-watcher, a mutant beside cosmic-ray, practice's screen, a
    save of a proof, how fast bugs are verified, and a thousand runs in a row.

    \b
    Example: kata bench softmax conv1d
    """
    if loop:
        print_loop(project, names[0] if names else "03_softmax", Sizes())
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


def print_loop(project: Project, name: str, sizes: Sizes) -> None:
    """Measure the loop on a copy of the project, and print a table and a line for each figure."""
    # Imported here: these need tools that a learner does not, and a terminal.
    try:
        from dojo.benchmarks.copies import copied
        from dojo.benchmarks.loop import comparisons
        from dojo.benchmarks.saves import proof
        from dojo.benchmarks.screen import next_request, practice_screen
        from dojo.benchmarks.soak import soak
        from dojo.benchmarks.variants import verify_rate
    except ModuleNotFoundError as error:
        raise DojoError(f"{error.name} is missing; scripts/test.sh installs it") from None
    if importlib.util.find_spec("pytest_watcher") is None:
        raise DojoError("pytest_watcher is missing; scripts/test.sh installs it")
    with copied(project, catalogue.find(project, name).name) as (copy, kata):
        click.echo(f"measuring {kata.name}; this takes some minutes", err=True)
        rows, reasons = [], []
        for made in comparisons(copy, kata, sizes):
            click.echo(f"measured: {made.task}, beside {made.tool}", err=True)
            theirs = ("-", "-")
            if made.theirs is not None:
                theirs = (f"{1e3 * made.theirs:.0f}", f"{made.theirs / made.ours:.1f}")
            else:
                reasons.append(f"{made.tool}: {made.reason}")
            rows.append((made.task, f"{1e3 * made.ours:.0f}", made.tool, *theirs))
        click.echo(render((kata.name, "ours ms", "beside", "its ms", "times faster"), rows))
        for reason in reasons:
            click.echo(reason)
        waits = practice_screen(copy, kata, sizes.keys)
        click.echo(f"practice: first screen after {waits.first_screen:.2f} s")
        click.echo(f"a key, while tests run: {1e3 * waits.key:.0f} ms")
        reviewed = next_request(copy, kata, sizes.keys)
        click.echo(f"the next request to review: {1e3 * reviewed:.0f} ms")
        click.echo(f"a proof: {1e3 * proof(copy, kata, sizes.saves):.0f} ms from save to verdict")
        click.echo(f"verify: {verify_rate(copy, kata):.1f} variants a second on each core")
        click.echo(f"running {sizes.soak_runs:,} times in a row ...", err=True)
        growth = soak(copy, kata, sizes.soak_runs)
        click.echo(
            f"after {growth.runs:,} runs: {growth.files:+} open files, "
            f"{growth.children:+} processes, {growth.kilobytes:+,} KB of memory"
        )
