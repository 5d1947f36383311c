"""An int8 matrix product with zero points, requantised to int8 in the same Triton kernel."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# The smallest tile comes first.
CONFIGS = [
    triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_stages=stages, num_warps=warps)
    for m, n, k, stages, warps in [
        (16, 32, 256, 4, 4),
        (64, 128, 128, 4, 4),
        (128, 128, 128, 4, 8),
        (128, 256, 128, 3, 8),
        (256, 128, 128, 3, 8),
    ]
]


def _fitting(
    configs: list[triton.Config], args: dict[str, Any], **_: object
) -> list[triton.Config]:
    """Return the configs whose tiles are not much larger than the result, or else the smallest."""
    m, n = args["M"], args["N"]
    fitting = [c for c in configs if c.kwargs["BLOCK_M"] < 2 * m and c.kwargs["BLOCK_N"] < 2 * n]
    return fitting or configs[:1]


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
    """Return the int8 codes, under `scale_c` and `zp_c`, of the product that `a` and `b` stand for.

    `a` is int8 (M, K), `b` is int8 (K, N), the result (M, N); any strides. Tensor cores read int8
    along K, so it is fastest where K is contiguous in both: `b = weight.T` for a linear layer.
    The sum over K is exact for K up to 100,000. Jacob et al., 2017: https://arxiv.org/abs/1712.05877
    """
    (m, k), n = a.shape, b.shape[1]
    c = a.new_empty(m, n)
    if c.numel() == 0:
        return c
    row_sums = _row_sums(a) if zp_b else None
    col_sums = _row_sums(b.T) if zp_a else None

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(m, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]),)

    _int8_matmul_kernel[grid](
        a,
        b,
        c,
        row_sums,
        col_sums,
        m,
        n,
        k,
        *a.stride(),
        *b.stride(),
        *c.stride(),
        scale_a * scale_b / scale_c,
        zp_a,
        zp_b,
        zp_c,
        GROUP_M=8,
    )
    return c


def _row_sums(x: Tensor) -> Tensor:
    """Return the sum of each row of an int8 matrix, in int32."""
    rows, k = x.shape
    sums = torch.empty(rows, dtype=torch.int32, device=x.device)
    grid = (triton.cdiv(rows, 16),)
    _row_sums_kernel[grid](x, sums, rows, k, *x.stride(), BLOCK_M=16, BLOCK_K=1024, num_warps=8)
    return sums


# The interpreter, which has nothing to measure, takes the first.
@triton.autotune(
    configs=CONFIGS[:1] if triton.knobs.runtime.interpret else CONFIGS,
    key=["M", "N", "K"],
    prune_configs_by={"early_config_prune": _fitting},
)
@triton.jit(do_not_specialize=["zp_a", "zp_b", "zp_c"])
def _int8_matmul_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    row_sums_ptr,
    col_sums_ptr,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_cm,
    stride_cn,
    multiplier: tl.float64,
    zp_a,
    zp_b,
    zp_c,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Write one tile of c. The sums of a's rows and of b's columns may be None."""
    # Programs that run at the same time form a square of tiles, which the L2 cache can feed.
    tile = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tile_m, tile_n = tl.swizzle2d(tile // tiles_n, tile % tiles_n, tiles_m, tiles_n, GROUP_M)
    rows = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    cols = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    row_mask = (rows < M)[:, None]
    col_mask = (cols < N)[None, :]

    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    a_rows = a_ptr + rows[:, None] * stride_am
    b_cols = b_ptr + cols[None, :] * stride_bn
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        inner = start + offs_k
        k_mask = inner < K
        a_mask = row_mask & k_mask[None, :]
        b_mask = col_mask & k_mask[:, None]
        a = tl.load(a_rows + inner[None, :] * stride_ak, mask=a_mask, other=0)
        b = tl.load(b_cols + inner[:, None] * stride_bk, mask=b_mask, other=0)
        acc += tl.dot(a, b)

    # From the products of codes to the products of the numbers that they stand for.
    total = acc.to(tl.int64) + K * zp_a * zp_b
    if row_sums_ptr is not None:
        row_sums = tl.load(row_sums_ptr + rows, mask=rows < M, other=0)
        total -= zp_b * row_sums[:, None]
    if col_sums_ptr is not None:
        col_sums = tl.load(col_sums_ptr + cols, mask=cols < N, other=0)
        total -= zp_a * col_sums[None, :]

    # Half to even, as the hardware rounds a sum: floats from 2**52 to 2**53 are whole numbers.
    steps = total.to(tl.float64) * multiplier
    rounded = (steps + 1.5 * 2**52) - 1.5 * 2**52
    codes = tl.minimum(tl.maximum(rounded + zp_c, -128.0), 127.0)
    c_ptrs = c_ptr + rows[:, None] * stride_cm + cols[None, :] * stride_cn
    tl.store(c_ptrs, codes.to(tl.int8), mask=row_mask & col_mask)


@triton.jit
def _row_sums_kernel(
    x_ptr,
    sums_ptr,
    M,
    K,
    stride_m,
    stride_k,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write the sums of BLOCK_M rows."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    row_mask = rows < M
    x_rows = x_ptr + rows[:, None] * stride_m
    sums = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        inner = start + offs_k
        mask = row_mask[:, None] & (inner < K)[None, :]
        sums += tl.load(x_rows + inner[None, :] * stride_k, mask=mask, other=0)
    tl.store(sums_ptr + rows, tl.sum(sums, axis=1), mask=row_mask)
