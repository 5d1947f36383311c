"""Requests one after another, each judged and recorded; nobody is told before what is wrong."""

import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dojo.history.history import History
from dojo.history.reviews import Reviewed
from dojo.history.scoring import Score, score
from dojo.practice.review.changes import Change
from dojo.practice.review.pull_request import PullRequest

COUNT = 5  # requests, unless a time is given


@dataclass(frozen=True)
class Judged:
    """A request, and which of its changes were marked as wrong."""

    request: PullRequest
    reviewed: tuple[Reviewed, ...]  # a row a change, in order

    @property
    def changes(self) -> list[tuple[Change, Reviewed]]:
        """Return each change with what was said of it."""
        return list(zip(self.request.changes, self.reviewed, strict=True))


class Desk:
    """Hands out requests, and takes what a learner says of them."""

    def __init__(
        self,
        requests: Iterator[PullRequest],
        history: History,
        *,
        count: int | None = COUNT,
        seconds: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hand out so many requests, and none that is asked for after so many seconds."""
        self.count = count
        self.judged: list[Judged] = []
        self._requests = requests
        self._history = history
        self._seconds = seconds
        self._now = now
        self._began = now()
        self._given = 0
        self._shown_at = 0.0
        # The next one is drawn while this one is read, so that nobody waits for it.
        self._pool = ThreadPoolExecutor(1)
        self._coming: Future[PullRequest] | None = None

    @property
    def number(self) -> int:
        """Return which request is on the desk, from 1."""
        return self._given

    @property
    def has_more(self) -> bool:
        """Say whether another request would be handed out now."""
        in_time = self._seconds is None or self._now() - self._began < self._seconds
        return in_time and (self.count is None or self._given < self.count)

    @property
    def done(self) -> bool:
        """Say whether all that was handed out is judged, and no more would be."""
        return self._given == len(self.judged) and not self.has_more

    @property
    def score(self) -> Score:
        """Return what came of all changes that were judged."""
        return score(one for judged in self.judged for one in judged.reviewed)

    def next(self) -> PullRequest | None:
        """Return the next request; None once there were enough, or the time is over."""
        if not self.has_more:
            return None
        coming = self._coming or self._pool.submit(next, self._requests)
        request: PullRequest = coming.result()
        self._given += 1
        wants_more = self.count is None or self._given < self.count
        self._coming = self._pool.submit(next, self._requests) if wants_more else None
        self._shown_at = self._now()
        return request

    def judge(self, request: PullRequest, marks: Collection[int]) -> Judged:
        """Record what the learner marked, as places among the request's lines; none approves."""
        seconds = self._now() - self._shown_at
        marked = {request.lines[place].change for place in marks}
        reviewed = tuple(
            Reviewed(
                request.kata.name,
                change.effect,
                change.bug.id if change.bug else "",
                change.kind,
                number in marked,
            )
            for number, change in enumerate(request.changes)
        )
        self._history.reviews.add(reviewed, seconds)
        judged = Judged(request, reviewed)
        self.judged.append(judged)
        return judged

    def close(self) -> None:
        """Draw no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
