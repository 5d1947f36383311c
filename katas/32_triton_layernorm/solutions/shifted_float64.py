"""A row a program, in float64, shifted by its first feature; each column summed by one program."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _moments(x_ptr, row, D, eps, BLOCK: tl.constexpr):
    x_ptr += row * D
    cols = tl.arange(0, BLOCK)
    shift = tl.load(x_ptr).to(tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, D, BLOCK):
        at = start + cols
        x = tl.load(x_ptr + at, mask=at < D, other=0.0).to(tl.float64)
        x = tl.where(at < D, x - shift, 0.0)
        total += x
        squares += x * x
    n = D.to(tl.float64)
    mean = tl.sum(total) / n
    var = tl.sum(squares) / n - mean * mean
    var = tl.where(var < 0.0, 0.0, var)
    return mean + shift, 1.0 / tl.sqrt(var + eps)


@triton.jit
def _forward(x_ptr, w_ptr, b_ptr, eps_ptr, out_ptr, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    D = tl.cast(D, tl.int64)
    mean, scale = _moments(x_ptr, row, D, tl.load(eps_ptr), BLOCK)
    for start in range(0, D, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < D
        x = tl.load(x_ptr + row * D + at, mask=mask, other=0.0).to(tl.float64)
        w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float64)
        b = tl.load(b_ptr + at, mask=mask, other=0.0).to(tl.float64)
        y = (x - mean) * scale * w + b
        tl.store(out_ptr + row * D + at, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward(g_ptr, x_ptr, w_ptr, eps_ptr, dx_ptr, stats_ptr, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    D = tl.cast(D, tl.int64)
    mean, scale = _moments(x_ptr, row, D, tl.load(eps_ptr), BLOCK)
    tl.store(stats_ptr + 2 * row, mean)
    tl.store(stats_ptr + 2 * row + 1, scale)
    one = tl.zeros((BLOCK,), tl.float64)
    two = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, D, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < D
        x = tl.load(x_ptr + row * D + at, mask=mask, other=0.0).to(tl.float64)
        g = tl.load(g_ptr + row * D + at, mask=mask, other=0.0).to(tl.float64)
        g *= tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float64)
        one += g
        two += g * (x - mean) * scale
    n = D.to(tl.float64)
    first = tl.sum(one) / n
    second = tl.sum(two) / n
    for start in range(0, D, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < D
        x = tl.load(x_ptr + row * D + at, mask=mask, other=0.0).to(tl.float64)
        g = tl.load(g_ptr + row * D + at, mask=mask, other=0.0).to(tl.float64)
        g *= tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float64)
        dx = (g - first - (x - mean) * scale * second) * scale
        tl.store(dx_ptr + row * D + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _columns(
    g_ptr, x_ptr, stats_ptr, dw_ptr, db_ptr, rows, D, BLOCK: tl.constexpr, R: tl.constexpr
):
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    dw = tl.zeros((BLOCK,), tl.float64)
    db = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, rows, R):
        at = (start + tl.arange(0, R)).to(tl.int64)
        live = at < rows
        mask = live[:, None] & (cols < D)[None, :]
        where = at[:, None] * D + cols[None, :]
        mean = tl.load(stats_ptr + 2 * at, mask=live, other=0.0)[:, None]
        scale = tl.load(stats_ptr + 2 * at + 1, mask=live, other=0.0)[:, None]
        x = tl.load(x_ptr + where, mask=mask, other=0.0).to(tl.float64)
        g = tl.load(g_ptr + where, mask=mask, other=0.0).to(tl.float64)
        dw += tl.sum(g * (x - mean) * scale, axis=0)
        db += tl.sum(g, axis=0)
    tl.store(dw_ptr + cols, dw.to(dw_ptr.dtype.element_ty), mask=cols < D)
    tl.store(db_ptr + cols, db.to(db_ptr.dtype.element_ty), mask=cols < D)


def _block(D):
    return min(triton.next_power_of_2(D), 1024)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the layer norm of `x` over its last axis."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    D = x.shape[-1]
    flat = x.reshape(-1, D).contiguous()
    eps_of = torch.tensor(float(eps), dtype=torch.float64, device=x.device)
    _forward[(len(flat),)](flat, weight.contiguous(), bias.contiguous(), eps_of, out, D, _block(D))
    return out


def layernorm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for x, weight and bias."""
    D = x.shape[-1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dw = torch.zeros(D, dtype=x.dtype, device=x.device)
    db = torch.zeros(D, dtype=x.dtype, device=x.device)
    if not dx.numel():
        return dx, dw, db
    flat = x.reshape(-1, D).contiguous()
    g = grad_out.reshape(-1, D).contiguous()
    rows = len(flat)
    eps_of = torch.tensor(float(eps), dtype=torch.float64, device=x.device)
    stats = torch.empty(rows, 2, dtype=torch.float64, device=x.device)
    _backward[(rows,)](g, flat, weight.contiguous(), eps_of, dx, stats, D, _block(D))
    block = min(_block(D), 64)
    _columns[(triton.cdiv(D, block),)](g, flat, stats, dw, db, rows, D, block, 64)
    return dx, dw, db
