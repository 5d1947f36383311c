"""Softmax along one axis: PyTorch's, from scratch, in log space, and its gradient by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_functional(x: Tensor, dim: int = -1) -> Tensor:
    """Return the softmax of `x` along `dim`, by PyTorch's operator; same shape and dtype.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.softmax.html
    """
    return F.softmax(x, dim=dim)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the softmax of `x` along `dim`; same shape and dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    exp = (wide - wide.amax(dim=dim, keepdim=True)).exp_()
    return (exp / exp.sum(dim=dim, keepdim=True)).to(x.dtype)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of the softmax of `x` along `dim`; same shape and dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    shifted = wide - wide.amax(dim=dim, keepdim=True)
    return (shifted - shifted.exp().sum(dim=dim, keepdim=True).log()).to(x.dtype)


def softmax_backward(grad_out: Tensor, out: Tensor, dim: int = -1) -> Tensor:
    """Return the gradient for the input of a softmax along `dim`.

    `grad_out` is the gradient for the softmax's output `out`; all three share one shape.
    """
    return out * (grad_out - (grad_out * out).sum(dim=dim, keepdim=True))
