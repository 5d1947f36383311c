"""Copies in which the places of one side are written to."""

from typing import Any

import torch
from torch import Tensor


def relu_functional(x: Tensor) -> Tensor:
    """Return ReLU of `x`, by PyTorch's operator."""
    return torch.relu(x)


def relu(x: Tensor) -> Tensor:
    """Return `x` where it is positive and 0 elsewhere."""
    out = x.clone()
    out[x <= 0] = 0
    return out


def leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    """Return `x` where it is positive and `slope * x` elsewhere."""
    return torch.where(x < 0, x * slope, x)


def hardswish(x: Tensor) -> Tensor:
    """Return 0 up to -3, `x` from 3 on and `x * (x + 3) / 6` between."""
    between = (x > -3) & (x < 3)
    safe = torch.where(between, x, 0.0)
    outer = torch.where(x <= -3, 0.0, x)
    return torch.where(between, safe * (safe + 3) / 6, outer)


class ReLU(torch.autograd.Function):
    """ReLU with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return ReLU of `x`."""
        ctx.mask = x > 0
        return relu(x)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        """Return the gradient for `x`."""
        return grad_out * ctx.mask


def relu_backward(grad_out: Tensor, x: Tensor) -> Tensor:
    """Return the gradient for the input of a ReLU."""
    grad = grad_out.clone()
    grad[x <= 0] = 0
    return grad
