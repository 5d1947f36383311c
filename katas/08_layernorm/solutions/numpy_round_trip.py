"""NumPy round trip."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def layernorm_functional(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight=weight, bias=bias, eps=eps)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    a = x.numpy()
    centred = a - a.mean(-1, keepdims=True)
    std = np.sqrt((centred**2).mean(-1, keepdims=True) + a.dtype.type(eps))
    return torch.from_numpy(weight.numpy() * (centred / std) + bias.numpy())


def layernorm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    d = x.shape[-1]
    a = x.numpy().reshape(-1, d)
    g = grad_out.numpy().reshape(-1, d)
    centred = a - a.mean(1, keepdims=True)
    std = np.sqrt((centred**2).mean(1, keepdims=True) + a.dtype.type(eps))
    x_hat = centred / std
    dx_hat = g * weight.numpy()
    along = (dx_hat * x_hat).mean(1, keepdims=True)
    dx = (dx_hat - dx_hat.mean(1, keepdims=True) - x_hat * along) / std
    parts = dx.reshape(x.shape), (g * x_hat).sum(0), g.sum(0)
    return tuple(torch.from_numpy(part) for part in parts)
