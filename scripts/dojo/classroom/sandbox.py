"""Runs submissions in sandboxes, and does not take their word for it.

A sandbox sees an answerless checkout. A run that ends well is doubted twice: every test that the
reference passes has to have passed; and once more, with what the submission computes spoilt, those
have to fail that fail of correct code once it is spoilt. A submission that passes them has changed
the judge, or computes what agrees with everything.

What cannot be stopped, for tests and submission share a process: code that is written against this
very sandbox, tells a spoilt run from the first one by looking at the frames that call it, and
undoes in time what it has changed; and code that reads a test in order to call the oracle that the
test compares with. Both say so in their text, which a teacher can read.
"""

import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dojo.classroom.answerless import write_answerless
from dojo.classroom.walls import Room, Walls, strongest
from dojo.errors import DojoError
from dojo.kata.catalogue import finished
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.runner.pool import Pool
from dojo.runner.protocol import Request
from dojo.runner.runner import Runner
from dojo.runner.transport import Cold, Tell, Transport, Warm
from dojo.testrun.device import cores
from dojo.testrun.implementation import (
    Implementation,
    Learner,
    Planted,
    Reference,
    Solution,
    Text,
)
from dojo.testrun.limits import Limits
from dojo.testrun.results import Outcome, RunResult, Verdict


@dataclass(frozen=True)
class Judged(RunResult):
    """The outcome of a run in a sandbox."""

    tampering: str = ""  # what was seen of it, if anything was; such a run has not passed


@dataclass(frozen=True)
class _Expected:
    """What becomes of the tests of correct code: of the reference, and of all other solutions."""

    passed: frozenset[str]
    fail_when_spoilt: frozenset[str]


class _Expectations:
    """What is expected of each kata, found out when it is first asked for; for many threads."""

    def __init__(self) -> None:
        self._known: dict[str, _Expected] = {}
        self._lock = threading.Lock()

    def of(self, kata: Kata, find_out: Callable[[Kata], _Expected]) -> _Expected:
        with self._lock:
            if kata.name not in self._known:
                self._known[kata.name] = find_out(kata)
            return self._known[kata.name]


class SandboxedRunner(Runner):
    """Runs tests in a sandbox of its own. One run at a time; `cancel` from any thread."""

    def __init__(
        self,
        project: Project,
        answerless: Project,
        walls: Walls,
        limits: Limits | None,
        expectations: _Expectations,
    ) -> None:
        """Start the process that serves this sandbox, if there is one."""
        self._answerless = answerless
        self._expectations = expectations
        self._spoils = False

        def transport() -> Transport:
            texts = Path(tempfile.mkdtemp(prefix="texts-", dir=answerless.root.parent))
            texts.chmod(0o755)  # the sandbox's user is another
            return _transport(Room(project, answerless, texts), walls)

        super().__init__(answerless, limits, processes=1, transport=transport)

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
    ) -> Judged:
        """Run the kata's tests against an implementation as `Runner.run` does, and doubt it."""
        if tests is not None:
            raise DojoError(f"{kata.name}: a sandbox judges by the kata's own tests alone")
        expected = self._expectations.of(kata, self._find_out)
        boxed, text = self._boxed(kata), _text(kata, implementation)
        result = super().run(
            boxed,
            text,
            seed,
            first_failure=first_failure,
            only=only,
            first=first,
            tell_failure=tell_failure,
        )
        for test in result.tests:
            if test.outcome is Outcome.TAMPERED:
                return _judged(result, f"{test.message}, in {test.name}")
        if result.verdict is not Verdict.PASSED:
            return _judged(result)
        wanted = {name for name in expected.passed if not only or _function(name) in only}
        if missing := sorted(wanted - _passed(result)):
            detail = f"{len(missing)} tests did not pass, though the run says so: {missing[0]}"
            return _judged(replace(result, verdict=Verdict.BROKEN, detail=detail))
        again = self._run_spoilt(boxed, text, result.seed, only)
        if again.verdict is Verdict.CANCELLED:
            return _judged(again)
        if believed := sorted(expected.fail_when_spoilt & _passed(again)):
            tampering = f"{believed[0]} passes, whatever the code returns"
            return _judged(result, tampering)
        return _judged(result)

    def _find_out(self, kata: Kata) -> _Expected:
        """Run what is correct, in sandboxes that nothing is left of when a submission comes."""
        boxed, text = self._boxed(kata), _text(kata, Reference())
        result = super().run(boxed, text)
        if result.verdict is not Verdict.PASSED:
            said = f"the reference does not pass: {result.detail}"
            raise DojoError(f"{kata.name} cannot be judged in a sandbox: {said}")
        correct = [text, *(_text(kata, Solution(path)) for path in kata.solutions)]
        pass_spoilt = [_passed(self._run_spoilt(boxed, text)) for text in correct]
        return _Expected(_passed(result), _passed(result).difference(*pass_spoilt))

    def _run_spoilt(
        self, boxed: Kata, text: Text, seed: int | None = None, only: Collection[str] = ()
    ) -> RunResult:
        """Run the tests with all that the text computes spoilt."""
        self._spoils = True
        try:
            return super().run(boxed, text, seed, only=only)
        finally:
            self._spoils = False

    def _request(self, kata: Kata, impl: str, tests: Path) -> Request:
        """Return the request for all tests of a file, with a look at what judges."""
        request = super()._request(kata, impl, tests)
        arguments = (*request.arguments, "-pdojo.classroom.judge")
        return replace(request, arguments=arguments, spoilt=self._spoils)

    def _boxed(self, kata: Kata) -> Kata:
        """Return the kata as it stands in the answerless checkout."""
        return replace(kata, folder=self._answerless.katas / kata.name)


