"""The loss with its gradient in closed form; ranks exchange rows by broadcasts."""

import contextlib
import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dojo.simulation.ranks import launch


def make_pairs(count, generator):
    """Draw everything at once and cut it up."""
    numbers = torch.randn(count * (8 + 24 + 20) + 8 * (24 + 20), generator=generator)
    sizes = [count * 8, 8 * 24, 8 * 20, count * 24, count * 20]
    latents, mix_x, mix_y, noise_x, noise_y = numbers.split(sizes)
    latents = latents.view(count, 8)
    images = latents @ mix_x.view(8, 24) / 8**0.5 + noise_x.view(count, 24) / 10
    texts = latents @ mix_y.view(8, 20) / 8**0.5 + noise_y.view(count, 20) / 10
    return images, texts


class Tower(nn.Sequential):
    """A chain of named layers."""

    def __init__(self, in_features, hidden, dim, dropout=0.1):
        """Name the layers that have weights as the brief does."""
        super().__init__()
        self.add_module("hidden", nn.Linear(in_features, hidden))
        self.add_module("gelu", nn.GELU())
        self.add_module("drop", nn.Dropout(dropout))
        self.add_module("project", nn.Linear(hidden, dim, bias=False))

    def forward(self, x):
        """Return unit rows."""
        return F.normalize(super().forward(x), p=2.0, dim=-1)


class TwoTowers(nn.Module):
    """Both towers."""

    def __init__(self, features, hidden, dim, dropout=0.1):
        """Take the widths of images and texts."""
        super().__init__()
        self.image_tower, self.text_tower = (Tower(f, hidden, dim, dropout) for f in features)
        self.log_scale = nn.Parameter(torch.tensor(math.log(100 / 7)))

    def forward(self, images, texts):
        """Return both embeddings."""
        return self.image_tower(images), self.text_tower(texts)


def exchange(x, comm):
    """Return the list of all ranks' rows, without gradient."""
    found = []
    for source in range(comm.get_world_size()):
        mine = source == comm.get_rank()
        shape = torch.tensor(x.shape if mine else (0, 0))
        comm.broadcast(shape, source)
        rows = x.detach().clone(memory_format=torch.contiguous_format) if mine else None
        rows = torch.empty(tuple(shape.tolist()), dtype=x.dtype) if rows is None else rows
        comm.broadcast(rows, source)
        found.append(rows)
    return found


class Gather(torch.autograd.Function):
    """All rows; backward, every rank collects what the others have for its rows."""

    @staticmethod
    def forward(ctx, x, comm):
        """Return all rows."""
        parts = exchange(x, comm)
        ctx.sizes, ctx.comm = [len(part) for part in parts], comm
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        """Add up the ranks' gradients, in order of rank."""
        rank = ctx.comm.get_rank()
        return sum(each.split(ctx.sizes)[rank] for each in exchange(grad, ctx.comm)), None


gather = Gather.apply


class InfoNCE(torch.autograd.Function):
    """A share of the loss that knows the gradient of the whole."""

    @staticmethod
    def forward(ctx, images, texts, log_scale, comm):
        """Compute loss and gradients at once."""
        world, rank = comm.get_world_size(), comm.get_rank()
        parts = exchange(images, comm), exchange(texts, comm)
        start = sum(len(part) for part in parts[0][:rank])
        mine = slice(start, start + len(images))
        x, y = map(torch.cat, parts)
        scale = log_scale.exp()
        logits = scale * (x @ y.T)
        rows, columns = logits.log_softmax(dim=1), logits.log_softmax(dim=0)
        eye = torch.eye(len(x), dtype=x.dtype)
        grad = (rows.exp() + columns.exp() - 2 * eye) / (2 * len(x))
        ctx.grads = (
            scale * grad[mine] @ y,
            scale * grad.T[mine] @ x,
            (grad * logits).sum().to(log_scale.dtype) / world,
        )
        return -(rows.trace() + columns.trace()) / (2 * len(x) * world)

    @staticmethod
    def backward(ctx, upstream):
        """Scale what is known."""
        wanted = zip(ctx.grads, ctx.needs_input_grad[:3], strict=True)
        return *(upstream * grad if needed else None for grad, needed in wanted), None


def contrastive_loss(images, texts, log_scale, comm):
    """Return an equal part of the loss of all pairs."""
    return InfoNCE.apply(images, texts, log_scale, comm)


def train_step(model, optimizer, images, texts, comm):
    """Go back, add up, step, limit."""
    optimizer.zero_grad()
    model.train()
    embeddings = model(images, texts)
    loss = contrastive_loss(*embeddings, model.log_scale, comm)
    loss.backward()
    named = [p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None]
    for grad in named:
        comm.all_reduce(grad)
    optimizer.step()
    model.log_scale.data = model.log_scale.data.clamp(max=math.log(100))
    losses = [torch.zeros_like(loss.detach()) for _ in range(comm.get_world_size())]
    comm.all_gather(losses, loss.detach())
    return sum(each.item() for each in losses)


