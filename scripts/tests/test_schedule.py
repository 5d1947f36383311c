from datetime import UTC, date, datetime, timedelta

import pytest

from dojo.history.sessions import Ending, Exercise
from dojo.practice.scheduler import due, grade

START = datetime(2026, 5, 1, 12, tzinfo=UTC)


def exercise(kata, grade, ended_at):
    ending = None if grade is None else Ending.SOLVED
    return Exercise(1, 1, kata, (), 600.0, 60.0, 1, ending, grade, ended_at)


@pytest.mark.parametrize(
    ("ending", "spent", "hints", "expected"),
    [
        (Ending.SOLVED, 300, 0, 4),
        (Ending.SOLVED, 301, 0, 3),
        (Ending.SOLVED, 300, 1, 2),
        (Ending.MISSED, 600, 0, 1),
        (Ending.REVEALED, 10, 0, 1),
        (Ending.SKIPPED, 10, 0, None),
    ],
)
def test_a_grade_comes_from_the_end_the_time_and_the_hints(ending, spent, hints, expected):
    assert grade(ending, spent, 600, hints) == expected


def test_the_better_it_went_the_later_it_comes_again():
    days = [due([exercise("a", grade, START)])["a"] - START for grade in (1, 2, 3, 4)]
    assert days == sorted(days)
    assert days[0] >= timedelta(days=1)  # nothing is drilled twice in ten minutes
    assert days[3] > days[2]


def test_intervals_grow_and_are_the_same_every_time():
    reviews = [exercise("a", 3, START)]
    first = due(reviews)["a"]
    reviews.append(exercise("a", 3, first))
    assert due(reviews)["a"] - first > first - START
    assert due(reviews) == due(reviews)


def test_a_kata_that_was_skipped_or_never_met_is_not_scheduled():
    assert due([exercise("a", None, START)]) == {}


def test_nothing_is_due_after_the_interview():
    day = date(2026, 5, 3)
    found = due([exercise("easy", 4, START), exercise("again", 1, START)], day)
    assert found["easy"] == datetime(2026, 5, 3, tzinfo=UTC)
    assert found["again"] < found["easy"]
