"""SiLU of a feed-forward layer's activations, contiguous and as half of a wider tensor."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import KernelCase


def kernel_cases(reference):
    """Return the workloads: 8,192 tokens of 8,192 features, from two dtypes and two layouts."""
    compiled = torch.compile(F.silu)
    cases = []
    for dtype in (torch.float32, torch.float16):
        wide = torch.randn(8192, 16384, dtype=dtype, device="cuda")
        whole, part = wide[:, :8192].contiguous(), wide[:, :8192]
        for label, x in (("contiguous", whole), ("half of a wider tensor", part)):
            cases.append(
                KernelCase(
                    f"silu {dtype} {label}",
                    lambda x=x: reference.silu(x),
                    theirs=(lambda x=x: F.silu(x), lambda x=x: compiled(x)),
                    moved=2 * x.numel() * x.element_size(),
                )
            )
    return cases


def calls_to_compile(impl):
    """Return calls that launch every kernel, in each of its variants and dtypes."""
    inputs = [torch.randn(5, 70, dtype=dtype) for dtype in (torch.float32, torch.float16)]
    calls = [lambda x=x: impl.silu(x) for x in inputs]
    return calls + [
        lambda x=x: impl.silu_into(x, torch.empty(70, 5, dtype=x.dtype).T) for x in inputs
    ]
