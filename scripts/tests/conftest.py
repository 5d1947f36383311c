import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import pytest

import dojo.runner.runner
from dojo.history.history import History
from dojo.kata import kata_toml
from dojo.learner.player import Player
from dojo.project import Project
from dojo.runner.runner import Runner
from dojo.runner.transport import Warm
from dojo.testrun.limits import Limits

REAL = Project.here()

REFERENCE = '''
"""Two small functions."""


def scale(x: float, factor: float) -> float:
    """Return `x` times `factor`."""
    return x * factor


def shift(x: float, offset: float) -> float:
    """Return `x` plus `offset`."""
    moved = x + offset
    return moved
'''

TOML = """
title = "Scale"
topic = "layers"
level = "easy"
minutes = 5
default = ["adds-factor"]

[[bug]]
id = "adds-factor"
title = "Adds the factor"
find = "x * factor"
replace = "x + factor"
killed_by = ["test_scale"]
hints = ["What does scale do?", "Try factor 1.", "Look at the operator."]
why = "Adding is not scaling."
seen_in = ["https://example.org/issues/1"]

[[bug]]
id = "divides"
title = "Divides by the factor"
find = "return x * factor"
replace = "return x / factor"
killed_by = ["test_scale"]
hints = ["Which way does it scale?"]
why = "Dividing is scaling the other way."

[[bug]]
id = "subtracts-offset"
title = "Subtracts the offset"
find = "moved = x + offset"
replace = "moved = x - offset"
killed_by = ["test_shift"]
hints = ["Which way does it shift?", "Try offset 1."]
why = "The sign is wrong."
"""

TESTS = """
import pytest


@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_scale(impl, factor):
    actual = impl.scale(5.0, factor)
    assert actual == factor * 5, f"5 times {factor} is {actual}"


def test_shift(impl):
    actual = impl.shift(5.0, 1.5)
    assert actual == 6.5, f"5 plus 1.5 is {actual}"
"""


def write_kata(folder: Path, reference=REFERENCE, toml=TOML, tests=TESTS) -> None:
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# Scale\n\nThe brief of scale.\n")
    (folder / "reference.py").write_text(textwrap.dedent(reference).lstrip())
    (folder / "kata.toml").write_text(toml)
    (folder / f"test_{folder.name[3:]}.py").write_text(tests)


class Lent(Warm):
    """A warm process of the checkout's own, lent to one runner after the other.

    To start one takes longer than most tests; it serves any copy of the checkout, whose code is
    the same. One that was killed, or that is not done, is not lent again.
    """

    _idle: ClassVar[list[Warm]] = []

    def __init__(self, project):
        self._warm = Lent._idle.pop() if Lent._idle else Warm(REAL)
        self._asking = False

    @property
    def process(self):
        return self._warm.process

    def ask(self, request, tell_failure):
        self._asking = True
        answer = self._warm.ask(request, tell_failure)
        self._asking = False
        return answer

    def cancel(self):
        self._warm.cancel()

    def close(self):
        if self._asking or self.process.poll() is not None:
            self._warm.close()
        else:
            Lent._idle.append(self._warm)


@pytest.fixture(autouse=True)
def lent(request, monkeypatch):
    """Lend warm processes to the runners of this process, unless a test looks at its own."""
    if not request.node.get_closest_marker("own_process"):
        monkeypatch.setattr(dojo.runner.runner, "Warm", Lent)


@pytest.fixture(autouse=True, scope="session")
def ended():
    """End what was lent."""
    yield
    for warm in Lent._idle:
        warm.close()


@pytest.fixture
def project(tmp_path) -> Project:
    """A small checkout of its own, with one kata, `01_scale`, planted with its default bug.

    The kata works on plain numbers, so that a run of it need not wait for torch.
    """
    copy = REAL.copied_to(tmp_path / "checkout")
    write_kata(copy.katas / "01_scale")
    kata = kata_toml.load(copy.katas / "01_scale")
    kata.botched.write_text(kata.planted_source(kata.default))
    return copy


@pytest.fixture
def kata(project):
    return kata_toml.load(project.katas / "01_scale")


@pytest.fixture
def history(project):
    with History(project.history) as history:
        yield history


@pytest.fixture
def player(project, kata, history):
    return Player(project, kata, history)


@pytest.fixture
def runner(project):
    limits = Limits(test_seconds=2.0, run_seconds=12.0, memory_gb=0.25)
    with Runner(project, limits) as runner:
        yield runner


@pytest.fixture
def run_pytest(project):
    """Plain pytest, as a learner or an editor runs it, in a process of its own."""

    def run_pytest(*arguments, cwd=None, **options):
        return subprocess.run(
            [sys.executable, "-m", "pytest", *map(str, arguments)],
            cwd=cwd or project.root,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    return run_pytest


@pytest.fixture
def start_practice(project):
    """Start `kata practice` in a process of its own, with pipes for its input and output."""

    def start(*arguments, **options):
        return subprocess.Popen(
            [sys.executable, "-m", "dojo", "practice", *arguments],
            cwd=project.root,
            env={
                **os.environ,
                "PYTHONPATH": str(project.root / "scripts"),
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    return start
