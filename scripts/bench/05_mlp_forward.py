"""The forward pass of an MLP of three layers, beside torch's own modules."""

from itertools import pairwise

import torch
from torch import nn

from dojo.benchmarks.references import Case

WIDTHS = (256, 1024, 1024, 128)


def cases(reference):
    """Return the workloads: 128 examples, float32."""
    x = torch.randn(128, WIDTHS[0])
    linears = [nn.Linear(*sizes) for sizes in pairwise(WIDTHS)]
    model = nn.Sequential(linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])
    weights = [layer.weight.detach() for layer in linears]
    biases = [layer.bias.detach() for layer in linears]
    return [
        Case("mlp", lambda: reference.mlp(x, weights, biases), lambda: model(x)),
        Case(
            "mlp_functional",
            lambda: reference.mlp_functional(x, weights, biases),
            lambda: model(x),
        ),
    ]
