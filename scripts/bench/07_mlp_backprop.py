"""A training step of a perceptron at the size of a small image classifier."""

import numpy as np
import torch
from torch.nn import functional as F

from dojo.benchmarks.references import Case

N, D, H, C = 512, 784, 256, 10


def cases(reference):
    """Return the workloads in float32: the passes beside autograd's, the step beside torch's."""
    shapes = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
    params = {
        name: 0.05 * np.random.randn(*shape).astype(np.float32) for name, shape in shapes.items()
    }
    x, y = np.random.randn(N, D).astype(np.float32), np.random.randint(C, size=N)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    leaves = {name: torch.from_numpy(p).clone().requires_grad_() for name, p in params.items()}
    grads = reference.backward(params, reference.forward(params, x, y)[1])

    def loss():
        hidden = torch.tanh(inputs @ leaves["W1"] + leaves["b1"])
        return F.cross_entropy(hidden @ leaves["W2"] + leaves["b2"], labels)

    return [
        Case("forward", lambda: reference.forward(params, x, y), lambda: loss().item()),
        Case(
            "forward and backward",
            lambda: reference.backward(params, reference.forward(params, x, y)[1]),
            lambda: torch.autograd.grad(loss(), list(leaves.values())),
        ),
        Case(
            "sgd_step",
            lambda: reference.sgd_step(params, grads, 0.1),
            lambda: [p.detach() - 0.1 * torch.from_numpy(grads[k]) for k, p in leaves.items()],
        ),
    ]
