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
kind = "formula"
find = "x * factor"
replace = "x + factor"
killed_by = ["test_scale"]
hints = ["What does scale do?", "Try factor 1.", "Look at the operator."]
why = "Adding is not scaling."
seen_in = ["https://example.org/issues/1"]

[[bug]]
id = "divides"
title = "Divides by the factor"
kind = "scale"
find = "return x * factor"
replace = "return x / factor"
killed_by = ["test_scale"]
hints = ["Which way does it scale?"]
why = "Dividing is scaling the other way."

[[bug]]
id = "subtracts-offset"
title = "Subtracts the offset"
kind = "formula"
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


SYSTEM_REFERENCE = '''
"""Gradient descent on a parabola."""

from collections.abc import Iterator


def gradient(x: float, centre: float) -> float:
    """Return the slope of `(x - centre) ** 2`."""
    return 2 * (x - centre)


def learning_rate(step: int, steps: int) -> float:
    """Return a rate that falls to 0 in a straight line."""
    return 0.2 * (1 - step / steps)


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Yield loss and rate at each step."""
    steps = 40 if steps is None else steps
    x = 10.0 + seed % 7
    for step in range(steps):
        rate = learning_rate(step, steps)
        x -= rate * gradient(x, 3.0)
        yield {"loss": (x - 3.0) ** 2, "lr": rate}
'''

SYSTEM_TOML = """
title = "Descent"
topic = "systems"
level = "medium"
minutes = 5
default = ["forgets-centre", "rate-rises"]

[[bug]]
id = "forgets-centre"
title = "Forgets the centre"
kind = "formula"
find = "2 * (x - centre)"
replace = "2 * x - centre"
killed_by = ["test_the_loss_falls", "test_gradient_by_hand", "test_gradient_at_the_centre"]
hints = ["Where does it come to rest?"]
why = "Twice the difference, not twice the first."
ask = [["Where is the slope 0?", "At the centre."], ["And its sign?", "That of x - centre."]]

[[bug]]
id = "rate-rises"
title = "The rate rises"
kind = "schedule"
find = "(1 - step / steps)"
replace = "(step / steps)"
killed_by = ["test_rate_falls", "test_the_loss_falls_at_once"]
hints = ["Print the rate."]
why = "It should fall."
ask = [["Why let it fall?", "To settle."], ["Why not at once?", "To get there."]]

[[bug]]
id = "half-the-slope"
title = "Half the slope"
kind = "scale"
find = "    return 2 * (x - centre)"
replace = "    return x - centre"
killed_by = ["test_gradient_by_hand"]
hints = ["Compare with a difference quotient."]
why = "The two is lost."
ask = [["Does it matter?", "It halves the rate."], ["When not?", "When the rate is tuned."]]

[[decoy]]
find = "10.0 + seed % 7"
why = "Any start will do."
"""

SYSTEM_TESTS = """
import pytest


@pytest.fixture(scope="module")
def log(impl):
    return list(impl.run(seed=1))


@pytest.mark.symptom
def test_the_loss_falls(log):
    assert log[-1]["loss"] < 0.1, f"the loss ends at {log[-1]['loss']:.2f}"


@pytest.mark.symptom
def test_the_loss_falls_at_once(log):
    assert log[1]["loss"] < 0.5 * 49, f"after two steps the loss is {log[1]['loss']:.2f}"


@pytest.mark.parametrize("x", [4.0, 5.0])
def test_gradient_by_hand(impl, x):
    assert impl.gradient(x, 1.0) == 2 * x - 2, f"the slope at {x} is {impl.gradient(x, 1.0)}"


def test_gradient_at_the_centre(impl):
    assert impl.gradient(7.0, 7.0) == 0, "the slope at the centre is not 0"


def test_rate_falls(impl):
    assert impl.learning_rate(1, 10) > impl.learning_rate(2, 10), "the rate rises"
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

    def __init__(self, project, imports=()):
        self._warm = Lent._idle.pop() if Lent._idle else Warm(REAL)
        self._asking = False

    @property
    def process(self):
        return self._warm.process

    @property
    def scratch(self):
        return self._warm.scratch

    def ask(self, request, tell_failure):
        self._asking = True
        answer = self._warm.ask(request, tell_failure)
        self._asking = False
        return answer

    def follow(self, request, hear):
        self._asking = True
        answer = self._warm.follow(request, hear)
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
def system(project):
    """A whole system in that checkout, `02_descent`, planted with its default bugs."""
    folder = project.katas / "02_descent"
    write_kata(folder, SYSTEM_REFERENCE, SYSTEM_TOML, SYSTEM_TESTS)
    system = kata_toml.load(folder)
    system.botched.write_text(system.planted_source(system.default))
    return system


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
