"""The same training with sums instead of gathered tensors, and the statistics written out."""

import contextlib
import math

import numpy as np
import torch
from torch import nn

from dojo.simulation.ranks import launch


def stream(kind, *keys):
    """Return a generator of a kind of random numbers, of its own for these keys."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([*keys, ord(kind)])))


def split(size, val_size, seed):
    order = torch.as_tensor(stream("s", seed).permutation(size), dtype=torch.int64)
    val = torch.zeros(size, dtype=torch.bool)
    val[order[:val_size]] = True
    return (~val).nonzero().flatten(), val.nonzero().flatten()


def noise(indices, width, epoch, seed):
    rows = [stream("n", seed, epoch, i).normal(size=width) for i in indices.tolist()]
    return torch.tensor(np.array(rows).reshape(len(rows), width))


class ShardedSampler:
    def __init__(self, size, batch_size, rank, world_size, shuffle=True, seed=0):
        self.size = int(size)
        self.batch_size = int(batch_size)
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = int(epoch)

    def __len__(self):
        """Count the batches."""
        return math.ceil(self.size / self.batch_size)

    def __iter__(self):
        """Cut the whole epoch at once."""
        order = list(range(self.size))
        if self.shuffle:
            order = stream("o", self.seed, self.epoch).permutation(self.size).tolist()
        return iter([self.share(order, number) for number in range(len(self))])

    def share(self, order, number):
        """Return the contiguous part of a batch that is this rank's."""
        batch = order[number * self.batch_size : (number + 1) * self.batch_size]
        each, more = divmod(len(batch), self.world_size)
        start = self.rank * each + min(self.rank, more)
        stop = start + each + (self.rank < more)
        return torch.tensor(batch[start:stop], dtype=torch.int64)


class AllSum(torch.autograd.Function):
    """The sum over ranks, whose gradient is the sum over ranks as well."""

    @staticmethod
    def forward(ctx, x, comm):
        ctx.comm = comm
        total = x.detach().clone()
        comm.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        total = grad.detach().clone().contiguous()
        ctx.comm.all_reduce(total)
        return total, None


def gather(x, comm):
    """Put x into its place among zeros, and sum over ranks."""
    places = torch.zeros(comm.get_world_size(), dtype=x.dtype)
    places[comm.get_rank()] = 1
    return AllSum.apply(places.reshape(-1, *[1] * x.ndim) * x, comm)


class SyncBatchNorm(nn.Module):
    def __init__(self, num_features, comm, eps=1e-5, momentum=0.1):
        super().__init__()
        self.comm, self.eps, self.momentum = comm, eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            count = torch.full((1,), float(len(x)), dtype=x.dtype)
            *sums, n = AllSum.apply(torch.cat([x.sum(0), count]), self.comm)
            mean = torch.stack(sums) / n.detach()
            n = n.item()
            var = AllSum.apply(((x - mean) ** 2).sum(0), self.comm) / n
            keep = 1 - self.momentum
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.mul_(keep).add_(self.momentum * mean)
                self.running_var.mul_(keep).add_(self.momentum * var * n / (n - 1))
        return self.weight * (x - mean) / (var + self.eps).sqrt() + self.bias


class DataParallel(nn.Module):
    def __init__(self, module, comm):
        super().__init__()
        self.module = module
        self.comm = comm
        self.depth = 0
        self.decided = False
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                value = tensor.detach().clone()
                comm.broadcast(value, 0)
                tensor.copy_(value)
        for p in filter(lambda p: p.requires_grad, module.parameters()):
            p.register_post_accumulate_grad_hook(self.hook)

    def hook(self, p):
        if self.decided:
            mean = p.grad / self.comm.get_world_size()
            self.comm.all_reduce(mean)
            p.grad = mean

    @contextlib.contextmanager
    def no_sync(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def forward(self, *args, **kwargs):
        if torch.is_grad_enabled():
            self.decided = self.depth == 0
        return self.module(*args, **kwargs)


def train_step(model, optimizer, batches, comm, max_norm):
    for p in model.parameters():
        p.grad = None
    counts = torch.tensor([float(sum(len(y) for _, y in batches)), 0.0, 0.0], dtype=torch.float64)
    comm.all_reduce(counts)
    samples = counts[0].item()
    own = torch.zeros(2, dtype=torch.float64)
    for x, y in batches[:-1]:
        with model.no_sync():
            own += backward(model, x, y, comm.get_world_size() / samples)
    own += backward(model, *batches[-1], comm.get_world_size() / samples)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads))
    if norm > max_norm:
        for g in grads:
            g.mul_(max_norm / (norm + 1e-6))
    optimizer.step()
    comm.all_reduce(own)
    loss, right = (own / samples).tolist()
    return {"loss": loss, "accuracy": right, "grad_norm": norm, "samples": samples}


