"""Attention by a Triton kernel, at the sizes of a language model's layer."""

import torch
import torch.nn.functional as F

from dojo.bench import KernelCase


def kernel_cases(reference):
    """Return the workloads: 4 sequences of 4,096 tokens, 16 heads of 128, in float16."""
    q, k, v = torch.randn(3, 4, 16, 4096, 128, dtype=torch.float16, device="cuda")
    # Two products of T x S x D multiplications and additions; a causal mask leaves half.
    flops = 4 * 4 * 16 * 4096 * 4096 * 128
    return [
        KernelCase(
            "all keys, float16",
            lambda: reference.attention(q, k, v),
            (lambda: F.scaled_dot_product_attention(q, k, v),),
            flops=flops,
        ),
        KernelCase(
            "causal, float16",
            lambda: reference.attention(q, k, v, causal=True),
            (lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),),
            flops=flops // 2,
        ),
    ]
