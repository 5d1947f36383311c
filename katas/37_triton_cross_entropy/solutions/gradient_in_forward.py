"""The gradient made in the forward pass and kept in float32; sums by atomics."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _tile(x_ptr, t_ptr, skip_ptr, sum_ptr, p_ptr, N, C, R: tl.constexpr, B: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    live = n < N
    y = tl.load(t_ptr + n, mask=live, other=0)
    counts = live & (y != tl.load(skip_ptr))
    m = tl.full((R,), float("-inf"), tl.float32)
    s = tl.zeros((R,), tl.float32)
    mine = tl.zeros((R,), tl.float32)
    for start in range(0, C, B):
        c = start + tl.arange(0, B).to(tl.int64)
        ok = counts[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + n[:, None] * C + c[None, :], mask=ok, other=float("-inf"))
        x = x.to(tl.float32)
        new = tl.maximum(m, tl.max(x, axis=1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        s = s * tl.exp(m - safe) + tl.sum(tl.exp(x - safe[:, None]), axis=1)
        m = new
        mine += tl.sum(tl.where(c[None, :] == y[:, None], x, 0.0), axis=1)
    loss = tl.where(counts, tl.log(s) + (m - mine), 0.0)
    tl.atomic_add(sum_ptr, tl.sum(loss).to(tl.float64))
    tl.atomic_add(sum_ptr + 1, tl.sum(counts.to(tl.float64)))
    safe = tl.where(counts, m + tl.log(s), 0.0)
    for start in range(0, C, B):
        c = start + tl.arange(0, B).to(tl.int64)
        ok = live[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + n[:, None] * C + c[None, :], mask=ok, other=0.0).to(tl.float32)
        p = tl.exp(x - safe[:, None]) - (c[None, :] == y[:, None]).to(tl.float32)
        tl.store(p_ptr + n[:, None] * C + c[None, :], tl.where(counts[:, None], p, 0.0), mask=ok)


@triton.jit
def _scale(p_ptr, out_ptr, g_ptr, sum_ptr, total, B: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    count = tl.maximum(tl.load(sum_ptr + 1), 1.0)
    p = tl.load(p_ptr + at, mask=at < total, other=0.0)
    g = tl.load(g_ptr).to(tl.float64)
    out = p * (g / count).to(tl.float32)
    out = tl.where(p == 0.0, 0.0, out)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=at < total)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        N, C = logits.shape
        x, t = logits.contiguous(), targets.contiguous()
        sums = torch.zeros(2, dtype=torch.float64, device=x.device)
        p = torch.empty((N, C), dtype=torch.float32, device=x.device)
        skip = torch.tensor([ignore_index], dtype=torch.int64, device=x.device)
        if N:
            B = min(triton.next_power_of_2(C), 512)
            _tile[(triton.cdiv(N, 4),)](x, t, skip, sums, p, N, C, 4, B)
        ctx.save_for_backward(p, sums)
        ctx.dtype = logits.dtype
        return (sums[0] / sums[1]).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        p, sums = ctx.saved_tensors
        out = torch.empty(p.shape, dtype=ctx.dtype, device=p.device)
        if p.numel():
            _scale[(triton.cdiv(p.numel(), 1024),)](p, out, grad, sums, p.numel(), 1024)
        return out, None, None


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the mean cross-entropy of the rows that count."""
    return _CrossEntropy.apply(logits, targets, ignore_index)
