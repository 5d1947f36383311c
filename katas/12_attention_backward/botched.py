"""The gradient of scaled dot-product attention, by hand."""

import torch
from torch import Tensor


def attention_weights(scores: Tensor, causal: bool) -> Tensor:
    """Return how much each query takes from each key, for scores (..., T, S); same shape.

    With `causal` the last query is aligned with the last key, and no query takes anything from a
    later key; one that has no other keys takes nothing at all.
    """
    if causal:
        *_, t, s = scores.shape
        later = torch.ones(t, s, dtype=torch.bool, device=scores.device).triu(s - t + 1)
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


def attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients for `q` (B, H, T, D), `k` (B, H, S, D) and `v` (B, H, S, E).

    `grad_out` (B, H, T, E) is the gradient for the output softmax(q kᵀ / sqrt(D)) v.
    Dao et al., 2022, appendix B.2: https://arxiv.org/abs/2205.14135
    """
    scale = q.shape[-1] ** -0.5
    scaled_q = q * scale
    scores = scaled_q @ k.mT
    weights = attention_weights(scores, causal)
    dv = scores.mT @ grad_out
    grad_weights = grad_out @ v.mT
    grad_scores = weights * grad_weights
    dq = grad_scores @ k
    dk = grad_scores.mT @ scaled_q
    return dq, dk, dv
