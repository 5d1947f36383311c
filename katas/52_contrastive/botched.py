"""Two towers trained by a contrastive loss on several ranks, and a student distilled from them."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam, Optimizer

from dojo.simulation.ranks import launch

Pairs = tuple[Tensor, Tensor]  # images (N, features) and texts (N, features)
FEATURES, LATENTS, NOISE = (24, 20), 8, 0.1
LEARNING_RATE, MAX_LOG_SCALE, TEMPERATURE = 3e-3, 100.0, 2.0


def make_pairs(count: int, generator: Generator) -> Pairs:
    """Return images (count, 24) and texts (count, 20), float32: two noisy views of one latent."""
    latents = torch.randn(count, LATENTS, generator=generator)

    def view(features: int) -> Tensor:
        mixing = torch.randn(LATENTS, features, generator=generator) / math.sqrt(LATENTS)
        return latents @ mixing + NOISE * torch.randn(count, features, generator=generator)

    return view(FEATURES[0]), view(FEATURES[1])


class Tower(nn.Module):
    """Embeds rows of features as unit vectors."""

    def __init__(self, in_features: int, hidden: int, dim: int, dropout: float = 0.1) -> None:
        """Draw the weights from the global generator."""
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_features) to unit rows (N, dim)."""
        x = self.dropout(F.gelu(self.hidden(x)))
        return F.normalize(self.project(x), dim=1)


class TwoTowers(nn.Module):
    """A tower for images, one for texts, and a log scale as https://arxiv.org/abs/2103.00020."""

    def __init__(self, features: tuple[int, int], hidden: int, dim: int, dropout: float = 0.1):
        """Take how many features an image has, and how many a text."""
        super().__init__()
        self.image_tower = Tower(features[0], hidden, dim, dropout)
        self.text_tower = Tower(features[1], hidden, dim, dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of images (N, features) and of texts, both (N, dim)."""
        return self.image_tower(images), self.text_tower(texts)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode, and each of their modules back as it was."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def row_counts(count: int, comm: Any) -> list[int]:
    """Return how many rows every rank has, by rank, where this one has `count`."""
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(comm.get_world_size())]
    comm.all_gather(counts, torch.tensor([count]))
    return [int(each) for each in counts]


class _Gather(torch.autograd.Function):
    """All ranks' rows; a row's gradient is the sum of what it gets on each rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Any) -> Tensor:
        counts = row_counts(len(x), comm)
        ctx.comm, ctx.start, ctx.count = comm, sum(counts[: comm.get_rank()]), len(x)
        # A collective takes tensors of one shape, so that short ranks fill up with zeros.
        padded = F.pad(x, (0, 0, 0, max(counts) - len(x))).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        comm.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        return grad[ctx.start : ctx.start + ctx.count], None


def gather(x: Tensor, comm: Any) -> Tensor:
    """Return the rows of all ranks, (N, dim) in order of rank, where this one has x (n, dim)."""
    return _Gather.apply(x, comm)


def contrastive_loss(images: Tensor, texts: Tensor, log_scale: Tensor, comm: Any) -> Tensor:
    """Return this rank's share, (), of the symmetric InfoNCE loss of the pairs of all ranks.

    Embeddings are (n, dim), n by rank. Shares sum to the loss, and their gradients to its gradient.
    """
    counts = row_counts(len(images), comm)
    labels = torch.arange(len(images)) + sum(counts[: comm.get_rank()])
    scale = log_scale.exp()
    image_logits = scale * images @ gather(texts, comm).T  # (n, N)
    text_logits = scale * texts @ gather(images, comm).T
    image_loss = F.cross_entropy(image_logits, labels, reduction="sum")
    text_loss = F.cross_entropy(text_logits, labels, reduction="sum")
    return (image_loss + text_loss) / (2 * sum(counts))


def train_step(
    model: nn.Module, optimizer: Optimizer, images: Tensor, texts: Tensor, comm: Any
) -> float:
    """Step along the gradient of all ranks' pairs, of which these are ours; return their loss."""
    model.train()
    loss = contrastive_loss(*model(images, texts), model.log_scale, comm)
    optimizer.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            comm.all_reduce(parameter.grad)
    optimizer.step()
    with torch.no_grad():
        model.log_scale.clamp_(max=MAX_LOG_SCALE)
    total = loss.detach().clone()
    comm.all_reduce(total)
    return total.item()


def batches(count: int, batch_size: int, generator: Generator) -> Iterator[Tensor]:
    """Yield the numbers of the rows of one batch after another, epoch after epoch, for ever."""
    while True:
        yield from torch.randperm(count, generator=generator).split(batch_size)


