"""Attention and its layer at the size of a small language model."""

import torch
from torch import nn

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 8 heads of 64 over 512 tokens, float32."""
    q, k, v = (torch.randn(1, 8, 512, 64) for _ in range(3))
    mask = torch.rand(1, 1, 1, 512) < 0.9
    x = torch.randn(2, 512, 512)
    ours = reference.MultiHeadAttention(512, 8).eval()
    theirs = nn.MultiheadAttention(512, 8, batch_first=True).eval()
    blocked = torch.ones(512, 512, dtype=torch.bool).triu(1)
    operator = nn.functional.scaled_dot_product_attention

    @torch.no_grad()
    def layer():
        return ours(x, causal=True)

    @torch.no_grad()
    def torch_layer():
        return theirs(x, x, x, attn_mask=blocked, is_causal=True, need_weights=False)

    return [
        Case("attention", lambda: reference.attention(q, k, v), lambda: operator(q, k, v)),
        Case(
            "attention with a mask",
            lambda: reference.attention(q, k, v, mask),
            lambda: operator(q, k, v, mask),
        ),
        Case(
            "attention_functional, causal",
            lambda: reference.attention_functional(q, k, v, causal=True),
            lambda: operator(q, k, v, is_causal=True),
        ),
        Case("MultiHeadAttention, causal", layer, torch_layer),
    ]
