"""Einsum, head by head, in plain loops, with additive masks and an Adam of its own."""

import math
import random

import numpy as np
import torch
from torch import nn

LETTERS = "abcdefghij"
PAD, BOS, EOS, REVERSE, SORT = range(5)
VOCAB_SIZE = 15


def encode_example(task, text):
    tokens = [ord(letter) - ord("a") + 5 for letter in text]
    answer = list(tokens)
    if task == REVERSE:
        answer.reverse()
    else:
        answer.sort()
    return ([*tokens, task], answer)


def draw_examples(count, lengths, generator):
    dice = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
    drawn = []
    for _ in range(count):
        task = dice.choice([REVERSE, SORT])
        drawn.append(encode_example(task, "".join(dice.sample(LETTERS, dice.choice(lengths)))))
    return drawn


def fill(rows):
    table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return torch.from_numpy(table)


def collate(examples):
    source = fill([source for source, _ in examples])
    inputs = fill([[BOS, *answer] for _, answer in examples])
    labels = fill([[*answer, EOS] for _, answer in examples])
    return source, inputs, labels


class Attend(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(d_model, d_model))
        self.width = d_model // n_heads

    def forward(self, x, memory, bias):
        q = self.query(x) * self.width**-0.5
        k, v = self.key(memory), self.value(memory)
        heads = []
        for start in range(0, q.shape[-1], self.width):
            part = slice(start, start + self.width)
            scores = torch.einsum("nth,nsh->nts", q[..., part], k[..., part]) + bias
            weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
            mixed = torch.einsum("nts,nsh->nth", weights, v[..., part])
            heads.append(mixed / weights.sum(dim=-1, keepdim=True))
        return self.out(torch.cat(heads, dim=-1))


def layer(d_model, n_heads, d_ff, cross):
    parts = nn.ModuleDict({"norm_1": nn.LayerNorm(d_model)})
    parts["attention"] = Attend(d_model, n_heads)
    if cross:
        parts["norm_2"] = nn.LayerNorm(d_model)
        parts["cross_attention"] = Attend(d_model, n_heads)
    parts["norm_3"] = nn.LayerNorm(d_model)
    parts["ff"] = nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))
    return parts


def hide(visible):
    return torch.where(visible, 0.0, -1e9)


class Seq2Seq(nn.Module):
    def __init__(self, vocab_size, d_model, n_heads, n_layers, d_ff):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, 0.0, 1 / math.sqrt(d_model))
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for _ in range(n_layers):
            self.encoder.append(layer(d_model, n_heads, d_ff, cross=False))
            self.decoder.append(layer(d_model, n_heads, d_ff, cross=True))
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder_norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)

    def vectors(self, tokens):
        d = self.embedding.embedding_dim
        codes = np.zeros((tokens.shape[1], d), dtype=np.float32)
        place = np.arange(tokens.shape[1])
        for column in range(0, d, 2):
            codes[:, column] = np.sin(place / 100 ** (column / d))
            codes[:, column + 1] = np.cos(place / 100 ** (column / d))
        return self.embedding(tokens) * d**0.5 + torch.from_numpy(codes)

    def encode(self, source):
        bias = hide(source != PAD)[:, None, :]
        x = self.vectors(source)
        for part in self.encoder:
            h = part["norm_1"](x)
            x = x + part["attention"](h, h, bias)
            x = x + part["ff"](part["norm_3"](x))
        return self.encoder_norm(x)

    def decode(self, decoder_input, memory, source):
        there = hide(source != PAD)[:, None, :]
        place = torch.arange(decoder_input.shape[1])
        # Padding is hidden here too; it stands behind everything that counts.
        seen = (place[:, None] >= place)[None] & (decoder_input != PAD)[:, None, :]
        past = hide(seen)
        x = self.vectors(decoder_input)
        for part in self.decoder:
            h = part["norm_1"](x)
            x = x + part["attention"](h, h, past)
            x = x + part["cross_attention"](part["norm_2"](x), memory, there)
            x = x + part["ff"](part["norm_3"](x))
        return self.head(self.decoder_norm(x))

    def forward(self, source, decoder_input):
        memory = self.encode(source)
        return self.decode(decoder_input, memory, source)


