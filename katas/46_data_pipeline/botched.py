"""A data pipeline for scanned digits: split, statistics, augmentation, shards, batches, a run."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

Sample = tuple[Tensor, int, int]  # image (8, 8), label, row
Batch = dict[str, Tensor]  # images (B, 8, 8), labels (B,), rows (B,)

# What a generator is for is the first part of its seed: no two purposes share their numbers.
SPLIT, ORDER, SHIFT = 1, 2, 3


def load_scans() -> tuple[Tensor, Tensor, Tensor]:
    """Return images, uint8 (1797, 8, 8), labels and specimens, both int64 (1797,).

    Every third digit of the file is a specimen. All are scanned as they are, then all paler, then
    all darker. The digits are UCI's Optical Recognition of Handwritten Digits,
    https://doi.org/10.24432/C50P49, in fixtures/digits.npz of a folder above this file or, for a
    copy of this file elsewhere, of the working directory or a folder above it.
    """
    here, working = Path(__file__).resolve(), Path.cwd()
    for folder in (*here.parents, working, *working.parents):
        path = folder / "fixtures" / "digits.npz"
        if path.is_file():
            with np.load(path) as digits:
                images = torch.from_numpy(digits["images"][::3])
                labels = torch.from_numpy(digits["labels"][::3]).long()
            scans = [images, images * 3 // 4, (images * 5 // 4).clamp(max=16)]
            return torch.cat(scans), labels.repeat(3), torch.arange(len(labels)).repeat(3)
    raise FileNotFoundError(f"no folder above {here} or {working} has fixtures/digits.npz")


def split(specimens: Tensor, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows for training and those for validation, with all rows of a specimen in one.

    `val_fraction` of the specimens, rounded, but one at least on each side, are for validation.
    """
    names = torch.arange(len(specimens))
    drawn = names[np.random.default_rng((SPLIT, seed)).permutation(len(names))]
    val_size = min(max(round(val_fraction * len(names)), 1), len(names) - 1)
    held_out = torch.isin(names, drawn[:val_size])
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of all pixels of images (N, H, W), of any dtype."""
    pixels = images.double()
    return pixels.mean().item(), pixels.std(correction=0).item()


def shift(image: Tensor, dx: int) -> Tensor:
    """Return an image (H, W) moved by `dx` columns to the right, with paper, 0, where it was."""
    return F.pad(image, (dx, -dx))


def collate(samples: Sequence[Sample]) -> Batch:
    """Make a batch of samples: images float32 (B, 8, 8), labels and rows int64 (B,)."""
    images, labels, rows = zip(*samples, strict=True)
    return {
        "images": torch.stack(images),
        "labels": torch.tensor(labels),
        "rows": torch.tensor(rows),
    }


class DigitStream(IterableDataset[Batch]):
    """An epoch of batches of some rows, in which any number of workers can share.

    Whatever is random depends on the seed, the epoch and, for an image, its row: never on the
    worker, on the place in the epoch or on what was drawn before.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        rows: Tensor,
        mean: float,
        std: float,
        *,
        batch_size: int,
        train: bool,
        seed: int = 0,
    ) -> None:
        """Stream `rows` of images (N, 8, 8) and labels (N,); shuffle and augment for training."""
        super().__init__()
        self.images, self.labels, self.rows = images, labels, rows
        self.mean, self.std = mean, std
        self.batch_size, self.train, self.seed = batch_size, train, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of an epoch, those of all workers together."""
        return -(-len(self.rows) // self.batch_size)

    def order(self) -> list[int]:
        """Return the rows in this epoch's order."""
        if not self.train:
            return self.rows.tolist()
        rng = np.random.default_rng((ORDER, self.seed, self.epoch))
        return self.rows[rng.permutation(len(self.rows))].tolist()

    def sample(self, row: int) -> Sample:
        """Return a row's image, float32 and normalised, with its label and the row."""
        image = self.images[row]
        if self.train:
            rng = np.random.default_rng((SHIFT, self.seed, self.epoch, row))
            image = shift(image, int(rng.integers(-1, 2)))
        return (image.float() - self.mean) / self.std, int(self.labels[row]), row

    def shard(self, worker: int, num_workers: int) -> Iterator[Batch]:
        """Yield one worker's share of the epoch: every `num_workers`-th batch from `worker` on."""
        order = self.order()
        for number in range(worker, len(self), num_workers):
            start = number * self.batch_size
            yield collate([self.sample(row) for row in order[start : start + self.batch_size]])

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch, or in a worker of a DataLoader its share."""
        info = get_worker_info()
        return self.shard(0, 1) if info is None else self.shard(info.id, info.num_workers)


def gather(stream: DigitStream, num_workers: int) -> Iterator[Batch]:
    """Yield the batches of simulated workers by turns, as a DataLoader does; 0 is no worker."""
    if num_workers == 0:
        yield from stream
    shards = [iter(stream) for _ in range(num_workers)]
    for turn in itertools.zip_longest(*shards):
        yield from (batch for batch in turn if batch is not None)


def prepare(
    images: Tensor,
    labels: Tensor,
    specimens: Tensor,
    *,
    val_fraction: float,
    batch_size: int,
    seed: int,
) -> tuple[DigitStream, DigitStream]:
    """Return the streams for training and for validation, which know of training images alone."""
    train_rows, val_rows = split(specimens, val_fraction, seed)
    mean, std = pixel_statistics(images[train_rows])
    train_stream = DigitStream(
        images, labels, train_rows, mean, std, batch_size=batch_size, train=True, seed=seed
    )
    val_stream = DigitStream(
        images, labels, val_rows, mean, std, batch_size=batch_size, train=False, seed=seed
    )
    return train_stream, val_stream


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Return mean loss and accuracy over all images of all batches, in evaluation mode."""
    model.eval()
    loss, correct, count = 0.0, 0, 0
    for batch in batches:
        logits = model(batch["images"])
        loss += F.cross_entropy(logits, batch["labels"], reduction="sum").item()
        correct += (logits.argmax(dim=1) == batch["labels"]).sum().item()
        count += len(logits)
    return loss / count, correct / count


