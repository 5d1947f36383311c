"""Style: einsum, over blocks of keys with a running maximum and sum, as in flash attention."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 32


def attention_functional(q, k, v, mask=None, causal=False):
    if not causal and mask is None:
        return scaled_dot_product_attention(q, k, v)
    hidden = blocked(q, k, mask, causal, slice(0, k.shape[2]))
    return scaled_dot_product_attention(q, k, v, attn_mask=~hidden)


def attention(q, k, v, mask=None, causal=False):
    dtype = q.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v = (x.to(wide) for x in (q, k, v))
    # Half of the scale on either side, so that no product is larger than the score.
    half_scale = q.shape[-1] ** -0.25
    q, k = q * half_scale, k * half_scale
    lowest = torch.finfo(wide).min
    top = q.new_full(q.shape[:3], lowest)
    total = q.new_zeros(q.shape[:3])
    out = torch.zeros_like(q)
    for start in range(0, k.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, k.shape[2]))
        hidden = blocked(q, k, mask, causal, block)
        scores = torch.einsum("bhtd,bhsd->bhts", q, k[:, :, block])
        scores = scores.masked_fill(hidden, lowest)
        new_top = torch.maximum(top, scores.amax(-1)).detach()
        weights = (scores - new_top[..., None]).exp().masked_fill(hidden, 0)
        keep = (top - new_top).exp()
        total = total * keep + weights.sum(-1)
        out = out * keep[..., None] + torch.einsum("bhts,bhsd->bhtd", weights, v[:, :, block])
        top = new_top
    return (out / total.masked_fill(total == 0, 1)[..., None]).to(dtype)


def blocked(q, k, mask, causal, block: slice) -> Tensor:
    """Return which keys of the block each query may not see, in a shape that broadcasts."""
    queries, keys = q.shape[2], k.shape[2]
    seen = torch.ones(queries, block.stop - block.start, dtype=torch.bool, device=q.device)
    if causal:
        last = torch.arange(queries, device=q.device) + (keys - queries)
        seen = torch.arange(block.start, block.stop, device=q.device) <= last[:, None]
    if mask is not None:
        seen = seen & (mask if mask.shape[-1] == 1 else mask[..., block])
    return ~seen


class MultiHeadAttention(nn.Module):
    def __init__(self, embed_dim, num_heads):
        if embed_dim % num_heads != 0:
            raise ValueError(f"embed_dim={embed_dim} and num_heads={num_heads} do not divide")
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(embed_dim, embed_dim) for _ in range(4)
        )
        self.num_heads = num_heads

    def forward(self, x, causal=False):
        batch, length, features = x.shape
        shape = batch, length, self.num_heads, features // self.num_heads
        q = self.q_proj(x).view(shape).permute(0, 2, 1, 3)
        k = self.k_proj(x).view(shape).permute(0, 2, 1, 3)
        v = self.v_proj(x).view(shape).permute(0, 2, 1, 3)
        out = attention(q, k, v, causal=causal)
        return self.out_proj(torch.einsum("bhtd->bthd", out).reshape(batch, length, features))
