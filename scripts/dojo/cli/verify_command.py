"""kata verify: prove that the tests can be trusted."""

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import TextIO

import click

from dojo.cli.progress import verifying
from dojo.errors import DojoError, typed
from dojo.kata import catalogue
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.pool import runner_pool
from dojo.testrun.device import has_gpu
from dojo.testrun.limits import Limits
from dojo.verification import healthy as healthy_runs
from dojo.verification import lint, structure
from dojo.verification.bugs import Verifier
from dojo.verification.findings import Findings, Standing, Tally
from dojo.wording.quantities import count
from dojo.wording.tables import render


@click.command(name="verify")
@click.argument("names", metavar="[KATA]...", nargs=-1)
@click.option(
    "--whole",
    is_flag=True,
    help="Plant every pair too, let no test end a run, and believe no earlier proof: see every "
    "test of every killed_by fail, whatever else is planted. Also draw requests to review, and see "
    "that what they call harmless passes.",
)
@click.option("--mutants", is_flag=True, help="Try mutants of the reference in place of the bugs.")
@click.option("--all", "both", is_flag=True, help="Try the bugs, then the mutants.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Try N mutants a kata (N / 4 of kernels), always the same, in place of every one.",
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Have a Dask cluster run the mutants; its machines see this checkout at the same path.",
)
@click.option("--record", is_flag=True, help="Also write fresh.json: the fresh bugs.")
@click.option(
    "--healthy",
    is_flag=True,
    help="Of systems, first write healthy.json: the numbers of healthy runs, from ten seeds of "
    "the reference.",
)
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
    whole: bool,
    mutants: bool,
    both: bool,
    sample: int | None,
    cluster: str | None,
    record: bool,
    healthy: bool,
    json_file: TextIO | None,
) -> None:
    """Check katas (all unless named): correct solutions pass, every bug is caught.

    Correct are the reference and the files in solutions/. Bugs are planted alone and in some larger
    sets, with --whole in every pair too (of systems and kernels in a sample, unless named);
    the first test of a bug's killed_by to fail has caught it.
    What is proved is noted in .dojo/proofs, and not run again until the kata, what runs its tests,
    or a version changes. A draft, whose kata.toml has a TODO left, does not count unless it is
    named.

    Mutants take long. What is judged is kept in .dojo/mutants until the kata or its tests change:
    Ctrl-C stops, and the same command goes on from there.

    \b
    Example: kata verify softmax
    Example: kata verify softmax --whole
    Example: kata verify --mutants softmax --json scores.json
    Example: kata verify --mutants --cluster tcp://10.0.0.1:8786
    Exit status: 0 all is well, 1 something is not caught or malformed.
    """
    if not (mutants or both) and (sample or cluster or record or json_file):
        raise click.UsageError(
            "--sample, --cluster, --record and --json go with --mutants or --all"
        )
    if mutants and whole:
        raise click.UsageError("--whole is about the bugs: leave out --mutants, or take --all")
    if sample and record:
        raise click.UsageError("--record chooses among all mutants: leave out --sample")
    katas = playable(catalogue.named(project, names))
    if healthy:
        _record_healthy(project, katas, named=bool(names), err=json_file is not None)
    well = mutants or _bugs(
        project, katas, named=bool(names), whole=whole, err=json_file is not None
    )
    if mutants or both:
        judged = katas if names else _without_drafts(katas)
        well &= _mutants().verify_mutants(project, judged, sample, record, json_file, cluster)
    if not well:
        raise SystemExit(1)


def _record_healthy(project: Project, katas: Sequence[Kata], *, named: bool, err: bool) -> None:
    others = [kata.name for kata in katas if not kata.is_system]
    if named and others:
        raise DojoError(f"--healthy is for systems, and {others[0]} is none")
    with runner_pool(project) as pool:
        for kata in katas:
            if kata.is_system:
                band = healthy_runs.record(kata, pool)
                click.echo(
                    f"{kata.name}: wrote {kata.healthy_file.name}: {count(band.seeds, 'run')} of "
                    f"{count(band.steps, 'step')}, {count(len(band.numbers), 'number')}",
                    err=err,
                )


def _bugs(project: Project, katas: Sequence[Kata], *, named: bool, whole: bool, err: bool) -> bool:
    if not lint.has_ruff():
        click.echo("not linted: ruff is missing; scripts/test.sh installs it", err=True)
    found = []
    # Compiling and tuning kernels takes far longer than running them.
    limits = Limits(run_seconds=600.0) if has_gpu() else None
    with runner_pool(project, limits) as pool, verifying() as progress:
        verifier = Verifier(
            project, pool, whole=whole, sample=not named, has_gpu=has_gpu(), ran=progress.ran
        )
        progress.expect(katas, verifier.runs_of)
        for kata in katas:
            progress.begin(kata)
            found.append(verifier.verify(kata))
    click.echo(render_table(found), err=err)
    for findings in found:
        _show(findings, named=named, err=err)
    fine = (Standing.TRUSTED,) if named else (Standing.TRUSTED, Standing.DRAFT)
    return all(findings.standing in fine for findings in found)


def _show(findings: Findings, *, named: bool, err: bool) -> None:
    name = findings.kata.name
    if findings.standing is Standing.DRAFT and not named:
        left = len(findings.problems)
        click.echo(
            f"{name} is a draft: {count(left, 'thing')} {'is' if left == 1 else 'are'} left "
            f"({typed('verify', name)} names them)",
            err=err,
        )
    else:
        for problem in findings.problems:
            click.secho(f"{name}: {problem}", fg="red", err=err)
    if findings.unchecked:
        unchecked = ", ".join(findings.unchecked)
        click.echo(f"{name}: not checked, for they need a GPU: {unchecked}", err=err)


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


def _without_drafts(katas: Sequence[Kata]) -> list[Kata]:
    """Leave out the drafts, and say so: their tests are not there yet."""
    drafts = [kata.name for kata in katas if kata.draft]
    if drafts:
        click.echo(f"mutants not tried, for they are drafts: {', '.join(drafts)}", err=True)
    return [kata for kata in katas if not kata.draft]


def render_table(found: Sequence[Findings]) -> str:
    """Return the table: a row a kata."""
    rows = []
    for findings in found:
        proof = findings.proof
        rows.append(
            (
                findings.kata.name,
                str(proof.solutions),
                _share(proof.alone),
                _share(proof.pairs),
                _share(proof.larger_sets),
                f"{proof.reference_seconds:.2f}",
                "as before" if findings.known else f"{findings.seconds:.1f}",
                " ".join(structure.properties(findings.kata)) or "-",
                findings.standing,
            )
        )
    header = (
        "kata",
        "solutions",
        "bugs caught",
        "pairs",
        "larger sets",
        "tests s",
        "total s",
        "properties",
        "",
    )
    return render(header, rows)


def _share(tally: Tally) -> str:
    return f"{tally.caught} of {tally.planted}" if tally.planted else "-"


def _mutants() -> ModuleType:
    """Import what judges mutants: its library is installed for the project's own tests alone."""
    try:
        return importlib.import_module("dojo.cli.mutants")
    except ModuleNotFoundError as error:
        raise DojoError(f"{error.name} is missing; scripts/test.sh installs it") from None
