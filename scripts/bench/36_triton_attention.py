"""Attention by a Triton kernel, at the sizes of a language model in training and in use."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import KernelCase


def kernel_cases(reference):
    """Return the workloads: heads of 128 and 64, causal and not, float32, and one new token."""
    return [
        _case(reference, (4, 16, 4096, 128)),
        _case(reference, (4, 16, 4096, 128), causal=True),
        _case(reference, (4, 16, 4096, 64), causal=True),
        _case(reference, (2, 8, 2048, 64), causal=True, dtype=torch.float32),
        _one_query(reference, (64, 32, 4096, 128)),
    ]


def _case(reference, shape, causal=False, dtype=torch.float16):
    q, k, v = (torch.randn(shape, dtype=dtype, device="cuda") for _ in range(3))
    batches, heads, length, size = shape
    return KernelCase(
        f"{_label(shape, dtype)}{', causal' if causal else ''}",
        lambda: reference.attention(q, k, v, causal),
        (lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal),),
        # Two products, each of multiplications and additions; a causal mask leaves half.
        flops=4 * batches * heads * length**2 * size // (2 if causal else 1),
    )


def _one_query(reference, shape):
    k, v = (torch.randn(shape, dtype=torch.float16, device="cuda") for _ in range(2))
    q = torch.randn_like(k[:, :, :1])
    return KernelCase(
        f"{_label(shape, q.dtype)}, the last query",
        lambda: reference.attention(q, k, v, causal=True),
        # Causal or not, it sees all keys; torch's is_causal would show it the first one only.
        (lambda: F.scaled_dot_product_attention(q, k, v),),
        moved=2 * k.numel() * k.element_size(),
    )


def _label(shape, dtype):
    return f"{' x '.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"


def calls_to_compile(impl):
    """Return calls that launch every kernel, in each of its variants and dtypes."""
    calls = []
    for d, dtype, causal in [(40, torch.float32, True), (64, torch.float16, False)]:
        q, k, v = (torch.randn(2, 3, length, d, dtype=dtype) for length in (70, 90, 90))
        calls.append(lambda q=q, k=k, v=v, causal=causal: impl.attention(q, k, v, causal=causal))
    return calls
