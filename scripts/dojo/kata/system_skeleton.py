"""The texts of a new system, as `dojo.kata.skeleton` has those of any kata."""

README = """\
# {number} {title}

*systems, easy, 10 minutes*

TODO: what the system is for, and what a healthy run looks like: what it logs, where that ends.

| name | what it is |
|---|---|
| `Line(slope)` | TODO: shapes, dtypes, errors |
| `fit(x, y, steps, rate)` | TODO: what it yields, and after which step |
| `run(seed=0, steps=None)` | yields at each step `loss` |

- TODO: the contract of each part, in which every check has its promise.

    scripts/run.sh {name}
    pytest katas/{name}
"""

REFERENCE = '''\
"""TODO: one line on what this system does."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Line(nn.Module):
    """A line through the origin."""

    def __init__(self, slope: float) -> None:
        """Begin with this slope."""
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        """Return the line at `x`, of the same shape."""
        return self.slope * x


def fit(x: Tensor, y: Tensor, steps: int, rate: float) -> Iterator[float]:
    """Fit a line by gradient descent; yield the loss before each step."""
    line = Line(0.0)
    optimizer = torch.optim.SGD(line.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(line(x), y)
        loss.backward()
        optimizer.step()
        yield loss.item()


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Fit a noisy line; yield the loss at each step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, generator=generator)
    y = 3 * x + 0.1 * torch.randn(64, generator=generator)
    for loss in fit(x, y, 40 if steps is None else steps, 0.1):
        yield {"loss": loss}
'''

TOML = """\
title = "{title}"
topic = "systems"
level = "easy" # TODO: easy plants 1 bug, medium 2, hard 3 or more; README.md says all three too
minutes = 10
default = ["gradients-add-up"]

[[bug]]
id = "gradients-add-up"
title = "Gradients add up"
kind = "state" # one of {kinds}
find = '''
        optimizer.zero_grad()
'''
replace = ""
killed_by = ["test_the_loss_falls", "test_a_step_by_hand"]
hints = [
    "TODO: a question about the behaviour.",
    "TODO: where it shows.",
    "TODO: where to look, never the fix.",
]
why = "TODO: what goes wrong, how it shows, how to catch it in code of one's own."
# seen_in = ["a public thread where this kind of bug shipped"]
ask = [
    ["TODO: a question as an interviewer asks it?", "A good answer."],
    ["When would you leave zero_grad out on purpose?", "To accumulate micro-batches."],
]

# TODO: one bug that is the tempting and wrong fix of another: over_fix_of = "gradients-add-up"

[[decoy]]
find = "40 if steps is None else steps"
why = "TODO: why this looks wrong and is right. Two of them at least."
"""

TESTS = """\
import pytest
import torch

from dojo.testing import assert_matches


@pytest.fixture(scope="module")
def log(impl):
    return list(impl.run(seed=0))


@pytest.mark.symptom
def test_the_loss_falls(log):
    last = log[-1]["loss"]
    assert last < 0.05, f"after {len(log)} steps the loss is {last:.2f}, not below 0.02"


def test_a_step_by_hand(impl):
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
    # The slope is to be 2; each step halves what it is off by.
    losses = torch.tensor(list(impl.fit(x, y, 4, 0.1)))
    assert_matches(losses, torch.tensor([10.0, 2.5, 0.625, 0.15625]), "the first losses")
"""
