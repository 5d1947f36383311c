"""3-D convolution at the sizes of a video network's early layers."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: float32 volumes, 3 x 3 x 3 kernels, padding one, with a bias."""
    return [
        case(reference, "8 x 28 x 24, 16 to 32", (2, 16, 8, 28, 24), (32, 16, 3, 3, 3)),
        case(reference, "8 x 28 x 24, 32 to 64", (2, 32, 8, 28, 24), (64, 32, 3, 3, 3)),
        case(reference, "the same, stride 2", (2, 32, 8, 28, 24), (64, 32, 3, 3, 3), stride=2),
    ]


def case(reference, label, volumes, kernels, **options):
    """Return one workload under our convolution and PyTorch's."""
    x, weight, bias = torch.randn(volumes), torch.randn(kernels), torch.randn(kernels[0])
    arguments = (x, weight, bias)
    return Case(
        label,
        lambda: reference.conv3d(*arguments, padding=1, **options),
        lambda: F.conv3d(*arguments, padding=1, **options),
    )
