"""No `tl.dot`: sums of products of tiles, K split in two, the halves added by a kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _half_kernel(
    a_ptr,
    b_ptr,
    half_ptr,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write one tile of the product over the first or second half of K, in float32."""
    tile = tl.program_id(0).to(tl.int64)
    tiles_n = tl.cdiv(N, BLOCK_N)
    middle = (K + 1) // 2
    half = tl.program_id(1).to(tl.int64)
    offs_m = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m = offs_m < M
    in_n = offs_n < N
    end = tl.where(half == 0, middle, K)

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(half * middle, end, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        in_k = offs_k < end
        a_ptrs = a_ptr + offs_m[:, None] * stride_am + offs_k[None, :] * stride_ak
        b_ptrs = b_ptr + offs_k[:, None] * stride_bk + offs_n[None, :] * stride_bn
        a = tl.load(a_ptrs, mask=in_m[:, None] & in_k[None, :], other=0.0).to(tl.float32)
        b = tl.load(b_ptrs, mask=in_k[:, None] & in_n[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(a[:, :, None] * b[None, :, :], axis=1)

    half_ptrs = half_ptr + half * M * N + offs_m[:, None] * N + offs_n[None, :]
    tl.store(half_ptrs, acc, mask=in_m[:, None] & in_n[None, :])


@triton.jit
def _add_kernel(half_ptr, c_ptr, numel, BLOCK: tl.constexpr):
    """Write the sum of the two halves."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < numel
    first = tl.load(half_ptr + offs, mask=mask, other=0.0)
    second = tl.load(half_ptr + numel + offs, mask=mask, other=0.0)
    tl.store(c_ptr + offs, first + second, mask=mask)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of `a`, (M, K), and `b`, (K, N)."""
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"no product of {list(a.shape)} and {list(b.shape)}")
    (m, k), n = a.shape, b.shape[1]
    c = torch.zeros(m, n, dtype=a.dtype, device=a.device)
    if k == 0 or c.numel() == 0:
        return c
    halves = torch.empty(2, m, n, dtype=torch.float32, device=a.device)
    blocks = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16}
    grid = (triton.cdiv(m, 32) * triton.cdiv(n, 32), 2)
    _half_kernel[grid](a, b, halves, m, n, k, *a.stride(), *b.stride(), **blocks)
    _add_kernel[(triton.cdiv(m * n, 4096),)](halves, c, m * n, BLOCK=4096)
    return c
