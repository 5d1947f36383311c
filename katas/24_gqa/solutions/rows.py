"""Style: loops over heads and queries, each with the keys that it sees and no others."""

import math

import torch
from torch import nn


def gqa(q, k, v, window=None):
    batch, heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    rows = []
    for b in range(batch):
        for h in range(heads):
            shared = h * kv_heads // heads
            for t in range(queries):
                stop = max(0, keys - queries + t + 1)
                start = 0 if window is None else max(0, stop - window)
                seen = slice(start, stop)
                rows.append(attend(q[b, h, t], k[b, shared, seen], v[b, shared, seen]))
    return torch.stack(rows).reshape(q.shape)


def attend(query, keys, values):
    """Return the mean of the values, (n, D), by how well keys match; zeros if there are none."""
    scores = keys @ (query / math.sqrt(len(query)))
    return torch.softmax(scores, dim=0) @ values


class CrossAttention(nn.Module):
    def __init__(self, embed_dim, context_dim, num_heads, num_kv_heads):
        super().__init__()
        self.size = embed_dim // num_heads
        self.group = num_heads // num_kv_heads
        for name, width, out in [
            ("q_proj", embed_dim, embed_dim),
            ("k_proj", context_dim, self.size * num_kv_heads),
            ("v_proj", context_dim, self.size * num_kv_heads),
            ("out_proj", embed_dim, embed_dim),
        ]:
            setattr(self, name, nn.Linear(width, out))

    def forward(self, x, context, context_mask=None):
        examples = []
        for row, tokens in enumerate(x):
            real = context[row] if context_mask is None else context[row, context_mask[row]]
            queries = self.q_proj(tokens).split(self.size, dim=-1)
            keys = self.k_proj(real).split(self.size, dim=-1)
            values = self.v_proj(real).split(self.size, dim=-1)
            heads = [
                torch.stack(
                    [attend(one, keys[h // self.group], values[h // self.group]) for one in q]
                )
                for h, q in enumerate(queries)
            ]
            examples.append(torch.cat(heads, dim=-1))
        return self.out_proj(torch.stack(examples))
