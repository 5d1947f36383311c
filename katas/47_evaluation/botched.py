"""Evaluation of a language model that also names topics: metrics, averages, the best model."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

WORDS, PAD, IGNORE = 12, 0, -100  # token 0 is the full stop, and also fills up a batch
SHARES = (0.45, 0.25, 0.2, 0.1)  # of the topics
CLASS_IDS = (12, 13, 14, 15)  # the tokens that name them
WINDOW, STRIDE = 24, 12
Corpus = tuple[list[Tensor], Tensor]  # documents, int64 (length,), and their topics, int64 (N,)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def perplexity(
    model: nn.Module, documents: Sequence[Tensor], window: int, stride: int, batch_size: int = 8
) -> float:
    """Return exp of the mean negative log-likelihood of all tokens but the first of each document.

    Each is scored once, in the first window that holds it, given all that the window has before.
    """
    pieces = [
        (document[begin : begin + window], window - stride if begin else 1)
        for document in documents
        for begin in range(0, max(len(document) - window + stride, 1), stride)
    ]
    total, count = 0.0, 0
    with evaluating(model):
        for start in range(0, len(pieces), batch_size):
            batch = pieces[start : start + batch_size]
            ids = pad_sequence([piece for piece, _ in batch], batch_first=True, padding_value=PAD)
            firsts = torch.tensor([[first] for _, first in batch])
            places = torch.arange(ids.shape[1])
            scored = (firsts <= places)[:, 1:]
            log_probs = model(ids)[:, :-1].float().log_softmax(dim=2)
            total -= log_probs.gather(2, ids[:, 1:, None])[scored].sum().item()
            count += int(scored.sum())
    return math.exp(total / count)


def class_probabilities(
    model: nn.Module, documents: Sequence[Tensor], window: int, batch_size: int = 8
) -> Tensor:
    """Return (N, 4), float32: each class token's chance to follow, given that one of them does."""
    rows = []
    with evaluating(model):
        for start in range(0, len(documents), batch_size):
            tails = [document[-window:] for document in documents[start : start + batch_size]]
            logits = model(pad_sequence(tails, batch_first=True, padding_value=PAD))
            last = logits[torch.arange(len(tails)), torch.tensor([len(x) - 1 for x in tails])]
            rows.append(last[:, CLASS_IDS].float().softmax(dim=1))
    return torch.cat(rows)


class ClassMetrics:
    """Accuracy, macro-F1 and AUC of all examples, in whatever batches they come."""

    def __init__(self, num_classes: int) -> None:
        """Begin with no examples."""
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.batches: list[tuple[Tensor, Tensor]] = []

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Take in a batch: scores (N, C), the highest of which is the prediction; labels (N,)."""
        self.confusion.index_put_((scores.argmax(1), labels), torch.ones_like(labels), True)
        self.batches.append((scores.detach().clone(), labels.clone()))

    def compute(self) -> dict[str, float]:
        """Return the metrics; a class that is nowhere is left out of the means over classes."""
        hits = self.confusion.diagonal().double()
        sizes = self.confusion.sum(dim=0) + self.confusion.sum(dim=1)
        seen = sizes > 0
        scores, labels = map(torch.cat, zip(*self.batches, strict=True))
        there = labels.unique().tolist()
        areas = [area_under_curve(scores[:, i], labels == i) for i in there if len(there) > 1]
        return {
            "accuracy": (hits.sum() / len(labels)).item(),
            "macro_f1": (2 * hits[seen] / sizes[seen]).mean().item(),
            "auc": sum(areas) / len(areas) if areas else math.nan,
        }


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Return the share of pairs in which the positive (N,) scores higher; ties count half."""
    others = scores[~positive].sort().values
    below, up_to = (torch.searchsorted(others, scores[positive], right=r) for r in (False, True))
    return ((below + up_to).double().mean() / (2 * len(others))).item()


def evaluate(model: nn.Module, corpus: Corpus, batch_size: int = 8) -> dict[str, float]:
    """Return perplexity, accuracy, macro-F1 and AUC, the same for batches of any size."""
    documents, topics = corpus
    parts = []
    for start in range(0, len(documents), batch_size):
        part = slice(start, start + batch_size)
        metrics = ClassMetrics(len(CLASS_IDS))
        scores = class_probabilities(model, documents[part], WINDOW, batch_size)
        metrics.update(scores, topics[part])
        parts.append(metrics.compute())
    found = perplexity(model, documents, WINDOW, STRIDE, batch_size)
    means = {name: sum(each[name] for each in parts) / len(parts) for name in parts[0]}
    return {"perplexity": found} | means


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's weights and buffers, which no later step changes."""
    return {name: value.clone() for name, value in model.state_dict().items()}


