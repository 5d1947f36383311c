"""Rows are cut into pieces for programs of their own: what each adds, their sum, the quotient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


def softmax(x: Tensor) -> Tensor:
    """Return the softmax of a 2-D `x` over its last axis."""
    n_rows, n_cols = x.shape
    out = x.new_empty(n_rows, n_cols)
    if out.numel() == 0:
        return out
    block = min(BLOCK, triton.next_power_of_2(n_cols))
    pieces = triton.cdiv(n_cols, block)
    best = torch.empty(n_rows, pieces, dtype=torch.float32, device=x.device)
    total = torch.empty(n_rows, pieces, dtype=torch.float32, device=x.device)
    grid = (n_rows * pieces,)
    width = triton.next_power_of_2(pieces)
    _sum_pieces[grid](x, best, total, n_cols, pieces, *x.stride(), BLOCK=block)
    _divide[grid](x, out, best, total, n_cols, pieces, *x.stride(), BLOCK=block, WIDTH=width)
    return out


@triton.jit
def _sum_pieces(
    x_ptr,
    best_ptr,
    total_ptr,
    n_cols,
    pieces,
    x_row_stride,
    x_col_stride,
    BLOCK: tl.constexpr,
):
    """Write the largest score of one piece, and the sum of exp(x - best) over it."""
    piece = tl.program_id(0).to(tl.int64)
    cols = piece % pieces * BLOCK + tl.arange(0, BLOCK)
    x_ptrs = x_ptr + piece // pieces * x_row_stride + cols * x_col_stride
    x = tl.load(x_ptrs, mask=cols < n_cols, other=-float("inf")).to(tl.float32)
    # A piece of nothing but -inf adds nothing: -inf less any number stays -inf.
    best = tl.maximum(tl.max(x, axis=0), LOWEST)
    tl.store(best_ptr + piece, best)
    tl.store(total_ptr + piece, tl.sum(tl.exp(x - best), axis=0))


@triton.jit
def _divide(
    x_ptr,
    out_ptr,
    best_ptr,
    total_ptr,
    n_cols,
    pieces,
    x_row_stride,
    x_col_stride,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write the softmax of one piece; WIDTH is at least the number of pieces of a row."""
    piece = tl.program_id(0).to(tl.int64)
    row = piece // pieces
    parts = tl.arange(0, WIDTH)
    in_row = parts < pieces
    bests = tl.load(best_ptr + row * pieces + parts, mask=in_row, other=-float("inf"))
    totals = tl.load(total_ptr + row * pieces + parts, mask=in_row, other=0.0)
    best = tl.max(bests, axis=0)
    total = tl.sum(totals * tl.exp(bests - best), axis=0)

    cols = piece % pieces * BLOCK + tl.arange(0, BLOCK)
    mask = cols < n_cols
    x_ptrs = x_ptr + row * x_row_stride + cols * x_col_stride
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * n_cols + cols, tl.exp(x - best) / total, mask=mask)
