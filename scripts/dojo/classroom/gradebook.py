"""Grades a class: each submission in its turn, wherever the work is done."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dojo.classroom.grading import Grade, compared, grade, ungraded
from dojo.classroom.journal import Journal, measure_of
from dojo.classroom.sandbox import sandboxed_pool
from dojo.classroom.submissions import Submission
from dojo.kata.kata import Kata
from dojo.kata.kata_toml import load
from dojo.project import Project
from dojo.runner.pool import Pool
from dojo.runner.runner import Runner


@dataclass(frozen=True)
class Job:
    """A submission to grade, with all that it takes, so that it can be sent elsewhere."""

    number: int
    submission: Submission
    planted: tuple[str, ...]
    seed: int


Done = Callable[[Job, Grade], None]  # told of each grade as it is there, from any thread
Run = Callable[[Sequence[Job], Done], None]
Warn = Callable[[str], None]  # told of what does not keep submissions in


def grade_class(
    submissions: Sequence[Submission],
    planted: Mapping[Kata, tuple[str, ...]],
    run: Run,
    *,
    journal: Journal | None = None,
    graded: Callable[[], None] = lambda: None,
) -> list[Grade]:
    """Return the grade of each submission, in order; `graded` is called as each is there.

    All are tested on the same random data. What the journal knows is not run again.
    """
    katas = {kata.name: kata for kata in planted}
    measures = {kata.name: measure_of(kata, bugs) for kata, bugs in planted.items()}
    seed = journal.seed if journal else None
    seed = secrets.randbelow(2**31) if seed is None else seed
    grades: dict[int, Grade] = {}
    waiting = []
    for number, one in enumerate(submissions):
        known = ungraded(one) if one.problem else None
        if known is None and journal:
            known = journal.known(measures[one.kata], one.learner, one.kata, one.text)
        if known is None:
            waiting.append(Job(number, one, planted[katas[one.kata]], seed))
        else:
            grades[number] = known
            graded()

    def done(job: Job, made: Grade) -> None:
        grades[job.number] = made
        if journal:
            journal.add(measures[made.kata], job.seed, made)
        graded()

    if waiting:
        run(waiting, done)
    in_order = [grades[number] for number in sorted(grades)]
    return compared(in_order, submissions, katas, {kata.name: planted[kata] for kata in planted})


def on_this_machine(project: Project, size: int, warn: Warn) -> Run:
    """Return what does so many jobs at a time here."""

    def run(jobs: Sequence[Job], done: Done) -> None:
        work = judge(project)

        def tell(runner: Runner, job: Job) -> None:
            if (made := work(runner, job)) is not None:
                done(job, made)

        with judges(project, min(size, len(jobs)), warn) as pool:
            for _ in pool.map(tell, jobs):
                pass

    return run


def judge(project: Project) -> Callable[[Runner, Job], Grade | None]:
    """Return what grades a submission by a runner; nothing comes of one that is cancelled."""

    def work(runner: Runner, job: Job) -> Grade | None:
        kata = load(project.katas / job.submission.kata)
        return grade(job.submission, kata, job.planted, runner, job.seed)

    return work


@contextmanager
def judges(project: Project, size: int, warn: Warn) -> Iterator[Pool]:
    """Start what runs submissions, here or on a cluster's machine: the one place that does."""
    with sandboxed_pool(project, size=size) as pool:
        if pool.walls.warning:
            warn(pool.walls.warning)
        yield pool
