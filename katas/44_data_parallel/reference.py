"""Data-parallel training: every rank takes its share of a batch, and all take the same step.

`comm` is what `dojo.simulation.ranks.launch` hands to each rank, or the module torch.distributed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dojo.simulation.ranks import launch

Examples = tuple[Tensor, Tensor]  # inputs (n, D) and labels (n,)
Log = dict[str, float]
ORDER, NOISE = range(2)  # what a stream of random numbers is for


def split(size: int, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and the validation examples, int64, equal on all ranks."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[val_size:], order[:val_size]


def noise(indices: Tensor, width: int, epoch: int, seed: int) -> Tensor:
    """Return normal numbers, float64 (n, width): each row by its index, epoch and seed alone."""
    size = int(indices.max()) + 1 if len(indices) else 0
    rows = np.random.default_rng([seed, epoch, NOISE]).standard_normal((size, width))
    return torch.from_numpy(rows)[indices]


@dataclass
class ShardedSampler:
    """One rank's shares of batches that do not depend on the number of ranks."""

    size: int
    batch_size: int  # of all ranks together
    rank: int
    world_size: int
    shuffle: bool = True
    seed: int = 0
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the passes from now on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        """Yield this rank's share of each batch: indices, int64 (n,)."""
        order = np.arange(self.size)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch, ORDER]).shuffle(order)
        for batch in torch.from_numpy(order).split(self.batch_size):
            yield batch[self.rank :: self.world_size]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Any) -> Tensor:
        ctx.comm, x = comm, x.contiguous()
        parts = [torch.empty_like(x) for _ in range(comm.get_world_size())]
        comm.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        ctx.comm.all_reduce(total)
        return total[ctx.comm.get_rank()], None


def gather(x: Tensor, comm: Any) -> Tensor:
    """Stack the ranks' x, (world_size, *x.shape); its gradient is that of all their losses."""
    return _Gather.apply(x, comm)  # type: ignore[no-any-return, no-untyped-call]


class SyncBatchNorm(nn.BatchNorm1d):
    """What nn.BatchNorm1d makes of the shares of all ranks as one batch, (N, C)."""

    def __init__(self, num_features: int, comm: Any, eps: float = 1e-5, momentum: float = 0.1):
        """Take the width, and the ranks that share a batch."""
        super().__init__(num_features, eps, momentum)
        self.comm = comm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a share (n, C), in training by the statistics of the batch of all ranks."""
        if not self.training:
            return super().forward(x)
        sums = gather(torch.cat([x.new_tensor([len(x)]), x.sum(0)]), self.comm).sum(0)
        size, mean = sums[0], sums[1:] / sums[0]
        squares = gather((x - mean).square().sum(0), self.comm).sum(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (size - 1), self.momentum)
        return (x - mean) * torch.rsqrt(squares / size + self.eps) * self.weight + self.bias


class DataParallel(nn.Module):
    """A module that starts equal on all ranks, and whose gradients are averaged over them."""

    def __init__(self, module: nn.Module, comm: Any) -> None:
        """Set parameters and buffers to those of rank 0."""
        super().__init__()
        self.module, self.comm = module, comm
        self.require_backward_grad_sync = True
        self._averages = False
        for tensor in (*module.parameters(), *module.buffers()):
            comm.broadcast(tensor.detach(), src=0)
        for p in module.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._average_gradient)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module does."""
        if torch.is_grad_enabled():
            self._averages = self.require_backward_grad_sync
        return self.module(*args, **kwargs)

    def _average_gradient(self, p: Tensor) -> None:
        if self._averages and p.grad is not None:
            self.comm.all_reduce(p.grad)
            p.grad /= self.comm.get_world_size()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Leave gradients to each rank, to be averaged with those of the first pass outside."""
        before = self.require_backward_grad_sync
        self.require_backward_grad_sync = False
        try:
            yield
        finally:
            self.require_backward_grad_sync = before


def train_step(
    model: DataParallel,
    optimizer: Optimizer,
    batches: Sequence[Examples],
    comm: Any,
    max_norm: float,
) -> Log:
    """Step along the mean gradient of all examples of all ranks, clipped; return the log."""
    total = torch.tensor(sum(len(labels) for _, labels in batches))
    comm.all_reduce(total)
    sums = torch.zeros(2, dtype=torch.float64)  # of losses, and of right answers
    model.zero_grad()
    for i, (x, labels) in enumerate(batches):
        model.require_backward_grad_sync = i + 1 == len(batches)
        logits = model(x)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (loss / total * comm.get_world_size()).backward()
        sums += torch.stack([loss.detach(), (logits.argmax(dim=1) == labels).sum()])
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    comm.all_reduce(sums)
    mean, accuracy = (sums / total).tolist()
    return {"loss": mean, "accuracy": accuracy, "grad_norm": norm.item(), "samples": float(total)}


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, labels: Tensor, batch_size: int, comm: Any) -> Log:
    """Return mean loss, accuracy, and its mean over classes, of all examples by all ranks."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    sums = torch.zeros(3, int(labels.max()) + 1, dtype=torch.float64)  # a column for each class
    place = comm.get_rank(), comm.get_world_size()
    for share in ShardedSampler(len(x), batch_size, *place, shuffle=False):
        logits, y = model(x[share]), labels[share]
        losses = F.cross_entropy(logits, y, reduction="none").double()
        sums.index_add_(1, y, torch.stack([losses, logits.argmax(1) == y, torch.ones_like(losses)]))
    for module, training in modes.items():
        module.training = training
    comm.all_reduce(sums)
    loss, hits, seen = sums
    means = loss.sum() / seen.sum(), hits.sum() / seen.sum(), (hits / seen)[seen > 0].mean()
    return dict(zip(("loss", "accuracy", "balanced_accuracy"), map(float, means), strict=True))