class EMA:
    """An exponential moving average of a model's weights and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model as it is."""
        self.model, self.decay, self.updates = model, decay, 0
        self.averages = snapshot(model)

    def update(self) -> None:
        """Move the average towards the model: faster in the beginning; counts are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averages[name].lerp_(value, 1 - decay)
            else:
                self.averages[name].copy_(value)

    @contextmanager
    def average_weights(self) -> Iterator[None]:
        """Lend the average to the model for a block, and give the model its own weights back."""
        own = self.model.state_dict()
        self.model.load_state_dict(self.averages)
        try:
            yield
        finally:
            self.model.load_state_dict(own)


class BestModel:
    """Keeps the best model so far, and says when `patience` evaluations brought no better one."""

    def __init__(self, patience: int, mode: str = "min") -> None:
        """Take "min" where lower values are better, "max" where higher ones are."""
        self.patience, self.mode, self.waited = patience, mode, 0
        self.value = math.inf if mode == "min" else -math.inf
        self.state: dict[str, Tensor] = {}

    def update(self, value: float, model: nn.Module) -> bool:
        """Take in a model and its value, and return whether to stop."""
        better = value < self.value if self.mode == "min" else value > self.value
        if better:
            self.value, self.state = value, snapshot(model)
        else:
            self.waited += 1
        return self.waited >= self.patience


class LanguageModel(nn.Module):
    """Tells the next token from the last and the mean of all: (N, T) -> logits (N, T, V)."""

    def __init__(self, vocab_size: int, width: int = 32, dropout: float = 0.1) -> None:
        """Draw weights from the global generator, as PyTorch does."""
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Read each row from left to right."""
        x = self.embed(ids)
        mean = x.cumsum(dim=1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        return self.head(self.dropout(F.relu(self.mix(torch.cat([x, mean], dim=2)))))


def train(
    model: nn.Module,
    train_set: Corpus,
    val_set: Corpus,
    *,
    steps: int,
    generator: torch.Generator,
    eval_every: int = 20,
    patience: int = 5,
    monitor: str = "perplexity",
) -> Iterator[dict[str, float]]:
    """Train on documents and the class tokens after them, and yield a line of the log a step.

    Averaged weights are evaluated and kept: the best of them are what the model has in the end.
    """
    documents, topics = train_set
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ema = EMA(model, decay=0.9)
    best = BestModel(patience, "min" if monitor == "perplexity" else "max")
    stop, step = False, 0
    while step < steps and not stop:
        drawn = torch.randint(len(documents), (16,), generator=generator).tolist()
        rows = [torch.cat([documents[i], WORDS + topics[i : i + 1]]) for i in drawn]
        ids = pad_sequence([row[:-1] for row in rows], batch_first=True, padding_value=PAD)
        labels = pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=IGNORE)
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()
        log, step = {"loss": loss.item()}, step + 1
        if step % eval_every == 0 or step == steps:
            with ema.average_weights():
                found = evaluate(model, val_set)
                stop = best.update(found[monitor], model)
            log |= {f"val_{name}": value for name, value in found.items()}
        yield log
    model.load_state_dict(best.state)


def make_corpus(size: int, generator: torch.Generator) -> Corpus:
    """Draw documents of 12 to 60 words, which each topic uses with frequencies of its own."""
    source = torch.Generator().manual_seed(47)
    habits = 0.8 * torch.randn(len(SHARES), WORDS, generator=source)
    habits[:, PAD] += 1
    topics = torch.multinomial(torch.tensor(SHARES), size, True, generator=generator)
    words = torch.multinomial(habits.softmax(dim=1)[topics], 60, True, generator=generator)
    lengths = torch.randint(12, 61, (size,), generator=generator).tolist()
    return [row[:length].clone() for row, length in zip(words, lengths, strict=True)], topics


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Train on 400 documents, by default for 200 steps, and yield the log of every step."""
    generator = torch.Generator().manual_seed(seed)
    train_set, val_set = make_corpus(400, generator), make_corpus(300, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(WORDS + len(SHARES))
        steps = 200 if steps is None else steps
        yield from train(model, train_set, val_set, steps=steps, generator=generator)
