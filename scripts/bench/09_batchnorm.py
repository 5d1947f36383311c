"""Batch norm, in training and in evaluation, on the activations of small dense and conv nets."""

import torch
from torch import nn

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: float32 of shape (256, 512) and (32, 64, 128), in both modes."""
    return [
        case(reference, shape, training)
        for shape in [(256, 512), (32, 64, 128)]
        for training in (True, False)
    ]


def case(reference, shape, training):
    """Return one workload; both layers build the graph that a backward pass would need."""
    x = torch.randn(shape)
    ours = reference.BatchNorm1d(shape[1]).train(training)
    theirs = nn.BatchNorm1d(shape[1]).train(training)
    mode = "train" if training else "eval"
    return Case(f"{mode} {shape}", lambda: ours(x), lambda: theirs(x))
