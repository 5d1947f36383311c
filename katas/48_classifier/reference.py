"""A small convolutional network that reads handwritten digits: data, model, loop, evaluation."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Examples = tuple[Tensor, Tensor]  # images (N, 8, 8) and labels (N,)


def load_digits() -> Examples:
    """Return the images, uint8 (1797, 8, 8) from 0 to 16, and the labels, int64 (1797,).

    They are UCI's Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49, in
    fixtures/digits.npz of a folder above this file or, for a copy of this file elsewhere, of the
    working directory or a folder above it.
    """
    here, working = Path(__file__).resolve(), Path.cwd()
    for folder in (*here.parents, working, *working.parents):
        path = folder / "fixtures" / "digits.npz"
        if path.is_file():
            with np.load(path) as digits:
                images, labels = digits["images"], digits["labels"]
            return torch.from_numpy(images), torch.from_numpy(labels).long()
    raise FileNotFoundError(f"no folder above {here} or {working} has fixtures/digits.npz")


def prepare(
    images: Tensor, labels: Tensor, val_fraction: float, generator: torch.Generator
) -> tuple[Examples, Examples, float, float]:
    """Split examples at random, and return the training part, the validation part, mean and std.

    The validation part has the same share of every class, rounded to whole images. Mean and
    standard deviation are those of all pixels of the training part.
    """
    train, val = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        val_size = round(val_fraction * len(members))
        val.append(members[:val_size])
        train.append(members[val_size:])
    train_indices, val_indices = torch.cat(train), torch.cat(val)
    pixels = images[train_indices].double()
    mean, std = pixels.mean().item(), pixels.std(correction=0).item()
    return (
        (images[train_indices], labels[train_indices]),
        (images[val_indices], labels[val_indices]),
        mean,
        std,
    )


class ConvBlock(nn.Module):
    """A 3 by 3 convolution, batch normalisation, ReLU, and max pooling to half the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Leave the bias of the convolution to the normalisation."""
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / 2, W / 2)."""
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)


class DigitClassifier(nn.Module):
    """Blocks of convolutions, dropout and a linear head; normalises its images itself."""

    def __init__(
        self,
        mean: float,
        std: float,
        channels: tuple[int, int] = (16, 32),
        dropout: float = 0.25,
        num_classes: int = 10,
    ) -> None:
        """Take the statistics of the training images; they are part of the state dict."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.blocks = nn.ModuleList(ConvBlock(*sizes) for sizes in pairwise((1, *channels)))
        self.dropout = dropout
        self.head = nn.Linear(channels[-1] * 2 * 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 8, 8), with pixels from 0 to 16 of any dtype, to logits (N, classes)."""
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        x = x.unsqueeze(1)
        for block in self.blocks:
            x = block(x)
        x = F.dropout(x.flatten(1), self.dropout, self.training)
        return self.head(x)


class RunningMean:
    """The mean over all examples so far, from the means of batches."""

    def __init__(self) -> None:
        """Begin with no examples."""
        self.total = torch.zeros(())
        self.count = 0

    def update(self, value: Tensor, count: int) -> None:
        """Take in the mean of a batch, of shape (), and the size of the batch."""
        self.total = self.total + value * count
        self.count += count

    @property
    def mean(self) -> float:
        """Return the mean; there has to be an example."""
        return (self.total / self.count).item()


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Take one step in training mode; return the batch's loss and accuracy before it, both ()."""
    model.train()
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), (logits.argmax(dim=1) == labels).float().mean()


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 256
) -> tuple[float, float]:
    """Return mean loss and accuracy in evaluation mode, whatever the size of the batches."""
    model.eval()
    loss, correct = 0.0, 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(x)
        loss += F.cross_entropy(logits, y).item() * len(y)
        correct += (logits.argmax(dim=1) == y).sum().item()
    return loss / len(labels), correct / len(labels)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's weights and buffers, which no later step changes."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(
    model: nn.Module,
    train_set: Examples,
    val_set: Examples,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
) -> Iterator[dict[str, float]]:
    """Train by Adam with a cosine learning rate, and yield a line of the log after every step.

    `loss` and `accuracy` are means over the epoch so far. `val_loss` and `val_accuracy` are there
    after the last step of an epoch, and of all. In the end the model has the weights and buffers
    that had the lowest validation loss.
    """
    loader = DataLoader(TensorDataset(*train_set), batch_size, shuffle=True, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    best_loss, best_state = math.inf, model.state_dict()
    for step in range(steps):
        if step % len(loader) == 0:
            batches = iter(loader)
            losses, accuracies = RunningMean(), RunningMean()
        images, labels = next(batches)
        log = {"lr": scheduler.get_last_lr()[0]}
        loss, accuracy = train_step(model, optimizer, images, labels)
        scheduler.step()
        losses.update(loss, len(labels))
        accuracies.update(accuracy, len(labels))
        log |= {"loss": losses.mean, "accuracy": accuracies.mean}
        if (step + 1) % len(loader) == 0 or step + 1 == steps:
            val_loss, val_accuracy = evaluate(model, *val_set)
            log |= {"val_loss": val_loss, "val_accuracy": val_accuracy}
            if val_loss < best_loss:
                best_loss, best_state = val_loss, snapshot(model)
        yield log
    model.load_state_dict(best_state)


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Train on four fifths of the digits, and yield the log of every step, by default of 184.

    Eight epochs are 184 steps. The global generator is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    # Initial weights and dropout draw from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train_set, val_set, mean, std = prepare(*load_digits(), 0.2, generator)
        yield from train(
            DigitClassifier(mean, std),
            train_set,
            val_set,
            steps=184 if steps is None else steps,
            batch_size=64,
            lr=1e-2,
            generator=generator,
        )
