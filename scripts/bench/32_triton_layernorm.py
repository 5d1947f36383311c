"""Layer normalisation kernels on the activations of transformers, beside PyTorch's operators."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import KernelCase

# Rows and features: a wide layer in both dtypes, a narrow one, and rows wider than a block.
SIZES = [
    (8192, 4096, torch.float16),
    (8192, 4096, torch.float32),
    (65536, 768, torch.float16),
    (2048, 16384, torch.float16),
]


def kernel_cases(reference):
    """Return the workloads: the output and the gradients at each size, on a GPU."""
    return [case for size in SIZES for case in _cases(reference, *size)]


def _cases(reference, rows, width, dtype):
    x, grad_out = (torch.randn(rows, width, dtype=dtype, device="cuda") for _ in range(2))
    weight, bias = (torch.randn(width, dtype=dtype, device="cuda") for _ in range(2))
    shape = [width]

    def forward():
        return F.layer_norm(x, shape, weight, bias)

    def backward():
        """Run the operator's forward pass too: ours takes x alone and finds the statistics."""
        _, mean, inv_std = torch.ops.aten.native_layer_norm(x, shape, weight, bias, 1e-5)
        gradients = torch.ops.aten.native_layer_norm_backward
        return gradients(grad_out, x, shape, mean, inv_std, weight, bias, [True] * 3)

    size = x.numel() * x.element_size()
    label = f"{rows} x {width} {str(dtype).removeprefix('torch.')}"
    return [
        KernelCase(
            f"layernorm {label}",
            lambda: reference.layernorm(x, weight, bias),
            (forward, torch.compile(forward)),
            moved=2 * size,  # x is read, the output written
        ),
        KernelCase(
            f"backward {label}",
            lambda: reference.layernorm_backward(grad_out, x, weight),
            (backward, torch.compile(backward)),
            moved=3 * size,  # x and grad_out are read at least once, dx is written
        ),
    ]


def calls_to_compile(impl):
    """Return calls that launch every kernel, in each of its variants and dtypes."""
    calls = []
    for width, dtype in [(100, torch.float16), (20_000, torch.float32)]:
        x, weight, bias = (torch.randn(s, dtype=dtype) for s in ((3, width), width, width))
        calls += [
            lambda x=x, weight=weight, bias=bias: impl.layernorm(x, weight, bias),
            lambda x=x, weight=weight: impl.layernorm_backward(x, x, weight),
        ]
    return calls
