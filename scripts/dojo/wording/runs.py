"""Puts a run of a kata's tests into a few lines for a person."""

from collections.abc import Collection

from dojo.learner.player import Judgement
from dojo.practice.session import Names
from dojo.testrun.results import Outcome, RunResult, TestResult
from dojo.wording.quantities import count
from dojo.wording.verdicts import failing_line, verdict_line

_SAID = 3  # lines of a failure
_PICTURE = 20  # lines of what stands behind an empty line: a map of errors
_SHOWN = 5  # failing tests spelt out; more would scroll the first, and best, off the screen


def run_lines(
    name: str,
    result: RunResult,
    judgement: Judgement,
    *,
    names: Names = Names.SHOWN,
    sealed: Collection[str] = (),
    at_most: int | None = _SHOWN,
) -> list[str]:
    """Return the failing tests with their first message each, `at_most` so many, and the verdict.

    Those that are `sealed` are only counted. The verdict is left out while the planted bugs are
    still to be counted. Where no names are shown it says solved or not, and no more, but for the
    symptoms of a system: an interviewer sees these too.
    """
    left = _stray_lines(result)
    if not result.whole:
        printed = next((test.printed for test in result.tests if test.outcome is Outcome.ERROR), "")
        known = names is Names.SHOWN and result.running.partition("[")[0] not in sealed
        where = f" (in {result.running})" if result.running and known else ""
        return [f"{name}: no verdict: {result.detail}{where}", *_printed_lines(printed), *left]
    failing: dict[str, list[TestResult]] = {}
    for test in result.tests:
        fails = test.outcome in (Outcome.FAILED, Outcome.TIMEOUT)
        if fails and names.shows(test) and test.function not in sealed:
            failing.setdefault(test.function, []).append(test)
    lines = left
    for place, (function, tests) in enumerate(list(failing.items())[:at_most]):
        cases = sum(test.function == function for test in result.tests)
        share = f" ({len(tests)} of {cases} cases)" if cases > 1 else ""
        lines += failure_lines(tests[0], share)
        if place == 0:  # one picture; more would scroll it off the screen
            lines += _picture_lines(tests[0])
    if at_most is not None and len(failing) > at_most:
        lines.append(f"  fails too: {count(len(failing) - at_most, 'more test function')}")
    if names is not Names.SHOWN and not judgement.solved:
        kind = "checks" if any(test.symptom for test in result.tests) else "tests"
        later = f"; which {kind} fail, once half the time is gone" if names is Names.LATER else ""
        return [*lines, f"{name}: not yet{later}"]
    lines.append(f"  {failing_line(result.tests)}, {result.seconds:.2f} s")
    if judgement.solved or judgement.count or not judgement.planting.bugs:
        lines.append(verdict_line(judgement, name))
    return lines


def _stray_lines(result: RunResult) -> list[str]:
    if not result.strays:
        return []
    left = "a process" if result.strays == 1 else f"{result.strays} processes"
    return [f"  your code left {left} running, now ended"]


def tested(result: RunResult) -> str:
    """Return which text was tested, and on which random data."""
    return f"revision {result.revision}, seed {result.seed}"


def failure_lines(test: TestResult, share: str = "") -> list[str]:
    """Return what a test that failed says, and what the code printed in it.

    `share` tells how many of its cases failed.
    """
    said = _indented(_parts(test)[0][:_SAID])
    return [f"  fails: {test.function}{share}", *said, *_printed_lines(test.printed)]


def _printed_lines(printed: str) -> list[str]:
    lines = [f"      | {line}" for line in printed.splitlines()]
    return ["      your code printed:", *lines] if lines else []


def _picture_lines(test: TestResult) -> list[str]:
    return _indented(_parts(test)[1][:_PICTURE])


def _parts(test: TestResult) -> tuple[list[str], list[str]]:
    """Return the lines of what a test says, and of the picture behind an empty line."""
    said, _, picture = test.message.partition("\n\n")
    return said.splitlines(), picture.splitlines()


def _indented(lines: list[str]) -> list[str]:
    return [f"      {line}" for line in lines]
