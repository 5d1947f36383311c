"""An assignment: which bugs are planted in the katas that a class is given.

What is handed out and what comes back is graded by the same one. It cannot be told from a text
that came back: whoever mended everything left no trace of what was planted.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from dojo.errors import DojoError
from dojo.kata.drawing import draw_bugs
from dojo.kata.kata import Kata


@dataclass(frozen=True)
class Assignment:
    """Bugs by name, or drawn by a seed; the default ones where neither is given."""

    bugs: tuple[str, ...] = ()
    count: int | None = None
    seed: int | None = None

    @classmethod
    def of(cls, bugs: str | None, count: int | None, seed: int | None) -> "Assignment":
        """Return the assignment that options name; what is drawn without a seed is given one."""
        if bugs is not None and (count is not None or seed is not None):
            raise DojoError("--bugs names the bugs; --count and --seed draw them: give one kind")
        if count is not None and seed is None:
            seed = secrets.randbelow(10_000)
        named = (bug_id.strip() for bug_id in bugs.split(",")) if bugs is not None else ()
        return cls(tuple(dict.fromkeys(named)), count, seed)

    @property
    def arguments(self) -> list[str]:
        """Return the options that name it, as they are typed."""
        if self.bugs:
            return ["--bugs", ",".join(self.bugs)]
        given = (("--count", self.count), ("--seed", self.seed))
        return [text for name, value in given if value is not None for text in (name, str(value))]

    def planted(self, katas: Sequence[Kata]) -> dict[str, tuple[str, ...]]:
        """Return the ids of the bugs planted in each kata, by its name; raise where one has none.

        A bug that is named is planted in whichever of the katas has it.
        """
        if not self.bugs:
            return {kata.name: self._drawn(kata) for kata in katas}
        owned = {kata.name: _owned(kata, self.bugs) for kata in katas}
        known = {bug_id for ids in owned.values() for bug_id in ids}
        for kata in katas:
            for bug_id in self.bugs:
                if bug_id not in known or not owned[kata.name]:
                    kata.bug(bug_id)  # raises, naming the nearest
        return owned

    def _drawn(self, kata: Kata) -> tuple[str, ...]:
        if self.seed is None:
            return kata.default
        count = len(kata.default) if self.count is None else self.count
        return draw_bugs(kata, count, self.seed)


def _owned(kata: Kata, bug_ids: Sequence[str]) -> tuple[str, ...]:
    ids = {bug.id for bug in (*kata.bugs, *kata.fresh)}
    return tuple(bug_id for bug_id in bug_ids if bug_id in ids)
