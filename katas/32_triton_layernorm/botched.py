"""Layer normalisation over the last axis of a tensor, and its gradients, by Triton kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# A program holds a tile of about TILE elements: many rows where they are narrow, and one block of
# columns after another where they are wide.
TILE = 1024
MAX_BLOCK = 4096

# The gradients of weight and bias are summed down the rows in two steps. For each block of columns
# some programs share the rows, and each leaves its sums in a slot; then the slots are added up.
MAX_SLOTS = 64
SUM_BLOCK = 128


@triton.jit
def _load(pointers, mask):
    """Return what the pointers point to in float32, and 0 where the mask is false."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _statistics(
    x_rows,
    is_row,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the mean and 1 / sqrt(var + eps) of each row, both (ROWS, 1).

    `x_rows` points to the first element of each row, and `is_row` says which rows there are.
    """
    lanes = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, width, BLOCK):
        cols = start + lanes
        total += _load(x_rows + cols, is_row & (cols < width))
    mean = tl.sum(total, 1)[:, None] / width

    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, width, BLOCK):
        cols = start + lanes
        mask = is_row & (cols < width)
        centred = _load(x_rows + cols, mask) - mean
        squares += centred * centred
    var = tl.sum(squares, 1)[:, None] / width
    return mean, tl.rsqrt(var + eps)


@triton.jit
def _forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    rows,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise ROWS rows of `x`, x_stride apart; the columns of a row are adjacent in memory."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    is_row = row < rows
    x_rows = x_ptr + row * x_stride
    mean, inv_std = _statistics(x_rows, is_row, width, eps, ROWS, BLOCK)
    for start in range(0, width, BLOCK):
        cols = start + tl.arange(0, BLOCK)[None, :]
        is_col = cols < width
        x_hat = (_load(x_rows + cols, is_row & is_col) - mean) * inv_std
        out = x_hat * _load(weight_ptr + cols, is_col) + _load(bias_ptr + cols, is_col)
        tl.store(out_ptr + row * width + cols, out, mask=is_row & is_col)


@triton.jit
def _dx_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    dx_ptr,
    mean_ptr,
    inv_std_ptr,
    grad_stride,
    x_stride,
    rows,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write ROWS rows of `dx`, and the statistics of those rows.

    With g = grad_out * weight, dx is (g - mean(g) - x_hat * mean(g * x_hat)) / sqrt(var + eps).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    is_row = row < rows
    lanes = tl.arange(0, BLOCK)[None, :]
    x_rows = x_ptr + row * x_stride
    grad_rows = grad_ptr + row * grad_stride
    mean, inv_std = _statistics(x_rows, is_row, width, eps, ROWS, BLOCK)
    tl.store(mean_ptr + row, mean, mask=is_row)
    tl.store(inv_std_ptr + row, inv_std, mask=is_row)

    total = tl.zeros((ROWS, BLOCK), tl.float32)
    total_dot = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, width, BLOCK):
        cols = start + lanes
        mask = is_row & (cols < width)
        x_hat = (_load(x_rows + cols, mask) - mean) * inv_std
        g = _load(grad_rows + cols, mask) * _load(weight_ptr + cols, cols < width)
        total += g
        total_dot += g * x_hat
    mean_g = tl.sum(total, 1)[:, None] / width
    mean_dot = tl.sum(total_dot, 1)[:, None] / width

    for start in range(0, width, BLOCK):
        cols = start + lanes
        mask = is_row & (cols < width)
        x_hat = (_load(x_rows + cols, mask) - mean) * inv_std
        g = _load(grad_rows + cols, mask) * _load(weight_ptr + cols, cols < width)
        dx = (g - mean_g - x_hat * mean_dot) * inv_std
        tl.store(dx_ptr + row * width + cols, dx, mask=mask)


@triton.jit
def _partial_sums_kernel(
    grad_ptr,
    x_ptr,
    mean_ptr,
    inv_std_ptr,
    dweight_ptr,
    dbias_ptr,
    grad_stride,
    x_stride,
    rows,
    width,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum a block of columns of grad_out * x_hat and of grad_out down every SLOTS-th tile of rows.

    The sums go to row program_id(1) of `dweight` and `dbias`, which are (SLOTS, width).
    """
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    slot = tl.program_id(1).to(tl.int64)
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(tl.program_id(1) * ROWS, rows, SLOTS * ROWS):
        row = start + tl.arange(0, ROWS)[:, None].to(tl.int64)
        is_row = row < rows
        mask = is_row & (cols < width)
        mean = _load(mean_ptr + row, is_row)
        inv_std = _load(inv_std_ptr + row, is_row)
        x_hat = (_load(x_ptr + row * x_stride + cols, mask) - mean) * inv_std
        grad = _load(grad_ptr + row * grad_stride + cols, mask)
        dweight += grad * x_hat
        dbias += grad
    at = slot * width + cols
    tl.store(dweight_ptr + at, tl.sum(dweight, 0)[None, :], mask=cols < width)
    tl.store(dbias_ptr + at, tl.sum(dbias, 0)[None, :], mask=cols < width)


