"""Batches are replayed from the epoch's first draw; one flat dict of tensors; digest at the end."""

import copy
import dataclasses
import hashlib
import io
import math
import os
import pathlib
import re
import shutil
import tempfile

import torch
from torch import nn
from torch.nn.functional import embedding, gelu, linear


def save(path, state):
    new = pathlib.Path(str(path) + ".new")
    with new.open("w+b") as file:
        torch.save({"state": state}, file)
        file.seek(0)
        digest = hashlib.blake2b(file.read(), digest_size=24)
        file.write(digest.digest())
        file.flush()
        os.fsync(file)
    new.rename(path)


def load(path):
    content = pathlib.Path(path).read_bytes()
    body, digest = content[:-24], content[-24:]
    if not body or hashlib.blake2b(body, digest_size=24).digest() != digest:
        raise ValueError("checkpoint is damaged: " + str(path))
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)["state"]


def epochs(num_rows, batch_size, generator):
    while True:
        before = generator.get_state()
        for number, batch in enumerate(
            torch.randperm(num_rows, generator=generator).split(batch_size), 1
        ):
            yield batch.clone(), before, number


class Sampler:
    def __init__(self, num_rows, batch_size, seed):
        self.sizes = num_rows, batch_size
        generator = torch.Generator()
        generator.manual_seed(seed)
        self.before, self.taken = generator.get_state(), 0
        self.batches = epochs(*self.sizes, generator)

    def next_batch(self):
        batch, self.before, self.taken = next(self.batches)
        return batch

    def state_dict(self):
        return {"before": self.before.clone(), "taken": torch.tensor(self.taken)}

    def load_state_dict(self, state):
        generator = torch.Generator()
        generator.set_state(state["before"])
        self.batches = epochs(*self.sizes, generator)
        self.before, self.taken = state["before"].clone(), 0
        while self.taken < int(state["taken"]):
            self.next_batch()


@dataclasses.dataclass(kw_only=False)
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


def cross_entropies(model, rows):
    logits = model(rows[:, :-1]).to(torch.float32)
    log_p = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    return -torch.take_along_dim(log_p, rows[:, 1:].unsqueeze(-1), dim=-1).squeeze(-1)


