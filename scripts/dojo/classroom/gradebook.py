"""Grades a class: each submission in its turn, on as many cores as are asked for."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from dojo.classroom.grading import Grade, compared, grade, ungraded
from dojo.classroom.journal import Journal, measure_of
from dojo.classroom.submissions import Submission
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.pool import Pool, runner_pool
from dojo.runner.runner import Runner


def grade_class(
    project: Project,
    submissions: Sequence[Submission],
    planted: Mapping[Kata, tuple[str, ...]],
    *,
    jobs: int,
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
            waiting.append((number, one))
        else:
            grades[number] = known
            graded()

    def work(runner: Runner, job: tuple[int, Submission]) -> None:
        number, one = job
        kata = katas[one.kata]
        if (made := grade(one, kata, planted[kata], runner, seed)) is not None:
            grades[number] = made
            if journal:
                journal.add(measures[kata.name], seed, made)
            graded()

    if waiting:
        with _judges(project, min(jobs, len(waiting))) as pool:
            for _ in pool.map(work, waiting):
                pass
    done = [grades[number] for number in sorted(grades)]
    return compared(done, submissions, katas, {kata.name: planted[kata] for kata in planted})


@contextmanager
def _judges(project: Project, size: int) -> Iterator[Pool]:
    """Start what runs submissions."""
    with runner_pool(project, size=size) as pool:
        yield pool