class Shuffled:
    """Batches of rows, epoch after epoch."""

    def __init__(self, count, batch_size, generator):
        """Begin before the first epoch."""
        self.count, self.batch_size, self.generator = count, batch_size, generator
        self.rows = torch.empty(0, dtype=torch.int64)

    def next(self):
        """Return the rows of the next batch."""
        if len(self.rows) == 0:
            self.rows = torch.rand(self.count, generator=self.generator).argsort()
        batch, self.rows = self.rows[: self.batch_size], self.rows[self.batch_size :]
        return batch


def train(model, pairs, ranks, steps, batch_size, generator):
    """Train with the model as the last rank's replica."""
    replicas = [copy.deepcopy(model) for _ in range(ranks - 1)] + [model]
    optimizers = [torch.optim.Adam(each.parameters(), 0.003) for each in replicas]
    batches = Shuffled(len(pairs[0]), batch_size, generator)
    key = torch.randint(1 << 30, (1,), generator=generator).item()
    for step in range(steps):
        rows = batches.next()

        def on_rank(comm, rows=rows, step=step):
            rank = comm.get_rank()
            entropy = np.random.SeedSequence([key, step, rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(entropy[0]) >> 1)
            mine = np.array_split(rows.numpy(), ranks)[rank]
            views = [view[torch.from_numpy(mine)] for view in pairs]
            return train_step(replicas[rank], optimizers[rank], *views, comm)

        losses = launch(ranks, on_rank)
        yield {"loss": float(losses[0]), "scale": model.log_scale.detach().exp().item()}


@contextlib.contextmanager
def at_rest(*modules):
    """Have modules in evaluation mode for a while."""
    inner = [part for module in modules for part in module.modules()]
    before = [part.training for part in inner]
    try:
        for part in inner:
            part.training = False
        yield
    finally:
        for part, training in zip(inner, before, strict=True):
            part.training = training


def rank_gap(model, images, texts, ranks=2):
    """Compare by name."""
    parameters = dict(model.named_parameters())

    def all_of_it(world):
        def measure(comm):
            views = (view.tensor_split(world)[comm.get_rank()] for view in (images, texts))
            share = contrastive_loss(*model(*views), model.log_scale, comm)
            grads = torch.autograd.grad(share, list(parameters.values()))
            return {"loss": share.detach(), **dict(zip(parameters, grads, strict=True))}

        results = launch(world, measure)
        return {name: sum(result[name] for result in results) for name in results[0]}

    with at_rest(model):
        one, several = all_of_it(1), all_of_it(ranks)
    return max(float((one[name] - several[name]).abs().max()) for name in one)


def recall_at_1(queries, keys):
    """Go over the queries one by one."""
    hits = 0
    for row, query in enumerate(queries):
        similarities = keys @ query
        others = torch.cat([similarities[:row], similarities[row + 1 :]])
        hits += bool((others < similarities[row]).all())
    return hits / len(queries)


def evaluate(image_tower, text_tower, pairs, batch_size=256):
    """Fill two tables batch by batch."""
    images, texts = pairs
    with at_rest(image_tower, text_tower), torch.no_grad():
        tables = [[], []]
        for at in range(0, len(images), batch_size):
            tables[0].extend(image_tower(images[at : at + batch_size]))
            tables[1].extend(text_tower(texts[at : at + batch_size]))
    return recall_at_1(*map(torch.stack, tables))


def distillation_loss(student_logits, teacher_logits, temperature):
    """Take the teacher's entropy off the cross-entropy with it."""
    student_logits, teacher_logits = (
        logits / temperature for logits in (student_logits, teacher_logits.detach())
    )
    targets = teacher_logits.softmax(dim=1)
    cross = F.cross_entropy(student_logits, targets)
    return temperature * temperature * (cross - F.cross_entropy(teacher_logits, targets))


def distill_step(student, teacher, optimizer, images, texts):
    """Weigh both losses alike."""
    with at_rest(teacher), torch.no_grad():
        x, y = teacher(images, texts)
        keys = teacher.log_scale.exp() * y
    student.train()
    optimizer.zero_grad(set_to_none=True)
    logits = F.linear(student(images), keys)
    labels = torch.arange(len(logits))
    losses = distillation_loss(logits, F.linear(x, keys), 2.0), F.cross_entropy(logits, labels)
    loss = torch.stack(losses).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def run(seed=0, steps=None):
    """Yield the log."""
    steps = 120 if steps is None else steps
    root = torch.Generator().manual_seed(seed)
    images, texts = make_pairs(758, root)
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        model = TwoTowers((24, 20), hidden=64, dim=16)
        student = Tower(24, 16, 16, dropout=0)
    finally:
        torch.set_rng_state(state)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    own = Shuffled(630, 63, torch.Generator().manual_seed(seed + 77))
    held_out = images[630:], texts[630:]
    for number, line in enumerate(train(model, (images[:630], texts[:630]), 2, steps, 63, root), 1):
        rows = own.next()
        loss = distill_step(student, model, optimizer, images[rows], texts[rows])
        line = {**line, "distill_loss": loss}
        if number == steps or number % 20 == 0:
            line.update(
                recall=evaluate(model.image_tower, model.text_tower, held_out),
                student_recall=evaluate(student, model.text_tower, held_out),
                rank_gap=rank_gap(model, images[630:655], texts[630:655]),
            )
        yield line
