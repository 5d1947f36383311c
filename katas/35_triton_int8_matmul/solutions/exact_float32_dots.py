"""Zero points taken off before float32 products of 64 codes, which are exact; sums in int64."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(
    a_ptr,
    b_ptr,
    s_ptr,
    out_ptr,
    M,
    N,
    K,
    am,
    ak,
    bk,
    bn,
    zp_a,
    zp_b,
    zp_c,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    cols = (tl.program_id(1) * BN + tl.arange(0, BN)).to(tl.int64)
    acc = tl.zeros((BM, BN), tl.int64)
    for start in range(0, K, BK):
        ks = (start + tl.arange(0, BK)).to(tl.int64)
        am_ok = (rows < M)[:, None] & (ks < K)[None, :]
        bn_ok = (ks < K)[:, None] & (cols < N)[None, :]
        a = tl.load(a_ptr + rows[:, None] * am + ks[None, :] * ak, mask=am_ok, other=0)
        b = tl.load(b_ptr + ks[:, None] * bk + cols[None, :] * bn, mask=bn_ok, other=0)
        fa = tl.where(am_ok, a.to(tl.float32) - zp_a, 0.0)
        fb = tl.where(bn_ok, b.to(tl.float32) - zp_b, 0.0)
        acc += tl.dot(fa, fb, input_precision="ieee").to(tl.int64)
    value = acc.to(tl.float64) * tl.load(s_ptr) * tl.load(s_ptr + 1) / tl.load(s_ptr + 2)
    value = tl.where(value > 1000.0, 1000.0, value)
    value = tl.where(value < -1000.0, -1000.0, value)
    low = tl.floor(value)
    rest = value - low
    n = low.to(tl.int32)
    n += ((rest > 0.5) | ((rest == 0.5) & (n % 2 != 0))).to(tl.int32)
    n += zp_c
    n = tl.where(n > 127, 127, n)
    n = tl.where(n < -128, -128, n)
    where = rows[:, None] * N + cols[None, :]
    tl.store(out_ptr + where, n.to(tl.int8), mask=(rows < M)[:, None] & (cols < N)[None, :])


def int8_matmul(
    a: Tensor,
    b: Tensor,
    scale_a: float,
    scale_b: float,
    scale_c: float,
    zp_a: int,
    zp_b: int,
    zp_c: int,
) -> Tensor:
    """Return the int8 codes of the matrix product."""
    (M, K), N = a.shape, b.shape[1]
    out = torch.empty(M, N, dtype=torch.int8, device=a.device)
    if M and N:
        scales = torch.tensor([scale_a, scale_b, scale_c], dtype=torch.float64, device=a.device)
        _kernel[(triton.cdiv(M, 16), triton.cdiv(N, 32))](
            a, b, scales, out, M, N, K, *a.stride(), *b.stride(), zp_a, zp_b, zp_c, 16, 32, 64
        )
    return out
