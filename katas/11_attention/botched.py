"""Attention: PyTorch's, from scratch, and the multi-head layer around it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention_functional(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Return the attention of `q` over `k` and `v`, by PyTorch's operator; as `attention` does.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
    """
    allowed = _allowed(q, k, mask, causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Return the scaled dot-product attention of `q` over `k` and `v`, like `q` in shape and dtype.

    `q` is (B, H, T, D), `k` and `v` are (B, H, S, D). `mask` is bool, True where a query may attend
    to a key, and broadcasts to (B, H, T, S). `causal` aligns the last query with the last key.

    Vaswani et al., "Attention Is All You Need", https://arxiv.org/abs/1706.03762.
    """
    scores = q @ k.mT / q.shape[-1]
    allowed = _allowed(q, k, mask, causal)
    if allowed is not None:
        scores.masked_fill_(allowed, -torch.inf)
    empty = scores.amax(dim=-1, keepdim=True).isneginf()
    scores.clamp_(min=torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-2)
    return (weights @ v).masked_fill(empty, 0.0)


def _allowed(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Return which keys each query may attend to, as `mask` has it, or None for all of them."""
    if not causal:
        return mask
    queries, keys = q.shape[2], k.shape[2]
    order = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril()
    return order if mask is None else mask & order


class MultiHeadAttention(nn.Module):
    """Self-attention in `num_heads` heads, each on its own block of the projected features.

    `ValueError` if `embed_dim` is not divisible by `num_heads`.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        """Make the four projections, each (embed_dim, embed_dim) with a bias."""
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """Return the layer's output, (B, T, E), for the tokens `x`, (B, T, E)."""
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = attention_functional(q, k, v, causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """Return `x`, (B, T, E), as (B, H, T, E / H)."""
        return x.reshape(len(x), self.num_heads, x.shape[1], -1)
