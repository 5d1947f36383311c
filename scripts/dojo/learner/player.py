"""One learner at one kata: the file, what is planted in it, and the history, kept in step."""

import difflib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from dojo.errors import DojoError, typed
from dojo.history.history import Attempt, History, Run
from dojo.history.moves import MoveKind
from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.learner.counting import Count, by_runs, count_gone, without_runs
from dojo.learner.hints import hint_line, hints_of, next_hint, telling_check
from dojo.learner.workspace import Backup, Workspace
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.testrun.results import Outcome, RunResult, Verdict, check_functions


@dataclass(frozen=True)
class Planting:
    """What is planted in a learner's file: bugs, and the ids of those that the kata lacks now."""

    bugs: tuple[Bug, ...]
    unknown: tuple[str, ...] = ()
    told: bool = True  # not in an answerless checkout


@dataclass(frozen=True)
class Judgement:
    """What a text is known to be: solved or not, and which of its planted bugs are gone."""

    planting: Planting
    solved: bool
    count: Count | None = None  # none until the bugs are counted
    default_text: bool = False  # it has the default bugs, though others were planted last


class Player:
    """One learner at one kata."""

    def __init__(
        self, project: Project, kata: Kata, history: History, *, open_checks: bool = False
    ) -> None:
        """Open the kata's workspace, and if it is a system that is asked for, all its checks."""
        self.project = project
        self.kata = kata
        self.workspace = Workspace(project, kata)
        self.history = history
        self._open_checks = open_checks

    def attempt(self) -> Attempt:
        """Return the present attempt, beginning one if none is recorded."""
        attempt_id = self.workspace.attempt()
        planted = self.kata.default
        if attempt_id is not None:
            attempt = self.history.attempt(attempt_id)
            if attempt is not None and attempt.kata == self.kata.name:
                return attempt
            planted = ()  # the history was lost, and with it what is planted
        attempt_id = self.history.start(self.kata.name, planted)
        self.workspace.record(attempt_id)
        attempt = self.history.attempt(attempt_id)
        assert attempt is not None
        return attempt

    def planting(self) -> Planting:
        """Return what is planted in the learner's file."""
        return planting_of(self.kata, self.attempt())

    def plant(self, bug_ids: Sequence[str], reason: str = "reset") -> Backup | None:
        """Plant these bugs in the learner's file as a new attempt, keeping the old text."""
        source = self.kata.planted_source(bug_ids)
        attempt_id = self.history.start(self.kata.name, bug_ids)
        return self.workspace.replace(source.encode(), attempt_id, reason)

    def put_right(self) -> Backup | None:
        """Put the reference into the learner's file, keeping their text."""
        source = self.kata.correct_source
        return self.workspace.replace(source.encode(), self.attempt().id, "reveal")

    def record(self, run: RunResult) -> Judgement:
        """Record a run of the whole test file, and say whether it solves the kata.

        If it does, every planted bug is gone; if not, `record_count` can tell later which are. A
        run that did not come to its end tells nothing: what was counted before stands.
        """
        attempt = self.attempt()
        planting = planting_of(self.kata, attempt)
        solved = run.verdict is Verdict.PASSED
        count = Count(tuple(bug.id for bug in planting.bugs)) if solved else None
        gone = count.gone if count else None
        if not run.whole:
            gone = self.history.last_count(attempt.id)
        passed = sum(test.outcome is Outcome.PASSED for test in run.tests)
        skipped = sum(test.outcome is Outcome.SKIPPED for test in run.tests)
        self.history.add_run(
            attempt.id,
            Run(
                run.revision,
                passed,
                len(run.tests) - passed - skipped,
                gone,
                solved,
                run.seconds,
                run.seed,
                run.whole,
            ),
        )
        put_back = not solved and self._holds_default_text(attempt)
        return Judgement(planting, solved, count, put_back)

    def _holds_default_text(self, attempt: Attempt) -> bool:
        """Say whether the file is as it was committed, though other bugs were planted last."""
        default = self.kata.default
        others = not set(default) <= set(attempt.planted)  # else mending leads there
        return others and self.workspace.text() == self.kata.planted_source(default)

    def record_count(self, count: Count, tested: str) -> Judgement:
        """Record which planted bugs are gone from a text that ran and did not solve the kata.

        `tested` is its revision.
        """
        attempt = self.attempt()
        self.history.count(attempt.id, count.gone, tested)
        planting = planting_of(self.kata, attempt)
        return Judgement(planting, False, count, self._holds_default_text(attempt))

    def judge(self, run: RunResult, runner: Runner | None = None) -> Judgement:
        """Record a run of the learner's text as it is now, and count what is gone.

        Without a runner it is counted only where no run is needed: what was changed is as in the
        reference.
        """
        judgement = self.record(run)
        if run.verdict is not Verdict.FAILED or not judgement.planting.bugs:
            return judgement
        passes = by_runs(self.kata, runner, secrets.randbelow(2**31)) if runner else without_runs
        planted, text = judgement.planting.bugs, self.workspace.text()
        count = count_gone(self.kata.correct_source, planted, text, passes)
        return self.record_count(count, run.revision) if count else judgement

    def give_hint(self, number: int | None = None) -> str:
        """Return the next hint on a bug that is not gone, and record that it was given.

        A number, from 1, asks for one on that bug. It goes by the newest count of what is gone.
        """
        name, attempt = self.kata.name, self.attempt()
        planting = planting_of(self.kata, attempt)
        planted = planting.bugs
        gone = self.history.last_count(attempt.id)
        if len(gone) == len(planted):
            return unknown_line(name, planting) or f"{name}: no planted bug is left in your file"
        asked = planted
        if number is not None:
            asked = planted[number - 1 : number]
            if not asked:
                return f"{name}: there is no bug {number} of {len(planted)}"
            if asked[0].id in gone:
                return f"{name}: bug {number} of {len(planted)} is fixed"
        hint = next_hint(self.kata, asked, gone, self.history.hints(attempt.id))
        if hint is None:
            about = "" if number is None else f" on bug {number}"
            return f"{name}: no more hints{about}; {typed('reveal', name)} tells all"
        bug, level = hint
        self.history.add_hint(attempt.id, bug.id, level)
        return hint_line(self.kata, planted, bug, level)

    def sealed(self) -> frozenset[str]:
        """Return the tests of a system that are only counted: the checks that no hint opened."""
        if not self.kata.is_system or self._open_checks:
            return frozenset()
        attempt = self.attempt()
        given = self.history.hints(attempt.id)
        planted = planting_of(self.kata, attempt).bugs
        opened = {telling_check(self.kata, bug) for bug in planted if (bug.id, 0) in given}
        return frozenset(check_functions(self.kata.tests) - opened)

    def hints_given(self) -> list[str]:
        """Return the hints that were given in this attempt, oldest first."""
        attempt = self.attempt()
        planted = planting_of(self.kata, attempt).bugs
        by_id = {bug.id: bug for bug in planted}
        return [
            hint_line(self.kata, planted, by_id[bug_id], level)
            for bug_id, level in self.history.hints(attempt.id)
            if bug_id in by_id and level < len(hints_of(self.kata, by_id[bug_id]))
        ]

    def last_seed(self) -> int | None:
        """Return the seed of the last run of this attempt, if there was one."""
        last = self.history.last_run(self.attempt().id)
        return last.seed if last else None

    def look(self, kind: MoveKind) -> None:
        """Record that the learner looks closer."""
        self.history.moves.add(self.attempt().id, kind)

    def note(self, text: str) -> None:
        """Write down what the learner suspects."""
        self.history.moves.add(self.attempt().id, MoveKind.NOTE, text)

    def diff_to_correct(self) -> str:
        """Return the diff from the learner's file to the reference; empty if they are equal."""
        return _diff(self.workspace.text(), self.kata.correct_source, self.kata)

    def diff_from_planted(self) -> str:
        """Return the diff from the planted text to the learner's file: what they changed.

        Raises `DojoError` where it is not known any more what was planted.
        """
        attempt = self.attempt()
        unknown = unknown_line(self.kata.name, planting_of(self.kata, attempt))
        if unknown:
            raise DojoError(unknown)
        planted = self.kata.planted_source(attempt.planted)
        return _diff(planted, self.workspace.text(), self.kata)


def planting_of(kata: Kata, attempt: Attempt) -> Planting:
    """Return what an attempt planted."""
    known, unknown = [], []
    for bug_id in attempt.planted:
        try:
            known.append(kata.bug(bug_id))
        except DojoError:
            unknown.append(bug_id)
    return Planting(tuple(known), tuple(unknown), told=not kata.answerless)


def unknown_line(name: str, planting: Planting) -> str | None:
    """Return what is to be said where it is not known any more what is planted, or None."""
    if not planting.told:
        return f"{name}: this handout does not say what is planted"
    remedy = f"{typed('reset', name)} plants anew and keeps your text"
    if planting.unknown:
        bugs = ", ".join(planting.unknown)
        return f"{name}: your file was planted with what the kata no longer has ({bugs}); {remedy}"
    if not planting.bugs:
        return f"{name}: the history no longer knows what is planted in your file; {remedy}"
    return None


def _diff(old: str, new: str, kata: Kata) -> str:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True),
        new.splitlines(keepends=True),
        f"{kata.name}/botched.py (before)",
        f"{kata.name}/botched.py (after)",
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