def sequence_loss(logits, labels, smoothing=0.0):
    rows, places = torch.nonzero(labels, as_tuple=True)
    picked = logits[rows, places]
    spread = torch.full_like(picked, smoothing / logits.shape[-1])
    spread[torch.arange(len(rows)), labels[rows, places]] += 1 - smoothing
    log_p = picked - picked.logsumexp(dim=1, keepdim=True)
    return -(spread * log_p).sum() / len(rows)


def learning_rate(step, steps, warmup, peak):
    rise = (step + 1) / warmup
    if steps < warmup:
        return peak * rise
    return peak * min(rise, (steps - step) / (steps - warmup + 1))


def train_step(model, optimizer, batch, smoothing):
    source, decoder_input, labels = batch
    optimizer.zero_grad(set_to_none=False)
    memory = model.encode(source)
    loss = sequence_loss(model.decode(decoder_input, memory, source), labels, smoothing)
    loss.backward()
    optimizer.step()
    return loss.item()


def greedy_decode(model, source, max_new_tokens):
    with torch.inference_mode():
        memory = model.encode(source)
        rows = [[BOS] for _ in source]
        for _ in range(max_new_tokens):
            scores = model.decode(torch.tensor(rows), memory, source)[:, -1].tolist()
            for row, score in zip(rows, scores, strict=True):
                if EOS in row:
                    row.append(PAD)
                else:
                    row.append(max(range(1, len(score)), key=score.__getitem__))
    return torch.tensor([row[1:] for row in rows])


def evaluate(model, examples, batch_size=64):
    losses, tokens, right = 0.0, 0, 0
    for start in range(0, len(examples), batch_size):
        chosen = examples[start : start + batch_size]
        source, inputs, labels = collate(chosen)
        with torch.no_grad():
            loss = sequence_loss(model(source, inputs), labels).item()
        answers = greedy_decode(model, source, 2 + max(len(answer) for _, answer in chosen))
        for answer, (_, wanted) in zip(answers.tolist(), chosen, strict=True):
            right += answer[: len(wanted) + 1] == [*wanted, EOS]
            losses += loss * (len(wanted) + 1)
            tokens += len(wanted) + 1
    return losses / tokens, right / len(examples)


class Adam(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.0})
        self.count = 0

    @torch.no_grad()
    def step(self):
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                state["mean"].lerp_(p.grad, 0.1)
                state["square"].lerp_(p.grad.square(), 0.02)
                mean = state["mean"] / (1 - 0.9**self.count)
                square = state["square"] / (1 - 0.98**self.count)
                p -= group["lr"] * mean / (square.sqrt() + 1e-9)


def train(model, held_out, *, lengths, steps, batch_size, lr, warmup, smoothing, generator):
    optimizer = Adam(list(model.parameters()))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, warmup, lr)
        batch = collate(draw_examples(batch_size, lengths, generator))
        log = {"lr": learning_rate(step, steps, warmup, lr)}
        log["loss"] = train_step(model, optimizer, batch, smoothing)
        if step % 50 == 49 or step == steps - 1:
            log["val_loss"], log["exact_match"] = evaluate(model, held_out)
        yield log


def run(seed=0, steps=None):
    with torch.random.fork_rng():
        torch.manual_seed(1000 + seed)
        model = Seq2Seq(VOCAB_SIZE, 48, 4, 1, 96)
    generator = torch.Generator().manual_seed(seed)
    yield from train(
        model,
        draw_examples(200, (4, 6), generator),
        lengths=(1, 2, 3, 5, 7, 8),
        steps=300 if steps is None else steps,
        batch_size=64,
        lr=0.01,
        warmup=40,
        smoothing=0.1,
        generator=generator,
    )
