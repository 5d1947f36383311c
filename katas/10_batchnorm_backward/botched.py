"""Batch normalisation of (N, C) features over the batch, and its gradient by hand."""

import torch
from torch import Tensor

Cache = tuple[Tensor, Tensor, Tensor]


def batchnorm_forward(
    x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Cache]:
    """Return gamma * x_hat + beta, shaped as `x` (N, C), and what the backward pass needs.

    `gamma` and `beta` are (C,). Ioffe and Szegedy, 2015: https://arxiv.org/abs/1502.03167
    """
    centred = x - x.mean(dim=0)
    var = x.var(dim=0)
    inv_std = (var + eps).rsqrt()
    x_hat = centred * inv_std
    out = torch.addcmul(beta, x_hat, gamma, out=x_hat)
    return out, (x_hat, inv_std, gamma)


def batchnorm_backward(grad_out: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for `x` (N, C), `gamma` (C,) and `beta` (C,).

    `grad_out` (N, C) is the gradient for the output that came with `cache`.
    """
    x_hat, inv_std, gamma = cache
    n = len(grad_out)
    dgamma = (grad_out * x_hat).sum(dim=0)
    dbeta = grad_out.sum(dim=0)
    dx = grad_out - dbeta / n
    dx *= gamma * inv_std
    return dx, dgamma, dbeta
