"""Puts a run of a kata's tests into a few lines for a person."""

import textwrap

from dojo.catalogue import Bug
from dojo.play import Judgement
from dojo.results import Outcome, RunResult, TestResult
from dojo.verdict import summarise

_SHOWN = 5  # failing tests spelt out; more would scroll the first, and best, off the screen


def run_lines(name: str, result: RunResult, judgement: Judgement) -> list[str]:
    """Return the failing tests with their first message each, and the verdict."""
    if not result.whole:
        return [f"{name}: no verdict: {result.detail}"]
    failing: dict[str, list[TestResult]] = {}
    for test in result.tests:
        if test.outcome in (Outcome.FAILED, Outcome.TIMEOUT):
            failing.setdefault(test.function, []).append(test)
    lines = []
    for function, tests in list(failing.items())[:_SHOWN]:
        cases = sum(test.function == function for test in result.tests)
        count = f" ({len(tests)} of {cases} cases)" if cases > 1 else ""
        lines.append(f"  fails: {function}{count}")
        lines.extend(f"      {line}" for line in tests[0].message.splitlines()[:3])
    if len(failing) > _SHOWN:
        lines.append(f"  and {len(failing) - _SHOWN} more test functions fail")
    failed = sum(map(len, failing.values()))
    lines.append(f"  {failed} of {len(result.tests)} tests fail, {result.seconds:.2f} s")
    lines.append(summarise(judgement, name))
    return lines


def story_lines(bug: Bug) -> list[str]:
    """Return a bug's title, what it does, and where it was seen."""
    lines = [bug.title, *textwrap.wrap(bug.why, 88, initial_indent="  ", subsequent_indent="  ")]
    return lines + [f"  seen in: {link}" for link in bug.seen_in]
