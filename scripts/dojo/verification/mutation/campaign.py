"""Judges the mutants of many katas in one go, and chooses fresh bugs among them."""

from collections.abc import Iterator, Sequence

from dojo.kata.kata import Kata
from dojo.kata.survivors import read_survivors
from dojo.project import Project
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Reference
from dojo.testrun.results import RunResult, Verdict
from dojo.verification.findings import refusal
from dojo.verification.mutation import selection
from dojo.verification.mutation.excuses import problems
from dojo.verification.mutation.judging import (
    FIRST_SEED,
    SECOND_SEED,
    Job,
    Judged,
    all_mutants,
    judge_each,
    sample,
)
from dojo.verification.mutation.result_store import Trials, trials_of
from dojo.verification.mutation.score import Score


class MutationRun:
    """The scores of some katas, which grow as their mutants are judged."""

    def __init__(self, project: Project, katas: Sequence[Kata], sample_size: int | None) -> None:
        """Open the kept trials; a sample is judged anew, since it is to prove something today."""
        self.scores = {kata.name: Score(kata) for kata in katas}
        self._sample_size = sample_size
        self._trials: dict[str, Trials] = {}
        if sample_size is None:
            self._trials = {kata.name: trials_of(project, kata) for kata in katas}

    def judge(self, pool: Pool) -> Iterator[Score]:
        """Judge every mutant; yield its kata's score after each.

        First the reference: where it fails, every mutant would seem to be caught.
        """

        def run(runner: Runner, score: Score) -> RunResult:
            return runner.run(score.kata, Reference(), FIRST_SEED)

        scores = list(self.scores.values())
        for score, result in zip(scores, pool.map(run, scores), strict=True):
            if result.verdict is not Verdict.PASSED:
                score.problems.append(refusal(result, FIRST_SEED))
        for judged in judge_each(self._jobs(), pool):
            score = self.scores[judged.kata.name]
            score.judged.append(judged)
            yield score

    def record(self, pool: Pool) -> Iterator[Kata]:
        """Write the katas' fresh bugs after whole runs of each; yield the kata after each run."""
        for score in self.scores.values():
            if score.problems:
                continue
            tried = []
            for one in self._again(selection.hopeful(score.kata, score.judged), FIRST_SEED, pool):
                tried.append(one)
                yield score.kata
            chosen = selection.candidates(tried)
            second = []
            for one in self._again(chosen, SECOND_SEED, pool):
                second.append(one.trial)
                yield score.kata
            selection.record(score.kata, list(zip(chosen, second, strict=True)))

    def _again(self, judged: Sequence[Judged], seed: int, pool: Pool) -> Iterator[Judged]:
        """Run all tests against mutants that were judged by the first failure."""
        jobs = (
            Job(one.kata, one.mutant, seed, self._trials.get(one.kata.name), whole=True)
            for one in judged
        )
        return judge_each(jobs, pool)

    def _jobs(self) -> Iterator[Job]:
        for name, score in self.scores.items():
            kata, size = score.kata, self._sample_size
            if score.problems:
                continue
            found = all_mutants(kata) if size is None else sample(kata, _fair(kata, size))
            score.total = len(found)
            if size is None:
                score.problems += problems(kata, read_survivors(kata), found)
            trials = self._trials.get(name)
            yield from (Job(kata, mutant, FIRST_SEED, trials) for mutant in found)


def _fair(kata: Kata, size: int) -> int:
    # An interpreted kernel takes about four times as long as torch's own.
    return -(-size // 4) if kata.needs_triton else size
