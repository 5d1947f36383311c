"""einsum for the product, and the layers counted."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def mlp_functional(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return the MLP's output for `x` (..., in), by PyTorch's operators."""
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
        x = functional.linear(x, weight, bias)
        if number < len(weights):
            x = torch.relu(x)
    return x


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return the MLP's output for `x` (..., in): affine layers, ReLU between."""
    hidden = x
    for i in range(len(weights)):
        if i > 0:
            hidden = hidden.clamp(min=0)
        hidden = torch.einsum("...i,oi->...o", hidden, weights[i]) + biases[i]
    return hidden
