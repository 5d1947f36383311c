"""Each element has a number, from which its place is worked out axis by axis."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
PROGRAMS = 2048  # they take turns


@triton.jit
def _silu_kernel(
    x_ptr,
    out_ptr,
    axes_ptr,
    numel,
    AXES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write SiLU of every so many blocks; `axes` has the size and both strides of each axis."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    for start in range(first, numel, tl.num_programs(0).to(tl.int64) * BLOCK):
        number = start + tl.arange(0, BLOCK)
        mask = number < numel
        x_ptrs = x_ptr + tl.zeros((BLOCK,), tl.int64)
        out_ptrs = out_ptr + tl.zeros((BLOCK,), tl.int64)
        for axis in tl.static_range(AXES):
            size = tl.load(axes_ptr + 3 * axis)
            x_ptrs += number % size * tl.load(axes_ptr + 3 * axis + 1)
            out_ptrs += number % size * tl.load(axes_ptr + 3 * axis + 2)
            number //= size
        x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptrs, x / (1 + tl.exp(-x)), mask=mask)


def silu(x: Tensor) -> Tensor:
    """Return SiLU of `x`, a new tensor."""
    out = x.new_empty(x.shape)
    silu_into(x, out)
    return out


def silu_into(x: Tensor, out: Tensor) -> None:
    """Write SiLU of `x` into `out`."""
    if x.is_contiguous() and out.is_contiguous():
        x, out = x.view(-1), out.view(-1)
    numel = x.numel()
    if numel:
        axes = list(zip(x.shape, x.stride(), out.stride(), strict=True))
        # The last axis comes first, and there is always one.
        table = torch.tensor([*axes[::-1], (1, 0, 0)], dtype=torch.int64, device=x.device)
        grid = (min(triton.cdiv(numel, BLOCK), PROGRAMS),)
        _silu_kernel[grid](x, out, table, numel, AXES=len(axes), BLOCK=BLOCK)
