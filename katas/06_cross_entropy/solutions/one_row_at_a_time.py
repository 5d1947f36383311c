"""A loop over the rows that count, each with its target distribution."""

import torch
from torch import Tensor


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy of the rows that count."""
    rows = [n for n, target in enumerate(targets.tolist()) if target != ignore_index]
    if not rows:
        return logits[rows].sum() + torch.nan
    scores = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    true = [targets[n].item() for n in rows]
    kept = scores[rows]
    lead = torch.logsumexp(kept - kept.amax(dim=1, keepdim=True), dim=1)
    best = kept.amax(dim=1)
    losses = lead + (best - kept[range(len(rows)), true])
    if label_smoothing > 0:
        others = lead + (best[:, None] - kept).mean(dim=1)
        losses = losses + label_smoothing * (others - losses)
    return losses.mean().to(logits.dtype)


def cross_entropy_backward(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """Return the gradient of `cross_entropy` for `logits`."""
    counted = [(n, y) for n, y in enumerate(targets.tolist()) if y != ignore_index]
    classes = logits.shape[1]
    grad = torch.zeros(logits.shape, dtype=torch.float64)
    for n, target in counted:
        wanted = torch.full((classes,), label_smoothing / classes, dtype=torch.float64)
        wanted[target] += 1 - label_smoothing
        grad[n] = (logits[n].double().softmax(dim=0) - wanted) / len(counted)
    return grad.to(logits.dtype)
