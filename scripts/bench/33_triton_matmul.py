"""Matrix products at the sizes of a language model's layers, in float16 and float32."""

import torch

from dojo.benchmarks.references import KernelCase


def kernel_cases(reference):
    """Return the workloads: square matrices, a weight that is transposed, and float32."""
    return [
        _case(reference, "4096 x 4096 x 4096 float16", 4096, 4096, 4096),
        _case(reference, "8192 x 8192 x 8192 float16", 8192, 8192, 8192),
        _case(reference, "8192 x 4096 x 11008 float16, b transposed", 8192, 4096, 11008, True),
        _case(reference, "64 x 4096 x 4096 float16", 64, 4096, 4096),
        _case(reference, "4096 x 4096 x 4096 float32", 4096, 4096, 4096, dtype=torch.float32),
    ]


def _case(reference, label, m, k, n, transposed=False, dtype=torch.float16):
    a = torch.randn(m, k, dtype=dtype, device="cuda")
    b = torch.randn(n, k, dtype=dtype, device="cuda").T if transposed else None
    b = torch.randn(k, n, dtype=dtype, device="cuda") if b is None else b
    compiled = torch.compile(torch.matmul)
    return KernelCase(
        label,
        lambda: reference.matmul(a, b),
        (lambda: torch.matmul(a, b), lambda: compiled(a, b)),
        flops=2 * m * k * n,
    )


def calls_to_compile(impl):
    """Return calls that launch every kernel, in each of its variants and dtypes."""
    calls = []
    for m, k, n, dtype in [(70, 50, 90, torch.float32), (1, 300, 40, torch.float16)]:
        a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
        calls.append(lambda a=a, b=b: impl.matmul(a, b.T))
    return calls
