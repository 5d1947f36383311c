"""A multilayer perceptron with batch norm and dropout: as a module, and as a function."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """`depth` blocks of linear, batch norm, ReLU and dropout, then a linear head.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int, depth: int, p: float) -> None:
        """Make the layers; `p` is the probability that dropout zeroes an element."""
        super().__init__()
        sizes = [in_dim] + [hidden] * depth
        self.layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(depth))
        self.dropout = nn.Dropout(p)
        self.head = nn.Linear(hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (N, out_dim) for `x` (N, in_dim)."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
            x = self.dropout(x)
        return self.head(x)


def functional_forward(state: dict[str, Tensor], x: Tensor, training: bool, p: float) -> Tensor:
    """Return what a `Net` of that state returns for `x`, in training mode or in eval mode.

    In training mode the running statistics and counters in `state` are updated in place.
    """
    depth = sum(name.endswith("running_mean") for name in state)
    for i in range(depth):
        x = F.linear(x, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"])
        prefix = f"norms.{i}."
        own = [name for name in state if name.startswith(prefix)]
        norm = {name.removeprefix(prefix): state[name] for name in own}
        count = norm.pop("num_batches_tracked")
        if training:
            count += 1
        x = F.batch_norm(x, **norm, training=training)
        x = F.dropout(F.relu(x), p)
    return F.linear(x, state["head.weight"], state["head.bias"])
