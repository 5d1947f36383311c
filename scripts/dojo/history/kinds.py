"""Which kinds of bug the learner finds: by hunting them, by proving them, by reading them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dojo.errors import DojoError
from dojo.history.history import History
from dojo.history.misses import found_bugs, planted_bugs
from dojo.history.proofs import Proof
from dojo.history.reviews import Effect, ReviewedRequest
from dojo.history.sessions import Ending, Exercise
from dojo.kata.bug import Kind
from dojo.kata.kata import Kata


@dataclass(frozen=True)
class Share:
    """How many bugs were found, of how many that were there."""

    found: int = 0
    met: int = 0

    def plus(self, found: bool) -> "Share":
        """Return the share with one bug more."""
        return Share(self.found + found, self.met + 1)


@dataclass(frozen=True)
class KindMet:
    """One kind of bug, and what became of the bugs of that kind."""

    kind: Kind
    hunted: Share
    proved: Share  # of the wrong versions, those that the learner's own tests caught
    reviewed: Share

    @property
    def missed(self) -> int:
        """Return how many were not found, in whatever way they were met."""
        shares = (self.hunted, self.proved, self.reviewed)
        return sum(share.met - share.found for share in shares)


def kinds_met(
    history: History, exercises: Iterable[Exercise], katas: Mapping[str, Kata]
) -> tuple[KindMet, ...]:
    """Return the kinds that were met, the most often missed first; what has gone has no kind."""
    hunted = _counted(_hunted(history, exercises), katas)
    proved = _counted(_proved(history.proofs.all()), katas)
    reviewed = _reviewed(history.reviews.all())
    met = [
        KindMet(
            kind,
            hunted.get(kind, Share()),
            proved.get(kind, Share()),
            reviewed.get(kind, Share()),
        )
        for kind in Kind
        if kind in {*hunted, *proved, *reviewed}
    ]
    return tuple(sorted(met, key=lambda one: -one.missed))


_Met = tuple[str, str, bool]  # a kata, a bug, and whether it was found


def _hunted(history: History, exercises: Iterable[Exercise]) -> Iterator[_Met]:
    for exercise in exercises:
        found = found_bugs(history, exercise)
        for bug in planted_bugs(history, exercise):
            yield exercise.kata, bug, bug in found


def _proved(proofs: Iterable[Proof]) -> Iterator[_Met]:
    for proof in proofs:
        if proof.ending not in (None, Ending.SKIPPED):
            for bug in proof.versions:
                yield proof.kata, bug, bug in proof.caught


def _reviewed(requests: Sequence[ReviewedRequest]) -> dict[Kind, Share]:
    shares: dict[Kind, Share] = {}
    for request in requests:
        for one in request.changes:
            if one.kind is not None and one.effect is Effect.BREAKS:
                shares[one.kind] = shares.get(one.kind, Share()).plus(one.marked)
    return shares


def _counted(met: Iterable[_Met], katas: Mapping[str, Kata]) -> dict[Kind, Share]:
    shares: dict[Kind, Share] = {}
    for kata, bug_id, found in met:
        try:
            kind = katas[kata].bug(bug_id).kind
        except (KeyError, DojoError):
            continue
        shares[kind] = shares.get(kind, Share()).plus(found)
    return shares
