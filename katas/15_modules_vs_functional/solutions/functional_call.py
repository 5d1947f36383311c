"""The function calls a net of its own, made for the shapes of the state, by functional_call."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, in_dim: int, hidden: int, out_dim: int, depth: int, p: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.norms = nn.ModuleList()
        for i in range(depth):
            self.layers.append(nn.Linear(hidden if i else in_dim, hidden))
            self.norms.append(nn.BatchNorm1d(hidden))
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(p)
        self.head = nn.Linear(hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.layers)):
            x = self.dropout(self.relu(self.norms[i](self.layers[i](x))))
        return self.head(x)


def functional_forward(state: dict[str, Tensor], x: Tensor, training: bool, p: float) -> Tensor:
    hidden, in_dim = state["layers.0.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    with torch.device("meta"):  # an initialisation would draw random numbers
        net = Net(in_dim, hidden, len(state["head.bias"]), depth, p)
    net.train(training)
    return torch.func.functional_call(net, state, (x,))