def train(
    model: nn.Module, pairs: Pairs, ranks: int, steps: int, batch_size: int, generator: Generator
) -> Iterator[dict[str, float]]:
    """Train by Adam on ranks that share each batch, and yield loss and scale of every step."""
    replicas = [model, *(copy.deepcopy(model) for _ in range(ranks - 1))]
    optimizers = [Adam(replica.parameters(), lr=LEARNING_RATE) for replica in replicas]

    def step(comm: Any, rows: Tensor, seed: int) -> float:
        rank = comm.get_rank()
        torch.manual_seed(seed + rank)
        images, texts = (view[rows.tensor_split(ranks)[rank]] for view in pairs)
        return train_step(replicas[rank], optimizers[rank], images, texts, comm)

    for rows in islice(batches(len(pairs[0]), batch_size, generator), steps):
        seed = int(torch.randint(2**31, (), generator=generator))
        loss = launch(ranks, step, rows, seed)[0]
        yield {"loss": loss, "scale": model.log_scale.exp().item()}


def rank_gap(model: nn.Module, images: Tensor, texts: Tensor, ranks: int = 2) -> float:
    """Return by how much loss or any gradient of several ranks is off that of one."""

    def measure(comm: Any) -> Tensor:
        rank, size = comm.get_rank(), comm.get_world_size()
        mine = images.tensor_split(size)[rank], texts.tensor_split(size)[rank]
        loss = contrastive_loss(*model(*mine), model.log_scale, comm)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([loss.detach()[None], *(grad.flatten() for grad in gradients)])

    with evaluating(model):
        one, several = (sum(launch(size, measure)) for size in (1, ranks))
    return (one - several).abs().max().item()


def recall_at_1(queries: Tensor, keys: Tensor) -> float:
    """Return the share of queries (N, dim) to which no key is as similar as that of its row."""
    similarities = queries @ keys.T
    others = similarities.masked_fill(torch.eye(len(keys), dtype=torch.bool), -math.inf)
    return (similarities.diagonal() > others.amax(dim=1)).double().mean().item()


@torch.no_grad()
def evaluate(
    image_tower: nn.Module, text_tower: nn.Module, pairs: Pairs, batch_size: int = 256
) -> float:
    """Return recall@1 of the texts of all pairs by their images, in evaluation mode."""
    with evaluating(image_tower, text_tower):
        queries = torch.cat([image_tower(images) for images in pairs[0].split(batch_size)])
        keys = torch.cat([text_tower(texts) for texts in pairs[1].split(batch_size)])
    return recall_at_1(queries, keys)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student), mean of the rows, as in https://arxiv.org/abs/1503.02531.

    Logits are (N, classes), and their softmax is over logits / T. No gradient goes to the teacher.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    kl = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * kl.mean()


def distill_step(
    student: nn.Module, teacher: nn.Module, optimizer: Optimizer, images: Tensor, texts: Tensor
) -> float:
    """Move the student, an image tower, towards the teacher and the pairs; return the loss."""
    with torch.no_grad():
        teacher_images, teacher_texts = teacher(images, texts)
        keys = teacher.log_scale.exp() * teacher_texts
        teacher_logits = teacher_images @ keys.T
    student.train()
    logits = student(images) @ keys.T
    soft = distillation_loss(logits, teacher_logits, TEMPERATURE)
    loss = (soft + F.cross_entropy(logits, torch.arange(len(images)))) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Train on two ranks and distil beside it; yield the log of every step, by default of 120."""
    generator = Generator().manual_seed(seed)
    views = make_pairs(630 + 128, generator)
    pairs, val_pairs = zip(*(view.split([630, 128]) for view in views), strict=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TwoTowers(FEATURES, hidden=64, dim=16)
        student = Tower(FEATURES[0], hidden=16, dim=16, dropout=0.0)
    optimizer = Adam(student.parameters(), lr=1e-2)
    steps = 120 if steps is None else steps
    rows_to_distil = batches(630, 63, generator)
    log = train(model, pairs, ranks=2, steps=steps, batch_size=63, generator=generator)
    for step, (line, rows) in enumerate(zip(log, rows_to_distil, strict=False), start=1):
        images, texts = (view[rows] for view in pairs)
        line["distill_loss"] = distill_step(student, model, optimizer, images, texts)
        if step % 20 == 0 or step == steps:
            line["recall"] = evaluate(model.image_tower, model.text_tower, val_pairs)
            line["student_recall"] = evaluate(student, model.text_tower, val_pairs)
            line["rank_gap"] = rank_gap(model, val_pairs[0][:25], val_pairs[1][:25])
        yield line