class SandboxedPool(Pool):
    """A set of sandboxes that share out jobs."""

    def __init__(self, runners: list[SandboxedRunner], walls: Walls) -> None:
        """Take runners that are free, and what keeps them in."""
        super().__init__(list(runners))
        self.walls = walls


@contextmanager
def sandboxed_pool(
    project: Project, limits: Limits | None = None, size: int | None = None
) -> Iterator[SandboxedPool]:
    """Open as many sandboxes, or one a core, and leave nothing of them afterwards.

    The pool is `runner_pool`'s, with runners that return `Judged`. What keeps the submissions in is
    its `walls`, which has a warning where they are open.
    """
    with tempfile.TemporaryDirectory(prefix="kata-class-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)  # the sandbox's user is another
        answerless = write_answerless(project, finished(project), folder / "checkout")
        walls = strongest(Room(project, answerless, folder))
        expectations = _Expectations()
        runners = [
            SandboxedRunner(project, answerless, walls, limits, expectations)
            for _ in range(size or cores())
        ]
        try:
            yield SandboxedPool(runners, walls)
        finally:
            for runner in runners:
                runner.close()


def _transport(room: Room, walls: Walls) -> Transport:
    if walls is Walls.NAMESPACES:
        command = room.command(walls, "dojo.classroom.enclosed")
        return Warm(room.answerless, command=command, scratch=room.texts)
    if walls is Walls.BUBBLEWRAP:
        return Cold(room.answerless, room.command(walls, "dojo.runner.worker"), room.texts)
    return Warm(room.answerless)


def _judged(result: RunResult, tampering: str = "") -> Judged:
    """Return the result; with tampering, nothing that the run says of itself counts."""
    if tampering:
        detail = f"tampering seen: {tampering}"
        result = replace(result, verdict=Verdict.BROKEN, detail=detail)
    facts = {field.name: getattr(result, field.name) for field in fields(RunResult)}
    return Judged(**facts, tampering=tampering)


def _passed(result: RunResult) -> frozenset[str]:
    return frozenset(test.name for test in result.tests if test.outcome is Outcome.PASSED)


def _function(name: str) -> str:
    return name.partition("[")[0]


def _text(kata: Kata, implementation: Implementation) -> Text:
    """Return the text of an implementation, which is all that a sandbox sees of it."""
    match implementation:
        case Text():
            return implementation
        case Planted(bugs):
            return Text(kata.planted_source(bugs))
        case Reference():
            return Text(kata.correct_source)
        case Solution(path):
            return Text(path.read_text(encoding="utf-8"))
        case Learner():
            return Text(kata.botched.read_text(encoding="utf-8"))