class Trainer:
    def __init__(self, model, train_ids, val_ids, config, seed):
        self.model, self.train_ids, self.val_ids, self.config = model, train_ids, val_ids, config
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.adam = torch.optim.AdamW(
            list(self.params.values()), weight_decay=config.weight_decay, foreach=True
        )
        self.sampler = Sampler(len(train_ids), config.batch_size, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.draws = torch.get_rng_state()
        self.counts = {"steps": 0, "updates": 0, "row": 0}
        self.floats = {"scale": float(config.init_scale), "best": math.inf}

    steps = property(lambda self: self.counts["steps"])
    best = property(lambda self: self.floats["best"])

    def _rate(self):
        done, c = self.counts["updates"], self.config
        if done < c.warmup:
            return c.max_lr / c.warmup * (done + 1)
        done = min(done, c.total)
        return c.max_lr * math.cos(math.pi / 2 * (done - c.warmup) / (c.total - c.warmup)) ** 2

    def step(self):
        rows = self.train_ids.index_select(0, self.sampler.next_batch())
        scale, rate, params = self.floats["scale"], self._rate(), list(self.params.values())
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.draws)
            loss = cross_entropies(self.model, rows).mean()
            grads = torch.autograd.grad(loss * scale, params, allow_unused=True)
            self.draws = torch.get_rng_state()
        grads = [None if g is None else g / scale for g in grads]
        norms = [torch.linalg.vector_norm(g) for g in grads if g is not None]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        good = bool(norm.isfinite())
        if good:
            factor = (self.config.max_norm / (norm + 1e-6)).clamp(max=1.0)
            for p, g in zip(params, grads, strict=True):
                p.grad = None if g is None else g * factor
            self.adam.param_groups[0]["lr"] = rate
            self.adam.step()
            self._average()
        for p in params:
            p.grad = None
        self.counts["row"] = (self.counts["row"] + 1) * good
        if not good:
            self.floats["scale"] = scale / 2
        elif self.counts["row"] % self.config.growth_interval == 0:
            self.floats["scale"] = scale * 2
        self.counts["steps"] += 1
        self.counts["updates"] += good
        with torch.no_grad():
            # One row after the other, whatever the size of the validation set.
            per_row = [cross_entropies(self.ema, row[None]).double().mean() for row in self.val_ids]
        perplexity = torch.stack(per_row).mean().exp().item()
        self.floats["best"] = min(perplexity, self.floats["best"])
        log = dict(loss=loss.item(), lr=rate, scale=scale, grad_norm=norm.item())
        return dict(log, perplexity=perplexity, best=self.floats["best"])

    def _average(self):
        n = self.counts["updates"]
        keep = min(self.config.ema_decay, (n + 1) / (n + 10))
        new, seen = self.model.state_dict(keep_vars=True), set()
        for name, old in self.ema.state_dict().items():
            averaged = isinstance(new[name], nn.Parameter)
            value = new[name].detach()
            if old.data_ptr() not in seen:  # a tied one is there twice
                old.copy_(old + (1 - keep) * (value - old) if averaged else value)
            seen.add(old.data_ptr())

    def state_dict(self):
        tensors = {"draws": self.draws}
        tensors |= {f"sampler.{k}": v for k, v in self.sampler.state_dict().items()}
        tensors |= {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for name, p in self.params.items():
            tensors |= {f"adam.{name}|{k}": v for k, v in self.adam.state.get(p, {}).items()}
        tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return {"tensors": tensors, "counts": dict(self.counts), "floats": dict(self.floats)}

    def load_state_dict(self, state):
        parts = {"draws": {}, "sampler": {}, "model": {}, "ema": {}, "adam": {}}
        for name, tensor in state["tensors"].items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor.clone()
        self.draws = parts["draws"][""]
        self.sampler.load_state_dict(parts["sampler"])
        self.model.load_state_dict(parts["model"])
        self.ema.load_state_dict(parts["ema"])
        self.adam.state.clear()
        for name, tensor in parts["adam"].items():
            parameter, _, slot = name.partition("|")
            self.adam.state[self.params[parameter]][slot] = tensor
        self.counts, self.floats = dict(state["counts"]), dict(state["floats"])


def checkpoints(folder):
    names = [path.name for path in pathlib.Path(folder).iterdir()]
    numbers = [re.fullmatch("step-([0-9]+)[.]pt", name) for name in names]
    return [
        pathlib.Path(folder) / f"step-{number}.pt"
        for number in sorted(int(match[1]) for match in numbers if match)
    ]


def resume(trainer, folder):
    paths = checkpoints(folder)
    refused = ""
    while paths:
        path = paths.pop()
        try:
            state = load(path)
        except ValueError:
            refused = refused or path.name
        else:
            trainer.load_state_dict(state)
            return path
    if refused:
        raise ValueError(f"{refused} is damaged, and so are all before it")


def train(trainer, folder, steps, save_every, keep=2):
    resume(trainer, folder)
    return _train(trainer, folder, steps, save_every, keep)


def _train(trainer, folder, steps, save_every, keep):
    while trainer.steps < steps:
        line = trainer.step()
        due = trainer.steps % save_every == 0
        if due or trainer.steps >= steps:
            save(f"{folder}/step-{trainer.steps}.pt", trainer.state_dict())
            while len(found := checkpoints(folder)) > keep:
                found[0].unlink()
        yield line


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, width, dropout):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embed.weight, 0.0, 0.3)
        self.mix = nn.ModuleList([nn.Linear(width, width)])
        self.head = nn.Linear(width, vocab_size)
        self.head.register_parameter("weight", self.embed.weight)
        self.dropout = dropout

    def forward(self, ids):
        x = embedding(ids, self.embed.weight)
        h = nn.functional.dropout(gelu(self.mix[0](x)), self.dropout, self.training)
        return linear(x + h, self.head.weight, self.head.bias).half()


def run(seed=0, steps=None, kills=(6, 12, 13, 41, 70, 101)):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.zeros(68, 8, dtype=torch.int64)
    for place in range(7):
        words = torch.arange(3 * place + 1, 3 * place + 4)
        rows[:, place + 1] = words[torch.randint(3, (68,), generator=generator)]
    last = 120 if steps is None else steps
    lines, ends = 0, [*kills, last]
    folder = tempfile.mkdtemp()
    try:
        while ends:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = LanguageModel(22, 16, 0.1)
            config = TrainConfig(
                batch_size=8, max_lr=0.04, warmup=10, total=120, init_scale=2.0**26
            )
            trainer = Trainer(model, rows[:44], rows[44:], config, seed)
            end = ends.pop(0)
            for line in train(trainer, folder, last, save_every=4):
                if trainer.steps > lines:
                    lines = trainer.steps
                    yield line
                if trainer.steps >= end:
                    break
    finally:
        shutil.rmtree(folder)
