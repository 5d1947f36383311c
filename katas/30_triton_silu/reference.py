"""SiLU by a Triton kernel that walks tensors of any shape and strides in two-dimensional tiles."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows and columns of a tile: for tensors that are one run of elements, and for all others.
RUN = (1, 4096)
TILE = (64, 64)


@triton.jit
def _silu_kernel(
    x_ptr,
    out_ptr,
    rows,
    columns,
    x_row_stride,
    x_column_stride,
    out_row_stride,
    out_column_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Write SiLU of one tile of `x` to the same place of `out`; tiles are numbered row by row."""
    tile = tl.program_id(0).to(tl.int64)
    tiles_across = tl.cdiv(columns, BLOCK_COLUMNS)
    row = (tile // tiles_across) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = (tile % tiles_across) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = (row < rows) & (column < columns)
    x = tl.load(x_ptr + row * x_row_stride + column * x_column_stride, mask=mask)
    gate = tl.sigmoid(x.to(tl.float32))
    tl.store(out_ptr + row * out_row_stride + column * out_column_stride, x * gate, mask=mask)


def silu(x: Tensor) -> Tensor:
    """Return `x * sigmoid(x)`, a new tensor of the shape and dtype of `x`.

    Hendrycks and Gimpel, "Gaussian error linear units", 2016, https://arxiv.org/abs/1606.08415
    """
    out = torch.empty_like(x)
    silu_into(x, out)
    return out


def silu_into(x: Tensor, out: Tensor) -> None:
    """Write `x * sigmoid(x)` into `out`, a tensor of the shape and dtype of `x`, or `x` itself."""
    if x.numel() == 0:
        return
    axes = _merged_axes(x, out)
    if len(axes) > 2:  # more than a matrix: by way of contiguous tensors
        result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        silu_into(x.contiguous(), result)
        out.copy_(result)
        return
    block_rows, block_columns = TILE if len(axes) == 2 else RUN
    while len(axes) < 2:
        axes.insert(0, (1, 0, 0))
    (rows, x_row_stride, out_row_stride), (columns, x_column_stride, out_column_stride) = axes
    tiles = triton.cdiv(rows, block_rows) * triton.cdiv(columns, block_columns)
    _silu_kernel[(tiles,)](
        x,
        out,
        rows,
        columns,
        x_row_stride,
        x_column_stride,
        out_row_stride,
        out_column_stride,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        num_warps=8,
    )


def _merged_axes(x: Tensor, out: Tensor) -> list[tuple[int, int, int]]:
    """Return the fewest axes that walk both tensors, as (size, stride of x, stride of out).

    The axis along which `out` has the smallest stride comes last.
    """
    axes: list[tuple[int, int, int]] = []
    for axis in sorted(range(out.ndim), key=out.stride, reverse=True):
        size, x_stride, out_stride = out.shape[axis], x.stride(axis), out.stride(axis)
        if size == 1:
            continue
        if axes and axes[-1][1:] == (size * x_stride, size * out_stride):
            size *= axes.pop()[0]
        axes.append((size, x_stride, out_stride))
    return axes
