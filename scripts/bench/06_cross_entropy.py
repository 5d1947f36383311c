"""Cross-entropy and its gradient at the sizes of a language model and of an image classifier."""

import torch
import torch.nn.functional as F

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: float32 logits, one row in eight ignored."""
    return [
        case
        for n, c in [(512, 8192), (4096, 100)]
        for smoothing in (0.0, 0.1)
        for case in _both_ways(reference, n, c, smoothing)
    ]


def _both_ways(reference, n, c, smoothing):
    logits, targets = torch.randn(n, c), torch.randint(c, (n,))
    targets[::8] = -100
    leaf = logits.clone().requires_grad_()
    arguments = {"label_smoothing": smoothing}

    # The reference computes the softmax again, so autograd has to go forward, too.
    def autograd():
        with torch.enable_grad():
            loss = F.cross_entropy(leaf, targets, **arguments)
        return torch.autograd.grad(loss, leaf)

    size = f"{n} x {c}, smoothing {smoothing}"
    return [
        Case(
            f"cross_entropy {size}",
            lambda: reference.cross_entropy(logits, targets, **arguments),
            lambda: F.cross_entropy(logits, targets, **arguments),
        ),
        Case(
            f"gradient {size}",
            lambda: reference.cross_entropy_backward(logits, targets, **arguments),
            autograd,
        ),
    ]
