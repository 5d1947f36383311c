"""Style: NumPy arrays a batch at a time, moves by hashing counters, split by sorted random keys."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset
from torch.utils.data import get_worker_info as worker_info


def load_scans():
    roots = [*Path(__file__).resolve().parents, Path.cwd(), *Path.cwd().parents]
    found = (root / "fixtures/digits.npz" for root in roots)
    with np.load(next(path for path in found if path.exists())) as data:
        digits, names = data["images"].astype(np.int64)[::3], data["labels"].astype(np.int64)[::3]
    scans = np.empty((3, *digits.shape), dtype=np.uint8)
    scans[0] = digits
    scans[1] = np.floor(digits * 0.75)
    scans[2] = np.minimum(np.floor(digits * 1.25), 16)
    numbers = np.broadcast_to(np.arange(len(digits)), (3, len(digits)))
    parts = scans.reshape(-1, 8, 8), np.tile(names, 3), numbers.reshape(-1).copy()
    return tuple(torch.from_numpy(part) for part in parts)


def split(specimens, val_fraction, seed):
    values, inverse = np.unique(specimens.numpy(), return_inverse=True)
    keys = np.random.Generator(np.random.Philox(key=[seed, 77])).random(len(values))
    count = int(np.floor(val_fraction * len(values) + 0.5))
    count = sorted((1, count, len(values) - 1))[1]
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(keys)[:count]] = True
    mask = chosen[inverse.reshape(-1)]
    return torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))


def pixel_statistics(images):
    pixels = images.to(torch.float64).numpy().ravel()
    return float(pixels.mean()), float(np.sqrt(np.mean((pixels - pixels.mean()) ** 2)))


def shift(image, dx):
    columns = torch.arange(image.shape[1]) - dx
    inside = (columns >= 0) & (columns < image.shape[1])
    out = image[:, columns.clamp(0, image.shape[1] - 1)]
    out[:, ~inside] = 0
    return out


def collate(samples):
    return {
        "images": torch.cat([image.unsqueeze(0) for image, _, _ in samples]),
        "labels": torch.tensor([label for _, label, _ in samples], dtype=torch.int64),
        "rows": torch.tensor([row for _, _, row in samples], dtype=torch.int64),
    }


def mixed(x):
    """The finaliser of splitmix64, on uint64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def drawn_moves(seed, epoch, rows):
    state = mixed(mixed(np.array([seed], dtype=np.uint64)) ^ np.uint64(epoch))
    return (mixed(state ^ mixed(rows.astype(np.uint64))) % np.uint64(3)).astype(np.int64) - 1


class DigitStream(IterableDataset):
    def __init__(self, images, labels, rows, mean, std, *, batch_size, train, seed=0):
        super().__init__()
        self.pixels = images.float().numpy()
        self.labels, self.rows = labels.numpy().copy(), rows.numpy().copy()
        self.scale = np.float32(mean), np.float32(std)
        self.batch_size, self.train, self.seed = batch_size, train, seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        """Return the batches of an epoch."""
        return int(np.ceil(len(self.rows) / self.batch_size))

    def batch(self, rows, epoch):
        images = self.pixels[rows]
        if self.train:
            padded = np.pad(images, ((0, 0), (0, 0), (1, 1)))
            starts = 1 - drawn_moves(self.seed, epoch, rows)
            columns = starts[:, None] + np.arange(images.shape[2])
            images = np.take_along_axis(padded, columns[:, None, :], axis=2)
        images = (images - self.scale[0]) / self.scale[1]
        return {
            "images": torch.from_numpy(images),
            "labels": torch.from_numpy(self.labels[rows]),
            "rows": torch.from_numpy(rows.copy()),
        }

    def shard(self, worker, num_workers):
        epoch, rows = self.epoch, self.rows
        if self.train:
            random = np.random.Generator(np.random.Philox(key=[self.seed, 2 * epoch + 1]))
            rows = rows[np.argsort(random.random(len(rows)))]
        starts = range(0, len(rows), self.batch_size)
        for start in starts[worker::num_workers]:
            yield self.batch(rows[start : start + self.batch_size], epoch)

    def __iter__(self):
        """Yield the share of this process."""
        info = worker_info()
        yield from self.shard(*((info.id, info.num_workers) if info else (0, 1)))


def gather(stream, num_workers):
    if not num_workers:
        yield from stream
        return
    waiting = [iter(stream.shard(worker, num_workers)) for worker in range(num_workers)]
    while waiting:
        left = []
        for worker in waiting:
            for batch in worker:
                yield batch
                left.append(worker)
                break
        waiting = left


def prepare(images, labels, specimens, *, val_fraction, batch_size, seed):
    parts = split(specimens, val_fraction, seed)
    numbers = pixel_statistics(images[parts[0]])
    return tuple(
        DigitStream(images, labels, rows, *numbers, batch_size=batch_size, train=train, seed=seed)
        for rows, train in zip(parts, (True, False), strict=True)
    )


def evaluate(model, batches):
    model.eval()
    losses, right = [], []
    with torch.inference_mode():
        for batch in batches:
            scores = model(batch["images"]).double().log_softmax(1)
            losses += (-scores.gather(1, batch["labels"][:, None])).flatten().tolist()
            right += (scores.argmax(1) == batch["labels"]).tolist()
    return float(np.mean(losses)), float(np.mean(right))


def train(model, train_stream, val_stream, *, steps, lr, num_workers=0):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    done, samples, epoch, rows = 0, 0, 0, set()
    while done < steps:
        train_stream.set_epoch(epoch)
        losses = []
        batches = gather(train_stream, num_workers)
        batch = next(batches)
        while batch is not None and done < steps:
            following = next(batches, None)
            model.train()
            optimizer.zero_grad()
            each = nn.functional.cross_entropy(
                model(batch["images"]), batch["labels"], reduction="none"
            )
            each.mean().backward()
            optimizer.step()
            losses += each.tolist()
            rows |= set(batch["rows"].tolist())
            samples += len(each)
            done += 1
            line = {
                "unique": float(len(rows)),
                "samples": float(samples),
                "loss": float(np.mean(losses)),
            }
            if following is None or done == steps:
                values = evaluate(model, gather(val_stream, num_workers))
                line["val_loss"], line["val_accuracy"] = values
            yield line
            batch = following
        epoch += 1


def run(seed=0, steps=None):
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed + 12345)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    streams = prepare(*load_scans(), val_fraction=0.25, batch_size=32, seed=seed)
    return train(model, *streams, steps=516 if steps is None else steps, lr=0.005, num_workers=3)
