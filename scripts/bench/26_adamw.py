"""One step and one clipping of the parameters of a small transformer."""

import torch

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: four layers of 256 features, 3.2 million float32 parameters."""
    shapes = [(768, 256), (256, 256), (1024, 256), (256, 1024), (256,), (256,)] * 4

    def parameters():
        params = [torch.randn(shape, requires_grad=True) for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        return params

    ours, theirs = parameters(), parameters()
    optimizer, torchs = reference.AdamW(ours), torch.optim.AdamW(theirs)
    return [
        Case("AdamW", optimizer.step, torchs.step),
        Case(
            "clip_grad_norm_",
            lambda: reference.clip_grad_norm_(ours, 1.0),
            lambda: torch.nn.utils.clip_grad_norm_(theirs, 1.0),
        ),
    ]
