"""Layer normalisation over the last axis: PyTorch's, from scratch, and its gradient by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor


def layernorm_functional(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the layer norm of `x` (..., D), by PyTorch's operator; same shape and dtype.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.layer_norm.html
    """
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return weight * x_hat + bias, shaped as `x` (..., D); `weight` and `bias` are (D,).

    Ba, Kiros and Hinton, 2016: https://arxiv.org/abs/1607.06450
    """
    x_hat, _ = _standardise(x, eps)
    return torch.addcmul(bias, x_hat, weight)


def layernorm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for `x` (..., D), `weight` (D,) and `bias` (D,).

    `grad_out` (..., D) is the gradient for the layer norm's output.
    """
    x_hat, inv_std = _standardise(x, eps)
    dweight = (grad_out * x_hat).sum_to_size(weight.shape)
    dbias = grad_out.reshape(-1, len(weight)).sum(dim=0)
    dx = grad_out * weight
    dx -= dx.mean(dim=-1, keepdim=True)
    dx -= x_hat * (dx * x_hat).mean(dim=-1, keepdim=True)
    dx *= inv_std
    return dx, dweight, dbias


def _standardise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x_hat, shaped as `x` (..., D), and the factor of each row (..., 1)."""
    centred = x - x.mean(dim=-1, keepdim=True)
    var = x.var(dim=-1, keepdim=True)
    inv_std = 1 / (var.sqrt() + eps)
    return centred * inv_std, inv_std
