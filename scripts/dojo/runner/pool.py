"""Runs many variants of katas at once: one warm runner a core."""

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.testrun.device import cores
from dojo.testrun.limits import Limits

Job = TypeVar("Job")
Result = TypeVar("Result")

# Jobs a core: enough that one slow job keeps no core idle.
_AHEAD = 16


class Pool:
    """A set of warm runners that share out jobs."""

    def __init__(self, runners: list[Runner]) -> None:
        """Take runners that are free."""
        self._runners = runners
        self._free: queue.SimpleQueue[Runner] = queue.SimpleQueue()
        for runner in runners:
            self._free.put(runner)
        self.size = len(runners)

    def map(self, work: Callable[[Runner, Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield `work(runner, job)` for each job, in order, as the results come.

        Jobs are drawn a little ahead of the results. An early end cancels the runs under way.
        """

        def with_runner(job: Job) -> Result:
            runner = self._free.get()
            try:
                return work(runner, job)
            finally:
                self._free.put(runner)

        with ThreadPoolExecutor(self.size) as threads:
            waiting: deque[Future[Result]] = deque()
            try:
                for job in jobs:
                    waiting.append(threads.submit(with_runner, job))
                    if len(waiting) > _AHEAD * self.size:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                if waiting:
                    threads.shutdown(wait=False, cancel_futures=True)
                    self.cancel()

    def cancel(self) -> None:
        """Stop the runs that are under way, from any thread; they return as cancelled."""
        for runner in self._runners:
            runner.cancel()


@contextmanager
def runner_pool(
    project: Project,
    limits: Limits | None = None,
    imports: Sequence[str] = (),
    size: int | None = None,
) -> Iterator[Pool]:
    """Start so many runners, or as many as there are cores, and end them afterwards.

    They import these modules beforehand, too.
    """
    runners = [
        Runner(project, limits, processes=1, imports=imports) for _ in range(size or cores())
    ]
    try:
        yield Pool(runners)
    finally:
        for runner in runners:
            runner.close()
