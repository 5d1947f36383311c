"""Grades a class on a Dask cluster, whose workers see this checkout at the same path."""

import contextlib
import logging
import uuid
from collections.abc import Sequence
from typing import Any

from dojo.classroom.gradebook import Done, Job, Run, judge, judges
from dojo.classroom.grading import Grade, ended_runner
from dojo.project import Project
from dojo.runner.cluster import dask_client  # first: it says what to do where there is no Dask

# isort: split
from distributed import Worker, WorkerPlugin, as_completed, get_worker

_NAME = "kata-judges"
_log = logging.getLogger("distributed.worker")


class _Judges(WorkerPlugin):
    """Holds what runs submissions on one worker, as many at a time as it has threads."""

    name = _NAME

    def __init__(self, project: Project) -> None:
        self._project = project

    def setup(self, worker: Worker) -> None:
        """Start the processes, on a worker that has joined."""
        self._stack = contextlib.ExitStack()
        size = worker.state.nthreads
        self._pool = self._stack.enter_context(judges(self._project, size, _log.warning))

    def teardown(self, worker: Worker) -> None:
        """End them."""
        self._stack.close()

    def grade(self, job: Job) -> Grade | None:
        """Grade one submission."""
        (made,) = self._pool.map(judge(self._project), [job])
        return made


def on_cluster(project: Project, address: str) -> Run:
    """Return what has a cluster do jobs: each is done once, also where a worker is lost."""

    def run(jobs: Sequence[Job], done: Done) -> None:
        with dask_client(address) as client:
            client.register_plugin(_Judges(project))
            try:
                _gather(client, jobs, done)
            finally:
                client.unregister_worker_plugin(_NAME)

    return run


def _gather(client: Any, jobs: Sequence[Job], done: Done) -> None:
    call = uuid.uuid4().hex  # no result of an earlier call is taken for one of this
    futures = {
        client.submit(_graded, job, key=f"{_NAME}-{call}-{job.number}", pure=False): job
        for job in jobs
    }
    for future in as_completed(futures):
        job = futures[future]
        # Where there is no result, one worker after the other was lost to this submission.
        made = future.result() if future.status == "finished" else ended_runner(job.submission)
        if made is not None:
            done(job, made)


def _graded(job: Job) -> Grade | None:
    plugin = get_worker().plugins[_NAME]
    assert isinstance(plugin, _Judges)
    return plugin.grade(job)
