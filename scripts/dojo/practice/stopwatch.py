"""Counts a learner's seconds: none of a pause, of a run of the tests, or of a machine asleep."""

import time
from collections.abc import Callable

# A longer time between two looks at the clock means that the program did not run: the machine
# slept, or the program was stopped. On some systems the monotonic clock goes on meanwhile.
LONGEST_STEP = 5.0


class Clock:
    """Seconds that count, from `spent` on; someone must look at it every few seconds."""

    def __init__(self, spent: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        """Start at once."""
        self._spent = spent
        self._now = now
        self._seen = now()
        self._holds: set[str] = set()

    def spent(self) -> float:
        """Return the seconds that count until now."""
        moment = self._now()
        if not self._holds:
            self._spent += min(moment - self._seen, LONGEST_STEP)
        self._seen = moment
        return self._spent

    def hold(self, reason: str) -> None:
        """Stand still for this reason, until it is released."""
        self.spent()
        self._holds.add(reason)

    def release(self, reason: str) -> None:
        """Go on, unless there is another reason to stand still."""
        self.spent()
        self._holds.discard(reason)

    def held(self, reason: str) -> bool:
        """Say whether it stands still for this reason."""
        return reason in self._holds
