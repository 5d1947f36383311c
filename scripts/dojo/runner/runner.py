"""Runs a kata's tests: warm, isolated, with a verdict whatever the code under test does."""

import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from dojo.errors import CatalogueError, DojoError
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.log import Event, LogReader, RunLog
from dojo.runner.protocol import Account, Answer, LogRequest, Request, Stopped, ended
from dojo.runner.transport import Cold, Tell, Transport, Warm
from dojo.testrun.device import cores
from dojo.testrun.implementation import (
    Implementation,
    Learner,
    Planted,
    Solution,
    Text,
    parse,
    write_variant,
)
from dojo.testrun.limits import OUTPUT_BYTES, Limits
from dojo.testrun.originals import Originals, files_of_kata, files_of_project
from dojo.testrun.results import Outcome, RunResult, TestResult, Verdict

_DAMAGED = (
    "the run's results were damaged: does the code use file descriptors, or end processes, that "
    "are not its own?"
)
_ENDLESS = ": an endless loop in C code, or a recursion without end?"
_MOST_PROCESSES = 4  # more would load a kata's file more often than they save time


class Runner:
    """Runs tests in processes of their own. One run at a time; `cancel` from any thread."""

    def __init__(
        self,
        project: Project,
        limits: Limits | None = None,
        warm: bool = hasattr(os, "fork"),
        processes: int | None = None,
        imports: Sequence[str] = (),
        transport: Callable[[], Transport] | None = None,
    ) -> None:
        """Start the warm process; it gets ready while the caller goes on, with these modules too.

        Not `warm`, for where there is no fork: a fresh process for every run, the same results.
        As many `processes` as there are cores, or a few, share out the tests of a run, unless a
        number is given. `transport` opens another way to run requests.
        """
        self._project = project
        self._limits = limits or Limits.from_environment()
        self._processes = (processes or min(cores(), _MOST_PROCESSES)) if warm else 1
        self._lock = threading.Lock()
        self._transport: Transport
        if transport is not None:
            self._transport = transport()
        else:
            self._transport = Warm(project, imports) if warm else Cold(project)
        self._judging = files_of_project(project.root)
        self._originals = Originals(project.changed)
        self._originals.read(self._judging)  # while the process gets ready

    def __enter__(self) -> "Runner":
        """Return the runner itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes."""
        self.close()

    def run(
        self,
        kata: Kata,
        implementation: Implementation = Learner(),  # noqa: B008  # it has no state
        seed: int | None = None,
        *,
        first_failure: bool = False,
        only: Collection[str] = (),
        first: Collection[str] = (),
        tell_failure: Tell | None = None,
        tests: Path | None = None,
    ) -> RunResult:
        """Run the kata's tests against an implementation: all, or until the first failure.

        `tests` is a file in the kata's folder that takes the place of its own. `only` names test
        functions: no others run. Those in `first` run before the others. The first failure is told
        at once, before the run has ended.
        """
        tests = tests or kata.tests
        if not tests.exists():
            raise CatalogueError(f"{tests} is missing")
        with self._lock, self._in_a_file(kata, implementation) as impl:
            request = replace(
                self._request(kata, impl, tests),
                seed=secrets.randbelow(2**31) if seed is None else seed,
                only=tuple(sorted(only)),
                first=tuple(sorted(first)),
                until_failure=first_failure,
                wants_failure=tell_failure is not None,
                # Until the first failure is for whoever has a runner on every core.
                processes=1 if first_failure else self._processes,
            )
            # Others are the project's own code, and its author may edit a test meanwhile.
            is_learners = isinstance(implementation, Learner)
            if is_learners:
                self._originals.read([*self._judging, *files_of_kata(kata.folder, kata.tests)])
            answer = self._transport.ask(request, tell_failure or _tell_nobody)
            changed = self._originals.put_back() if is_learners else []
        result = _result(answer, self._limits, request.seed)
        if changed:
            return replace(result, verdict=Verdict.DAMAGED, detail=self._originals.told(changed))
        return result

    def log(
        self,
        kata: Kata,
        implementation: Implementation = Learner(),  # noqa: B008  # it has no state
        seed: int = 0,
        steps: int | None = None,
        *,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> RunLog:
        """Run a system and return its log; tell each step, and each line it prints, at once.

        A step may take what a test may, and a run what a run of tests may.
        """
        reader = LogReader(tell)
        with self._lock, self._in_a_file(kata, implementation) as impl:
            request = LogRequest(
                root=str(self._project.root),
                kata=kata.name,
                path=str(_file(kata, impl)),
                seed=seed,
                steps=steps,
                step_seconds=self._limits.test_seconds,
                run_seconds=self._limits.run_seconds,
                memory_bytes=int(self._limits.memory_gb * 2**30),
            )
            answer = self._transport.follow(request, reader.feed)
        reader.close()
        failure = _log_failure(answer, reader, self._limits)
        return RunLog(tuple(reader.steps), failure, answer.seconds)

    @contextmanager
    def _in_a_file(self, kata: Kata, implementation: Implementation) -> Iterator[str]:
        """Yield the implementation as `--impl` has it; a text is in a file for the block alone."""
        if isinstance(implementation, Planted):
            implementation = Text(kata.planted_source(implementation.bugs))
        if not isinstance(implementation, Text):
            yield str(implementation)
            return
        scratch = self._transport.scratch
        try:
            variant = write_variant(implementation.source, kata.name, scratch)
        except OSError as error:
            raise DojoError(f"{scratch} cannot be written: {error.strerror}") from None
        try:
            yield str(variant)
        finally:
            variant.path.unlink(missing_ok=True)  # gone where the processes were started anew

    def _request(self, kata: Kata, impl: str, tests: Path) -> Request:
        """Return the request for all tests of a file."""
        root = self._project.root
        return Request(
            root=str(root),
            arguments=(
                # From the root, where it runs: in a whole path pytest takes brackets for
                # parameters, and a dollar sign for a variable.
                str(tests.relative_to(root)),
                "--rootdir=.",
                f"--kata-timeout={self._limits.test_seconds}",
                "--kata-no-history",
                "--open-checks",  # whoever shows the results keeps them sealed
                "-q",
                "-pno:cacheprovider",
                # A crash ends in a verdict; its trace would come out among what is shown.
                "-pno:faulthandler",
            ),
            collects=(str(tests), str(root / "conftest.py"), str(root / "pyproject.toml")),
            impl=impl,
            # Plugins found by entry points cost more than a fast kata's tests.
            environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            run_seconds=self._limits.run_seconds,
            memory_bytes=int(self._limits.memory_gb * 2**30),
            key=secrets.token_hex(16),
        )

    def cancel(self) -> None:
        """Stop the run that is under way, if there is one; it returns as cancelled."""
        self._transport.cancel()

    def close(self) -> None:
        """End the processes, and whatever they run."""
        self._transport.close()


def _tell_nobody(_: TestResult) -> None:
    pass


def _result(answer: Answer, limits: Limits, seed: int) -> RunResult:
    account = Account.of(answer.lines)
    finished = RunResult.of(account.tests, answer.seconds, seed)
    finished = replace(finished, strays=answer.strays)
    ended = _ended_early(answer, account, limits)
    if ended is None:
        return finished
    return replace(finished, verdict=ended[0], detail=ended[1], running=account.running)


def _ended_early(answer: Answer, account: Account, limits: Limits) -> tuple[Verdict, str] | None:
    """Return what happened to a run whose tests did not all come to their end, and why."""
    if answer.stopped is Stopped.CANCELLED:
        return Verdict.CANCELLED, "cancelled"
    if answer.stopped is Stopped.DAMAGED:
        return Verdict.DAMAGED, _DAMAGED
    if answer.stopped is Stopped.TIMEOUT:
        told = [test for test in account.tests if test.symptom] or account.tests
        failed = next((t.message for t in told if t.outcome is Outcome.FAILED), "")
        said = failed.partition("\n")[0]
        why = f"; a test had failed: {said}" if said else _ENDLESS
        return Verdict.TIMEOUT, f"stopped after {limits.run_seconds:g} s{why}"
    if account.exit_code is None:
        assert answer.status is not None  # only a run that said its exit code is not waited for
        return Verdict.CRASHED, _crash(answer.status)
    if account.problems:
        return Verdict.BROKEN, account.problems[0]
    if account.exit_code not in (0, 1):
        ran = len(account.tests)
        return Verdict.BROKEN, f"pytest ended with code {account.exit_code} and ran {ran} tests"
    return None


def _file(kata: Kata, impl: str) -> Path:
    which = parse(impl, kata.folder)
    return which.path if isinstance(which, Solution) else kata.folder / f"{which}.py"


def _log_failure(answer: Answer, reader: LogReader, limits: Limits) -> str:
    """Return why a system did not come to its end; nothing if it did."""
    at = f"step {len(reader.steps) + 1}"
    if answer.stopped is Stopped.CANCELLED:
        return "cancelled"
    if answer.stopped is Stopped.TIMEOUT:
        return f"{at}: stopped after {limits.run_seconds:g} s in all"
    if answer.stopped is Stopped.FLOOD:
        return f"{at}: the code printed more than {OUTPUT_BYTES // 2**20} MB"
    if reader.failure is not None:
        return reader.failure
    # A process that said it came to its end, and not how, has not said it: the code did.
    if answer.stopped is Stopped.DAMAGED or answer.status is None:
        return f"{at}: {_DAMAGED}"
    return f"{at}: {_crash(answer.status, 'the run was')}"


def _crash(status: int, what: str = "the tests were") -> str:
    return ended(status) + (f" before {what} through" if status >= 0 else "")