def train(
    model: nn.Module,
    train_stream: DigitStream,
    val_stream: DigitStream,
    *,
    steps: int,
    lr: float,
    num_workers: int = 0,
) -> Iterator[dict[str, float]]:
    """Train by Adam and yield a line of the log after every step.

    `loss` is the mean over the images of this epoch so far. `samples` counts the images that the
    run has been trained on, `unique` the rows among them. `val_loss` and `val_accuracy` are there
    after the last step of an epoch, and of all.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    step, samples, seen = 0, 0, set[int]()
    for epoch in itertools.count():
        train_stream.set_epoch(epoch)
        total, count = 0.0, 0
        for number, batch in enumerate(gather(train_stream, num_workers), 1):
            model.train()
            loss = F.cross_entropy(model(batch["images"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step, size = step + 1, len(batch["rows"])
            total, count, samples = total + loss.item() * size, count + size, samples + size
            seen.update(batch["rows"].tolist())
            log = {"loss": total / count, "samples": float(samples), "unique": float(len(seen))}
            if number == len(train_stream) or step == steps:
                val_loss, val_accuracy = evaluate(model, gather(val_stream, num_workers))
                log |= {"val_loss": val_loss, "val_accuracy": val_accuracy}
            yield log
            if step == steps:
                return


def build_model(seed: int) -> nn.Module:
    """Return a small network from images (B, 8, 8) to logits (B, 10), of PyTorch's own weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Train on the scans, a quarter of the specimens held out, and yield the log of every step.

    Twelve epochs are 516 steps. No global generator is drawn from.
    """
    streams = prepare(*load_scans(), val_fraction=0.25, batch_size=32, seed=seed)
    steps = 516 if steps is None else steps
    yield from train(build_model(seed), *streams, steps=steps, lr=0.005, num_workers=3)
