"""Autograd functions around gradients written in NumPy, in float64, and silu by tanh."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return RMSNorm.apply(x, weight, eps)


def rmsnorm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    d = x.shape[-1]
    g, a, w = rows(grad_out), rows(x), rows(weight)
    rms = np.sqrt(np.einsum("nd,nd->n", a, a)[:, None] / d + eps)
    weighted = g * w
    along = np.einsum("nd,nd->n", weighted, a)[:, None] / d
    dx = weighted / rms - a * along / rms**3
    dweight = (g * a / rms).sum(axis=0)
    return as_tensor(dx, x), as_tensor(dweight, weight)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"no such approximation: {approximate}")
    return GELU.apply(x, approximate)


def swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    return SwiGLU.apply(x, w_gate, w_up, w_down)


def swiglu_backward(
    grad_out: Tensor, x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g, a = rows(grad_out), rows(x)
    gates, ups, downs = rows(w_gate), rows(w_up), rows(w_down)
    gate, up = a @ gates.T, a @ ups.T
    open_by = (1 + np.tanh(gate / 2)) / 2
    dhidden = g @ downs
    dup = dhidden * gate * open_by
    dgate = dhidden * up * open_by * (1 + gate * (1 - open_by))
    return (
        as_tensor(dgate @ gates + dup @ ups, x),
        as_tensor(dgate.T @ a, w_gate),
        as_tensor(dup.T @ a, w_up),
        as_tensor(g.T @ (gate * open_by * up), w_down),
    )


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        a = rows(x)
        rms = np.sqrt(np.square(a).mean(axis=1, keepdims=True) + eps)
        return as_tensor(a / rms * rows(weight), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return *rmsnorm_backward(grads[0], x, weight, ctx.eps), None


class GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        return (x.double() * mass(x.double(), approximate)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        wide = x.double()
        below = mass(wide, ctx.approximate)
        if ctx.approximate == "tanh":
            slope = (2 / np.pi) ** 0.5 * (1 + 3 * 0.044715 * wide.square())
            density = 2 * below * (1 - below) * slope
        else:
            density = torch.exp(-wide.square() / 2) / (2 * np.pi) ** 0.5
        return (grads[0] * (below + wide * density)).to(x.dtype), None


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        x, w_gate, w_up, w_down = tensors
        gate, up = rows(x) @ rows(w_gate).T, rows(x) @ rows(w_up).T
        out = (gate * (1 + np.tanh(gate / 2)) / 2 * up) @ rows(w_down).T
        return as_tensor(out, x, (*x.shape[:-1], len(w_down)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return swiglu_backward(grads[0], *ctx.saved_tensors)


def mass(x: Tensor, approximate: str) -> Tensor:
    if approximate == "tanh":
        return torch.sigmoid(2 * (2 / np.pi) ** 0.5 * x * (1 + 0.044715 * x.square()))
    return torch.special.ndtr(x)


def rows(x: Tensor) -> np.ndarray:
    return x.detach().reshape(-1, x.shape[-1]).double().numpy()


def as_tensor(a: np.ndarray, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    return torch.tensor(a, dtype=like.dtype).reshape(like.shape if shape is None else shape)
