"""Judges a proof: which correct versions it refuses, and which wrong ones it catches."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Text
from dojo.testrun.results import (
    RunResult,
    TestResult,
    Verdict,
    failed_functions,
    failing_functions,
)

_REFERENCE = "the reference"


@dataclass(frozen=True)
class FalseAlarm:
    """A test that refuses a correct version."""

    style: str  # of the version, in words
    test: TestResult


@dataclass(frozen=True)
class Catch:
    """One test of a proof, and the wrong versions that it catches."""

    test: str
    bugs: tuple[str, ...]


@dataclass(frozen=True)
class ProofJudgement:
    """What a proof is known to be worth. A test that gives a false alarm catches nothing."""

    seed: int
    seconds: float
    problem: str = ""  # why nothing is known
    alarms: tuple[FalseAlarm, ...] = ()
    catches: tuple[Catch, ...] = ()  # in the file's order
    survivors: tuple[Bug, ...] = ()
    versions: int = 0

    @property
    def caught(self) -> int:
        """Return how many wrong versions are caught."""
        return self.versions - len(self.survivors)


def judge(
    pool: Pool,
    kata: Kata,
    bugs: Sequence[Bug],
    proof: Path,
    seed: int,
    given_up: Callable[[], bool] = bool,
) -> ProofJudgement | None:
    """Run a proof on every correct version, and on the reference with each bug; None if given up.

    All get the same random data. No file's name tells a version: each is a text.
    """
    correct = [(_REFERENCE, kata.correct_source), *map(_styled, kata.solutions)]
    wrong = [kata.planted_source([bug.id]) for bug in bugs]
    # The reference comes again at the end: what passes once has to pass twice.
    sources = [*(source for _, source in correct), *wrong, kata.correct_source]

    def run(runner: Runner, source: str) -> RunResult:
        return runner.run(kata, Text(source), seed, tests=proof)

    results = []
    for result in pool.map(run, sources):
        results.append(result)
        if given_up() or result.verdict is Verdict.CANCELLED:
            return None
        if problem := _problem(result) if len(results) == 1 else "":
            return ProofJudgement(seed, result.seconds, problem)
    return _judged(bugs, [style for style, _ in correct], results, seed)


def _judged(
    bugs: Sequence[Bug], styles: Sequence[str], results: Sequence[RunResult], seed: int
) -> ProofJudgement:
    seconds = sum(result.seconds for result in results)
    on_correct, on_wrong, again = (
        results[: len(styles)],
        results[len(styles) : -1],
        results[-1],
    )
    changed = failing_functions(again.tests) - failing_functions(on_correct[0].tests)
    if changed:
        test = min(changed)
        why = "it depends on what ran before it, or on chance"
        problem = f"{test} passes on the reference, and fails when it runs there again: {why}"
        return ProofJudgement(seed, seconds, problem)
    alarms = tuple(
        FalseAlarm(style, test)
        for style, result in zip(styles, on_correct, strict=True)
        for test in _first_failures(result)
    )
    refused = {alarm.test.function for alarm in alarms}
    catching = [failed_functions(result.tests) - refused for result in on_wrong]
    return ProofJudgement(
        seed,
        seconds,
        alarms=alarms,
        catches=tuple(
            Catch(
                test, tuple(b.id for b, tests in zip(bugs, catching, strict=True) if test in tests)
            )
            for test in dict.fromkeys(test.function for test in on_correct[0].tests)
            if test not in refused
        ),
        survivors=tuple(bug for bug, tests in zip(bugs, catching, strict=True) if not tests),
        versions=len(bugs),
    )


def _styled(solution: Path) -> tuple[str, str]:
    """Return how a correct solution goes about it, in its own words, and its text."""
    source = solution.read_text(encoding="utf-8")
    said = " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
    return said.rstrip(".") or solution.stem, source


def _problem(result: RunResult) -> str:
    """Return why a run on the reference says nothing of the proof; empty if it does."""
    if result.whole:
        return ""
    where = f" (in {result.running})" if result.running else ""
    return f"{result.detail}{where}"


def _first_failures(result: RunResult) -> list[TestResult]:
    """Return the first result of each test function that is no pass."""
    failures: dict[str, TestResult] = {}
    for test in result.tests:
        if failing_functions([test]):
            failures.setdefault(test.function, test)
    return list(failures.values())
