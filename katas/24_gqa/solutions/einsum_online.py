"""Style: einsum over blocks of keys with a running maximum and sum, as in flash attention."""

import torch
from torch import nn

BLOCK = 64


def gqa(q, k, v, window=None):
    queries, keys = q.shape[2], k.shape[2]
    distance = torch.arange(queries)[:, None] - torch.arange(keys) + (keys - queries)
    seen = (distance >= 0) & (distance < (keys if window is None else window))
    return blockwise(q, k, v, seen.view(1, 1, 1, queries, keys))


def blockwise(q, k, v, seen):
    """Return attention in at least float32; `seen` broadcasts to (B, Hkv, group, T, S)."""
    dtype, shape = q.dtype, q.shape
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v = (t.to(wide) for t in (q, k, v))
    q = q.reshape(shape[0], k.shape[1], shape[1] // k.shape[1], *shape[2:]) / shape[-1] ** 0.5
    lowest = torch.finfo(wide).min
    top = torch.full(q.shape[:-1], lowest, dtype=wide)
    total = torch.zeros(q.shape[:-1], dtype=wide)
    out = torch.zeros(q.shape, dtype=wide)
    for start in range(0, k.shape[2], BLOCK):
        block = slice(start, start + BLOCK)
        hidden = ~seen[..., block]
        scores = torch.einsum("bkgtd,bksd->bkgts", q, k[:, :, block]).masked_fill(hidden, lowest)
        new_top = torch.maximum(top, scores.amax(-1)).detach()
        weights = (scores - new_top[..., None]).exp().masked_fill(hidden, 0)
        keep = (top - new_top).exp()
        total = total * keep + weights.sum(-1)
        out = out * keep[..., None] + torch.einsum("bkgts,bksd->bkgtd", weights, v[:, :, block])
        top = new_top
    return (out / total.masked_fill(total == 0, 1)[..., None]).reshape(shape).to(dtype)


class CrossAttention(nn.Module):
    def __init__(self, embed_dim, context_dim, num_heads, num_kv_heads):
        super().__init__()
        self.heads, self.kv_heads = num_heads, num_kv_heads
        kv_dim = embed_dim * num_kv_heads // num_heads
        self.q_proj, self.out_proj = (nn.Linear(embed_dim, embed_dim) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(context_dim, kv_dim) for _ in range(2))

    def forward(self, x, context, context_mask=None):
        q = self.q_proj(x).unflatten(-1, (self.heads, -1))
        k = self.k_proj(context).unflatten(-1, (self.kv_heads, -1))
        v = self.v_proj(context).unflatten(-1, (self.kv_heads, -1))
        if context_mask is None:
            context_mask = torch.ones(context.shape[:2], dtype=torch.bool)
        q, k, v = (torch.einsum("bthd->bhtd", t) for t in (q, k, v))
        out = blockwise(q, k, v, context_mask.view(len(x), 1, 1, 1, -1))
        return self.out_proj(torch.einsum("bhtd->bthd", out).reshape(x.shape))
