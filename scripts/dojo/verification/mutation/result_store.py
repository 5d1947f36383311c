"""What a kata's tests said of each mutant, kept so that a stopped judging goes on where it was."""

import contextlib
import hashlib
import json
import re
import threading
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from dojo.files import read_bytes, revision, write_atomically
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.testrun.results import Outcome, RunResult, Verdict, failing_functions

# Beside the kata's own files: an edit of any of these may change what is said, or how it is kept.
_SHARED = (
    "scripts/constraints.txt",
    "scripts/dojo/testing.py",
    "scripts/dojo/kernels.py",
    "scripts/dojo/testrun/interpreter.py",
    "scripts/dojo/verification/mutation/result_store.py",
    "fixtures/*",
)
_ADDRESS = re.compile(r"0x[0-9a-f]+")


class MutantOutcome(StrEnum):
    """What became of a mutant."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    INVALID = "invalid"  # the tests could not run
    EQUIVALENT = "equivalent"  # it survived, and `mutants.toml` says why it must
    GPU = "gpu"  # the same, and a GPU would show it


@dataclass(frozen=True)
class Trial:
    """One run of a kata's tests against a mutant."""

    mutant: str  # the key of the mutant
    seed: int
    whole: bool  # all tests ran, not only those until the first failure
    outcome: MutantOutcome  # caught, survived or invalid
    ended: bool  # every test came to its end: no crash, no time-out
    failing: tuple[str, ...]  # test functions
    passing: int  # test functions of which every case passed
    wrong: int  # test cases that failed by an assertion, or a warning that pytest makes an error
    raised: int  # test cases that failed by another exception
    behaviour: str  # the same for two mutants that fail the same cases with the same words

    @classmethod
    def of(cls, mutant: str, seed: int, whole: bool, run: RunResult) -> "Trial":
        """Sum up a run."""
        failed = [test for test in run.tests if test.outcome is Outcome.FAILED]
        failing = failing_functions(run.tests)
        passed = {test.function for test in run.tests if test.outcome is Outcome.PASSED} - failing
        said = sorted((test.name, _ADDRESS.sub("", test.message)) for test in failed)
        timed_out = any(test.outcome is Outcome.TIMEOUT for test in run.tests)
        raised = sum(test.raised for test in failed)
        return cls(
            mutant,
            seed,
            whole,
            _outcome(run.verdict, timed_out),
            run.whole and not timed_out,
            tuple(sorted(failing)),
            len(passed),
            len(failed) - raised,
            raised,
            revision(json.dumps(said).encode()),
        )


def _outcome(verdict: Verdict, timed_out: bool) -> MutantOutcome:
    if timed_out or verdict in (Verdict.FAILED, Verdict.TIMEOUT, Verdict.CRASHED):
        return MutantOutcome.CAUGHT
    if verdict in (Verdict.BROKEN, Verdict.DAMAGED):
        return MutantOutcome.INVALID
    return MutantOutcome.SURVIVED


class Trials:
    """The trials of one kata's mutants, a line of JSON each under a line that names the tests."""

    def __init__(self, path: Path, tests: str) -> None:
        """Read what is there, unless it was said by other tests."""
        self._path = path
        self._lock = threading.Lock()
        lines = (read_bytes(path) or b"").splitlines(keepends=True)
        header = json.dumps({"tests": tests}).encode() + b"\n"
        # A kill may have cut off the last line.
        whole = [line for line in lines[1:] if line.endswith(b"\n")]
        if lines[:1] != [header]:
            whole = []
        if lines != [header, *whole]:
            write_atomically(path, b"".join([header, *whole]))
        self._trials: dict[tuple[str, int, bool], Trial] = {}
        for line in whole:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # damaged: it is tried again
                facts = json.loads(line)
                facts["outcome"] = MutantOutcome(facts["outcome"])
                self._keep(Trial(**{**facts, "failing": tuple(facts["failing"])}))

    def get(self, mutant: str, seed: int, whole: bool) -> Trial | None:
        """Return the trial of that mutant under that seed, if there was one; a whole one, if asked.

        A whole one also tells what one until the first failure does.
        """
        trials = self._trials
        return trials.get((mutant, seed, True)) or (
            None if whole else trials.get((mutant, seed, False))
        )

    def add(self, trial: Trial) -> None:
        """Keep a trial, at once; from any thread."""
        line = json.dumps(asdict(trial)) + "\n"
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            self._keep(trial)

    def _keep(self, trial: Trial) -> None:
        self._trials[trial.mutant, trial.seed, trial.whole] = trial


def trials_of(project: Project, kata: Kata) -> Trials:
    """Open the kept trials of a kata's mutants, by its tests as they are now."""
    paths = [kata.reference, kata.tests]
    for pattern in _SHARED:
        paths += sorted(project.root.glob(pattern))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {revision(path.read_bytes())}\n".encode())
    return Trials(project.state / "mutants" / f"{kata.name}.jsonl", digest.hexdigest())
