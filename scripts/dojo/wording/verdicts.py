"""The line under a run: how many planted bugs are fixed, and what to do next."""

from collections.abc import Sequence

from dojo.errors import typed
from dojo.learner.player import Judgement, unknown_line
from dojo.testrun.results import Outcome, TestResult, failing_functions
from dojo.wording.quantities import count


def failing_line(tests: Sequence[TestResult]) -> str:
    """Return how many tests fail; of a system, how many symptoms and how many checks."""
    failing = failing_functions(tests)
    symptoms = {test.function for test in tests if test.symptom}
    if not symptoms:
        failed = sum(test.outcome in (Outcome.FAILED, Outcome.TIMEOUT) for test in tests)
        return f"{failed} of {len(tests)} tests fail"
    checks = {test.function for test in tests} - symptoms
    return (
        f"{len(failing & symptoms)} of {count(len(symptoms), 'symptom')}, "
        f"{len(failing & checks)} of {count(len(checks), 'check')} fail"
    )


def verdict_line(judgement: Judgement, name: str) -> str:
    """Return one line on a whole run: how many planted bugs are fixed, without naming any."""
    total = len(judgement.planting.bugs)
    bugs = "bug" if total == 1 else "bugs"
    reveal, hint = typed("reveal", name), typed("hint", name)
    if not judgement.planting.told:
        return f"{name}: solved" if judgement.solved else f"{name}: not solved yet"
    unknown = unknown_line(name, judgement.planting)
    if unknown:
        return f"{name}: solved. Next: {reveal}" if judgement.solved else unknown
    if judgement.solved:
        return f"{name}: solved, {total} of {total} {bugs} fixed. Next: {reveal}"
    if judgement.default_text:
        return (
            f"{name}: your file holds the kata's default {bugs}, not what was planted last; "
            f"{typed('reset', name)} begins anew with these"
        )
    if judgement.count is None:
        return (
            f"{name}: not solved yet. {typed('check', name)} counts the bugs that are fixed. "
            f"Stuck? {hint}"
        )
    fixed = len(judgement.count.gone)
    if fixed == total:
        return (
            f"{name}: each planted bug seems fixed ({total} of {total}), yet tests fail: "
            "a change broke something else"
        )
    if judgement.count.at_least:
        return (
            f"{name}: at least {fixed} of {total} {bugs} fixed; where you changed more, "
            f"a fix is incomplete, or it broke something. Stuck? {hint}"
        )
    return f"{name}: {fixed} of {total} {bugs} fixed. Stuck? {hint}"
