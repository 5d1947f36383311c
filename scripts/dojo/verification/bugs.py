"""Proves that a kata can be trusted: correct solutions pass, and every bug is caught."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dojo.instruments.bands import read_band
from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Planted, Reference, Solution
from dojo.testrun.results import Outcome, RunResult, Verdict
from dojo.verification import budget, likeness, lint, reviews, structure, symptoms
from dojo.verification.findings import Findings, Proof, Tally, refusal
from dojo.verification.ledger import Ledger
from dojo.verification.sets import larger_sets, pairs, some_pairs

SEEDS, SEEDS_WHOLE = 1, 5
SEEDS_OF_SYSTEMS = 2  # in a whole check: their tests take seconds, their symptoms have many seeds

_Job = TypeVar("_Job")


class Verifier:
    """Runs each kata's correct solutions, every bug alone and larger sets.

    A bug is caught once a test of its `killed_by` fails. A `whole` check goes on from there: every
    test of every `killed_by` has to fail, whatever else is planted, in every pair too. It takes
    more seeds, for chance is no test, and earlier proofs that the ledger keeps do not count. A
    `sample` of the pairs of systems and kernels, and of a system's healthy seeds, takes the place
    of all: those take minutes each.
    """

    def __init__(
        self,
        project: Project,
        pool: Pool,
        *,
        whole: bool = False,
        sample: bool = False,
        has_gpu: bool = False,
        ran: Callable[[Kata], None] = lambda _: None,
    ) -> None:
        """Take the runners; `ran` is called after each run."""
        self._project = project
        self._pool = pool
        self._whole = whole
        self._sample = sample
        self._has_gpu = has_gpu
        self._ran = ran
        self._ledger = Ledger(project, has_gpu)

    def runs_of(self, kata: Kata) -> int:
        """Return how many runs the kata takes, give or take those that find something."""
        if self._known(kata):
            return 0
        bugs = self._checkable(kata)
        seeds = self._seeds(kata)
        sets = len(larger_sets(kata, bugs)) + (len(self._pairs(kata, bugs)) if self._whole else 0)
        healthy = len(self._healthy_seeds()) if kata.is_system and self._whole else 0
        read = len(self._claims(kata))
        return seeds * (1 + len(kata.solutions) + len(bugs)) + sets + healthy + read

    def _claims(self, kata: Kata) -> list[reviews.Claim]:
        """Return what requests to review the kata's code rest on."""
        if not self._whole or kata.draft:
            return []
        seeds = reviews.SEEDS
        if _takes_seconds(kata):
            seeds = reviews.SEEDS_OF_SLOW if self._sample else reviews.SEEDS_OF_SLOW_NAMED
        return reviews.claims(kata, seeds)

    def _pairs(self, kata: Kata, bugs: Sequence[Bug]) -> list[tuple[Bug, ...]]:
        """Return the pairs to plant."""
        return (some_pairs if _takes_seconds(kata) and self._sample else pairs)(kata, bugs)

    def _healthy_seeds(self) -> range:
        """Return what to raise the seeds of a system's symptoms by."""
        return range(1, symptoms.SAMPLE if self._sample else symptoms.SEEDS)

    def _seeds(self, kata: Kata) -> int:
        if not self._whole:
            return SEEDS
        return SEEDS_OF_SYSTEMS if kata.is_system else SEEDS_WHOLE

    def verify(self, kata: Kata) -> Findings:
        """Say what is wrong with a kata."""
        started = time.monotonic()
        findings = Findings(kata)
        bugs = self._checkable(kata)
        findings.unchecked = [bug.id for bug in kata.bugs if bug not in bugs]
        if known := self._known(kata):
            findings.proof, findings.known = known, True
        elif self._reference_passes(findings):
            self._check_solutions(findings)
            alone = self._check_alone(bugs, findings)
            if kata.is_system and self._whole:
                self._check_symptoms(bugs, alone, findings)
            if self._whole:
                findings.proof.pairs, together = self._check_sets(self._pairs(kata, bugs), findings)
                findings.problems += self._misleading(together, alone, findings)
                self._check_reviews(findings)
            findings.proof.larger_sets, _ = self._check_sets(larger_sets(kata, bugs), findings)
            if not findings.problems:
                self._ledger.keep(kata, findings.proof)
        findings.problems += structure.problems(kata)
        findings.problems += lint.problems(self._project, kata)
        findings.seconds = time.monotonic() - started
        return findings

    def _known(self, kata: Kata) -> Proof | None:
        return None if self._whole else self._ledger.proof(kata)

    def _checkable(self, kata: Kata) -> list[Bug]:
        return [bug for bug in kata.bugs if self._has_gpu or not bug.gpu]

    def _map(
        self, run: Callable[[Runner, _Job], RunResult], jobs: Sequence[_Job], findings: Findings
    ) -> Iterator[tuple[_Job, RunResult]]:
        """Yield each job and its result."""
        for job, result in zip(jobs, self._pool.map(run, jobs), strict=True):
            findings.runs += 1
            self._ran(findings.kata)
            yield job, result

    def _reference_passes(self, findings: Findings) -> bool:
        """Run the positive control: nothing is learnt from bugs while the reference fails."""
        kata = findings.kata

        def run(runner: Runner, seed: int) -> RunResult:
            return runner.run(kata, Reference(), seed)

        results = []
        for seed, result in self._map(run, range(self._seeds(kata)), findings):
            if result.verdict is not Verdict.PASSED:
                findings.problems.append(refusal(result, seed))
                return False
            results.append(result)
        # A loaded machine slows some runs down; the kata's own doing shows in all of them.
        fastest = min(results, key=budget.test_seconds)
        findings.proof.reference_seconds = budget.test_seconds(fastest)
        # Compiling for a GPU takes its time, and is no fault of the tests.
        if not (self._has_gpu and kata.needs_triton):
            findings.problems += budget.problems(kata, fastest)
        return True

    def _check_solutions(self, findings: Findings) -> None:
        """Run the other correct solutions: tests that refuse one ask for too much."""
        kata = findings.kata

        def run(runner: Runner, job: tuple[Path, int]) -> RunResult:
            path, seed = job
            return runner.run(kata, Solution(path), seed, first_failure=True)

        refused = set()
        jobs = [(path, seed) for path in kata.solutions for seed in range(self._seeds(kata))]
        for (path, seed), result in self._map(run, jobs, findings):
            if result.verdict is not Verdict.PASSED and path not in refused:
                refused.add(path)
                findings.problems.append(refusal(result, seed, f"solutions/{path.name}"))
        findings.proof.solutions = len(kata.solutions) - len(refused)

    def _check_alone(self, bugs: Sequence[Bug], findings: Findings) -> dict[str, RunResult]:
        """Plant each bug by itself; return the runs under the first seed, by its id."""
        kata, whole = findings.kata, self._whole

        def run(runner: Runner, job: tuple[Bug, int]) -> RunResult:
            return run_alone(runner, kata, *job, whole=whole)

        first = {}
        caught = dict.fromkeys((bug.id for bug in bugs), True)
        jobs = [(bug, seed) for bug in bugs for seed in range(self._seeds(kata))]
        for (bug, seed), result in self._map(run, jobs, findings):
            if seed == 0:
                first[bug.id] = result
            failing = caught_by(result)
            caught[bug.id] &= bool(failing)
            if not failing:
                findings.problems.append(
                    f"bug {bug.id} is not caught (--kata-seed {seed}): "
                    f"{result.verdict} {result.detail}"
                )
            passing = set(bug.killed_by) - failing
            if failing.intersection(bug.killed_by) and not whole:
                passing = set()  # the first to fail has ended the run
            for name in sorted(passing):
                findings.problems.append(
                    f"bug {bug.id} does not fail {name} of its killed_by (--kata-seed {seed}); "
                    f"it fails: {', '.join(sorted(failing)) or 'nothing'}"
                )
        findings.proof.alone = Tally(len(caught), sum(caught.values()))
        return first

    def _check_symptoms(
        self, bugs: Sequence[Bug], alone: Mapping[str, RunResult], findings: Findings
    ) -> None:
        """See that a system's symptoms hold for healthy runs, and that each bug shows outside."""
        kata, shown = findings.kata, symptoms.symptoms(findings.kata)

        def run(runner: Runner, seed: int) -> RunResult:
            return symptoms.run_raised(runner, kata, seed)

        for seed, result in self._map(run, self._healthy_seeds(), findings):
            if result.verdict is not Verdict.PASSED:
                what = f"with each seed of run() raised by {seed}, the reference"
                findings.problems.append(refusal(result, seed, what))
        band = read_band(kata.healthy_file)
        if band is None:
            return  # that it is missing is said elsewhere
        hidden = [bug for bug in bugs if not caught_by(alone[bug.id]) & shown]

        def shows(runner: Runner, bug: Bug) -> bool:
            return symptoms.shows_in_log(runner, kata, bug, band)

        for bug, seen in zip(hidden, self._pool.map(shows, hidden), strict=True):
            if not seen:
                findings.problems.append(
                    f"bug {bug.id} shows nowhere outside: no symptom fails, and no number of its "
                    "log leaves the band of healthy runs"
                )

    def _check_reviews(self, findings: Findings) -> None:
        """See that requests to review say what is true."""
        kata = findings.kata

        def run(runner: Runner, claim: reviews.Claim) -> RunResult:
            return claim.run(runner, kata)

        for claim, result in self._map(run, self._claims(kata), findings):
            if problem := claim.problem(result):
                findings.problems.append(problem)

    def _check_sets(
        self, sets: Sequence[tuple[Bug, ...]], findings: Findings
    ) -> tuple[Tally, list[tuple[tuple[Bug, ...], RunResult]]]:
        """Plant each set of bugs, and see that none of them keeps another's tests from failing.

        Return also the sets that were caught, with their runs.
        """
        kata, whole = findings.kata, self._whole

        def run(runner: Runner, chosen: tuple[Bug, ...]) -> RunResult:
            planted = Planted(tuple(bug.id for bug in chosen))
            names = _asked(kata, chosen)
            return runner.run(kata, planted, seed=0, only=names, first_failure=not whole)

        tally = Tally(planted=len(sets))
        seen = []
        for chosen, result in self._map(run, sets, findings):
            failing = caught_by(result)
            together = " + ".join(bug.id for bug in chosen)
            tally.caught += bool(failing)
            if not failing:
                findings.problems.append(
                    f"{together}: not caught: {result.verdict} {result.detail}"
                )
            elif whole:
                findings.problems += _masked(chosen, failing, _asked(kata, chosen))
            if failing:
                seen.append((chosen, result))
        return tally, seen

    def _misleading(
        self,
        together: Sequence[tuple[tuple[Bug, ...], RunResult]],
        alone: Mapping[str, RunResult],
        findings: Findings,
    ) -> Iterator[str]:
        """Yield what is wrong with pairs that behave like one bug alone, seen in all tests."""
        kata = findings.kata

        def run(runner: Runner, chosen: tuple[Bug, ...]) -> RunResult:
            return runner.run(kata, Planted(tuple(bug.id for bug in chosen)), seed=0)

        doubtful = []
        for chosen, result in together:
            names = _asked(kata, chosen)
            if likeness.alike(result, alone, names):
                doubtful.append(chosen)
        for chosen, result in self._map(run, doubtful, findings):
            if like := likeness.alike(result, alone):
                yield likeness.problem(chosen, like)


