"""Proves that a kata can be trusted: the reference passes, and every bug is caught."""

import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.kata.planting import choose, conflict
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Planted, Reference
from dojo.testrun.results import Outcome, RunResult, Verdict, test_functions

REFERENCE_SEEDS = 5
BUG_SEEDS = 2
COMBINATIONS = 20
LEAST_BUGS = 6


@dataclass
class Report:
    """What verifying one kata found; no problems means that it can be trusted."""

    kata: Kata
    problems: list[str] = field(default_factory=list)
    caught_by: dict[str, int] = field(default_factory=dict)  # bug id -> number of tests
    unchecked: list[str] = field(default_factory=list)  # bugs that only a GPU shows
    combinations: int = 0
    combinations_caught: int = 0
    slowest_reference: float = 0.0  # seconds that the reference's tests took at most
    seconds: float = 0.0


def verify(kata: Kata, pool: Pool, has_gpu: bool) -> Report:
    """Run the reference, every bug alone and random combinations; report what is wrong."""
    started = time.monotonic()
    report = Report(kata, problems=list(structure_problems(kata)))
    if _check_reference(kata, pool, report):
        bugs = [bug for bug in kata.bugs if has_gpu or not bug.gpu]
        report.unchecked = [bug.id for bug in kata.bugs if bug not in bugs]
        _check_bugs(kata, bugs, pool, report)
        _check_combinations(kata, bugs, pool, report)
    report.seconds = time.monotonic() - started
    return report


def structure_problems(kata: Kata) -> Iterator[str]:
    """Yield what is missing from the kata's folder or catalogue, in words."""
    for path in (kata.brief, kata.tests):
        if not path.is_file() or not path.read_text(encoding="utf-8").strip():
            yield f"{path.name} is missing or empty"
    for path in (kata.brief, kata.reference, kata.tests, kata.folder / "kata.toml"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for number, line in enumerate(lines, 1):
            if "TODO" in line:
                yield f"{path.name}, line {number}: {line.strip()}"
    if len(kata.bugs) < LEAST_BUGS:
        yield f"kata.toml has {len(kata.bugs)} bugs; at least {LEAST_BUGS} are wanted"
    defined = test_functions(kata.tests) if kata.tests.is_file() else set()
    for bug in kata.bugs:
        if not bug.killed_by:
            yield f"bug {bug.id}: killed_by is empty"
        for name in sorted(set(bug.killed_by) - defined):
            yield f"bug {bug.id}: killed_by names {name}, which {kata.tests.name} does not define"
    for one, other in combinations(kata.bugs, 2):
        if set(one.killed_by) == set(other.killed_by) and not conflict(
            kata.correct_source, [one, other]
        ):
            yield f"bugs {one.id} and {other.id} have the same killed_by: progress would not show"
    if not botched_is_default(kata):
        yield (
            "botched.py is not the reference with the default bugs: "
            f"scripts/reset.sh {kata.name}, then commit it"
        )


def botched_is_default(kata: Kata) -> bool:
    """Say whether botched.py, as git has it or as it stands, is reference plus default bugs.

    What git has counts, so that a learner's own edits do not turn this red.
    """
    expected = kata.planted_source(kata.default).encode()
    if kata.botched.is_file() and kata.botched.read_bytes() == expected:
        return True
    staged = subprocess.run(
        ["git", "show", ":./botched.py"], cwd=kata.folder, capture_output=True, check=False
    )
    return staged.returncode == 0 and staged.stdout == expected


def _check_reference(kata: Kata, pool: Pool, report: Report) -> bool:
    """Run the positive control: nothing is learnt from bugs while the reference fails."""

    def run(runner: Runner, seed: int) -> RunResult:
        return runner.run(kata, Reference(), seed)

    for seed, result in enumerate(pool.map(run, range(REFERENCE_SEEDS))):
        if result.verdict is not Verdict.PASSED:
            report.problems.append(
                f"the reference does not pass (--kata-seed {seed}): {result.verdict}: "
                f"{result.detail}"
            )
            return False
        spent = sum(test.seconds for test in result.tests)
        report.slowest_reference = max(report.slowest_reference, spent)
    return True


def _check_bugs(kata: Kata, bugs: list[Bug], pool: Pool, report: Report) -> None:
    jobs = [(bug, seed) for bug in bugs for seed in range(BUG_SEEDS)]

    def run(runner: Runner, job: tuple[Bug, int]) -> RunResult:
        bug, seed = job
        return runner.run(kata, Planted((bug.id,)), seed)

    for (bug, seed), result in zip(jobs, pool.map(run, jobs), strict=True):
        failing = _caught_by(result)
        report.caught_by[bug.id] = min(len(failing), report.caught_by.get(bug.id, len(failing)))
        if not failing:
            report.problems.append(
                f"bug {bug.id} is not caught (--kata-seed {seed}): {result.verdict} {result.detail}"
            )
        for name in sorted(set(bug.killed_by) - failing):
            report.problems.append(
                f"bug {bug.id} does not fail {name} of its killed_by (--kata-seed {seed}); "
                f"it fails: {', '.join(sorted(failing)) or 'nothing'}"
            )


def _check_combinations(kata: Kata, bugs: list[Bug], pool: Pool, report: Report) -> None:
    jobs = random_combinations(kata, bugs)

    def run(runner: Runner, chosen: tuple[Bug, ...]) -> RunResult:
        return runner.run(kata, Planted(tuple(bug.id for bug in chosen)), seed=0)

    report.combinations = len(jobs)
    for chosen, result in zip(jobs, pool.map(run, jobs), strict=True):
        failing = _caught_by(result)
        together = " + ".join(bug.id for bug in chosen)
        report.combinations_caught += bool(failing)
        if not failing:
            report.problems.append(f"{together}: not caught: {result.verdict} {result.detail}")
        # Progress counts a bug as gone when a test of its killed_by passes, so none may be masked.
        report.problems.extend(
            f"{together}: {name} passes although {bug.id} is planted; "
            f"it cannot stand in that bug's killed_by"
            for bug in chosen
            for name in sorted(set(bug.killed_by) - failing)
            if failing
        )


def random_combinations(kata: Kata, bugs: list[Bug]) -> list[tuple[Bug, ...]]:
    """Draw different sets of two bugs or more that go together; always the same ones."""
    rng = random.Random(kata.name)
    found: dict[frozenset[str], tuple[Bug, ...]] = {}
    for _ in range(10 * COMBINATIONS):
        chosen = choose(kata.correct_source, bugs, rng.randint(2, max(2, len(bugs) // 2)), rng)
        if chosen and len(found) < COMBINATIONS:
            found[frozenset(bug.id for bug in chosen)] = chosen
    return list(found.values())


def _caught_by(result: RunResult) -> set[str]:
    """Return the tests that failed by an assertion or an exception of their own call.

    A run that broke or crashed catches nothing, and neither does a time-out.
    """
    if result.verdict is not Verdict.FAILED:
        return set()
    return {test.function for test in result.tests if test.outcome is Outcome.FAILED}
