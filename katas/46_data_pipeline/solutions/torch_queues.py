"""Style: torch generators seeded by a digest, closures for what is drawn, workers as queues."""

import hashlib
import math
from collections import defaultdict, deque
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.data as data


def generator(*parts):
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def fixtures():
    for start in (Path(__file__).resolve().parent, Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "fixtures" / "digits.npz").exists():
                return folder / "fixtures"
    raise FileNotFoundError("fixtures/digits.npz")


def load_scans():
    file = np.load(fixtures() / "digits.npz")
    images = torch.from_numpy(file["images"]).int()[::3]
    labels = torch.from_numpy(file["labels"]).long()[::3]
    file.close()
    scans = torch.cat([images, torch.div(3 * images, 4, rounding_mode="floor")])
    scans = torch.cat([scans, torch.div(5 * images, 4, rounding_mode="floor").clamp_max(16)])
    rows = torch.arange(len(scans))
    return scans.to(torch.uint8), labels[rows % len(labels)], rows % len(labels)


def split(specimens, val_fraction, seed):
    rows = defaultdict(list)
    for row, name in enumerate(specimens.tolist()):
        rows[name].append(row)
    order = torch.randperm(len(rows), generator=generator("split", int(seed))).tolist()
    names = list(sorted(rows))
    size = min(len(names) - 1, max(1, math.ceil(val_fraction * len(names) - 0.5)))
    parts = [names[i] for i in order[size:]], [names[i] for i in order[:size]]
    return tuple(torch.tensor([row for name in part for row in rows[name]]) for part in parts)


def pixel_statistics(images):
    pixels = images.to(torch.float64)
    mean = pixels.sum() / pixels.numel()
    return mean.item(), ((pixels * pixels).sum() / pixels.numel() - mean * mean).sqrt().item()


def shift(image, dx):
    out = torch.roll(image, dx, 1)
    if dx > 0:
        out[:, :dx] = 0
    if dx < 0:
        out[:, dx:] = 0
    return out


def collate(samples):
    samples = list(samples)
    images = torch.stack([sample[0] for sample in samples])
    labels, rows = (torch.LongTensor([sample[i] for sample in samples]) for i in (1, 2))
    return dict(images=images, labels=labels, rows=rows)


class DigitStream(data.IterableDataset):
    def __init__(self, images, labels, rows, mean, std, *, batch_size, train, seed=0):
        self.arrays = images, labels, rows
        self.mean, self.std = mean, std
        self.size, self.train, self.seed = batch_size, train, int(seed)
        self.set_epoch(0)

    def set_epoch(self, epoch):
        self.key = (self.seed, int(epoch))

    def __len__(self):
        """Return the batches of an epoch."""
        return len(range(0, len(self.arrays[2]), self.size))

    def batches(self, key):
        images, labels, rows = self.arrays
        if self.train:
            rows = rows[torch.rand(len(rows), generator=generator("order", *key)).argsort()]
        for part in rows.split(self.size):
            yield lambda part=part: collate(
                [
                    (self.image(images[row], row, key), labels[row].item(), row)
                    for row in part.tolist()
                ]
            )

    def image(self, image, row, key):
        if self.train:
            dx = torch.randint(3, (), generator=generator("move", *key, row)).item() - 1
            image = shift(image, dx)
        return ((image.double() - self.mean) / self.std).float()

    def shard(self, worker, num_workers):
        return (make() for make in islice(self.batches(self.key), worker, None, num_workers))

    def __iter__(self):
        """Yield the share of this process."""
        info = data.get_worker_info()
        if info is not None:
            return self.shard(info.id, info.num_workers)
        return (make() for make in self.batches(self.key))


def gather(stream, num_workers):
    if num_workers == 0:
        return iter(stream)
    queues = deque(stream.shard(worker, num_workers) for worker in range(num_workers))

    def turns():
        while queues:
            queue = queues.popleft()
            try:
                batch = next(queue)
            except StopIteration:
                continue
            queues.append(queue)
            yield batch

    return turns()


def prepare(images, labels, specimens, *, val_fraction, batch_size, seed):
    train_rows, val_rows = split(specimens, val_fraction, seed)
    mean, std = pixel_statistics(images[train_rows])

    def stream(rows, train):
        return DigitStream(
            images, labels, rows, mean, std, batch_size=batch_size, train=train, seed=seed
        )

    return stream(train_rows, True), stream(val_rows, False)


def evaluate(model, batches):
    was = model.training
    model.train(False)
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            logits, labels = model(batch["images"]), batch["labels"]
            hits = logits.max(1).indices.eq(labels)
            sums += torch.stack(
                [
                    F.cross_entropy(logits, labels).double() * len(labels),
                    hits.sum(),
                    hits.numel() + torch.zeros(()),
                ]
            )
    model.train(was)
    return (sums[0] / sums[2]).item(), (sums[1] / sums[2]).item()


class Tally:
    def __init__(self):
        self.samples, self.rows = 0, torch.zeros(0, dtype=torch.int64)

    def add(self, rows):
        self.samples += rows.numel()
        self.rows = torch.unique(torch.cat([self.rows, rows]))


def train(model, train_stream, val_stream, *, steps, lr, num_workers=0):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    tally = Tally()

    def endless():
        for epoch in count():
            train_stream.set_epoch(epoch)
            held = None
            for batch in gather(train_stream, num_workers):
                if held is not None:
                    yield held, False
                held = batch
            yield held, True

    epoch_sum, epoch_count = 0.0, 0
    for step, (batch, last) in enumerate(islice(endless(), steps), start=1):
        model.train(True)
        loss = F.nll_loss(F.log_softmax(model(batch["images"]), 1), batch["labels"])
        for p in model.parameters():
            p.grad = None
        loss.backward()
        optimizer.step()
        tally.add(batch["rows"])
        epoch_sum += loss.item() * len(batch["labels"])
        epoch_count += len(batch["labels"])
        line = {"loss": epoch_sum / epoch_count, "samples": float(tally.samples)}
        line["unique"] = float(len(tally.rows))
        if last or step == steps:
            values = evaluate(model, gather(val_stream, num_workers))
            line["val_loss"], line["val_accuracy"] = values
        if last:
            epoch_sum, epoch_count = 0.0, 0
        yield line


def model_for(seed):
    random = generator("weights", seed)
    layers = torch.nn.Linear(64, 128, device="meta"), torch.nn.Linear(128, 10, device="meta")
    layers = [layer.to_empty(device="cpu") for layer in layers]
    for layer in layers:
        bound = layer.in_features**-0.5
        for p in layer.parameters():
            p.data.uniform_(-bound, bound, generator=random)
    return torch.nn.Sequential(torch.nn.Flatten(), layers[0], torch.nn.ReLU(), layers[1])


def run(seed=0, steps=None):
    train_stream, val_stream = prepare(*load_scans(), val_fraction=1 / 4, batch_size=32, seed=seed)
    yield from train(
        model_for(seed),
        train_stream,
        val_stream,
        steps=steps if steps is not None else 516,
        lr=5e-3,
        num_workers=3,
    )
