"""Cross-entropy and its gradient at the size of a language model's logits, on a GPU."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import KernelCase


def kernel_cases(reference):
    """Return the workloads: 8,192 tokens, vocabularies of 32,000 and 128,256, and few classes."""
    return [
        _case(reference, n, c, dtype)
        for n, c, dtype in [
            (8192, 32_000, torch.float16),
            (8192, 32_000, torch.float32),
            (4096, 128_256, torch.float16),
            (1 << 20, 100, torch.float16),
        ]
    ]


def _case(reference, n, c, dtype):
    logits = torch.randn(n, c, device="cuda", dtype=dtype).requires_grad_()
    targets = torch.randint(c, (n,), device="cuda")
    compiled = torch.compile(F.cross_entropy)

    def both_ways(function):
        return lambda: torch.autograd.grad(function(logits, targets), logits)

    return KernelCase(
        f"forward and backward {n} x {c} {str(dtype).removeprefix('torch.')}",
        both_ways(reference.cross_entropy),
        (both_ways(F.cross_entropy), both_ways(compiled)),
        # Read forward, read backward, and the gradient written.
        moved=3 * logits.numel() * logits.element_size(),
        flops=None,
    )


def calls_to_compile(impl):
    """Return calls that launch every kernel, in each of its variants and dtypes."""
    calls = []
    for width, dtype in [(100, torch.float16), (40_000, torch.float32)]:
        logits = torch.randn(3, width, dtype=dtype, requires_grad=True)
        targets = torch.tensor([1, 50, -100])
        calls.append(lambda x=logits, targets=targets: impl.cross_entropy(x, targets).backward())
    return calls
