"""Softmax over rows by Triton kernels: narrow rows, rows that fill a block, and a vocabulary's."""

import torch

from dojo.benchmarks.references import KernelCase


def kernel_cases(reference):
    """Return the workloads: rows of 128, of 4,096 and of 128,000 scores, in both dtypes."""
    compiled = torch.compile(lambda x: torch.softmax(x, -1), dynamic=False)
    cases = []
    for shape in [(262144, 128), (8192, 4096), (2048, 128000)]:
        for dtype in (torch.float16, torch.float32):
            x = torch.randn(shape, dtype=dtype, device="cuda")
            label = f"softmax {shape[0]} x {shape[1]} {str(dtype).removeprefix('torch.')}"
            cases.append(
                KernelCase(
                    label,
                    lambda x=x: reference.softmax(x),
                    theirs=(lambda x=x: torch.softmax(x, -1), lambda x=x: compiled(x)),
                    moved=2 * x.numel() * x.element_size(),
                )
            )
    return cases


def calls_to_compile(impl):
    """Return calls that launch every kernel, in each of its variants and dtypes."""
    cases = [((3, 100), torch.float16), ((2, 40_000), torch.float32)]
    inputs = [torch.randn(shape, dtype=dtype) for shape, dtype in cases]
    return [lambda x=x: impl.softmax(x) for x in inputs]
