"""Proves that a kata can be trusted: the reference passes, and every bug is caught."""

import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from dojo.kata.bug import Bug
from dojo.kata.kata import Kata, Topic
from dojo.kata.planting import choose, conflict
from dojo.project import Project
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Planted, Reference
from dojo.testrun.results import Outcome, RunResult, Verdict
from dojo.verification import lint, structure
from dojo.verification.findings import Findings, Tally, refusal

REFERENCE_SEEDS = 5
BUG_SEEDS = 2
LARGER_SETS = 10

# Seconds that a kata's tests may take on a CPU, after the imports.
SECONDS = 1.0
SECONDS_OF = {Topic.KERNELS: 5.0, Topic.SYSTEMS: 10.0}


def verify(project: Project, kata: Kata, pool: Pool, has_gpu: bool) -> Findings:
    """Run the reference, every bug alone, every pair and larger sets; say what is wrong."""
    started = time.monotonic()
    findings = Findings(kata)
    passes = _check_reference(kata, pool, has_gpu, findings)
    findings.problems += structure.problems(kata)
    findings.problems += lint.problems(project, kata)
    if passes:
        bugs = [bug for bug in kata.bugs if has_gpu or not bug.gpu]
        findings.unchecked = [bug.id for bug in kata.bugs if bug not in bugs]
        _check_bugs(kata, bugs, pool, findings)
        findings.pairs = _check_sets(kata, pairs(kata, bugs), pool, findings)
        findings.larger_sets = _check_sets(kata, larger_sets(kata, bugs), pool, findings)
    findings.seconds = time.monotonic() - started
    return findings


def _check_reference(kata: Kata, pool: Pool, has_gpu: bool, findings: Findings) -> bool:
    """Run the positive control: nothing is learnt from bugs while the reference fails."""

    def run(runner: Runner, seed: int) -> RunResult:
        return runner.run(kata, Reference(), seed)

    results = []
    for seed, result in enumerate(pool.map(run, range(REFERENCE_SEEDS))):
        findings.runs += 1
        if result.verdict is not Verdict.PASSED:
            findings.problems.append(refusal(result, seed))
            return False
        results.append(result)
    # A loaded machine slows some runs down; the kata's own doing shows in all of them.
    fastest = min(results, key=_test_seconds)
    findings.reference_seconds = _test_seconds(fastest)
    # Compiling for a GPU takes its time, and is no fault of the tests.
    if not (has_gpu and kata.needs_triton):
        findings.problems += _too_slow(kata, fastest)
    return True


def _test_seconds(result: RunResult) -> float:
    return sum(test.seconds for test in result.tests)


def _too_slow(kata: Kata, result: RunResult) -> Iterator[str]:
    allowed, spent = SECONDS_OF.get(kata.topic, SECONDS), _test_seconds(result)
    if spent <= allowed:
        return
    by_function: defaultdict[str, float] = defaultdict(float)
    for test in result.tests:
        by_function[test.function] += test.seconds
    slowest = max(by_function, key=by_function.__getitem__)
    yield (
        f"the tests take {spent:.2f} s on the reference, more than {allowed:g} s; "
        f"{by_function[slowest]:.2f} s of it {slowest}"
    )


def _check_bugs(kata: Kata, bugs: Sequence[Bug], pool: Pool, findings: Findings) -> None:
    jobs = [(bug, seed) for bug in bugs for seed in range(BUG_SEEDS)]

    def run(runner: Runner, job: tuple[Bug, int]) -> RunResult:
        bug, seed = job
        return runner.run(kata, Planted((bug.id,)), seed)

    findings.runs += len(jobs)
    for (bug, seed), result in zip(jobs, pool.map(run, jobs), strict=True):
        failing = _caught_by(result)
        findings.caught_by[bug.id] = min(len(failing), findings.caught_by.get(bug.id, len(failing)))
        if not failing:
            findings.problems.append(
                f"bug {bug.id} is not caught (--kata-seed {seed}): {result.verdict} {result.detail}"
            )
        for name in sorted(set(bug.killed_by) - failing):
            findings.problems.append(
                f"bug {bug.id} does not fail {name} of its killed_by (--kata-seed {seed}); "
                f"it fails: {', '.join(sorted(failing)) or 'nothing'}"
            )


def _check_sets(
    kata: Kata, sets: Sequence[tuple[Bug, ...]], pool: Pool, findings: Findings
) -> Tally:
    """Plant each set of bugs, and see that none of them keeps another's tests from failing."""

    def run(runner: Runner, chosen: tuple[Bug, ...]) -> RunResult:
        names = {name for bug in chosen for name in bug.killed_by}
        return runner.run(kata, Planted(tuple(bug.id for bug in chosen)), seed=0, only=names)

    findings.runs += len(sets)
    tally = Tally(planted=len(sets))
    for chosen, result in zip(sets, pool.map(run, sets), strict=True):
        failing = _caught_by(result)
        together = " + ".join(bug.id for bug in chosen)
        tally.caught += bool(failing)
        if not failing:
            findings.problems.append(f"{together}: not caught: {result.verdict} {result.detail}")
        # Progress counts a bug as gone when a test of its killed_by passes, so none may be masked.
        findings.problems.extend(
            f"{together}: {name} passes although {bug.id} is planted; "
            f"it cannot stand in that bug's killed_by"
            for bug in chosen
            for name in sorted(set(bug.killed_by) - failing)
            if failing
        )
    return tally


def pairs(kata: Kata, bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
    """Return every two bugs that go together."""
    return [pair for pair in combinations(bugs, 2) if not conflict(kata.correct_source, pair)]


def larger_sets(kata: Kata, bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
    """Draw different sets of three bugs or more that go together; always the same ones."""
    rng = random.Random(kata.name)
    found: dict[frozenset[str], tuple[Bug, ...]] = {}
    for _ in range(10 * LARGER_SETS):
        chosen = choose(kata.correct_source, bugs, rng.randint(3, max(3, len(bugs) // 2)), rng)
        if chosen and len(found) < LARGER_SETS:
            found[frozenset(bug.id for bug in chosen)] = chosen
    return list(found.values())


def _caught_by(result: RunResult) -> set[str]:
    """Return the tests that failed by an assertion or an exception of their own call.

    A run that broke or crashed catches nothing, and neither does a time-out.
    """
    if result.verdict is not Verdict.FAILED:
        return set()
    return {test.function for test in result.tests if test.outcome is Outcome.FAILED}
