"""The norm, the activations and the feed-forward block of a Llama, two with gradients by hand."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Return weight * x / rms(x), shaped as `x` (..., D) and of its dtype; `weight` is (D,).

    The statistics are float32, or float64 for a float64 `x`.
    Zhang and Sennrich, 2019: https://arxiv.org/abs/1910.07467
    """
    x_hat, _ = _normalise(x, eps)
    return (weight * x_hat).to(x.dtype)


def rmsnorm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Return the gradients for `x` (..., D) and `weight` (D,), each of the dtype of its tensor.

    `grad_out` (..., D) is the gradient for the output of `rmsnorm`, and has the dtype of `x`.
    """
    x_hat, inv_rms = _normalise(x, eps)
    dweight = (grad_out * x_hat).sum_to_size(weight.shape)
    dx_hat = grad_out.to(x_hat.dtype) * weight
    dx = dx_hat - x_hat * (dx_hat * x_hat).mean(dim=-1, keepdim=True)
    dx *= inv_rms
    return dx.to(x.dtype), dweight.to(weight.dtype)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Return x times the normal distribution's mass below it; same shape and dtype.

    `approximate` is "none" or "tanh", anything else a ValueError.
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.gelu.html
    """
    wide = _widened(x)
    if approximate == "none":
        mass = _normal_mass(wide)
    elif approximate == "tanh":
        mass = _normal_mass_by_tanh(wide)
    else:
        raise ValueError(f"approximate must be 'none' or 'tanh', not {approximate!r}")
    return (wide * mass).to(x.dtype)


def swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    """Return (..., O) for `x` (..., D), `w_gate` and `w_up` (H, D), and `w_down` (O, H).

    Shazeer, 2020: https://arxiv.org/abs/2002.05202
    """
    gate, up = F.linear(x, w_gate), F.linear(x, w_up)
    return F.linear(F.silu(gate) * up, w_down)


def swiglu_backward(
    grad_out: Tensor, x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients for `x`, `w_gate`, `w_up` and `w_down`, given that of the output."""
    gate, up = F.linear(x, w_gate), F.linear(x, w_up)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    dhidden = grad_out @ w_down
    dgate = dhidden * up * (sigmoid + silu * (1 - sigmoid))
    dup = dhidden * silu
    dx = dgate @ w_gate + dup @ w_up
    dw_gate, dw_up = _weight_gradient(dgate, x), _weight_gradient(dup, x)
    dw_down = _weight_gradient(grad_out, silu * up)
    return dx, dw_gate, dw_up, dw_down


def _widened(x: Tensor) -> Tensor:
    """Return `x` in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x / rms(x), shaped as `x` (..., D), and 1 / rms(x) of each row (..., 1)."""
    wide = _widened(x)
    mean_square = wide.square().mean(dim=-1, keepdim=True)
    inv_rms = (mean_square + eps).rsqrt()
    return wide * inv_rms, inv_rms


def _normal_mass(x: Tensor) -> Tensor:
    """Return the mass of the standard normal distribution below `x`."""
    return 0.5 * (1 + torch.erf(x * math.sqrt(1 / 2)))


def _normal_mass_by_tanh(x: Tensor) -> Tensor:
    """Return the approximation of that mass by Hendrycks and Gimpel, 2016.

    https://arxiv.org/abs/1606.08415
    """
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    """Return the gradient (O, I) for the weight of a linear map of `x` (..., I)."""
    return grad_out.reshape(-1, grad_out.shape[-1]).mT @ x.reshape(-1, x.shape[-1])
