"""Style: PyTorch's own operator, under a mask made of places."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


def gqa(q, k, v, window=None):
    queries, keys = q.shape[2], k.shape[2]
    place = torch.arange(keys - queries, keys, device=q.device)[:, None]
    key = torch.arange(keys, device=q.device)
    mask = key <= place
    if window is not None:
        mask = mask & (key > place - window)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


class CrossAttention(nn.Module):
    def __init__(self, embed_dim, context_dim, num_heads, num_kv_heads):
        super().__init__()
        self.sizes = num_heads, num_kv_heads, embed_dim // num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(context_dim, num_kv_heads * self.sizes[2])
        self.v_proj = nn.Linear(context_dim, num_kv_heads * self.sizes[2])
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, context, context_mask=None):
        heads, kv_heads, size = self.sizes
        batch, queries, embed_dim = x.shape
        keys = context.shape[1]
        out = scaled_dot_product_attention(
            self.q_proj(x).view(batch, queries, heads, size).permute(0, 2, 1, 3),
            self.k_proj(context).view(batch, keys, kv_heads, size).permute(0, 2, 1, 3),
            self.v_proj(context).view(batch, keys, kv_heads, size).permute(0, 2, 1, 3),
            attn_mask=None if context_mask is None else context_mask.view(batch, 1, 1, keys),
            enable_gqa=True,
        )
        return self.out_proj(out.permute(0, 2, 1, 3).reshape(batch, queries, embed_dim))
