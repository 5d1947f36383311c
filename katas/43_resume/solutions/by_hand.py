"""AdamW, the schedule and the loss scale by hand; orders are a function of seed and epoch."""

import contextlib
import copy
import math
import os
import tempfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MAGIC = b"RESUME01"


def save(path, state):
    path = Path(path)
    memory = BytesIO()
    torch.save(state, memory)
    body = memory.getvalue()
    parts = (MAGIC, len(body).to_bytes(8, "big"), zlib.crc32(body).to_bytes(4, "big"), body)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".saving-")
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            data = memoryview(b"".join(parts))
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def load(path):
    data = Path(path).read_bytes()
    size = int.from_bytes(data[8:16], "big")
    whole = len(data) >= 20 and data[:8] == MAGIC and len(data) == 20 + size
    if not whole or zlib.crc32(data[20:]) != int.from_bytes(data[16:20], "big"):
        raise ValueError(f"{Path(path).name}: not a whole checkpoint")
    return torch.load(BytesIO(data[20:]), weights_only=True)


class Sampler:
    def __init__(self, num_rows, batch_size, seed):
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.taken = 0  # batches since the beginning

    def next_batch(self):
        per_epoch = -(-self.num_rows // self.batch_size)
        epoch, place = divmod(self.taken, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        self.taken += 1
        start = place * self.batch_size
        return torch.tensor(order[start : start + self.batch_size].tolist(), dtype=torch.int64)

    def state_dict(self):
        return {"taken": self.taken, "seed": self.seed}

    def load_state_dict(self, state):
        self.taken, self.seed = state["taken"], state["seed"]


@dataclass
class TrainConfig:
    batch_size: int
    max_lr: float
    warmup: int
    total: int
    weight_decay: float = 0.1
    max_norm: float = 0.5
    ema_decay: float = 0.95
    init_scale: float = 2.0**16
    growth_interval: int = 50


class Trainer:
    def __init__(self, model, train_ids, val_ids, config, seed):
        self.model, self.config = model, config
        self.train_ids, self.val_ids = train_ids, val_ids
        self.ema = copy.deepcopy(model)
        for module in self.ema.modules():
            module.training = False
        for p in self.ema.parameters():
            p.requires_grad = False
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.moments = {}  # name -> [count, mean, mean of squares]
        self.sampler = Sampler(len(train_ids), config.batch_size, seed)
        self.stream = torch.Generator().manual_seed(seed + 1).get_state()
        self.steps = self.updates = self.good = 0
        self.scale, self.best = float(config.init_scale), float("inf")

    def _lr(self):
        c, u = self.config, self.updates
        if u < c.warmup:
            return c.max_lr * (u + 1) / c.warmup
        part = (u - c.warmup) / (c.total - c.warmup)
        return c.max_lr * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))

    def step(self):
        rows = self.train_ids[self.sampler.next_batch()]
        for p in self.model.parameters():
            p.grad = None
        outside = torch.get_rng_state()
        torch.set_rng_state(self.stream)
        try:
            logits = self.model(rows[:, :-1]).float()
            loss = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:])
            loss.mul(self.scale).backward()
            self.stream = torch.get_rng_state()
        finally:
            torch.set_rng_state(outside)
        grads = {
            n: p.grad * (1 / self.scale) for n, p in self.trained.items() if p.grad is not None
        }
        norm = math.sqrt(sum(g.double().square().sum().item() for g in grads.values()))
        lr, scale = self._lr(), self.scale
        if math.isnan(norm) or math.isinf(norm):
            self.scale, self.good = self.scale / 2, 0
        else:
            self._update(grads, min(1.0, self.config.max_norm / (norm + 1e-6)), lr)
            self.good += 1
            if self.good >= self.config.growth_interval:
                self.scale, self.good = self.scale * 2, 0
        self.steps += 1
        with torch.inference_mode():
            logits = self.ema(self.val_ids[:, :-1]).float()
            nll = -logits.log_softmax(-1).gather(-1, self.val_ids[:, 1:, None])
        perplexity = math.exp(nll.mean().item())
        self.best = perplexity if perplexity < self.best else self.best
        return {
            "loss": loss.item(),
            "lr": lr,
            "scale": scale,
            "grad_norm": norm,
            "perplexity": perplexity,
            "best": self.best,
        }

    @torch.no_grad()
    def _update(self, grads, shrink, lr):
        for name, grad in grads.items():
            p, grad = self.trained[name], grad * shrink
            count, mean, square = self.moments.get(name, (0, 0.0, 0.0))
            count = count + 1
            mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
            self.moments[name] = [count, mean, square]
            size = mean / (1 - 0.9**count)
            root = (square / (1 - 0.999**count)).sqrt() + 1e-8
            p.copy_(p * (1 - lr * self.config.weight_decay) - lr * size / root)
        decay = min(self.config.ema_decay, (1 + self.updates) / (10 + self.updates))
        average = dict(self.ema.named_parameters())
        for name, p in self.model.named_parameters():
            average[name].copy_(decay * average[name] + (1 - decay) * p)
        buffers = dict(self.ema.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffers[name].copy_(buffer)
        self.updates += 1

    def state_dict(self):
        state = {
            "weights": {k: v.detach().clone() for k, v in self.model.state_dict().items()},
            "average": {k: v.detach().clone() for k, v in self.ema.state_dict().items()},
            "moments": {k: [c, m.clone(), s.clone()] for k, (c, m, s) in self.moments.items()},
            "sampler": self.sampler.state_dict(),
            "stream": self.stream.clone(),
        }
        counts = [self.steps, self.updates, self.good]
        return {**state, "counts": counts, "floats": (self.scale, self.best)}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["weights"])
        self.ema.load_state_dict(state["average"])
        self.moments = {k: [c, m.clone(), s.clone()] for k, (c, m, s) in state["moments"].items()}
        self.sampler.load_state_dict(state["sampler"])
        self.stream = state["stream"].clone()
        self.steps, self.updates, self.good = state["counts"]
        self.scale, self.best = state["floats"]


