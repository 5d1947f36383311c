"""Reads every window by itself, counts examples and pairs in plain Python, swaps the tensors."""

import bisect
import copy
import math

import torch
from torch import nn


class evaluating:
    def __init__(self, model):
        self.model = model

    def __enter__(self):
        """Note all modes, and change them."""
        self.training = {name: module.training for name, module in self.model.named_modules()}
        self.recorded = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        self.model.train(False)

    def __exit__(self, *error):
        """Set all modes back, and pass an exception on."""
        torch.set_grad_enabled(self.recorded)
        for name, module in self.model.named_modules():
            module.training = self.training[name]
        return False


def perplexity(model, documents, window, stride, batch_size=8):
    losses = []
    with evaluating(model):
        for document in documents:
            begin, done = 0, 1
            while done < len(document):
                piece = document[begin : begin + window]
                logs = model(piece[None])[0].double().log_softmax(dim=-1)
                for place in range(done, begin + len(piece)):
                    losses.append(-logs[place - begin - 1, document[place]].item())
                done = max(done, begin + len(piece))
                begin += stride
    return math.exp(math.fsum(losses) / len(losses))


def class_probabilities(model, documents, window, batch_size=8):
    rows = torch.empty(len(documents), 4)
    with evaluating(model):
        for row, document in zip(rows, documents, strict=True):
            logits = model(document[max(0, len(document) - window) :][None])[0, -1, 12:16]
            chances = [math.exp(x - float(logits.max())) for x in logits.tolist()]
            row[:] = torch.tensor([chance / sum(chances) for chance in chances])
    return rows


class ClassMetrics:
    def __init__(self, num_classes):
        self.classes = range(num_classes)
        self.examples = []

    def update(self, scores, labels):
        self.examples += zip(scores.tolist(), labels.tolist(), strict=True)

    def compute(self):
        guesses = [max(self.classes, key=row.__getitem__) for row, _ in self.examples]
        labels = [label for _, label in self.examples]
        f1, areas = [], []
        for c in self.classes:
            both = sum(
                guess == c for guess, label in zip(guesses, labels, strict=True) if label == c
            )
            all_of_it = guesses.count(c) + labels.count(c)
            if all_of_it:
                f1.append(2 * both / all_of_it)
            rest = sorted(row[c] for row, label in self.examples if label != c)
            mine = [row[c] for row, label in self.examples if label == c]
            if rest and mine:
                won = sum(bisect.bisect_left(rest, x) + bisect.bisect_right(rest, x) for x in mine)
                areas.append(won / (2 * len(rest) * len(mine)))
        return {
            "auc": math.fsum(areas) / len(areas) if areas else float("nan"),
            "macro_f1": math.fsum(f1) / len(f1),
            "accuracy": sum(map(int.__eq__, guesses, labels)) / len(labels),
        }


def evaluate(model, corpus, batch_size=8):
    metrics = ClassMetrics(4)
    metrics.update(class_probabilities(model, corpus[0], 24), corpus[1])
    return {**metrics.compute(), "perplexity": perplexity(model, corpus[0], 24, 12)}


class EMA:
    def __init__(self, model, decay):
        self.model, self.decay, self.count = model, decay, 0
        self.average = copy.deepcopy(model.state_dict())

    def update(self):
        self.count += 1
        d = min(self.decay, (1 + self.count) / (10 + self.count))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                old = self.average[name]
                new = d * old + (1 - d) * value if value.dtype.is_floating_point else value.clone()
                self.average[name] = new

    def average_weights(self):
        return _Lent(self.model, self.average)


class _Lent:
    def __init__(self, model, average):
        self.model, self.average = model, average

    def __enter__(self):
        """Lend the average to the model."""
        self.own = copy.deepcopy(self.model.state_dict())
        self.write(self.average)

    def __exit__(self, *error):
        """Give the model its own weights back."""
        self.write(self.own)

    def write(self, state):
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(state[name])


class BestModel:
    def __init__(self, patience, mode="min"):
        self.patience = patience
        self.sign = {"min": -1, "max": 1}[mode]
        self.history = []
        self.value = self.state = None
        self.at = -1

    def update(self, value, model):
        self.history.append(value)
        if value == value and (self.value is None or self.sign * (value - self.value) > 0):
            self.value, self.at = value, len(self.history) - 1
            self.state = copy.deepcopy(model.state_dict())
        return len(self.history) - 1 - self.at >= self.patience


class LanguageModel(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Embedding(vocab_size, 32)
        self.net = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, vocab_size)
        )

    def forward(self, ids):
        x = self.table(ids)
        length = ids.shape[1]
        mixing = torch.ones(length, length).tril()
        mixing = mixing / mixing.sum(dim=1, keepdim=True)
        return self.net(torch.cat([x, mixing @ x], dim=-1))


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
    adam = torch.optim.AdamW(model.parameters(), lr=0.005)
    average = EMA(model, 0.9)
    best = BestModel(patience, {"perplexity": "min"}.get(monitor, "max"))
    for step in range(steps):
        batch = torch.randperm(len(train_set[0]) * 16, generator=generator)[:16] // 16
        losses = []
        for number in batch.tolist():
            document = train_set[0][number]
            targets = [*document[1:].tolist(), 12 + int(train_set[1][number])]
            logs = model(document[None])[0].log_softmax(dim=1)
            losses.append(-logs[range(len(targets)), targets])
        loss = torch.cat(losses).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        average.update()
        line = {"loss": loss.item()}
        enough = False
        if (step + 1) % eval_every == 0 or step == steps - 1:
            with average.average_weights():
                numbers = evaluate(model, val_set)
                enough = best.update(numbers[monitor], model)
            line.update(("val_" + name, value) for name, value in numbers.items())
        yield line
        if enough:
            break
    model.load_state_dict(best.state)


def make_corpus(size, generator):
    habits = torch.randn(4, 12, generator=torch.Generator().manual_seed(47)) * 0.8
    habits[:, 0] += 1
    topics = torch.multinomial(
        torch.tensor([0.45, 0.25, 0.2, 0.1]), size, True, generator=generator
    )
    documents = []
    for topic in topics.tolist():
        length = int(torch.randint(12, 61, (), generator=generator))
        chances = habits[topic].softmax(dim=0)
        documents.append(torch.multinomial(chances, length, True, generator=generator))
    return documents, topics


def run(seed=0, steps=None):
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    data, model = (make_corpus(400, generator), make_corpus(300, generator)), LanguageModel(16)
    try:
        yield from train(model, *data, steps=200 if steps is None else steps, generator=generator)
    finally:
        torch.set_rng_state(state)
