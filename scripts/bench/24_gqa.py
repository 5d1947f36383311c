"""Grouped-query attention and its layer at the size of a small language model."""

import torch
from torch import nn

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 8 heads of 64 on 2 key heads, float32."""
    q = torch.randn(1, 8, 512, 64)
    k, v = (torch.randn(1, 2, 512, 64) for _ in range(2))
    newest = q[:, :, -1:].contiguous()
    causal = torch.ones(512, 512, dtype=torch.bool).tril()
    window = causal.triu(1 - 128)
    operator = nn.functional.scaled_dot_product_attention
    x, context = torch.randn(2, 128, 512), torch.randn(2, 512, 384)
    mask = torch.rand(2, 512) < 0.9
    ours = reference.CrossAttention(512, 384, 8, 8).eval()
    theirs = nn.MultiheadAttention(512, 8, kdim=384, vdim=384, batch_first=True).eval()

    @torch.no_grad()
    def layer():
        return ours(x, context, mask)

    @torch.no_grad()
    def torch_layer():
        return theirs(x, context, context, key_padding_mask=~mask, need_weights=False)

    return [
        Case(
            "gqa",
            lambda: reference.gqa(q, k, v),
            lambda: operator(q, k, v, causal, enable_gqa=True),
        ),
        Case(
            "gqa, window of 128",
            lambda: reference.gqa(q, k, v, 128),
            lambda: operator(q, k, v, window, enable_gqa=True),
        ),
        Case(
            "gqa, one query",
            lambda: reference.gqa(newest, k, v),
            lambda: operator(newest, k, v, enable_gqa=True),
        ),
        Case("CrossAttention", layer, torch_layer),
    ]
