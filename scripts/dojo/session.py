"""A timed practice session, without a screen: which kata, which bugs, the clock, the debrief."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dojo import play
from dojo.catalogue import LEVELS, Bug, Kata
from dojo.history import History
from dojo.play import Judgement, Player
from dojo.results import RunResult


@dataclass(frozen=True)
class Debrief:
    """How a kata went."""

    planted: tuple[Bug, ...]
    gone: tuple[str, ...]
    solved: bool
    diff: str
    seconds: float
    runs: int
    hints: int


class Session:
    """One kata against the clock."""

    def __init__(
        self,
        player: Player,
        minutes: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock; the bugs are planted already."""
        self._player = player
        self._clock = clock
        self._started = clock()
        self._deadline = self._started + 60 * minutes
        self._judgement = Judgement(player.planted(), (), solved=False)

    def remaining(self) -> float:
        """Return the seconds left; negative once time is up."""
        return self._deadline - self._clock()

    def judge(self, result: RunResult) -> Judgement:
        """Record a run, and say what it proves."""
        self._judgement = self._player.record(result)
        return self._judgement

    def debrief(self) -> Debrief:
        """End the session: the answer may be shown from here on, so a reveal is recorded."""
        attempt = self._player.attempt()
        if not self._judgement.solved:
            self._player.history.reveal(attempt.id)
        return Debrief(
            self._judgement.planted,
            self._judgement.gone,
            self._judgement.solved,
            self._player.diff_from_planted(),
            self._clock() - self._started,
            self._player.history.runs(attempt.id),
            len(self._player.history.hints(attempt.id)),
        )


def choose_kata(katas: Sequence[Kata], history: History, rng: random.Random) -> Kata:
    """Draw a kata of the easiest level in which some is unsolved; any, once all are solved."""
    solved = history.solved_katas()
    unsolved = [kata for kata in katas if kata.name not in solved]
    levels = list(LEVELS)
    easiest = min((levels.index(kata.level) for kata in unsolved), default=None)
    return rng.choice(
        [kata for kata in unsolved if levels.index(kata.level) == easiest] or list(katas)
    )


def choose_bugs(kata: Kata, history: History, rng: random.Random) -> tuple[str, ...]:
    """Return the default bugs at the first attempt, and later a set other than the last."""
    attempts = history.attempts(kata.name)
    if not attempts:
        return kata.default
    for _ in range(20):
        bug_ids = play.draw_bugs(kata, len(kata.default), rng.randrange(2**31))
        if set(bug_ids) != set(attempts[-1].planted):
            return bug_ids
    return bug_ids
