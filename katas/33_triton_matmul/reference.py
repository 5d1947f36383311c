"""Matrix product of two matrices of any strides, tile by tile, on a GPU."""

from itertools import chain
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def _config(tile: str, warps: int = 8, stages: int = 3) -> triton.Config:
    """Return the configuration for a tile, BLOCK_M x BLOCK_N x BLOCK_K."""
    block_m, block_n, block_k = map(int, tile.split("x"))
    blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8}
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


# For results of few rows, and for the interpreter.
SMALL = _config("16x64x32", warps=4, stages=4)
# For an H100. Tensor cores take float16; float32 in full precision is left to the other cores.
LARGE = {
    torch.float16: [
        _config("64x128x64", warps=4, stages=4),
        _config("128x128x64", stages=4),
        _config("128x256x64"),
        _config("256x128x64"),
    ],
    torch.float32: [_config("64x64x32", warps=4), _config("128x128x32")],
}


def _worth_timing(configs: list[triton.Config], args: dict[str, Any], **_: Any) -> list:
    """Keep the configurations for the dtype whose tiles are no higher than the result."""
    large = LARGE[args["a_ptr"].dtype]
    return [config for config in large if config.kwargs["BLOCK_M"] <= args["M"]] or [SMALL]


@triton.autotune(
    configs=[SMALL] if triton.knobs.runtime.interpret else [SMALL, *chain(*LARGE.values())],
    key=["M", "N", "K"],
    prune_configs_by={"early_config_prune": _worth_timing},
)
@triton.jit
def _matmul_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_cm,
    stride_cn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Write one (BLOCK_M, BLOCK_N) tile of c, which is (M, N); a is (M, K) and b is (K, N).

    Programs that run at the same time share rows of a and columns of b in the L2 cache: GROUP_M
    rows of tiles are taken together, column by column.
    https://triton-lang.org/main/getting-started/tutorials/03-matrix-multiplication.html
    """
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    first_m = pid // (GROUP_M * tiles_n) * GROUP_M
    group_rows = min(tiles_m - first_m, GROUP_M)
    rank = pid % (GROUP_M * tiles_n)
    pid_m = first_m + rank % group_rows
    pid_n = rank // group_rows

    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    in_m = offs_m < M
    in_n = offs_n < N

    a_ptrs = a_ptr + offs_m[:, None] * stride_am + offs_k[None, :] * stride_ak
    b_ptrs = b_ptr + offs_k[:, None] * stride_bk + offs_n[None, :] * stride_bn
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        in_k = offs_k < K - k
        a = tl.load(a_ptrs, mask=in_m[:, None] & in_k[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=in_k[:, None] & in_n[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)
        a_ptrs += tl.cast(stride_ak, tl.int64) * BLOCK_K
        b_ptrs += tl.cast(stride_bk, tl.int64) * BLOCK_K

    c = acc.to(c_ptr.dtype.element_ty)
    c_ptrs = c_ptr + offs_m[:, None] * stride_cm + offs_n[None, :] * stride_cn
    tl.store(c_ptrs, c, mask=in_m[:, None] & in_n[None, :])


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of `a`, (M, K), and `b`, (K, N): (M, N), of their dtype.

    Both are float32 or both float16, of any strides, with 2 ** 31 elements or more if need be.
    Products are added up in float32. Raises ValueError if the sizes along K differ.
    """
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a of shape {tuple(a.shape)} does not fit b of shape {tuple(b.shape)}")
    m, k = a.shape
    n = b.shape[1]
    c = a.new_empty(m, n)
    if c.numel() == 0:
        return c

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(m, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]),)

    _matmul_kernel[grid](a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride())
    return c
