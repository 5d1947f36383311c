"""A wide row is split over programs: each leaves a maximum and a sum, which others join."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048
SPLIT = 8192


@triton.jit
def _rows(x, y, m, n, xs0, xs1, ys0, ys1, R: tl.constexpr, W: tl.constexpr):
    """Write the softmax of `R` rows, each no wider than `W`."""
    r = tl.program_id(0) * R + tl.arange(0, R).to(tl.int64)
    c = tl.arange(0, W).to(tl.int64)
    inside = (r < m)[:, None] & (c < n)[None, :]
    v = tl.load(x + r[:, None] * xs0 + c[None, :] * xs1, mask=inside, other=float("-inf")).to(
        tl.float32
    )
    e = tl.exp(v - tl.max(v, 1)[:, None])
    tl.store(y + r[:, None] * ys0 + c[None, :] * ys1, e / tl.sum(e, 1)[:, None], mask=inside)


@triton.jit
def _tops(x, top, total, n, xs0, xs1, parts, W: tl.constexpr):
    """Write the largest of `W` scores of a row, and the sum of exponentials relative to it."""
    r = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    c = part * W + tl.arange(0, W).to(tl.int64)
    v = tl.load(x + r * xs0 + c * xs1, mask=c < n, other=float("-inf")).to(tl.float32)
    largest = tl.max(v, 0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    tl.store(top + r * parts + part, largest)
    tl.store(total + r * parts + part, tl.sum(tl.exp(v - shift), 0))


@triton.jit
def _finish(x, y, top, total, n, xs0, xs1, ys0, ys1, parts, P: tl.constexpr, W: tl.constexpr):
    """Write `W` probabilities of a row."""
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * W + tl.arange(0, W).to(tl.int64)
    p = tl.arange(0, P)
    tops = tl.load(top + r * parts + p, mask=p < parts, other=float("-inf"))
    sums = tl.load(total + r * parts + p, mask=p < parts, other=0.0)
    largest = tl.max(tops, 0)
    whole = tl.sum(sums * tl.exp(tops - largest), 0)
    v = tl.load(x + r * xs0 + c * xs1, mask=c < n, other=float("-inf")).to(tl.float32)
    tl.store(y + r * ys0 + c * ys1, tl.exp(v - largest) / whole, mask=c < n)


def softmax(x: Tensor) -> Tensor:
    """Return the softmax of each row of `x`, a matrix."""
    m, n = x.shape
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if m == 0 or n == 0:
        return y
    if n <= 16_384:
        width = triton.next_power_of_2(n)
        rows = max(1, ELEMENTS // width)
        _rows[(triton.cdiv(m, rows),)](x, y, m, n, *x.stride(), *y.stride(), R=rows, W=width)
        return y
    parts = triton.cdiv(n, SPLIT)
    top = torch.empty((m, parts), dtype=torch.float32, device=x.device)
    total = torch.empty((m, parts), dtype=torch.float32, device=x.device)
    _tops[(m, parts)](x, top, total, n, *x.stride(), parts, W=SPLIT)
    _finish[(m, parts)](
        x,
        y,
        top,
        total,
        n,
        *x.stride(),
        *y.stride(),
        parts,
        P=triton.next_power_of_2(parts),
        W=SPLIT,
    )
    return y