def run_alone(runner: Runner, kata: Kata, bug: Bug, seed: int, *, whole: bool) -> RunResult:
    """Run the tests against one bug: all if `whole`, or if none of its `killed_by` fails."""
    planted = Planted((bug.id,))
    if not whole:
        result = runner.run(kata, planted, seed, only=_asked(kata, [bug]), first_failure=True)
        if caught_by(result):
            return result
    return runner.run(kata, planted, seed)


def caught_by(result: RunResult) -> set[str]:
    """Return the tests that failed by an assertion or an exception of their own call.

    A run that broke or crashed catches nothing, and neither does a time-out.
    """
    if result.verdict is not Verdict.FAILED:
        return set()
    return {test.function for test in result.tests if test.outcome is Outcome.FAILED}


def _asked(kata: Kata, chosen: Sequence[Bug]) -> set[str]:
    """Return the tests that a set of bugs has to fail: of a system, its checks.

    A symptom takes a second, and what is wrong in the whole may hide another symptom.
    """
    names = {name for bug in chosen for name in bug.killed_by}
    checks = names - symptoms.symptoms(kata) if kata.is_system else names
    return checks or names


def _masked(chosen: Sequence[Bug], failing: set[str], asked: set[str]) -> Iterator[str]:
    # A test of a bug's killed_by is about that bug, whatever else is planted.
    together = " + ".join(bug.id for bug in chosen)
    for bug in chosen:
        for name in sorted(asked.intersection(bug.killed_by) - failing):
            yield (
                f"{together}: {name} passes although {bug.id} is planted; "
                f"it cannot stand in that bug's killed_by"
            )


def _takes_seconds(kata: Kata) -> bool:
    return kata.is_system or kata.needs_triton
