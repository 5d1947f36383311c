"""Recursion from the last layer back, rows flattened, products by multiplication and sum."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mlp_functional(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return the MLP's output for `x` (..., in), by PyTorch's operators."""
    if len(weights) > 1:
        x = F.relu(mlp_functional(x, weights[:-1], biases[:-1]))
    return F.linear(x, weights[-1], biases[-1])


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return the MLP's output for `x` (..., in): affine layers, ReLU between."""
    rows = x.reshape(-1, x.shape[-1])
    return _layers(rows, list(weights), list(biases)).reshape(*x.shape[:-1], biases[-1].shape[0])


def _layers(rows: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    if len(weights) > 1:
        rows = torch.relu(_layers(rows, weights[:-1], biases[:-1]))
    products = [(rows * row).sum(dim=1) for row in weights[-1]]
    return torch.stack(products, dim=1) + biases[-1]
