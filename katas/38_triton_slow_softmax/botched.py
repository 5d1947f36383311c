"""Softmax over rows at the speed of memory: one read and one write, by tiles that fit registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# What a tile holds, and the widest row that is kept in one.
TILE = 4096
WIDEST = 16_384
# The same where columns lie together in memory, rather than rows: tiles of many rows.
COLUMN_MAJOR_WIDEST = 128


@triton.jit
def _softmax_kernel(
    x_ptr,
    out_ptr,
    rows,
    columns,
    x_row_stride,
    x_column_stride,
    out_row_stride,
    out_column_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the softmax of `ROWS` rows, each no wider than `BLOCK`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK).to(tl.int64)[None, :]
    mask = (row < rows) & (column < columns)
    place = x_ptr + row * x_row_stride + column * x_column_stride
    x = tl.load(place, mask=mask, other=float("-inf")).to(tl.float32)
    numerator = tl.exp(x - tl.max(x, axis=1, keep_dims=True))
    result = numerator / tl.sum(numerator, axis=1, keep_dims=True)
    place = out_ptr + row * out_row_stride + column * out_column_stride
    tl.store(place, result, mask=mask)


@triton.jit
def _softmax_wide_kernel(
    x_ptr,
    out_ptr,
    rows,
    columns,
    x_row_stride,
    x_column_stride,
    out_row_stride,
    out_column_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the softmax of `ROWS` rows of any width, `BLOCK` columns at a time.

    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018,
    https://arxiv.org/abs/1805.02867
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    x_row_ptr = x_ptr + row * x_row_stride
    out_row_ptr = out_ptr + row * out_row_stride
    largest = tl.full((ROWS, 1), float("-inf"), tl.float32)
    total = tl.zeros((ROWS, 1), tl.float32)
    run = tl.cdiv(columns, BLOCK)
    for step in range(run):
        column = step + run * tl.arange(0, BLOCK).to(tl.int64)[None, :]
        mask = (row < rows) & (column < columns)
        x = tl.load(x_row_ptr + column * x_column_stride, mask=mask, other=float("-inf"))
        x = x.to(tl.float32)
        new_largest = tl.maximum(largest, tl.max(x, axis=1, keep_dims=True))
        # Any finite number will do while a row has nothing but -inf.
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp(largest - shift)
        total += tl.sum(tl.exp(x - shift), axis=1, keep_dims=True)
        largest = new_largest
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK).to(tl.int64)[None, :]
        mask = (row < rows) & (column < columns)
        x = tl.load(x_row_ptr + column * x_column_stride, mask=mask)
        result = tl.exp(x.to(tl.float32) - largest) / total
        tl.store(out_row_ptr + column * out_column_stride, result, mask=mask)


def softmax(x: Tensor) -> Tensor:
    """Return the softmax of each row of `x`, a matrix; same shape and dtype."""
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    x = x.float()
    rows, columns = x.shape
    widest = COLUMN_MAJOR_WIDEST if x.stride(0) < x.stride(1) else WIDEST
    block = min(triton.next_power_of_2(columns), widest)
    block_rows = max(TILE // block, 1)
    kernel = _softmax_kernel if columns <= block else _softmax_wide_kernel
    kernel[(triton.cdiv(rows, block_rows),)](
        x,
        out,
        rows,
        columns,
        *x.stride(),
        *out.stride(),
        ROWS=block_rows,
        BLOCK=block,
        num_warps=min(max(block_rows * block // 1024, 4), 16),
    )
    return out
