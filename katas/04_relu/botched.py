"""ReLU by an operator, by a mask and as an autograd function; leaky ReLU and hardswish."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def relu_functional(x: Tensor) -> Tensor:
    """Return ReLU of `x`, by PyTorch's operator; same shape and dtype, integers included.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.relu.html
    """
    return F.relu(x)


def relu(x: Tensor) -> Tensor:
    """Return `x` where it is positive and 0 elsewhere; same shape and dtype, integers included."""
    return x.masked_fill(x <= 0, 0)


def leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    """Return `x` where it is positive and `slope * x` elsewhere; same shape and dtype.

    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013.
    """
    return torch.where(x > 0, x, slope * x)


def hardswish(x: Tensor) -> Tensor:
    """Return 0 up to -3, `x` from 3 on and `x * (x + 3) / 6` between; same shape and dtype.

    Howard et al., "Searching for MobileNetV3", 2019, https://arxiv.org/abs/1905.02244
    """
    parabola = x * ((x + 3) / 6)
    return torch.where(x <= -3, 0, torch.where(x >= 3, x, parabola))


class ReLU(torch.autograd.Function):
    """ReLU with a backward pass of its own: `ReLU.apply(x)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return ReLU of `x`; same shape and dtype."""
        out = x.clamp(min=0)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        """Return the gradient for `x`, given that of the output."""
        (out,) = ctx.saved_tensors
        return grad_out.masked_fill(out == 0, 0)


def relu_backward(grad_out: Tensor, x: Tensor) -> Tensor:
    """Return the gradient for the input `x` of a ReLU, 0 where `x` is 0.

    `grad_out` is the gradient for the ReLU's output; all three share one shape and dtype.
    """
    return grad_out.masked_fill(x < 0, 0)
