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
