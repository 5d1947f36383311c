"""The forward pass of a multi-layer perceptron: with PyTorch's operators and from scratch."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def mlp_functional(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return the MLP's output for `x` (..., in), by PyTorch's operators; shape (..., out).

    Each weight has shape (out, in) and each bias (out,), as in
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear.html
    """
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = F.relu(F.linear(x, weight, bias))
    return F.linear(x, weights[-1], biases[-1])


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return the MLP's output for `x` (..., in): affine layers, ReLU between; shape (..., out)."""
    *hidden, last = zip(weights, biases, strict=True)
    for weight, bias in hidden:
        x = affine(x, weight, bias).relu()
    return affine(x, *last)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return one layer's output: (..., in) by (out, in) and (out,) gives (..., out)."""
    return x @ weight.T + bias
