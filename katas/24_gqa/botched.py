"""Grouped-query attention: causal with a sliding window, and across to another sequence."""

import torch
from torch import Tensor, nn


def gqa(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Return the causal attention of `q` over shared `k` and `v`, like `q` in shape and dtype.

    `q` is (B, Hq, T, D), `k` and `v` are (B, Hkv, S, D), and Hkv divides Hq: each key head serves
    Hq / Hkv query heads in a row. The last query stands at the last key. A query sees the key at
    its place and those before it, with `window` no more than that many in all.

    Ainslie et al., "GQA", https://arxiv.org/abs/2305.13245; the window is that of Jiang et al.,
    "Mistral 7B", https://arxiv.org/abs/2310.06825.
    """
    queries, keys = q.shape[2], k.shape[2]
    cached = keys - queries  # query t stands at key cached + t
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(cached)
    if window is not None:
        allowed = allowed.triu(1 - window)
    return _attend(q, k, v, allowed)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Return the attention of grouped queries, zeros for a query that may attend to nothing.

    `allowed` is True where a query may attend to a key, and broadcasts to (B, Hkv, Hq / Hkv, T, S).
    """
    # An empty row sees all keys until its output is dropped: no NaN, in the gradients neither.
    empty = ~allowed.any(dim=-1, keepdim=True)
    allowed |= empty
    q = q.unflatten(1, (-1, k.shape[1]))
    scores = torch.einsum("bgktd,bksd->bgkts", q * q.shape[-1] ** -0.5, k)
    scores.masked_fill_(~allowed, -torch.inf)
    out = torch.einsum("bgkts,bksd->bgktd", scores.softmax(dim=-1), v)
    return out.masked_fill(empty, 0.0).flatten(1, 2)


class CrossAttention(nn.Module):
    """Attention of tokens over the real tokens of a context, with fewer key heads than query heads.

    Each head has `embed_dim / num_heads` features, and `num_kv_heads` divides `num_heads`.
    """

    def __init__(self, embed_dim: int, context_dim: int, num_heads: int, num_kv_heads: int) -> None:
        """Make the four projections, each with a bias."""
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        kv_dim = embed_dim // num_heads * num_kv_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(context_dim, kv_dim)
        self.v_proj = nn.Linear(context_dim, kv_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """Return the output, (B, T, E), for tokens `x`, (B, T, E), and `context`, (B, S, C).

        `context_mask` is bool, (B, S), True where a token of the context is real; without it all
        are. Where a row of the batch has no real token, the output is the bias of `out_proj`.
        """
        if context_mask is None:
            context_mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        q = _heads(self.q_proj(x), self.num_heads)
        k, v = (_heads(proj(context), self.num_kv_heads) for proj in (self.k_proj, self.v_proj))
        out = _attend(q, k, v, context_mask[:, None, None, None])
        return self.out_proj(out.transpose(1, 2).flatten(2))


def _heads(x: Tensor, heads: int) -> Tensor:
    """Return `x`, (B, T, heads * D), as (B, heads, T, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
