"""Softmax over rows, read once or twice, from contiguous and from transposed tensors."""

import torch

from dojo.benchmarks.references import KernelCase


def kernel_cases(reference):
    """Return the workloads: short, middling and wide rows, and columns for rows, in two dtypes."""
    compiled = torch.compile(lambda x: torch.softmax(x, -1), dynamic=False)
    cases = []
    for dtype in (torch.float32, torch.float16):
        inputs = {
            "2^20 rows of 48": torch.randn(2**20, 48, dtype=dtype, device="cuda"),
            "4096 rows of 16384": torch.randn(4096, 16_384, dtype=dtype, device="cuda"),
            "1024 rows of 131072": torch.randn(1024, 131_072, dtype=dtype, device="cuda"),
            "65536 rows of 2048, transposed": torch.randn(
                2048, 65_536, dtype=dtype, device="cuda"
            ).T,
        }
        for label, x in inputs.items():
            cases.append(
                KernelCase(
                    f"softmax {label}, {dtype}",
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
