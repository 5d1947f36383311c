"""Sees that each bug of a system shows from outside: as a symptom, or in the log of a run."""

from dojo.instruments.bands import Band
from dojo.instruments.curves import departures
from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Planted, Text
from dojo.testrun.results import RunResult, check_functions, test_functions

SEEDS, SAMPLE = 50, 10  # on which the reference has to pass the symptoms


def symptoms(kata: Kata) -> set[str]:
    """Return the names of the tests that are symptoms."""
    return test_functions(kata.tests) - check_functions(kata.tests)


def run_raised(runner: Runner, kata: Kata, seed: int) -> RunResult:
    """Run the symptoms against the reference, with each seed that they give to `run` raised."""
    raised = (
        f"{kata.correct_source}\n\n"
        "_run = run\n\n\n"
        "def run(seed: int = 0, *args, **options):\n"
        f"    return _run(seed + {seed}, *args, **options)\n"
    )
    return runner.run(kata, Text(raised), seed, only=symptoms(kata), first_failure=True)


def shows_in_log(runner: Runner, kata: Kata, bug: Bug, band: Band) -> bool:
    """Say whether a number leaves the band of healthy runs, or the run breaks."""
    log = runner.log(kata, Planted((bug.id,)))
    return bool(log.failure) or bool(departures(log.steps, band))
