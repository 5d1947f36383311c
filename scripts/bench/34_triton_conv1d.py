"""The convolution kernel on the layers of speech and audio models, beside cuDNN."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import KernelCase

# N, C, L, O, K, stride, dtype: a wide layer in float16 and in float32, a halving layer of a feature
# extractor, and a first layer on raw audio.
SIZES = [
    (32, 256, 4096, 256, 5, 1, torch.float16),
    (8, 256, 4096, 256, 5, 1, torch.float32),
    (16, 512, 6400, 512, 3, 2, torch.float16),
    (16, 1, 160_000, 512, 10, 5, torch.float16),
]


def kernel_cases(reference):
    """Return the workloads on a GPU, the first with channels last as well.

    cuDNN would multiply float32 in TF32, which the kata rules out, unless it is told not to.
    """
    torch.backends.cudnn.allow_tf32 = False
    return [
        *(_case(reference, *size) for size in SIZES),
        _case(reference, *SIZES[0], channels_last=True),
    ]


def _case(reference, n, c, length, o, k, stride, dtype, channels_last=False):
    x = torch.randn(n, c, length, dtype=dtype, device="cuda")
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    weight = torch.randn(o, c, k, dtype=dtype, device="cuda") / (c * k) ** 0.5
    padding = k // 2
    out = F.conv1d(x, weight, None, stride, padding)
    label = f"conv1d {n} x {c} x {length}, {o} filters of {k}, stride {stride}"
    layout = ", channels last" if channels_last else ""
    return KernelCase(
        f"{label} {str(dtype).removeprefix('torch.')}{layout}",
        lambda: reference.conv1d(x, weight, stride, padding),
        theirs=(lambda: F.conv1d(x, weight, None, stride, padding),),
        flops=2 * out.numel() * c * k,
    )


def calls_to_compile(impl):
    """Return calls that launch every kernel, in each of its variants and dtypes."""
    calls = []
    for n, c, o, dtype in [(2, 3, 5, torch.float32), (2, 70, 130, torch.float16)]:
        x, weight = torch.randn(n, c, 90, dtype=dtype), torch.randn(o, c, 3, dtype=dtype)
        calls.append(lambda x=x, weight=weight: impl.conv1d(x, weight, 2, 3, 4))
    return calls
