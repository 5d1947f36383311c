"""Mean cross-entropy of class scores and its gradient, by Triton kernels."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# A program holds a tile of several rows where there are few classes, of TILE elements at least, and
# where there are many a block of one row after another.
TILE = 1024
MAX_BLOCK = 4096
PARTS = 64  # that the mean takes at a time


@triton.jit
def _loss_kernel(
    logits,
    targets,
    losses,
    counts,
    lse,
    n_rows,
    n_cols,
    stride_row,
    stride_col,
    stride_target,
    ignore_index,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the logsumexp of each of BLOCK_R rows, the sum of their losses, and how many count.

    Logits of ignored rows are not read, and what stands in `lse` for these rows means nothing.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    target = tl.load(targets + rows * stride_target, mask=rows < n_rows, other=ignore_index)
    kept = target != ignore_index
    row_starts = logits + rows[:, None] * stride_row

    peak = tl.full([BLOCK_R], -3.4028234663852886e38, tl.float32)  # the lowest float32
    total = tl.zeros([BLOCK_R], tl.float32)
    target_logit = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, n_cols, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C)[None, :]
        x = tl.load(
            row_starts + cols.to(tl.int64) * stride_col,
            mask=kept[:, None] & (cols < n_cols),
            other=-float("inf"),
        ).to(tl.float32)
        new_peak = tl.maximum(peak, tl.max(x, axis=1))
        total = total * tl.exp(peak - new_peak) + tl.sum(tl.exp(x - new_peak[:, None]), axis=1)
        target_logit += tl.sum(tl.where(cols == target[:, None], x, 0.0), axis=1)
        peak = new_peak

    log_sum = peak + tl.log(total)
    tl.store(lse + rows, log_sum, mask=rows < n_rows)
    loss = tl.where(kept, log_sum - target_logit, 0.0)
    tl.store(losses + tl.program_id(0), tl.sum(loss, axis=0))
    tl.store(counts + tl.program_id(0), tl.sum(kept.to(tl.int32), axis=0))


@triton.jit
def _mean_kernel(
    losses,
    counts,
    mean,
    count,
    n_parts,
    BLOCK: tl.constexpr,
):
    """Add up what the programs of `_loss_kernel` left; write the mean loss and the count of rows.

    One program does it all: the order of summation is always the same, and so is the result.
    """
    loss = tl.zeros([BLOCK], tl.float32)
    kept = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, n_parts, BLOCK, loop_unroll_factor=16):
        parts = start + tl.arange(0, BLOCK)
        loss += tl.load(losses + parts, mask=parts < n_parts, other=0.0)
        kept += tl.load(counts + parts, mask=parts < n_parts, other=0)
    n_kept = tl.sum(kept, axis=0).to(tl.float32)
    tl.store(count, n_kept)
    tl.store(mean, tl.sum(loss, axis=0) / n_kept)


@triton.jit
def _gradient_kernel(
    grad,
    grad_loss,
    logits,
    targets,
    lse,
    count,
    n_rows,
    n_cols,
    grad_stride_row,
    grad_stride_col,
    stride_row,
    stride_col,
    stride_target,
    ignore_index,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write a tile of the gradient for the logits: 0 in ignored rows, whose logits are not read."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    target = tl.load(targets + rows * stride_target, mask=rows < n_rows, other=ignore_index)
    kept = target != ignore_index
    x = tl.load(
        logits + rows[:, None] * stride_row + cols.to(tl.int64) * stride_col,
        mask=kept[:, None] & (cols < n_cols),
        other=-float("inf"),
    ).to(tl.float32)
    log_sum = tl.load(lse + rows, mask=kept, other=0.0)
    p = tl.exp(x - log_sum[:, None])

    scale = tl.load(grad_loss).to(tl.float32) / tl.load(count)
    difference = tl.where(cols == target[:, None], p - 1.0, p)
    g = tl.where(kept[:, None], difference * scale, 0.0)
    tl.store(
        grad + rows[:, None] * grad_stride_row + cols.to(tl.int64) * grad_stride_col,
        g,
        mask=(rows < n_rows)[:, None] & (cols < n_cols),
    )


class _CrossEntropy(torch.autograd.Function):
    """Reads the logits once forward, and once more backward, when it writes their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        n_rows, n_cols = logits.shape
        tile = _tile(n_cols)
        n_parts = triton.cdiv(n_rows, tile["BLOCK_R"])
        losses = torch.empty(n_parts, dtype=torch.float32, device=logits.device)
        counts = torch.empty(n_parts, dtype=torch.int32, device=logits.device)
        lse = torch.empty(n_rows, dtype=torch.float32, device=logits.device)
        _loss_kernel[(n_parts,)](
            logits,
            targets,
            losses,
            counts,
            lse,
            n_rows,
            n_cols,
            *logits.stride(),
            *targets.stride(),
            ignore_index,
            **tile,
        )
        loss = torch.empty((), dtype=logits.dtype, device=logits.device)
        count = torch.empty((), dtype=torch.float32, device=logits.device)
        _mean_kernel[(1,)](losses, counts, loss, count, n_parts, BLOCK=PARTS, num_warps=2)
        ctx.save_for_backward(logits, targets, lse, count)
        ctx.ignore_index = ignore_index
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, lse, count = ctx.saved_tensors
        n_rows, n_cols = logits.shape
        grad = torch.empty_like(logits)
        tile = _tile(n_cols)
        _gradient_kernel[
            (triton.cdiv(n_rows, tile["BLOCK_R"]), triton.cdiv(n_cols, tile["BLOCK_C"]))
        ](
            grad,
            grad_loss,
            logits,
            targets,
            lse,
            count,
            n_rows,
            n_cols,
            *grad.stride(),
            *logits.stride(),
            *targets.stride(),
            ctx.ignore_index,
            **tile,
        )
        return grad, None, None


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the mean cross-entropy of the rows that count, 0-d and in the dtype of `logits`.

    `logits` are (N, C), `targets` (N,) int64; a row with the target `ignore_index` does not count.
    NaN if no row counts. Autograd finds a gradient for `logits` as often as it is asked to.
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html
    """
    return _CrossEntropy.apply(logits, targets, ignore_index)


def _tile(n_cols: int) -> dict[str, int]:
    """Return how many rows and columns a program holds at a time, for rows of `n_cols`."""
    block = min(max(triton.next_power_of_2(n_cols), 16), MAX_BLOCK)
    return {"BLOCK_R": max(TILE // block, 1), "BLOCK_C": block, "num_warps": 4}