def backward(model, x, y, scale):
    """Go back from the sum of losses times the scale; return that sum, and the right answers."""
    logits = model(x)
    picked = logits.log_softmax(-1).gather(1, y.unsqueeze(1))
    loss = -picked.sum()
    (loss * scale).backward()
    right = logits.max(dim=1).indices.eq(y).sum()
    return torch.tensor([loss.item(), right.item()], dtype=torch.float64)


def evaluate(model, x, labels, batch_size, comm):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    classes = labels.unique().tolist()
    table = {c: [0.0, 0, 0] for c in classes}
    sampler = ShardedSampler(len(x), batch_size, comm.get_rank(), comm.get_world_size(), False)
    with torch.no_grad():
        for share in sampler:
            if len(share):
                logits = model(x[share])
                losses = nn.functional.cross_entropy(logits, labels[share], reduction="none")
                rows = zip(
                    losses.tolist(), logits.argmax(1).tolist(), labels[share].tolist(), strict=True
                )
                for loss, guess, label in rows:
                    table[label][0] += loss
                    table[label][1] += guess == label
                    table[label][2] += 1
    for module, mode in modes:
        module.training = mode
    total = torch.tensor([table[c] for c in classes], dtype=torch.float64)
    comm.all_reduce(total)
    return {
        "loss": (total[:, 0].sum() / total[:, 2].sum()).item(),
        "accuracy": (total[:, 1].sum() / total[:, 2].sum()).item(),
        "balanced_accuracy": (total[:, 1] / total[:, 2]).mean().item(),
    }


def spread(module, comm):
    state = [*module.parameters(), *module.buffers()]
    everyone = gather(torch.cat([t.detach().double().reshape(-1) for t in state]), comm)
    return max((column.max() - column.min()).item() for column in everyone.T)


class Cosines(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("directions", 2 * torch.randn(2, 24))

    def forward(self, x):
        return torch.cos(x @ self.directions)


def train(comm, seed, steps):
    torch.manual_seed(seed + comm.get_rank())
    random = stream("d", seed)
    labels = random.choice(3, size=403, p=[0.6, 0.3, 0.1])
    turns = random.uniform(0, 2 * math.pi, 403)
    radius = 1 + labels + 0.15 * random.normal(size=403)
    x = torch.tensor(np.stack([radius * np.cos(turns), radius * np.sin(turns)], 1))
    labels = torch.tensor(labels)
    train_set, val_set = split(403, 103, seed)
    net = nn.Sequential(
        Cosines(), nn.Linear(24, 16), SyncBatchNorm(16, comm), nn.Tanh(), nn.Linear(16, 3)
    )
    model = DataParallel(net.double(), comm)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    sampler = ShardedSampler(300, 33, comm.get_rank(), comm.get_world_size(), seed=seed)
    log = []
    while len(log) < steps:
        epoch, step = divmod(len(log), 5)
        sampler.set_epoch(epoch)
        window = list(sampler)[2 * step : 2 * step + 2]
        batches = []
        for share in window:
            i = train_set[share]
            batches.append((x[i] + 0.25 * noise(i, 2, epoch, seed), labels[i]))
        line = train_step(model, optimizer, batches, comm, 0.5)
        data = torch.tensor(float(sum(share.sum() for share in window)))
        comm.all_reduce(data)
        line["data"] = data.item() / line["samples"]
        line["spread"] = spread(model, comm)
        log.append(line)
        if step == 4 or len(log) == steps:
            scores = evaluate(model, x[val_set], labels[val_set], 64, comm)
            line.update({"val_" + name: value for name, value in scores.items()})
    return log


def run(seed=0, steps=None):
    steps = 60 if steps is None else steps
    two = launch(2, train, seed, steps)[0]
    one = launch(1, train, seed, steps)[0]
    for a, b in zip(two, one, strict=True):
        yield {**a, "gap": max(abs(a[k] - b[k]) for k in b)}
