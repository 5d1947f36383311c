"""kata show: the failed comparisons of a run as heat maps."""

from pathlib import Path

import click

from dojo.cli import output
from dojo.cli.records import opened_history
from dojo.errors import DojoError, nearest, typed
from dojo.files import read_bytes, write_atomically
from dojo.instruments import comparisons
from dojo.kata import catalogue
from dojo.kata.kata import Kata
from dojo.learner.player import Player
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Text
from dojo.testrun.results import Outcome, test_functions
from dojo.wording.quantities import count


@click.command(name="show")
@click.argument("name", metavar="KATA")
@click.argument("test", metavar="[TEST]", required=False)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to write the page (default: .dojo/show/KATA.html).",
)
@click.pass_obj
def command(project: Project, name: str, test: str | None, page: Path | None) -> None:
    """Show where your results are wrong: a page of heat maps, to open in a browser.

    Runs the kata's tests on your file, or one test function alone, and shows of each comparison
    that fails the actual values, the expected ones and the errors, and beside them the errors of
    the text that was shown before. The random data is that of the last run.

    \b
    Example: kata show softmax
    Example: kata show softmax test_every_slice_sums_to_one --html softmax.html
    """
    kata = catalogue.find(project, name)
    seed, sealed = _last_run(project, kata)
    only = [_function(kata, test, sealed)] if test else []
    with comparisons.wanted() as folder, Runner(project) as runner:
        result = runner.run(kata, seed=seed, only=only)
        kept = comparisons.taken(folder)
        text_before = _text_before(project, kata)
        if text_before is not None:
            runner.run(kata, Text(text_before), seed=result.seed, only=only)
        before = [
            one
            for one in comparisons.taken(folder)
            if test or one.test.partition("[")[0] not in sealed
        ]
    if not result.whole:
        raise DojoError(f"{kata.name}: no verdict: {result.detail}")
    failed = [one for one in result.tests if one.outcome in (Outcome.FAILED, Outcome.TIMEOUT)]
    if failed and not test:
        failed = [one for one in failed if one.function not in sealed]
        if not failed:
            raise DojoError(
                f"{kata.name}: only sealed checks fail; {typed('hint', kata.name)} opens one"
            )
    if not failed:
        click.echo(f"{kata.name}: nothing fails, so there is nothing to show")
        return
    order = {one.name: place for place, one in enumerate(failed)}
    shown = sorted((one for one in kept if one.test in order), key=lambda one: order[one.test])
    if not shown:
        raise DojoError(
            f"{kata.name}: {count(len(failed), 'test')} failed, none of them by values that can "
            f"be drawn; {typed('check', kata.name)} says why"
        )
    from dojo.wording.comparisons_page import (
        render_comparisons,  # not above: `kata show --help` needs no templates
    )

    drawn = {one.test for one in shown}
    others = [one for one in failed if one.name not in drawn]
    path = page or _page(project, kata)
    output.write(path, render_comparisons(kata.name, shown, others, before))
    click.echo(f"wrote {path}")


def _last_run(project: Project, kata: Kata) -> tuple[int | None, frozenset[str]]:
    """Return the seed of the last run, and the checks that are sealed."""
    if not project.history.exists() and not kata.is_system:
        return None, frozenset()  # no history is made for a look
    with opened_history(project) as history:
        player = Player(project, kata, history)
        return player.last_seed(), player.sealed()


def _function(kata: Kata, test: str, sealed: frozenset[str]) -> str:
    known = test_functions(kata.tests)
    if test not in known:
        raise DojoError(f"{kata.name} has no test {test!r}{nearest(test, sorted(known - sealed))}")
    return test


def _text_before(project: Project, kata: Kata) -> str | None:
    """Return the text that was shown before the present one; this one is kept for the next time."""
    now = kata.botched.read_bytes()
    kept, kept_before = (
        project.state / "show" / f"{kata.name}{ending}" for ending in (".py", ".before.py")
    )
    last = read_bytes(kept)
    if last != now:
        if last is not None:
            write_atomically(kept_before, last)
        write_atomically(kept, now)
    before = read_bytes(kept_before)
    return None if before is None else before.decode("utf-8", errors="replace")


def _page(project: Project, kata: Kata) -> Path:
    folder = project.state / "show"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{kata.name}.html"
