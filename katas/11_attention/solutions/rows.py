"""Style: one query of one head at a time, over the keys that it sees and no others."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention_functional(q, k, v, mask=None, causal=False):
    seen = visible_keys(q, k, mask, causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def attention(q, k, v, mask=None, causal=False):
    seen = visible_keys(q, k, mask, causal)
    rows = [
        attend(query, k[b, h, seen[b, h, i]], v[b, h, seen[b, h, i]])
        for b in range(q.shape[0])
        for h in range(q.shape[1])
        for i, query in enumerate(q[b, h])
    ]
    return torch.stack(rows).reshape(q.shape)


def attend(query, keys, values):
    """Return the mean of the values, (n, D), by how well keys match; zeros if there are none."""
    scores = keys @ (query / math.sqrt(len(query)))
    return torch.softmax(scores, dim=0) @ values


def visible_keys(q, k, mask, causal) -> Tensor:
    """Return which keys each query sees, (B, H, T, S)."""
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    seen = torch.ones(batch, heads, queries, keys, dtype=torch.bool, device=q.device)
    if mask is not None:
        seen = seen & mask
    if causal:
        for i in range(queries):
            seen[:, :, i, max(0, i + keys - queries + 1) :] = False
    return seen


class MultiHeadAttention(nn.Module):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.size, rest = divmod(embed_dim, num_heads)
        if rest:
            raise ValueError(f"{num_heads} heads cannot share {embed_dim} features evenly")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(embed_dim, embed_dim))

    def forward(self, x, causal=False):
        heads = zip(
            *(proj(x).split(self.size, dim=-1) for proj in (self.q_proj, self.k_proj, self.v_proj)),
            strict=True,
        )
        outputs = [
            attention_functional(q[:, None], k[:, None], v[:, None], causal=causal)[:, 0]
            for q, k, v in heads
        ]
        return self.out_proj(torch.cat(outputs, dim=-1))
