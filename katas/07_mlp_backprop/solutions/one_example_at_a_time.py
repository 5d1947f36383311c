"""A loop over the examples, in float64; the cache holds the inputs and is computed anew."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Arrays = dict[str, Floats]
Batch = tuple[Floats, NDArray[np.integer]]


def forward(params: Arrays, x: Floats, y: NDArray[np.integer]) -> tuple[float, Batch]:
    """Return the mean cross-entropy and a cache."""
    loss = 0.0
    for row, label in zip(x, y, strict=True):
        _, logits = _layers(params, row)
        best = logits.max()
        loss += np.log(np.exp(logits - best).sum()) + (best - logits[label])
    return loss / len(x), (x, y)


def backward(params: Arrays, cache: Batch) -> Arrays:
    """Return the gradients of the loss."""
    grads = {name: np.zeros(value.shape) for name, value in params.items()}
    x, y = cache
    for row, label in zip(x, y, strict=True):
        hidden, logits = _layers(params, row)
        exp = np.exp(logits - logits.max())
        d_logits = exp / exp.sum()
        d_logits[label] -= 1
        d_pre = (params["W2"] @ d_logits) * (1 - hidden * hidden)
        grads["W2"] += np.outer(hidden, d_logits)
        grads["b2"] += d_logits
        grads["W1"] += np.outer(row, d_pre)
        grads["b1"] += d_pre
    return {name: (grads[name] / len(x)).astype(params[name].dtype) for name in params}


def sgd_step(params: Arrays, grads: Arrays, lr: float) -> Arrays:
    """Return the parameters after one step."""
    return {
        name: (value - float(lr) * grads[name]).astype(value.dtype)
        for name, value in params.items()
    }


def _layers(params: Arrays, row: Floats) -> tuple[Floats, Floats]:
    hidden = np.tanh(row.astype(np.float64) @ params["W1"] + params["b1"])
    return hidden, hidden @ params["W2"] + params["b2"]
