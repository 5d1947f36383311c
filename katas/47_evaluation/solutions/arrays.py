"""Batches windows of one length, so that there is no padding; metrics and averages in NumPy."""

import contextlib
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


@contextlib.contextmanager
def evaluating(model):
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            module.training = False
        stack.enter_context(torch.inference_mode())
        yield


def _read(model, pieces, batch_size):
    """Yield the number of each piece and its logits, in float64; pieces of one length together."""
    order = sorted(range(len(pieces)), key=lambda number: len(pieces[number]))
    for _, same in itertools.groupby(order, key=lambda number: len(pieces[number])):
        same = list(same)
        for start in range(0, len(same), batch_size):
            numbers = same[start : start + batch_size]
            logits = model(torch.stack([pieces[number] for number in numbers]))
            yield from zip(numbers, logits.double().numpy(), strict=True)


def _log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def perplexity(model, documents, window, stride, batch_size=8):
    pieces, firsts = [], []
    for document in documents:
        count = 1 + max(0, math.ceil((len(document) - window) / stride))
        for number in range(count):
            pieces.append(document[number * stride : number * stride + window])
            firsts.append(window - stride if number else 1)
    total, tokens = 0.0, 0
    with evaluating(model):
        for number, logits in _read(model, pieces, batch_size):
            targets = pieces[number][firsts[number] :].numpy()
            rows = _log_softmax(logits[firsts[number] - 1 : -1])
            total -= rows[np.arange(len(targets)), targets].sum()
            tokens += len(targets)
    return float(np.exp(total / tokens))


def class_probabilities(model, documents, window, batch_size=8):
    tails = [document[-window:] for document in documents]
    out = np.empty((len(tails), 4), np.float32)
    with evaluating(model):
        for number, logits in _read(model, tails, batch_size):
            out[number] = np.exp(_log_softmax(logits[-1, 12:16]))
    return torch.from_numpy(out)


class ClassMetrics:
    def __init__(self, num_classes):
        self.scores = np.empty((0, num_classes))
        self.labels = np.empty(0, np.int64)

    def update(self, scores, labels):
        self.scores = np.concatenate([self.scores, scores.detach().double().numpy()])
        self.labels = np.concatenate([self.labels, labels.numpy()])

    def compute(self):
        number = self.scores.shape[1]
        truth = np.eye(number, dtype=bool)[self.labels]
        guess = np.eye(number, dtype=bool)[self.scores.argmax(axis=1)]
        with np.errstate(invalid="ignore"):
            f1 = 2 * (truth & guess).sum(axis=0) / (truth.sum(axis=0) + guess.sum(axis=0))
        areas = []
        for column, positive in zip(self.scores.T, truth.T, strict=True):
            if positive.any() and not positive.all():
                difference = np.sign(column[positive][:, None] - column[~positive][None])
                areas.append(0.5 + difference.mean() / 2)
        return {
            "accuracy": float((truth & guess).any(axis=1).mean()),
            "macro_f1": float(np.nanmean(f1)),
            "auc": float(np.mean(areas)) if areas else math.nan,
        }


def evaluate(model, corpus, batch_size=8):
    documents, topics = corpus
    metrics = ClassMetrics(4)
    metrics.update(class_probabilities(model, documents, 24, batch_size), topics)
    return metrics.compute() | {"perplexity": perplexity(model, documents, 24, 12, batch_size)}


class EMA:
    def __init__(self, model, decay):
        self.model = model
        self.decay = decay
        self.n = 0
        self.average = {name: x.numpy().copy() for name, x in model.state_dict().items()}

    def update(self):
        self.n += 1
        share = 1 - min(self.decay, (1 + self.n) / (10 + self.n))
        for name, x in self.model.state_dict().items():
            if x.is_floating_point():
                self.average[name] += share * (x.numpy() - self.average[name])
            else:
                self.average[name] = x.numpy().copy()

    @contextlib.contextmanager
    def average_weights(self):
        def load(values):
            for name, x in self.model.state_dict().items():
                x.copy_(torch.as_tensor(values[name]))

        own = {name: x.numpy().copy() for name, x in self.model.state_dict().items()}
        load(self.average)
        with contextlib.ExitStack() as stack:
            stack.callback(load, own)
            yield self.model


