"""kata verify: prove that the tests can be trusted."""

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import TextIO

import click

from dojo.cli.table import render
from dojo.errors import DojoError
from dojo.kata import catalogue
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.pool import runner_pool
from dojo.testrun.device import has_gpu
from dojo.testrun.limits import Limits
from dojo.verification.bugs import Report, verify


@click.command(name="verify")
@click.argument("names", metavar="[KATA]...", nargs=-1)
@click.option("--mutants", is_flag=True, help="Try mutants of the reference in place of the bugs.")
@click.option("--all", "both", is_flag=True, help="Try the bugs, then the mutants.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Try N mutants a kata (N / 4 of kernels), always the same, in place of every one.",
)
@click.option("--record", is_flag=True, help="Also write fresh.json: the fresh bugs.")
@click.option(
    "--json",
    "json_file",
    type=click.File("w", encoding="utf-8", lazy=False),
    metavar="FILE",
    help="Write the scores and every survivor as JSON, - for standard output; "
    "the tables go to standard error then.",
)
@click.pass_obj
def command(
    project: Project,
    names: tuple[str, ...],
    mutants: bool,
    both: bool,
    sample: int | None,
    record: bool,
    json_file: TextIO | None,
) -> None:
    """Check katas (all unless named): the reference passes, every bug is caught.

    Mutants take long. What is judged is kept in .dojo/mutants until the kata or its tests change:
    Ctrl-C stops, and the same command goes on from there.

    \b
    Example: kata verify softmax
    Example: kata verify --mutants softmax --json scores.json
    Exit status: 0 all is well, 1 something is not caught or malformed.
    """
    if not (mutants or both) and (sample or record or json_file):
        raise click.UsageError("--sample, --record and --json go with --mutants or --all")
    if sample and record:
        raise click.UsageError("--record chooses among all mutants: leave out --sample")
    katas = playable(catalogue.named(project, names))
    well = mutants or _bugs(project, katas, err=json_file is not None)
    if mutants or both:
        well &= _mutants().verify_mutants(project, katas, sample, record, json_file)
    if not well:
        raise SystemExit(1)


def _bugs(project: Project, katas: Sequence[Kata], *, err: bool) -> bool:
    reports = []
    # Compiling and tuning kernels takes far longer than running them.
    limits = Limits(run_seconds=600.0) if has_gpu() else None
    with runner_pool(project, limits) as pool:
        for kata in katas:
            click.echo(f"verifying {kata.name} ...", err=True)
            reports.append(verify(kata, pool, has_gpu()))
    click.echo(render_reports(reports), err=err)
    for report in reports:
        for problem in report.problems:
            click.secho(f"{report.kata.name}: {problem}", fg="red", err=err)
        if report.unchecked:
            click.echo(
                f"{report.kata.name}: not checked, for they need a GPU: "
                f"{', '.join(report.unchecked)}",
                err=err,
            )
    return not any(report.problems for report in reports)


def playable(katas: Sequence[Kata]) -> list[Kata]:
    """Leave out the kernel katas where triton is missing, and say so."""
    if find_spec("triton"):
        return list(katas)
    left_out = [kata.name for kata in katas if kata.needs_triton]
    if left_out:
        click.echo(
            f"not checked, for triton is not installed here: {', '.join(left_out)}", err=True
        )
    return [kata for kata in katas if kata.name not in left_out]


def render_reports(reports: Sequence[Report]) -> str:
    """Return the table: a row a kata."""
    rows = []
    for report in reports:
        counts = report.caught_by.values()
        caught = sum(count > 0 for count in counts)
        rows.append(
            (
                report.kata.name,
                f"{caught} of {len(report.caught_by)}",
                f"{min(counts)}-{max(counts)}" if counts else "-",
                f"{report.combinations_caught} of {report.combinations}",
                f"{report.slowest_reference:.2f}",
                f"{report.seconds:.1f}",
                "ok" if not report.problems else "PROBLEMS",
            )
        )
    header = ("kata", "bugs caught", "by tests", "sets caught", "tests s", "total s", "")
    return render(header, rows)


def _mutants() -> ModuleType:
    """Import what judges mutants: its library is installed for the project's own tests alone."""
    try:
        return importlib.import_module("dojo.cli.mutants")
    except ModuleNotFoundError as error:
        raise DojoError(f"{error.name} is missing; scripts/test.sh installs it") from None
