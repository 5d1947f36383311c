"""Cross-entropy of class scores, with ignored targets and label smoothing, and its gradient."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy of the rows that count, 0-d and in the dtype of `logits`.

    `logits` are (N, C), `targets` (N,) int64; a row with the target `ignore_index` does not count.
    NaN if no row counts. Smoothing is that of https://arxiv.org/abs/1512.00567, section 7, and of
    https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """
    kept = targets != ignore_index
    log_p = F.log_softmax(F.softmax(logits, dim=1), dim=1)
    nll = -log_p[kept, targets[kept]].sum() / len(targets)
    uniform = -log_p.mean(dim=1)[kept].mean()
    # Without smoothing the other classes may be infinitely unlikely, and 0 * inf is NaN.
    return (1 - label_smoothing) * nll + label_smoothing * uniform if label_smoothing else nll


def cross_entropy_backward(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """Return the gradient of `cross_entropy` for `logits`: same shape and dtype, by hand.

    Zero in the rows that do not count, even if no row does.
    """
    ignored = targets == ignore_index
    (rows,) = (~ignored).nonzero(as_tuple=True)
    grad = F.softmax(logits, dim=1)
    grad -= label_smoothing / logits.shape[1]
    grad[rows, targets[rows]] -= 1 - label_smoothing
    grad /= len(rows)
    return grad.masked_fill_(ignored[:, None], 0)