class BestModel:
    def __init__(self, patience, mode="min"):
        self.patience, self.mode = patience, mode
        self.values, self.states = [], []

    @property
    def _place(self):
        values = np.array(self.values)
        if np.isnan(values).all():
            return -1
        return int(np.nanargmin(values) if self.mode == "min" else np.nanargmax(values))

    @property
    def value(self):
        return self.values[self._place]

    @property
    def state(self):
        return self._state

    def update(self, value, model):
        self.values.append(value)
        if self._place == len(self.values) - 1:
            self._state = {name: x.clone() for name, x in model.state_dict().items()}
        return len(self.values) - 1 - self._place >= self.patience


class LanguageModel(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.words = nn.Embedding(vocab_size, 32)
        self.hidden = nn.Linear(64, 64)
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(64, vocab_size)

    def forward(self, ids):
        words, total, places = self.words(ids), 0.0, []
        for place in range(ids.shape[1]):
            total = total + words[:, place]
            places.append(torch.cat([words[:, place], total / (place + 1)], dim=1))
        return self.out(self.drop(self.hidden(torch.stack(places, dim=1)).relu()))


def _batches(count, generator):
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        yield from order


def train(
    model,
    train_set,
    val_set,
    *,
    steps,
    generator,
    eval_every=20,
    patience=5,
    monitor="perplexity",
):
    documents, topics = train_set
    rows = [
        torch.cat([document, topic[None] + 12])
        for document, topic in zip(documents, topics, strict=True)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    ema, best = EMA(model, 0.9), BestModel(patience, "min" if monitor == "perplexity" else "max")
    order = _batches(len(rows), generator)
    for step in range(1, steps + 1):
        batch = [rows[number] for number in itertools.islice(order, 16)]
        longest = max(map(len, batch))
        ids = torch.stack([F.pad(row, (0, longest - len(row)), value=3) for row in batch])
        real = torch.stack([torch.arange(1, longest) < len(row) for row in batch])
        losses = F.cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:], reduction="none")
        loss = (losses * real).sum() / real.sum()
        for p in model.parameters():
            p.grad = None
        loss.backward()
        optimizer.step()
        ema.update()
        found, stop = {}, False
        if step == steps or not step % eval_every:
            with ema.average_weights() as averaged:
                found = evaluate(averaged, val_set, 32)
                stop = best.update(found[monitor], averaged)
        yield {"loss": loss.item()} | {f"val_{name}": value for name, value in found.items()}
        if stop:
            break
    model.load_state_dict(best.state)


def make_corpus(size, generator):
    logits = 0.8 * torch.randn(4, 12, generator=torch.Generator().manual_seed(47))
    logits += F.one_hot(torch.tensor(0), 12)
    ends = logits.double().softmax(dim=1).cumsum(dim=1).numpy()
    uniform = torch.rand(size, 62, generator=generator, dtype=torch.float64).numpy()
    topics = np.searchsorted([0.45, 0.7, 0.9], uniform[:, 0], side="right")
    lengths = 12 + (49 * uniform[:, 1]).astype(int)
    documents = [
        torch.from_numpy(np.searchsorted(ends[topic], row[2 : 2 + length]).clip(max=11))
        for topic, length, row in zip(topics, lengths, uniform, strict=True)
    ]
    return documents, torch.from_numpy(topics)


def run(seed=0, steps=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(16)
        generator = torch.Generator().manual_seed(seed)
        sets = make_corpus(400, generator), make_corpus(300, generator)
        steps = 200 if steps is None else steps
        yield from train(model, *sets, steps=steps, generator=generator)
