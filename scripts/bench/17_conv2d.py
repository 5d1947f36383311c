"""2-D convolution at the sizes of a residual network's middle layers."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: float32 images, 3 x 3 kernels, padding one, with a bias."""
    return [
        case(reference, "56 x 48, 64 to 64", (8, 64, 56, 48), (64, 64, 3, 3)),
        case(reference, "48 x 40, 32 to 64", (4, 32, 48, 40), (64, 32, 3, 3)),
        case(reference, "48 x 40, 2 groups", (4, 32, 48, 40), (64, 16, 3, 3), groups=2),
        case(reference, "56 x 48, stride 2", (8, 64, 56, 48), (96, 64, 3, 3), stride=2),
        case(reference, "48 x 40, dilation 2", (4, 32, 48, 40), (64, 32, 3, 3), dilation=2),
    ]


def case(reference, label, images, kernels, **options):
    """Return one workload under our convolution and PyTorch's."""
    x, weight, bias = torch.randn(images), torch.randn(kernels), torch.randn(kernels[0])
    arguments = (x, weight, bias)
    return Case(
        label,
        lambda: reference.conv2d(*arguments, padding=1, **options),
        lambda: F.conv2d(*arguments, padding=1, **options),
    )
