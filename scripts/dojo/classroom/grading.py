"""Grades one submission: what its tests say, and which planted bugs are gone."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from dojo.classroom.likeness import tree_revision
from dojo.classroom.submissions import Submission
from dojo.errors import DojoError
from dojo.files import revision
from dojo.kata.kata import Kata
from dojo.learner.counting import by_runs, count_gone
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Text
from dojo.testrun.printed import printable
from dojo.testrun.results import Outcome, RunResult, Verdict, failing_functions


class Standing(StrEnum):
    """What became of a submission."""

    SOLVED = "solved"
    UNSOLVED = "not solved"
    TIMEOUT = "time-out"
    CRASHED = "crash"
    BROKEN = "does not run"
    TAMPERED = "tampering"
    UNREADABLE = "not readable"
    MISSING = "nothing to grade"


@dataclass(frozen=True)
class Grade:
    """What is known of one submission."""

    learner: str
    kata: str
    path: str
    revision: str  # of its text
    standing: Standing
    detail: str = ""  # of what went wrong, one line
    planted: tuple[str, ...] = ()
    gone: tuple[str, ...] | None = None  # of the planted bugs; none where they were not counted
    at_least: bool = False  # more may be gone
    failed: tuple[str, ...] = ()  # test functions
    failing: int = 0  # tests, of so many
    tests: int = 0
    banned: str = ""  # the call that the brief bans
    seconds: float = 0.0
    as_planted: bool = False  # the same program as was handed out
    as_reference: bool = False
    same_as: tuple[str, ...] = ()  # learners whose program is the same, and neither of these

    @property
    def left(self) -> tuple[str, ...]:
        """Return the planted bugs that are not known to be gone, if they were counted."""
        return () if self.gone is None else tuple(b for b in self.planted if b not in self.gone)

    def to_json(self) -> dict[str, Any]:
        """Return the grade as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Grade":
        """Return the grade that `to_json` was made from."""
        known = {field.name: facts[field.name] for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in known.items()
        }
        return cls(**{**values, "standing": Standing(facts["standing"])})


def ungraded(one: Submission) -> Grade:
    """Return the grade of what cannot be run."""
    standing = Standing.UNREADABLE if one.kata else Standing.MISSING
    return Grade(one.learner, one.kata, one.path, "", standing, one.problem)


def ended_runner(one: Submission) -> Grade:
    """Return the grade of what took along the process that runs the tests."""
    said = "it ended the process that runs the tests"
    return Grade(one.learner, one.kata, one.path, _revision(one), Standing.CRASHED, said)


def grade(
    one: Submission, kata: Kata, planted: Sequence[str], runner: Runner, seed: int
) -> Grade | None:
    """Run a submission's tests, and count which planted bugs are gone; None if it is cancelled.

    They are counted where the tests came to their end: a text that loops would loop in each run.
    """
    result = _run(one, kata, runner, seed)
    if result is None:
        return ended_runner(one)
    if result.verdict is Verdict.CANCELLED:
        return None
    known = _known(one, planted, result)
    if known.standing is not Standing.UNSOLVED:
        return known
    bugs = [kata.bug(bug_id) for bug_id in planted]
    count = count_gone(kata.correct_source, bugs, one.text, by_runs(kata, runner, seed))
    return replace(known, gone=count.gone, at_least=count.at_least) if count else None


def _run(one: Submission, kata: Kata, runner: Runner, seed: int) -> RunResult | None:
    """Run the tests; return None if twice that ended the process that forks those of the tests.

    Once may be the doing of what an earlier submission left running.
    """
    for _ in range(2):
        with contextlib.suppress(DojoError):
            return runner.run(kata, Text(one.text), seed)
    return None


def _known(one: Submission, planted: Sequence[str], result: RunResult) -> Grade:
    """Return what a run of all tests says."""
    failing = [t for t in result.tests if t.outcome in (Outcome.FAILED, Outcome.TIMEOUT)]
    banned = next((test.message for test in failing if test.banned), "")
    standing = _standing(result)
    return Grade(
        one.learner,
        one.kata,
        one.path,
        _revision(one),
        standing,
        detail=_one_line(_tampering(result) or result.detail),
        planted=tuple(planted),
        gone=tuple(planted) if standing is Standing.SOLVED else None,
        failed=tuple(sorted(failing_functions(result.tests))),
        failing=len(failing),
        tests=len(result.tests),
        banned=_one_line(banned),
        seconds=round(result.seconds, 3),
    )


def _revision(one: Submission) -> str:
    return revision(one.text.encode())


def _tampering(result: RunResult) -> str:
    """Return what the code did to its judge, if anything was seen: a sandbox's results tell."""
    seen: str = getattr(result, "tampering", "")
    return seen


def _standing(result: RunResult) -> Standing:
    if _tampering(result):
        return Standing.TAMPERED
    if any(test.outcome is Outcome.TIMEOUT for test in result.tests):
        return Standing.TIMEOUT
    return {
        Verdict.PASSED: Standing.SOLVED,
        Verdict.FAILED: Standing.UNSOLVED,
        Verdict.TIMEOUT: Standing.TIMEOUT,
        Verdict.CRASHED: Standing.CRASHED,
        Verdict.DAMAGED: Standing.TAMPERED,
    }.get(result.verdict, Standing.BROKEN)


def compared(
    grades: Sequence[Grade],
    submissions: Sequence[Submission],
    katas: Mapping[str, Kata],
    planted: Mapping[str, Sequence[str]],
) -> list[Grade]:
    """Return the grades with what is the same program as which other."""
    trees = {(s.learner, s.kata, s.path): tree_revision(s.text) for s in submissions if s.text}
    correct = {name: tree_revision(kata.correct_source) for name, kata in katas.items()}
    given = {
        name: tree_revision(kata.planted_source(planted[name])) for name, kata in katas.items()
    }
    owners: dict[tuple[str, str], list[str]] = {}
    for (learner, kata, _), tree in trees.items():
        if tree and tree not in (correct.get(kata), given.get(kata)):
            owners.setdefault((kata, tree), []).append(learner)
    told = []
    for one in grades:
        tree = trees.get((one.learner, one.kata, one.path))
        if tree is not None:
            same = owners.get((one.kata, tree), [])
            one = replace(
                one,
                as_reference=tree == correct[one.kata],
                as_planted=tree == given[one.kata],
                same_as=tuple(learner for learner in same if learner != one.learner),
            )
        told.append(one)
    return told


def _one_line(text: str) -> str:
    return printable(text.strip().partition("\n")[0])
