"""Runs requests on a Dask cluster, whose workers see this checkout at the same path."""

import contextlib
import queue
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

from dojo.errors import DojoError
from dojo.project import Project
from dojo.runner.pool import Pool
from dojo.runner.protocol import Answer, LogRequest, Request, Stopped
from dojo.runner.runner import Runner
from dojo.runner.transport import Hear, Tell, Warm
from dojo.testrun.limits import Limits

try:
    from distributed import CancelledError, Client, KilledWorker, Worker, WorkerPlugin, get_worker
except ImportError:
    raise DojoError("--cluster needs Dask: .venv/bin/pip install -e '.[cluster]'") from None

_NAME = "kata-runners"
_SECONDS = 10  # to reach the scheduler
_KILLED = -9


@contextlib.contextmanager
def dask_client(address: str) -> Iterator[Any]:
    """Connect to a Dask scheduler for the length of the block."""
    try:
        client = Client(address, timeout=_SECONDS)
    except (OSError, ValueError) as error:
        raise DojoError(f"no Dask scheduler answers at {address}: {error}") from None
    with client:
        yield client


@contextlib.contextmanager
def cluster_pool(project: Project, address: str, limits: Limits) -> Iterator[Pool]:
    """Yield a pool of as many runners as the cluster has threads."""
    with dask_client(address) as client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise DojoError(f"the Dask scheduler at {address} has no workers")
        client.register_plugin(_Processes(project))
        runners = [
            Runner(project, limits, processes=1, transport=lambda: _Remote(project, client))
            for _ in range(threads)
        ]
        try:
            yield Pool(runners)
        finally:
            for runner in runners:
                runner.close()
            client.unregister_worker_plugin(_NAME)


class _Processes(WorkerPlugin):
    """Holds the warm processes of one worker: one for each of its threads."""

    name = _NAME

    def __init__(self, project: Project) -> None:
        self._project = project

    def setup(self, worker: Worker) -> None:
        """Start the processes, on a worker that has joined."""
        self._all = [Warm(self._project) for _ in range(worker.state.nthreads)]
        self._free: queue.SimpleQueue[Warm] = queue.SimpleQueue()
        for process in self._all:
            self._free.put(process)

    def teardown(self, worker: Worker) -> None:
        """End them."""
        for process in self._all:
            process.close()

    def ask(self, request: Request) -> Answer:
        """Run a request by a process that is free."""
        process = self._free.get()
        try:
            return process.ask(request, lambda _: None)
        finally:
            self._free.put(process)


class _Remote:
    """Asks the cluster; each request is done once, also where a worker is lost."""

    def __init__(self, project: Project, client: Any) -> None:
        """Make a folder for temporary files where the workers see it: in the checkout."""
        self._client = client
        self.scratch = project.state / "cluster" / uuid.uuid4().hex
        self.scratch.mkdir(parents=True)
        self._future: Any = None

    def ask(self, request: Request, tell_failure: Tell) -> Answer:
        """Run the request and return what came of it; no failure is told before."""
        key = f"{_NAME}-{uuid.uuid4().hex}"  # no result of another request is taken for its own
        self._future = self._client.submit(_asked, request, key=key, pure=False)
        try:
            answer: Answer = self._future.result()
        except CancelledError:
            return Answer(Stopped.CANCELLED, None, 0.0, ((),))
        except KilledWorker:  # one worker after the other was lost to it
            return Answer(None, _KILLED, 0.0, ((),))
        return answer

    def follow(self, request: LogRequest, hear: Hear) -> Answer:
        """Refuse: a log is for whoever sits in front of it."""
        raise DojoError("a system does not run for its log on a cluster")

    def cancel(self) -> None:
        """End the request under way, if there is one."""
        if self._future is not None:
            self._future.cancel()

    def close(self) -> None:
        """Remove the temporary files."""
        self.cancel()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _asked(request: Request) -> Answer:
    plugin = get_worker().plugins[_NAME]
    assert isinstance(plugin, _Processes)
    return plugin.ask(request)
