"""Whether a kata's tests catch the mutants of its reference."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from dojo.kata.kata import Kata
from dojo.kata.survivors import Survivor, read_survivors
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Text
from dojo.testrun.limits import Limits
from dojo.testrun.results import Verdict
from dojo.verification.mutation.mutants import Mutant, mutants
from dojo.verification.mutation.result_store import MutantOutcome, Trial, Trials

# A mutant may loop for ever, so it gets little time; a reference's test takes milliseconds, and a
# system's run seconds on a busy machine.
LIMITS = Limits(test_seconds=8.0, run_seconds=40.0)
FIRST_SEED, SECOND_SEED = 0, 1


@dataclass(frozen=True)
class Job:
    """A mutant to judge, under a seed; where trials are kept, a known one is not run again.

    The first failure tells that it is caught; `whole` runs all tests, to tell how.
    """

    kata: Kata
    mutant: Mutant
    seed: int = FIRST_SEED
    trials: Trials | None = None
    whole: bool = False


@dataclass(frozen=True)
class Judged:
    """A mutant and what became of it."""

    kata: Kata
    mutant: Mutant
    trial: Trial
    survivor: Survivor | None = None  # its entry in `mutants.toml`, if it has one

    @property
    def outcome(self) -> MutantOutcome:
        """Return what became of the mutant."""
        if self.trial.outcome is MutantOutcome.SURVIVED and self.survivor:
            return MutantOutcome(self.survivor.kind)
        return self.trial.outcome


def all_mutants(kata: Kata) -> list[Mutant]:
    """Return every mutant of the kata's reference."""
    return list(mutants(kata.correct_source))


def sample(kata: Kata, count: int) -> list[Mutant]:
    """Draw mutants of the kata's reference; always the same ones."""
    return list(islice(mutants(kata.correct_source, random.Random(kata.name)), count))


def judge(kata: Kata, pool: Pool) -> Iterator[Judged]:
    """Run the kata's tests against every mutant of its reference."""
    return judge_each((Job(kata, mutant) for mutant in mutants(kata.correct_source)), pool)


def judge_each(jobs: Iterable[Job], pool: Pool) -> Iterator[Judged]:
    """Judge mutants, of any katas, in order; each trial is kept as soon as it ends."""
    entries: dict[str, tuple[Survivor, ...]] = {}  # by kata

    def work(runner: Runner, job: Job) -> Judged | None:
        trial = _trial(runner, job)
        if trial is None:
            return None
        if job.kata.name not in entries:
            entries[job.kata.name] = read_survivors(job.kata)
        listed = entries[job.kata.name]
        survivor = next((entry for entry in listed if entry.excuses(job.mutant)), None)
        return Judged(job.kata, job.mutant, trial, survivor)

    for judged in pool.map(work, jobs):
        if judged:
            yield judged


def _trial(runner: Runner, job: Job) -> Trial | None:
    known = job.trials and job.trials.get(job.mutant.key, job.seed, job.whole)
    if known:
        return known
    text = Text(job.mutant.source)
    result = runner.run(job.kata, text, job.seed, first_failure=not job.whole)
    if result.verdict is Verdict.CANCELLED:  # whoever asked has gone
        return None
    trial = Trial.of(job.mutant.key, job.seed, job.whole, result)
    if job.trials:
        job.trials.add(trial)
    return trial
