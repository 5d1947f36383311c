"""A two-layer perceptron trained by hand: the forward pass, its gradients, a step of descent.

Rumelhart, Hinton and Williams, Learning representations by back-propagating errors (1986),
https://doi.org/10.1038/323533a0

The parameters, and likewise their gradients, are the float arrays W1 (D, H), b1 (H,), W2 (H, C)
and b2 (C,), by name.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Labels = NDArray[np.integer]
Params = dict[str, Floats]
Cache = tuple[Floats, Labels, Floats, Floats]


def forward(params: Params, x: Floats, y: Labels) -> tuple[float, Cache]:
    """Return the mean cross-entropy of inputs x (N, D) with classes y (N,), and a cache.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html
    """
    hidden = np.tanh(x @ params["W1"] + params["b1"])
    logits = hidden @ params["W2"] + params["b2"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -log_probs[np.arange(len(y)), y].mean()
    return float(loss), (x, y, hidden, np.exp(log_probs))


def backward(params: Params, cache: Cache) -> Params:
    """Return the gradients of the loss, given the parameters and cache of its forward pass."""
    x, y, hidden, probs = cache
    d_logits = probs.copy()
    d_logits[np.arange(len(y)), y] -= 1
    d_logits /= len(y)
    d_hidden = d_logits @ params["W2"].T
    d_pre = d_hidden * (1 - hidden**2)
    return {
        "W1": x.T @ d_pre,
        "b1": d_pre.sum(axis=0),
        "W2": hidden.T @ d_logits,
        "b2": d_logits.sum(axis=0),
    }


def sgd_step(params: Params, grads: Params, lr: float) -> Params:
    """Return the parameters after one step of gradient descent at learning rate lr."""
    return {name: value - float(lr) * grads[name] for name, value in params.items()}
