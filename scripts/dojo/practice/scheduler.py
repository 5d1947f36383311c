"""When a kata should come again: FSRS, made for flash cards, with settings that suit katas.

The cards are worked out anew from the exercises recorded, so there is no second state to keep true.
Source: https://github.com/open-spaced-repetition/free-spaced-repetition-scheduler
"""

from collections.abc import Iterable
from datetime import UTC, date, datetime, time

from fsrs import Card, Rating, Scheduler

from dojo.history.proofs import Proof
from dojo.history.sessions import Ending, Exercise

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
    cards: dict[str, Card] = {}
    reviews = [
        (item.ended_at, item.kata, Rating(item.grade))
        for item in exercises
        if item.ended_at and item.grade
    ]
    # Sorted, for what was imported stands after what it happened before.
    for ended_at, kata, rating in sorted(reviews):
        card = cards.get(kata) or Card()
        cards[kata], _ = _SCHEDULER.review_card(card, rating, ended_at)
    latest = datetime.max.replace(tzinfo=UTC)
    if interview_on is not None:
        latest = datetime.combine(interview_on, time(), UTC)
    return {kata: min(card.due, latest) for kata, card in cards.items()}
