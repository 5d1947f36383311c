"""kata debug: a failing test in pdb, in the learner's code."""

import os
import secrets
import sys
from collections.abc import Collection

import click

from dojo.cli.records import opened_history
from dojo.errors import DojoError, nearest, typed
from dojo.history.moves import MoveKind
from dojo.kata import catalogue
from dojo.kata.kata import Kata
from dojo.learner.player import Player
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.testrun.results import Outcome, Verdict, test_functions


@click.command(name="debug")
@click.argument("name", metavar="KATA")
@click.argument("test", metavar="[TEST]", required=False)
@click.pass_obj
def command(project: Project, name: str, test: str | None) -> None:
    """Run the first failing test, or TEST, in the debugger pdb.

    It opens where your code failed, or in the test if your code had returned; a breakpoint() in
    your file stops there. The random data is that of the last run, and there are no limits on time
    and memory.

    \b
    Example: kata debug softmax
    Example: kata debug softmax test_large_scores
    """
    kata = catalogue.find(project, name)
    if not sys.stdin.isatty():
        raise DojoError(f"pdb needs a terminal: type {typed('debug', kata.name)} in one")
    with opened_history(project) as history:
        player = Player(project, kata, history)
        seed, sealed = player.last_seed(), player.sealed()
        player.look(MoveKind.DEBUG)
    if seed is None:
        seed = secrets.randbelow(2**31)
    environment = dict(os.environ)
    if test is None:
        test = _first_failing(project, kata, seed, sealed)
        if test is None:
            click.echo(
                f"{kata.name}: no test fails with seed {seed}; to stop at a breakpoint() of yours, "
                f"name a test: {typed('debug', kata.name, 'TEST')}"
            )
            return
    elif (function := test.partition("[")[0]) not in test_functions(kata.tests):
        known = test_functions(kata.tests) - sealed
        raise DojoError(f"{kata.name} has no test {function!r}{nearest(function, known)}")
    click.echo(f"{kata.name}: {test}, seed {seed}; c goes on, q leaves")
    sys.stdout.flush()
    # In place of this process: Ctrl-C is for pdb then.
    os.chdir(project.root)
    os.execve(sys.executable, _pytest(project, kata, test, seed), environment)


def _first_failing(project: Project, kata: Kata, seed: int, sealed: Collection[str]) -> str | None:
    """Return the first test that fails, or in which the run ended; None if all pass.

    Checks that are sealed stay so.
    """
    # Here a breakpoint would fail whichever test comes to it first.
    os.environ["PYTHONBREAKPOINT"] = "0"
    with Runner(project) as runner:
        result = runner.run(kata, seed=seed, first_failure=not sealed)
    if result.verdict is Verdict.PASSED:
        return None
    bad = (Outcome.FAILED, Outcome.TIMEOUT, Outcome.ERROR)
    failing = [test.name for test in result.tests if test.outcome in bad]
    if not failing and not result.running:
        raise DojoError(f"{kata.name}: the tests cannot run: {result.detail}")
    named = [test for test in [*failing, result.running] if test.partition("[")[0] not in sealed]
    if not any(named):
        raise DojoError(
            f"{kata.name}: only sealed checks fail; {typed('hint', kata.name)} opens one"
        )
    return named[0]


def _pytest(project: Project, kata: Kata, test: str, seed: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pytest",
        # From the root: in a whole path pytest takes brackets for parameters.
        f"{kata.tests.relative_to(project.root)}::{test}",
        "--rootdir=.",
        f"--kata-seed={seed}",
        "--kata-timeout=0",
        "--kata-no-history",
        "--open-checks",
        "--pdb",
        "-x",
        "-s",
        "-q",
    ]
