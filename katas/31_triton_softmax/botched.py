"""Softmax over rows as Triton kernels: in one pass where a row fits a block, online beyond."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 16384  # the widest row that one program holds in registers
MIN_TILE = 2048  # elements of a tile at least; narrow rows share one
ELEMENTS_PER_WARP = 512  # 16 a thread: two 16-byte loads of float16, four of float32

LOWEST = tl.constexpr(float("-inf"))


def softmax(x: Tensor) -> Tensor:
    """Return the softmax of a 2-D `x` over its last axis; same shape and dtype.

    `x` is float32 or float16, of any strides. The arithmetic is done in float32.
    """
    n_rows, n_cols = x.shape
    out = torch.empty_like(x)
    if not out.numel():
        return out
    arguments = (x, out, n_rows, n_cols, *x.stride(), *out.stride())
    if n_cols <= MAX_BLOCK:
        block = max(triton.next_power_of_2(n_cols - 1), 16)
        tile = max(MIN_TILE, block)
        rows = tile // block
        warps = min(tile // ELEMENTS_PER_WARP, 16)
        grid = (triton.cdiv(n_rows, rows),)
        _softmax_tile[grid](*arguments, ROWS=rows, BLOCK=block, num_warps=warps)
    else:
        _softmax_online[(n_rows,)](*arguments, BLOCK=MAX_BLOCK, num_warps=16)
    return out


@triton.jit
def _softmax_tile(
    x_ptr,
    out_ptr,
    n_rows,
    n_cols,
    x_row_stride,
    x_col_stride,
    out_row_stride,
    out_col_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the softmax of ROWS rows, each read once; BLOCK is at least their width."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK).to(tl.int64)
    mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]

    x_ptrs = x_ptr + rows[:, None] * x_row_stride + cols[None, :] * x_col_stride
    x = tl.load(x_ptrs, mask=mask, other=-float("inf")).to(tl.float32)
    exp = tl.exp(x - tl.max(x, axis=1)[:, None])
    out = exp / tl.sum(exp, axis=1)[:, None]

    out_ptrs = out_ptr + rows[:, None] * out_row_stride + cols[None, :] * out_col_stride
    tl.store(out_ptrs, out, mask=mask)


@triton.jit
def _softmax_online(
    x_ptr,
    out_ptr,
    n_rows,
    n_cols,
    x_row_stride,
    x_col_stride,
    out_row_stride,
    out_col_stride,
    BLOCK: tl.constexpr,
):
    """Write the softmax of one row of any width: a pass for its sum, another for its result.

    `total` is the sum of exp(x - best) over what has been read, `best` the largest of that.
    Milakov and Gimelshein, 2018, algorithm 3: https://arxiv.org/abs/1805.02867
    """
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_row_stride
    out_ptr += row * out_row_stride

    best = tl.full((), LOWEST, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = cols < n_cols
        x = tl.load(x_ptr + cols * x_col_stride, mask=mask, other=-float("inf")).to(tl.float32)
        new_best = tl.maximum(best, tl.max(x, axis=0))
        total *= tl.exp(best - new_best)
        best = new_best
        total += tl.sum(tl.exp(x - best), axis=0)

    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = cols < n_cols
        x = tl.load(x_ptr + cols * x_col_stride, mask=mask).to(tl.float32)
        out = tl.exp(x - best) / total
        tl.store(out_ptr + cols * out_col_stride, out, mask=mask)
