"""An autograd function whose backward pass is the gradient by hand; float64 throughout."""

from typing import Any

import torch
from torch import Tensor


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy of the rows that count."""
    return CrossEntropy.apply(logits, targets, ignore_index, label_smoothing)


def cross_entropy_backward(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """Return the gradient of `cross_entropy` for `logits`."""
    counts = (targets != ignore_index).double().unsqueeze(1)
    wanted = _wanted(logits, targets, counts, label_smoothing)
    grad = (torch.softmax(logits.double(), 1) - wanted) * counts / counts.sum().clamp(min=1)
    return grad.to(logits.dtype)


class CrossEntropy(torch.autograd.Function):
    """The loss, with its gradient by hand."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float
    ) -> Tensor:
        """Return the loss."""
        ctx.save_for_backward(logits, targets)
        ctx.options = ignore_index, label_smoothing
        counts = (targets != ignore_index).double().unsqueeze(1)
        wanted = _wanted(logits, targets, counts, label_smoothing) * counts
        # xlogy-like: a class that is not wanted costs nothing, however unlikely.
        costs = -wanted * torch.log_softmax(logits.double(), 1)
        costs = torch.where(wanted == 0, torch.zeros_like(costs), costs)
        return (costs.sum() / counts.sum()).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient for the logits."""
        logits, targets = ctx.saved_tensors
        return grad_out * cross_entropy_backward(logits, targets, *ctx.options), None, None, None


def _wanted(logits: Tensor, targets: Tensor, counts: Tensor, smoothing: float) -> Tensor:
    classes = logits.shape[1]
    index = torch.where(counts[:, 0] > 0, targets, 0).unsqueeze(1)
    wanted = torch.full(logits.shape, smoothing / classes, dtype=torch.float64)
    return wanted.scatter_add(1, index, torch.full_like(counts, 1 - smoothing))
