"""The int8 matrix product at the sizes of a transformer's layers, on a GPU.

Beside it stand `torch._int_mm`, which is cuBLAS's, with the zero points, scales, rounding and
saturation that follow it in torch, as they are and compiled. `b` lies in memory as the weight of a
linear layer does, with K contiguous, which is the layout that both are made for.
"""

import torch

from dojo.benchmarks.references import KernelCase

# M, K, N: a batch of tokens through the two layers of a feed-forward block, a few tokens, a square.
SIZES = [(4096, 4096, 14336), (4096, 14336, 4096), (32, 4096, 14336), (8192, 8192, 8192)]


def kernel_cases(reference):
    """Return the workloads, with zero points for both matrices, and with none for the weight."""
    both = [_case(reference, *sizes, zp_a=5, zp_b=-7) for sizes in SIZES]
    return [*both, _case(reference, *SIZES[0], zp_a=5, zp_b=0)]


def _case(reference, m, k, n, zp_a, zp_b):
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8, device="cuda")
    b = torch.randint(-128, 128, (n, k), dtype=torch.int8, device="cuda").T
    scale_a, scale_b, scale_c, zp_c = 0.02, 0.03, 0.05 * k**0.5, 3

    def in_torch():
        acc = torch._int_mm(a, b).double() + k * zp_a * zp_b
        if zp_b:
            acc = acc - zp_b * a.sum(1, dtype=torch.int32)[:, None]
        if zp_a:
            acc = acc - zp_a * b.sum(0, dtype=torch.int32)
        steps = acc * (scale_a * scale_b / scale_c)
        return (steps.round() + zp_c).clamp(-128, 127).to(torch.int8)

    return KernelCase(
        f"int8_matmul {m} x {k} x {n}, zero points {zp_a} and {zp_b}",
        lambda: reference.int8_matmul(a, b, scale_a, scale_b, scale_c, zp_a, zp_b, zp_c),
        (in_torch, torch.compile(in_torch)),
        flops=2 * m * k * n,
    )


def calls_to_compile(impl):
    """Return calls that launch every kernel, in each of its variants and dtypes."""
    a, b = (torch.zeros(shape, dtype=torch.int8) for shape in ((70, 50), (50, 90)))
    return [lambda: impl.int8_matmul(a, b, 0.02, 0.3, 2.5, 4, -2, 7)]