@triton.jit
def _add_slots_kernel(
    partial_ptr,
    sum_ptr,
    width,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum a block of columns of one of the matrices in `partial`, which is (..., SLOTS, width)."""
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    which = tl.program_id(1).to(tl.int64)
    row = which * SLOTS + tl.arange(0, SLOTS)[:, None]
    partial = _load(partial_ptr + row * width + cols[None, :], (cols < width)[None, :])
    tl.store(sum_ptr + which * width + cols, tl.sum(partial, 0), mask=cols < width)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the layer norm of `x` over its last axis; same shape and dtype.

    `x` is (..., width) in float32 or float16; `weight` and `bias` are (width,) and of its dtype.
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.layer_norm.html
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        x = _as_rows(x)
        rows, width = x.shape
        tile = _tile(width, MAX_BLOCK)
        _forward_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x, weight.contiguous(), bias.contiguous(), out, x.stride(0), rows, width, eps, **tile
        )
    return out


def layernorm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for x, weight and bias of a layer norm: `(dx, dweight, dbias)`.

    `grad_out` is the gradient for its output. Sums down the rows are made in the same order at
    each call, so results are the same to the last bit.
    """
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        dweight, dbias = weight.new_zeros((2, x.shape[-1]))
        return dx, dweight, dbias

    grad_out, x = _as_rows(grad_out), _as_rows(x)
    rows, width = x.shape
    mean, inv_std = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    strides = grad_out.stride(0), x.stride(0)
    tile = _tile(width, MAX_BLOCK)
    _dx_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
        grad_out, x, weight.contiguous(), dx, mean, inv_std, *strides, rows, width, eps, **tile
    )

    tile = _tile(width, SUM_BLOCK)
    programs = min(MAX_SLOTS, triton.cdiv(rows, tile["ROWS"]))
    slots = triton.next_power_of_2(programs)
    # A slot that no program writes to counts as zero.
    partial = torch.zeros((2, slots, width), dtype=x.dtype, device=x.device)
    _partial_sums_kernel[(triton.cdiv(width, tile["BLOCK"]), programs)](
        grad_out, x, mean, inv_std, *partial, *strides, rows, width, SLOTS=slots, **tile
    )
    sums = torch.empty((2, width), dtype=x.dtype, device=x.device)
    _add_slots_kernel[(triton.cdiv(width, SUM_BLOCK), 2)](
        partial, sums, width, SLOTS=slots, BLOCK=SUM_BLOCK, num_warps=8
    )
    dweight, dbias = sums
    return dx, dweight, dbias


def _as_rows(x: Tensor) -> Tensor:
    """Return `x` as a matrix whose columns are adjacent in memory, without a copy if possible."""
    x = torch.atleast_2d(x).flatten(0, -2)
    return x if x.stride(1) == 1 else x.contiguous()


def _tile(width: int, max_block: int) -> dict[str, int]:
    """Return how many rows and columns a program holds at once, and the warps for that."""
    block = min(max(triton.next_power_of_2(width), 16), max_block)
    return {"ROWS": max(TILE // block, 1), "BLOCK": block, "num_warps": max(block // 256, 4)}
