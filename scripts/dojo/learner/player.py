"""What a learner does with a kata, kept in step: the file, what is planted, and the history."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dojo.history.history import Attempt, History, Run
from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.learner.workspace import Backup, Planting, Workspace
from dojo.project import Project
from dojo.testrun import results
from dojo.testrun.results import Outcome, RunResult, Verdict


@dataclass(frozen=True)
class Judgement:
    """What one whole run says of the planted bugs."""

    planted: tuple[Bug, ...]
    gone: tuple[str, ...]
    solved: bool


class Player:
    """One learner at one kata."""

    def __init__(self, project: Project, kata: Kata) -> None:
        """Open the kata's workspace and the project's history."""
        self.kata = kata
        self.workspace = Workspace(project, kata)
        self.history = History(project.history)

    def planted(self) -> tuple[Bug, ...]:
        """Return the bugs planted in the learner's file."""
        return tuple(self.kata.bug(bug_id) for bug_id in self.workspace.planting().bugs)

    def attempt(self) -> Attempt:
        """Return the present attempt, beginning one if none is recorded."""
        planting = self.workspace.planting()
        if planting.attempt is not None:
            attempt = self.history.attempt(planting.attempt)
            if attempt is not None:
                return attempt
        attempt_id = self.history.start(self.kata.name, planting.bugs)
        self.workspace.record(replace(planting, attempt=attempt_id))
        attempt = self.history.attempt(attempt_id)
        assert attempt is not None
        return attempt

    def plant(self, bug_ids: Sequence[str], reason: str = "reset") -> Backup | None:
        """Plant these bugs in the learner's file as a new attempt, keeping the old text."""
        bugs = tuple(bug_ids)
        source = self.kata.planted_source(bugs)
        attempt_id = self.history.start(self.kata.name, bugs)
        return self.workspace.replace(source.encode(), Planting(bugs, attempt_id), reason)

    def record(self, run: RunResult) -> Judgement:
        """Record a run of the whole test file, and judge it.

        One that crashed, broke or ran out of time proves no bug gone.
        """
        planted = self.planted()
        gone: list[str] = []
        if run.whole:
            gone = results.gone(planted, results.failing_functions(run.tests))
        judgement = Judgement(planted, tuple(gone), run.verdict is Verdict.PASSED)
        passed = sum(test.outcome is Outcome.PASSED for test in run.tests)
        skipped = sum(test.outcome is Outcome.SKIPPED for test in run.tests)
        self.history.add_run(
            self.attempt().id,
            Run(
                run.revision,
                passed,
                len(run.tests) - passed - skipped,
                judgement.gone,
                judgement.solved,
                run.seconds,
            ),
        )
        return judgement

    def give_hint(self, gone: Sequence[str]) -> str:
        """Return the next hint on a bug that is not gone, and record that it was given."""
        name, planted = self.kata.name, self.planted()
        if len(gone) == len(planted):
            return f"{name}: no planted bug is left in your file"
        attempt = self.attempt()
        hint = next_hint(planted, gone, self.history.hints(attempt.id))
        if hint is None:
            return f"{name}: no more hints; scripts/reveal.sh {name} tells all"
        bug, level = hint
        self.history.add_hint(attempt.id, bug.id, level)
        label = f", bug {planted.index(bug) + 1} of {len(planted)}" if len(planted) > 1 else ""
        return f"Hint {level + 1} of {len(bug.hints)}{label}: {bug.hints[level]}"

    def diff_to_correct(self) -> str:
        """Return the diff from the learner's file to the reference; empty if they are equal."""
        return _diff(self.workspace.text(), self.kata.correct_source, self.kata)

    def diff_from_planted(self) -> str:
        """Return the diff from the planted text to the learner's file: what they changed."""
        planted = self.kata.planted_source(self.workspace.planting().bugs)
        return _diff(planted, self.workspace.text(), self.kata)


@contextmanager
def open_player(project: Project, kata: Kata) -> Iterator[Player]:
    """Open a player for one command, and close its history afterwards."""
    player = Player(project, kata)
    try:
        yield player
    finally:
        player.history.close()


def next_hint(
    planted: Sequence[Bug], gone: Sequence[str], given: set[tuple[str, int]]
) -> tuple[Bug, int] | None:
    """Return the bug and the number (from 0) of the hint to give next, or None if all are given.

    Hints go round: the first of every bug, then the second of every bug; never one of a bug that
    is gone.
    """
    for level in range(max((len(bug.hints) for bug in planted), default=0)):
        for bug in planted:
            if level < len(bug.hints) and bug.id not in gone and (bug.id, level) not in given:
                return bug, level
    return None


def _diff(old: str, new: str, kata: Kata) -> str:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True),
        new.splitlines(keepends=True),
        f"{kata.name}/botched.py (before)",
        f"{kata.name}/botched.py (after)",
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
