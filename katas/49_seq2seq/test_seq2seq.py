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
