"""kata verify: prove that the tests can be trusted."""

import importlib
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import click

from dojo import catalogue
from dojo.catalogue import Kata
from dojo.cli.table import render
from dojo.device import has_gpu
from dojo.errors import DojoError
from dojo.limits import Limits
from dojo.pool import runner_pool
from dojo.project import Project
from dojo.verify import Report, verify


@click.command(name="verify")
@click.argument("names", metavar="[KATA]...", nargs=-1)
@click.option(
    "--mutants", is_flag=True, help="Try every standard mutant of the reference in place of bugs."
)
@click.pass_obj
def command(project: Project, names: tuple[str, ...], mutants: bool) -> None:
    """Check katas (all unless named): the reference passes, every bug is caught.

    \b
    Example: kata verify softmax
    Exit status: 0 all is well, 1 something is not caught or malformed.
    """
    katas = catalogue.named(project, names)
    well = _mutants(project, katas) if mutants else _bugs(project, katas)
    if not well:
        raise SystemExit(1)


def _bugs(project: Project, katas: Sequence[Kata]) -> bool:
    reports = []
    # Compiling and tuning kernels takes far longer than running them.
    limits = Limits(run_seconds=600.0) if has_gpu() else None
    with runner_pool(project, limits) as pool:
        for kata in playable(katas):
            click.echo(f"verifying {kata.name} ...", err=True)
            reports.append(verify(kata, pool, has_gpu()))
    click.echo(render_reports(reports))
    for report in reports:
        for problem in report.problems:
            click.secho(f"{report.kata.name}: {problem}", fg="red")
        if report.unchecked:
            click.echo(
                f"{report.kata.name}: not checked, for they need a GPU: "
                f"{', '.join(report.unchecked)}"
            )
    return not any(report.problems for report in reports)


def playable(katas: Sequence[Kata]) -> list[Kata]:
    """Leave out the kernel katas where triton is missing, and say so."""
    if find_spec("triton"):
        return list(katas)
    left_out = [kata.name for kata in katas if kata.topic == "kernels"]
    if left_out:
        click.echo(f"not checked, for triton is not installed here: {', '.join(left_out)}")
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


def _mutants(project: Project, katas: Sequence[Kata]) -> bool:
    mutate = _mutation()
    rows = []
    survivors = []
    with runner_pool(project, mutate.LIMITS) as pool:
        for kata in playable(katas):
            click.echo(f"mutating {kata.name} ...", err=True)
            counts, left = _count(mutate.judge(kata, pool), kata.name)
            survivors += left
            counted = counts["caught"] + counts["survived"]
            rows.append(
                (
                    kata.name,
                    str(counted),
                    str(counts["caught"]),
                    str(counts["survived"]),
                    str(counts["equivalent"]),
                    f"{100 * counts['caught'] / counted:.1f} %" if counted else "-",
                )
            )
    click.echo(render(("kata", "mutants", "caught", "survived", "equivalent", "score"), rows))
    for line in survivors:
        click.echo(line)
    return not survivors


def _mutation() -> ModuleType:
    """Import the mutation module: its library is installed for the project's own tests alone."""
    try:
        return importlib.import_module("dojo.mutate")
    except ModuleNotFoundError as error:
        raise DojoError(f"{error.name} is missing; scripts/test.sh installs it") from None


def _count(judgements: Iterable[Any], name: str) -> tuple[Counter[str], list[str]]:
    """Return how many mutants met each fate, and a description of each that survived."""
    counts: Counter[str] = Counter()
    survivors = []
    for judged in judgements:
        counts[judged.verdict] += 1
        if judged.verdict == "survived":
            mutant = judged.mutant
            survivors.append(
                f"\n{name}, reference.py line {mutant.line}: {mutant.operator} survives\n"
                f"- {mutant.before}\n+ {mutant.after}"
            )
    return counts, survivors
