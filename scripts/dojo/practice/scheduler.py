"""When a kata, or a kind of bug, should come again: FSRS, made for flash cards, with settings that
suit them.

The cards are worked out anew from what was recorded, so there is no second state to keep true.
Source: https://github.com/open-spaced-repetition/free-spaced-repetition-scheduler
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from typing import TypeVar

from fsrs import Card, Rating, Scheduler

from dojo.history.proofs import Proof
from dojo.history.reviews import ReviewedRequest
from dojo.history.sessions import Ending, Exercise
from dojo.kata.bug import Kind

_Name = TypeVar("_Name", bound=str)

# A kata is not drilled twice in ten minutes, and a day more or less needs no dice.
_SCHEDULER = Scheduler(learning_steps=(), relearning_steps=(), enable_fuzzing=False)


def grade(ending: Ending, spent: float, budget: float, hints: int) -> int | None:
    """Return FSRS's grade of an exercise, 1 (again) to 4 (easy); None for one that was skipped."""
    if ending is Ending.SKIPPED:
        return None
    if ending is not Ending.SOLVED:
        return int(Rating.Again)
    if hints:
        return int(Rating.Hard)
    return int(Rating.Easy if spent <= budget / 2 else Rating.Good)


def due(
    exercises: Iterable[Exercise | Proof], interview_on: date | None = None
) -> dict[str, datetime]:
    """Return when each graded kata is due, in UTC; no later than on the interview's day."""
    reviews = [
        (item.ended_at, item.kata, Rating(item.grade))
        for item in exercises
        if item.ended_at and item.grade
    ]
    cards = _cards(reviews)
    latest = datetime.max.replace(tzinfo=UTC)
    if interview_on is not None:
        latest = datetime.combine(interview_on, time(), UTC)
    return {kata: min(card.due, latest) for kata, card in cards.items()}


def due_kinds(requests: Iterable[ReviewedRequest]) -> dict[Kind, datetime]:
    """Return when each kind of bug that was met in reviews is due, in UTC.

    One that was missed, or held against a request that mends it, was not known.
    """
    reviews = [
        (request.at, one.kind, Rating.Good if one.right else Rating.Again)
        for request in requests
        for one in request.changes
        if one.kind is not None
    ]
    return {kind: card.due for kind, card in _cards(reviews).items()}


def _cards(reviews: Iterable[tuple[datetime, _Name, Rating]]) -> dict[_Name, Card]:
    cards: dict[_Name, Card] = {}
    # Sorted, for what was imported stands after what it happened before.
    for at, name, rating in sorted(reviews):
        card = cards.get(name) or Card()
        cards[name], _ = _SCHEDULER.review_card(card, rating, at)
    return cards
