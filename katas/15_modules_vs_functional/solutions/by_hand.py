"""Matrix products and batch norm by hand, names looked up until they end."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, in_dim: int, hidden: int, out_dim: int, depth: int, p: float) -> None:
        super().__init__()
        self.p = p
        dims = [in_dim, *[hidden] * depth]
        self.layers = nn.ModuleList([nn.Linear(dims[i], dims[i + 1]) for i in range(depth)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(hidden) for _ in range(depth)])
        self.head = nn.Linear(hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.dropout(torch.relu(norm(layer(x))), p=self.p, training=self.training)
        return self.head(x)


def functional_forward(state: dict[str, Tensor], x: Tensor, training: bool, p: float) -> Tensor:
    i = 0
    while f"layers.{i}.weight" in state:
        x = x @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"]
        norm = f"norms.{i}."
        mean, var = state[norm + "running_mean"], state[norm + "running_var"]
        if training:
            n = len(x)
            batch_mean, batch_var = x.mean(0), x.var(0, correction=0)
            with torch.no_grad():
                mean.mul_(0.9).add_(0.1 * batch_mean)
                var.mul_(0.9).add_(0.1 * batch_var * n / (n - 1))
                state[norm + "num_batches_tracked"].add_(1)
            mean, var = batch_mean, batch_var
        x = (x - mean) / torch.sqrt(var + 1e-5)
        x = torch.relu(x * state[norm + "weight"] + state[norm + "bias"])
        x = F.dropout(x, p, training=training)
        i += 1
    return x @ state["head.weight"].T + state["head.bias"]
