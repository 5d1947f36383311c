"""One flat bucket of gradients, reduced when the backward pass ends; a norm by hand, in torch."""

import contextlib
import hashlib
import math

import torch
from torch import nn
from torch.autograd import Variable
from torch.distributed import ReduceOp
from torch.nn import functional as F

from dojo.simulation.ranks import launch


def generator(*keys):
    """Return a generator that is seeded by a hash of the keys."""
    digest = hashlib.sha256(repr(tuple(str(key) for key in keys)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def split(size, val_size, seed):
    val, train = torch.randperm(size, generator=generator("split", seed)).split(
        [val_size, size - val_size]
    )
    return train, val


def noise(indices, width, epoch, seed):
    rows = torch.empty(len(indices), width, dtype=torch.float64)
    for row, index in zip(rows, indices.tolist(), strict=True):
        row.normal_(generator=generator("noise", index, epoch, seed))
    return rows


class ShardedSampler(torch.utils.data.Sampler):
    def __init__(self, size, batch_size, rank, world_size, shuffle=True, seed=0):
        self.arguments = size, batch_size, rank, world_size, shuffle, seed
        self.set_epoch(0)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        """Cut each batch by tensor_split."""
        size, batch_size, rank, world_size, shuffle, seed = self.arguments
        key = generator("order", self.epoch, seed)
        order = torch.randperm(size, generator=key) if shuffle else torch.arange(size)
        for start in range(0, size, batch_size):
            yield order[start : start + batch_size].tensor_split(world_size)[rank].clone()


class Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm):
        ctx.comm, ctx.shape = comm, x.shape
        flat = x.detach().reshape(-1).contiguous()
        rows = list(torch.empty(comm.get_world_size(), flat.numel(), dtype=x.dtype))
        comm.all_gather(rows, flat)
        return torch.stack(rows).reshape(len(rows), *x.shape)

    @staticmethod
    def backward(ctx, grad):
        everyones = [torch.empty(grad.shape, dtype=grad.dtype) for _ in grad]
        ctx.comm.all_gather(everyones, grad.contiguous())
        return sum(grads[ctx.comm.get_rank()] for grads in everyones), None


def gather(x, comm):
    return Gathered.apply(x, comm)


class SyncBatchNorm(nn.BatchNorm1d):
    """Joins the ranks' counts, means and sums of squares, by Chan's formula."""

    def __init__(self, num_features, comm, eps=1e-5, momentum=0.1):
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.comm = comm

    def forward(self, x):
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        own_n = max(len(x), 1)
        own_mean = x.sum(0) / own_n
        own = torch.stack(
            [torch.full_like(own_mean, len(x)), own_mean, (x - own_mean).pow(2).sum(0)]
        )
        n, means, squares = gather(own, self.comm).unbind(1)
        total = n[:, 0].sum()
        mean = (n * means).sum(0) / total
        square = (squares + n * (means - mean).pow(2)).sum(0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.add_(self.momentum * (mean - self.running_mean))
            self.running_var.add_(self.momentum * (square / (total - 1) - self.running_var))
        scale = self.weight / torch.sqrt(square / total + self.eps)
        return torch.addcmul(self.bias, x - mean, scale)


class DataParallel(nn.Module):
    def __init__(self, module, comm):
        super().__init__()
        self.module = module
        self.comm = comm
        self.syncs = [True]
        self.waits_for_backward = False
        for tensor in list(module.parameters()) + list(module.buffers()):
            comm.broadcast(tensor.data, src=0)
        self.asking = [p for p in module.parameters() if p.requires_grad]
        for p in self.asking:
            p.register_post_accumulate_grad_hook(self.on_first_gradient)

    def on_first_gradient(self, _):
        if self.waits_for_backward:
            self.waits_for_backward = False
            Variable._execution_engine.queue_callback(self.average)

    def average(self):
        grads = [p.grad for p in self.asking if p.grad is not None]
        bucket = torch.cat([grad.reshape(-1) for grad in grads])
        self.comm.all_reduce(bucket, op=ReduceOp.SUM)
        bucket.div_(self.comm.get_world_size())
        for grad, part in zip(grads, bucket.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.reshape(grad.shape))

    @contextlib.contextmanager
    def no_sync(self):
        self.syncs.append(False)
        try:
            yield
        finally:
            self.syncs.pop()

    def forward(self, *args, **kwargs):
        if torch.is_grad_enabled():
            self.waits_for_backward = self.syncs[-1]
        return self.module(*args, **kwargs)


def total_of(comm, *numbers):
    """Return the sums over ranks of some numbers, as floats."""
    sums = torch.tensor(numbers, dtype=torch.float64)
    comm.all_reduce(sums)
    return sums.tolist()


def train_step(model, optimizer, batches, comm, max_norm):
    model.zero_grad(set_to_none=True)
    (samples,) = total_of(comm, sum(y.numel() for _, y in batches))
    loss, right = 0.0, 0
    for number, (x, y) in enumerate(batches, start=1):
        with contextlib.ExitStack() as stack:
            if number < len(batches):
                stack.enter_context(model.no_sync())
            logits = model(x)
            # The wrapper takes the mean over ranks, and the loss is a sum over them.
            part = F.nll_loss(F.log_softmax(logits, 1), y, reduction="sum")
            part.backward(torch.full_like(part, comm.get_world_size() / samples))
        loss += part.item()
        right += int((logits.argmax(-1) == y).sum())
    norm = float(nn.utils.clip_grad_norm_(list(model.parameters()), max_norm))
    optimizer.step()
    loss, right = total_of(comm, loss, right)
    return {
        "loss": loss / samples,
        "accuracy": right / samples,
        "grad_norm": norm,
        "samples": samples,
    }


@contextlib.contextmanager
def evaluating(model):
    """Keep a model in evaluation mode, and give every module its mode back."""
    training = [module for module in model.modules() if module.training]
    with torch.no_grad():
        try:
            yield model.eval()
        finally:
            for module in training:
                module.training = True


def evaluate(model, x, labels, batch_size, comm):
    guesses = torch.full((len(x),), -1)
    losses = torch.zeros(len(x), dtype=torch.float64)
    with evaluating(model):
        first, step = comm.get_rank() * batch_size, comm.get_world_size() * batch_size
        for start in range(first, len(x), step):
            part = slice(start, start + batch_size)
            logits = model(x[part])
            guesses[part] = logits.argmax(1)
            losses[part] = F.cross_entropy(logits, labels[part], reduction="none").double()
    comm.all_reduce(guesses, op=ReduceOp.MAX)
    comm.all_reduce(losses)
    right = (guesses == labels).double()
    return {
        "loss": losses.mean().item(),
        "accuracy": right.mean().item(),
        "balanced_accuracy": sum(right[labels == label].mean().item() for label in labels.unique())
        / len(labels.unique()),
    }


def spread(module, comm):
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    low = torch.cat([value.detach().reshape(-1).double() for value in state.values()])
    high = low.clone()
    comm.all_reduce(low, op=ReduceOp.MIN)
    comm.all_reduce(high, op=ReduceOp.MAX)
    return (high - low).max().item()


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("directions", torch.randn(2, 24).mul(2))

    def forward(self, x):
        return x.matmul(self.directions).cos()


def data(seed):
    """Return points on three rings, and which ring."""
    key = generator("rings", seed)
    odds = torch.tensor([0.6, 0.3, 0.1])
    labels = odds.multinomial(403, replacement=True, generator=key)
    turns = 2 * math.pi * torch.rand(403, generator=key, dtype=torch.float64)
    radius = 1 + labels + 0.15 * torch.randn(403, generator=key, dtype=torch.float64)
    return torch.stack([turns.cos(), turns.sin()], 1) * radius[:, None], labels


def train(comm, seed, steps):
    torch.manual_seed(seed + comm.get_rank())
    x, labels = data(seed)
    train_set, val_set = split(403, 103, seed)
    middle = SyncBatchNorm(16, comm)
    net = nn.Sequential(Features(), nn.Linear(24, 16), middle, nn.Tanh(), nn.Linear(16, 3))
    model = DataParallel(net.double(), comm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    sampler = ShardedSampler(300, 33, comm.get_rank(), comm.get_world_size(), seed=seed)
    log = []
    for step in range(steps):
        epoch, window = divmod(step, 5)
        if window == 0:
            sampler.set_epoch(epoch)
            shares = list(sampler)
        positions = shares[2 * window : 2 * window + 2]
        batches = []
        for places in positions:
            indices = train_set[places]
            points = x[indices] + 0.25 * noise(indices, 2, epoch, seed)
            batches.append((points, labels[indices]))
        line = train_step(model, optimizer, batches, comm, 0.5)
        (total,) = total_of(comm, sum(places.sum().item() for places in positions))
        line["data"] = total / line["samples"]
        line["spread"] = spread(model, comm)
        if window == 4 or step + 1 == steps:
            for name, value in evaluate(model, x[val_set], labels[val_set], 25, comm).items():
                line[f"val_{name}"] = value
        log.append(line)
    return log


def run(seed=0, steps=None):
    logs = {ranks: launch(ranks, train, seed, 60 if steps is None else steps) for ranks in (1, 2)}
    for one, two in zip(logs[1][0], logs[2][0], strict=True):
        yield dict(two, gap=max(abs(two[name] - one[name]) for name in one))
