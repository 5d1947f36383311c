"""A round trip through NumPy, in float64 throughout."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def softmax_functional(x: Tensor, dim: int = -1) -> Tensor:
    """Return the softmax of `x` along `dim`, by PyTorch's operator."""
    return F.softmax(x, dim)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the softmax of `x` along `dim`."""
    return torch.from_numpy(np.exp(_log_softmax(x, dim))).to(x.dtype)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of the softmax of `x` along `dim`."""
    return torch.from_numpy(_log_softmax(x, dim)).to(x.dtype)


def softmax_backward(grad_out: Tensor, out: Tensor, dim: int = -1) -> Tensor:
    """Return the gradient for the input of a softmax along `dim`."""
    grad, p = (tensor.detach().double().numpy() for tensor in (grad_out, out))
    grad_in = p * (grad - (grad * p).sum(axis=dim, keepdims=True))
    return torch.from_numpy(grad_in).to(out.dtype)


def _log_softmax(x: Tensor, dim: int) -> NDArray[np.float64]:
    scores = x.detach().double().numpy()
    with np.errstate(all="ignore"):
        shifted = scores - scores.max(axis=dim, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))
