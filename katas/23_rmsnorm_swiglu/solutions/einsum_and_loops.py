"""Einsum throughout, rows in chunks, Llama's order of casts, and silu from an exponential."""

import torch
from torch import Tensor


def rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    x_hat = wide / torch.sqrt(norm**2 / x.shape[-1] + eps)
    return (weight * x_hat.to(x.dtype)).to(x.dtype)


def rmsnorm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    d = x.shape[-1]
    dx, dweight = torch.empty_like(x, memory_format=torch.contiguous_format), 0
    chunks = [t.reshape(-1, d).split(1000) for t in (grad_out, x)]
    for grads, xs, out in zip(*chunks, dx.view(-1, d).split(1000), strict=True):
        g, a, w = grads.float(), xs.float(), weight.float()
        inverse = torch.rsqrt(torch.einsum("nd,nd->n", a, a) / d + eps)
        x_hat = torch.einsum("nd,n->nd", a, inverse)
        dweight = dweight + torch.einsum("nd,nd->d", g, x_hat)
        along = torch.einsum("nd,nd,d->n", g, x_hat, w) / d
        out.copy_((g * w - x_hat * along[:, None]) * inverse[:, None])
    return dx, dweight.to(weight.dtype)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    match approximate:
        case "none":
            out = wide * (0.5 * torch.erfc(-wide / 2**0.5))
        case "tanh":
            inner = 0.7978845608028654 * wide * (1 + 0.044715 * wide * wide)
            out = wide * 0.5 * (1.0 + torch.tanh(inner))
        case _:
            raise ValueError(f"approximate={approximate}")
    return out.type_as(x)


def silu_and_slope(gate: Tensor) -> tuple[Tensor, Tensor]:
    # exp(-|g|) never overflows.
    fading = torch.exp(-gate.abs())
    sigmoid = torch.where(gate < 0, fading, 1) / (1 + fading)
    return gate * sigmoid, sigmoid + gate * fading / (1 + fading) ** 2


def swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    gate = torch.einsum("...d,hd->...h", x, w_gate)
    silu = gate / (1 + torch.exp(-gate.clamp(min=-80)))
    return torch.einsum("...h,hd,...d,oh->...o", silu, w_up, x, w_down)


def swiglu_backward(
    grad_out: Tensor, x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gate = torch.einsum("...d,hd->...h", x, w_gate)
    up = torch.einsum("...d,hd->...h", x, w_up)
    silu, slope = silu_and_slope(gate)
    dw_down = torch.einsum("...o,...h->oh", grad_out, silu * up)
    dhidden = torch.einsum("...o,oh->...h", grad_out, w_down)
    dgate, dup = dhidden * up * slope, dhidden * silu
    dx = torch.einsum("...h,hd->...d", dgate, w_gate)
    dx = dx + torch.einsum("...h,hd->...d", dup, w_up)
    dw_gate = torch.einsum("...h,...d->hd", dgate, x)
    dw_up = torch.einsum("...h,...d->hd", dup, x)
    return dx, dw_gate, dw_up, dw_down
