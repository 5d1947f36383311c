"""Einsum over two axes, with var_mean and the gradient in its expanded form."""

import torch
import torch.nn.functional as F
from torch import Tensor


def layernorm_functional(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * weight + bias


def layernorm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    d = x.shape[-1]
    rows, grads = x.reshape(-1, d), grad_out.reshape(-1, d)
    var, mean = torch.var_mean(rows, dim=1, correction=0, keepdim=True)
    std = torch.sqrt(var + eps)
    x_hat = (rows - mean) / std
    dweight = torch.einsum("nd,nd->d", grads, x_hat)
    dbias = torch.einsum("nd->d", grads).clone()
    level = torch.einsum("nd,d->n", grads, weight)[:, None]
    slope = torch.einsum("nd,nd,d->n", grads, x_hat, weight)[:, None]
    dx = (d * grads * weight - level - x_hat * slope) / (d * std)
    return dx.reshape(x.shape), dweight, dbias
