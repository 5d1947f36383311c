"""How a kata of a session went, worked out from what was recorded."""

from dataclasses import dataclass

from dojo.history.moves import MoveKind
from dojo.history.sessions import Ending, Exercise
from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.learner.player import Player, planting_of
from dojo.practice.retrospect import Retrospect, look_back

HINT_COSTS, PROBE_COSTS = 10, 5  # points of a hundred


@dataclass(frozen=True)
class Debrief:
    """How a kata went. Times are in seconds."""

    kata: Kata
    planted: tuple[Bug, ...]
    gone: tuple[str, ...]
    ending: Ending
    diff: str  # what the learner changed; empty if their text has been replaced since
    spent: float
    budget: float
    runs: int
    hints: int
    retrospect: Retrospect

    @property
    def probes(self) -> int:
        """Return how often the model was probed."""
        return sum(move.kind is MoveKind.PROBE for _, move in self.retrospect.moves())

    @property
    def score(self) -> int:
        """Return the points of a hundred: for bugs found, less what hints cost."""
        found = round(100 * len(self.gone) / max(1, len(self.planted)))
        return max(0, found - HINT_COSTS * self.hints - PROBE_COSTS * self.probes)


def debrief(player: Player, exercise: Exercise) -> Debrief | None:
    """Return how an exercise that ended went; None if it never began."""
    history = player.history
    attempt = history.attempt(exercise.attempt) if exercise.attempt is not None else None
    if attempt is None or exercise.ending is None:
        return None
    planting = planting_of(player.kata, attempt)
    solved = exercise.ending is Ending.SOLVED
    gone = attempt.planted if solved else history.last_count(attempt.id)
    is_there = player.workspace.attempt() == attempt.id
    return Debrief(
        player.kata,
        planting.bugs,
        gone,
        exercise.ending,
        player.diff_from_planted() if is_there and not planting.unknown else "",
        exercise.spent,
        exercise.budget,
        history.runs(attempt.id),
        len(history.hints(attempt.id)),
        look_back(history, attempt),
    )
