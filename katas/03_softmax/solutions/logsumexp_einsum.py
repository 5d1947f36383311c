"""The axis moved last, logsumexp for the logarithm, einsum for the gradient."""

import torch
from torch import Tensor


def softmax_functional(x: Tensor, dim: int = -1) -> Tensor:
    """Return the softmax of `x` along `dim`, by PyTorch's operator."""
    return torch.softmax(x, dim)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the softmax of `x` along `dim`."""
    rows = x.movedim(dim, -1).double()
    largest, _ = rows.max(-1, keepdim=True)
    powers = torch.exp(rows - largest)
    totals = torch.einsum("...i->...", powers)
    return (powers / totals[..., None]).movedim(-1, dim).to(x.dtype)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of the softmax of `x` along `dim`."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide - torch.logsumexp(wide, dim, keepdim=True)).to(x.dtype)


def softmax_backward(grad_out: Tensor, out: Tensor, dim: int = -1) -> Tensor:
    """Return the gradient for the input of a softmax along `dim`."""
    grad, p = grad_out.movedim(dim, -1), out.movedim(dim, -1)
    mean = torch.einsum("...i,...i->...", grad, p)
    return (p * grad - p * mean[..., None]).movedim(-1, dim)
