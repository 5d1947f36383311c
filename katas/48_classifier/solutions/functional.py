"""Style: functional layers on named parameters, a sampler in NumPy, a schedule by LambdaLR."""

import copy
import itertools
import math
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def load_digits():
    roots = itertools.chain(Path(__file__).resolve().parents, [Path.cwd()], Path.cwd().parents)
    found = (root / "fixtures/digits.npz" for root in roots)
    with np.load(next(path for path in found if path.exists())) as data:
        return torch.as_tensor(data["images"]), torch.as_tensor(data["labels"].astype(np.int64))


def numpy_generator(generator):
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))


def prepare(images, labels, val_fraction, generator):
    random = numpy_generator(generator)
    keys, names = random.random(len(labels)), labels.numpy()
    held_out = np.zeros(len(labels), dtype=bool)
    for name in np.unique(names):
        places = np.nonzero(names == name)[0]
        count = int(np.rint(val_fraction * len(places)))
        held_out[places[np.argsort(keys[places])[:count]]] = True
    mask = torch.from_numpy(held_out)
    train_set, val_set = ((images[part], labels[part]) for part in (~mask, mask))
    pixels = train_set[0].double().flatten()
    mean = pixels.sum() / len(pixels)
    std = ((pixels - mean).square().sum() / len(pixels)).sqrt()
    return train_set, val_set, mean.item(), std.item()


class DigitClassifier(nn.Module):
    def __init__(self, mean, std, channels=(16, 32), dropout=0.25, num_classes=10):
        super().__init__()
        self.p = dropout
        self.mean = nn.Buffer(torch.tensor(float(mean)))
        self.std = nn.Buffer(torch.tensor(float(std)))
        sizes = list(zip((1, channels[0]), channels, strict=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(i, o, 3, bias=False), norm=nn.BatchNorm2d(o)))
            for i, o in sizes
        )
        self.head = nn.Linear(channels[1] * 4, num_classes)

    def forward(self, images):
        x = images.type_as(self.head.weight).sub(self.mean).div(self.std).unsqueeze(-3)
        for block in self.blocks:
            x = F.pad(x, (1, 1, 1, 1))
            x = block(x).clamp_min(0)
            n, c, h, w = x.shape
            x = x.view(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
        x = x.flatten(1)
        if self.training and self.p > 0:
            x = x * (torch.rand_like(x) >= self.p) / (1 - self.p)
        return F.linear(x, self.head.weight, self.head.bias)


def train_step(model, optimizer, images, labels):
    model.train()
    model.zero_grad(set_to_none=False)
    logits = model(images)
    losses = torch.logsumexp(logits, 1) - logits[torch.arange(len(labels)), labels]
    losses.mean().backward()
    optimizer.step()
    with torch.no_grad():
        return losses.mean().clone(), logits.argmax(-1).eq(labels).double().mean()


@torch.no_grad()
def evaluate(model, images, labels, batch_size=256):
    model.eval()
    starts = range(0, len(images), batch_size)
    logits = torch.cat([model(images[start : start + batch_size]) for start in starts])
    loss = F.cross_entropy(logits.double(), labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())


def train(model, train_set, val_set, *, steps, batch_size, lr, generator):
    images, labels = train_set
    random = numpy_generator(generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: math.cos(math.pi * step / (2 * steps)) ** 2
    )

    def batches():
        while True:
            order = torch.from_numpy(random.permutation(len(labels)))
            parts = order.split(batch_size)
            for number, part in enumerate(parts):
                yield number == 0, number == len(parts) - 1, part

    kept = {}
    for step, (first, last, part) in enumerate(itertools.islice(batches(), steps)):
        if first:
            seen = defaultdict(float)
        rate = optimizer.param_groups[0]["lr"]
        loss, accuracy = train_step(model, optimizer, images[part], labels[part])
        schedule.step()
        for name, value in (("count", 1.0), ("loss", float(loss)), ("accuracy", float(accuracy))):
            seen[name] += value * len(part)
        line = {name: seen[name] / seen["count"] for name in ("loss", "accuracy")}
        line["lr"] = rate
        if last or step == steps - 1:
            line["val_loss"], line["val_accuracy"] = evaluate(model, *val_set)
            if not kept or line["val_loss"] < min(kept):
                kept = {line["val_loss"]: copy.deepcopy(model.state_dict())}
        yield line
    model.load_state_dict(kept[min(kept)])


def run(seed=0, steps=184):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        train_set, val_set, mean, std = prepare(*load_digits(), 0.2, generator)
        model = DigitClassifier(mean, std)
        options = {"steps": 184 if steps is None else steps, "batch_size": 64, "lr": 0.01}
        yield from train(model, train_set, val_set, generator=generator, **options)