def spread(module: nn.Module, comm: Any) -> float:
    """Return the largest difference between two ranks in any parameter or buffer."""
    state = (*module.parameters(), *module.buffers())
    ranks = gather(torch.cat([tensor.detach().double().flatten() for tensor in state]), comm)
    return (ranks.amax(0) - ranks.amin(0)).max().item()


class RandomFeatures(nn.Module):
    """Cosines of random directions, which are drawn once and not trained."""

    def __init__(self, width: int, features: int) -> None:
        """Draw the directions from the global generator."""
        super().__init__()
        self.register_buffer("directions", 2 * torch.randn(width, features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, width) to (n, features)."""
        return (x @ self.directions).cos()


def rings(seed: int, size: int = 403) -> Examples:
    """Return points on three rings, float64 (size, 2), and the number of the ring, int64."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size, p=[0.6, 0.3, 0.1])
    angle, radius = rng.uniform(0, 2 * np.pi, size), 1 + labels + rng.normal(0, 0.15, size)
    points = radius * np.stack([np.cos(angle), np.sin(angle)])
    return torch.from_numpy(points.T), torch.from_numpy(labels)


def train(comm: Any, seed: int, steps: int) -> list[Log]:
    """Train on one rank of several; return the log, which is the same for any number of ranks."""
    torch.manual_seed(seed + comm.get_rank())
    x, labels = rings(seed)
    train_set, val_set = split(len(x), 103, seed)
    hidden = [nn.Linear(24, 16), SyncBatchNorm(16, comm), nn.Tanh()]
    net = nn.Sequential(RandomFeatures(2, 24), *hidden, nn.Linear(16, 3)).double()
    model = DataParallel(net, comm)
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    place = comm.get_rank(), comm.get_world_size()
    sampler = ShardedSampler(len(train_set), 33, *place, seed=seed)
    log: list[Log] = []
    for epoch in range(steps):
        sampler.set_epoch(epoch)
        shares = list(sampler)
        while shares and len(log) < steps:
            window, shares = shares[:2], shares[2:]
            indices = [train_set[share] for share in window]
            batches = [(x[i] + 0.25 * noise(i, 2, epoch, seed), labels[i]) for i in indices]
            line = train_step(model, optimizer, batches, comm, max_norm=0.5)
            positions = torch.cat(window).sum()
            comm.all_reduce(positions)
            line["data"] = positions.item() / line["samples"]
            line["spread"] = spread(model, comm)
            log.append(line)
            if not shares or len(log) == steps:
                scores = evaluate(model, x[val_set], labels[val_set], 25, comm)
                line |= {f"val_{name}": score for name, score in scores.items()}
    return log


def run(seed: int = 0, steps: int | None = None) -> Iterator[Log]:
    """Yield the log of two ranks, by default of 60 steps, and by how much one rank is off."""
    steps = 60 if steps is None else steps
    log, single = (launch(world_size, train, seed, steps)[0] for world_size in (2, 1))
    for line, alone in zip(log, single, strict=True):
        yield line | {"gap": max(abs(line[name] - alone[name]) for name in alone)}