def checkpoints(folder):
    numbered = []
    for path in Path(folder).iterdir():
        number = path.name[5:-3]
        if path.name == f"step-{number}.pt" and number.isdecimal():
            numbered.append((int(number), path))
    return [path for _, path in sorted(numbered)]


def resume(trainer, folder):
    newest_error = None
    for path in checkpoints(folder)[::-1]:
        state = None
        try:
            state = load(path)
        except ValueError as error:
            newest_error = newest_error or error
        if state is not None:
            trainer.load_state_dict(state)
            return path
    if newest_error is not None:
        raise newest_error
    return None


def train(trainer, folder, steps, save_every, keep=2):
    resume(trainer, folder)
    for step in range(trainer.steps + 1, steps + 1):
        line = trainer.step()
        if step == steps or not step % save_every:
            save(Path(folder, f"step-{step}.pt"), trainer.state_dict())
            found = checkpoints(folder)
            for old in found[: max(0, len(found) - keep)]:
                old.unlink()
        yield line


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, width, dropout):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.embed.weight.data.mul_(0.3)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Linear(width, vocab_size)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = F.embedding(ids, self.embed.weight)
        x = x + self.mix(x)
        return (x @ self.embed.weight.T + self.head.bias).to(torch.float16)


def run(seed=0, steps=None, kills=(6, 12, 13, 41, 70, 101)):
    steps = 120 if steps is None else steps
    words = np.random.default_rng(seed).integers(3, size=(68, 7)) + 3 * np.arange(7) + 1
    rows = torch.from_numpy(np.pad(words, ((0, 0), (1, 0))))
    told = 0
    with tempfile.TemporaryDirectory() as folder:
        for end in [*kills, float("inf")]:
            outside = torch.get_rng_state()
            torch.manual_seed(seed)
            model = LanguageModel(22, 16, 0.1)
            torch.set_rng_state(outside)
            config = TrainConfig(8, 0.04, 10, 120, init_scale=2.0**26)
            trainer = Trainer(model, rows[:44], rows[44:], config, seed)
            for line in train(trainer, folder, steps, 4):
                if trainer.steps == told + 1:
                    told += 1
                    yield line
                if trainer.steps >= end:
                    break
