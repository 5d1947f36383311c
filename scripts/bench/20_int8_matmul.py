"""The int8 matrix product at the sizes of a transformer's layers.

The operator beside it is `torch._int_mm`, PyTorch's own product of int8 matrices and the strictest
one to be compared with: it returns the plain sums in int32, and ours takes the zero points, the
scales, the rounding and the saturation on top. With a processor's int8 dot products it is four
times as fast as a float32 matmul of the same shape; without them it is a plain loop, in both.
"""

import torch

from dojo.benchmarks.references import Case

# M, K, N: the two layers of a feed-forward block, and a square.
SIZES = [(256, 768, 3072), (256, 3072, 768), (1024, 1024, 1024)]


def cases(reference):
    """Return the workloads, with zero points for both matrices and for the result."""
    return [_case(reference, *sizes) for sizes in SIZES]


def _case(reference, m, k, n):
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-128, 128, (k, n), dtype=torch.int8)
    quantisation = {"scale_a": 0.02, "scale_b": 0.03, "scale_c": 0.05 * k**0.5}
    zero_points = {"zp_a": 5, "zp_b": -7, "zp_c": 3}
    return Case(
        f"int8_matmul {m} x {k} x {n}",
        lambda: reference.int8_matmul(a, b, **quantisation, **zero_points),
        lambda: torch._int_mm(a, b),
    )
