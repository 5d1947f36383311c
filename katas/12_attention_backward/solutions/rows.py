"""Style: one query at a time in loops, through the whole Jacobian of its softmax."""

import math

import torch


def attention_backward(grad_out, q, k, v, causal=False):
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    queries, keys = q.shape[2], k.shape[2]
    root = math.sqrt(q.shape[3])
    for i in range(queries):
        seen = min(keys, i + 1 + keys - queries) if causal else keys
        if seen <= 0:
            continue
        key, value = k[:, :, :seen], v[:, :, :seen]
        query, upstream = q[:, :, i, :, None] / root, grad_out[:, :, i, :, None]
        weights = torch.softmax(key @ query, dim=2)  # (B, H, seen, 1)
        slopes = value @ upstream
        if seen <= 256:
            jacobian = torch.diag_embed(weights[..., 0]) - weights @ weights.mT
            dscores = jacobian @ slopes
        else:  # a matrix of seen by seen is too much
            dscores = weights * (slopes - weights.mT @ slopes)
        dq[:, :, i] = (dscores.mT @ key)[:, :, 0] / root
        dk[:, :, :seen] += dscores @ query.mT
        dv[:, :, :seen] += weights @ upstream.mT
    return dq, dk, dv
