"""Training that can be killed at any time: what is saved, how it is written, how it goes on."""

import copy
import hashlib
import io
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, lr_scheduler

State = dict[str, Any]


def save(path: str | Path, state: State) -> None:
    """Write a state of tensors, numbers, texts and containers of these, all of it or nothing.

    The file holds the SHA-256 of what follows, and what `torch.save` makes of the state.
    """
    path, buffer = Path(path), io.BytesIO()
    torch.save(state, buffer)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: str | Path) -> State:
    """Return the state that was saved; a file that is not as it was written is a `ValueError`."""
    content = Path(path).read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise ValueError(f"{path} is damaged")
    return torch.load(io.BytesIO(content[32:]), weights_only=True)


class Sampler:
    """Batches of row numbers: every row once an epoch, in an order that each epoch draws anew."""

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        """Start before the first epoch."""
        self._num_rows, self._batch_size = num_rows, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._order, self._position = torch.arange(0), 0

    def next_batch(self) -> Tensor:
        """Return `batch_size` numbers, int64, or what is left at the end of an epoch."""
        if self._position == len(self._order):
            self._order = torch.randperm(self._num_rows, generator=self._generator)
            self._position = 0
        batch = self._order[self._position : self._position + self._batch_size]
        self._position += len(batch)
        return batch.clone()

    def state_dict(self) -> State:
        """Return the place in this epoch, its order, and what later epochs are drawn from."""
        generator = self._generator.get_state()
        return {"order": self._order, "position": self._position, "generator": generator}

    def load_state_dict(self, state: State) -> None:
        """Go on with the batch that would have come next."""
        self._order, self._position = state["order"], 0
        self._generator.set_state(state["generator"])


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a trainer; `warmup` and `total` are counted in updates of the weights."""

    batch_size: int
    max_lr: float
    warmup: int
    total: int
    weight_decay: float = 0.1
    max_norm: float = 0.5
    ema_decay: float = 0.95
    init_scale: float = 2.0**16
    growth_interval: int = 50

    def lr_share(self, updates: int) -> float:
        """Return the share of `max_lr` after so many updates: a line up, half a cosine down."""
        if updates < self.warmup:
            return (updates + 1) / self.warmup
        progress = min(1.0, (updates - self.warmup) / (self.total - self.warmup))
        return (1 + math.cos(math.pi * progress)) / 2


class Trainer:
    """Trains a model, ids (B, T) -> logits (B, T, V), to predict each next id of rows of ids."""

    PARTS = ("model", "ema", "optimizer", "scheduler", "sampler")
    VALUES = ("steps", "updates", "best", "random_state")

    def __init__(
        self, model: nn.Module, train_ids: Tensor, val_ids: Tensor, config: TrainConfig, seed: int
    ) -> None:
        """Take over a model; rows are int64, (N, T + 1)."""
        self.model, self.train_ids, self.val_ids, self.config = model, train_ids, val_ids, config
        self.ema = copy.deepcopy(model).requires_grad_(False).eval()
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = AdamW(self.params, config.max_lr, weight_decay=config.weight_decay)
        self.scheduler = lr_scheduler.LambdaLR(self.optimizer, config.lr_share)
        self.sampler = Sampler(len(train_ids), config.batch_size, seed)
        self.random_state = torch.Generator().manual_seed(seed).get_state()  # of the model's draws
        self.steps, self.updates, self.best = 0, 0, math.inf
        self.scale, self.good_steps = config.init_scale, 0

    def step(self) -> dict[str, float]:
        """Take a step on the next batch, skip the update if a gradient overflows, and log it."""
        rows = self.train_ids[self.sampler.next_batch()]
        lr, scale = self.scheduler.get_last_lr()[0], self.scale
        self.optimizer.zero_grad()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random_state)
            loss = token_losses(self.model, rows).mean()
            (loss * scale).backward()
            self.random_state = torch.get_rng_state()
        for p in self.params:
            if p.grad is not None:
                p.grad /= scale
        norm = nn.utils.clip_grad_norm_(self.params, self.config.max_norm).item()
        if math.isfinite(norm):
            self.optimizer.step()
            self.scheduler.step()
            self._update_ema()
            self.updates += 1
            self.good_steps += 1
            if self.good_steps == self.config.growth_interval:
                self.scale, self.good_steps = 2.0 * scale, 0
        else:
            self.scale, self.good_steps = 0.5 * scale, 0
        self.steps += 1
        with torch.no_grad():
            perplexity = token_losses(self.ema, self.val_ids).mean().exp().item()
        self.best = min(self.best, perplexity)
        log = {"loss": loss.item(), "lr": lr, "scale": scale, "grad_norm": norm}
        return log | {"perplexity": perplexity, "best": self.best}

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Move the averages towards the parameters, the first ones faster; copy buffers."""
        decay = min(self.config.ema_decay, (1 + self.updates) / (10 + self.updates))
        for average, p in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            average.lerp_(p, 1 - decay)
        for average, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            average.copy_(buffer)

    def state_dict(self) -> State:
        """Return all that the next steps depend on, as it is now: no later step changes it."""
        state = {part: getattr(self, part).state_dict() for part in self.PARTS}
        state |= {name: getattr(self, name) for name in self.VALUES}
        return copy.deepcopy(state)

    def load_state_dict(self, state: State) -> None:
        """Go on from there; `state` is only read, now and later."""
        state = copy.deepcopy(state)  # an optimiser would go on to work on these very tensors
        for part in self.PARTS:
            getattr(self, part).load_state_dict(state[part])
        self.ema.load_state_dict(state["model"])
        for name in self.VALUES:
            setattr(self, name, state[name])


def token_losses(model: nn.Module, rows: Tensor) -> Tensor:
    """Return the cross-entropy of each id but the first: (N, T + 1) -> (N * T,), float32."""
    logits = model(rows[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the files step-N.pt of a folder, by N."""
    found = (path for path in Path(folder).iterdir() if re.fullmatch(r"step-\d+\.pt", path.name))
    return sorted(found, key=lambda path: path.stem.removeprefix("step-"))


def resume(trainer: Trainer, folder: str | Path) -> Path | None:
    """Load the newest checkpoint that is whole, and return it; None if there are no checkpoints."""
    refused = []
    for path in reversed(checkpoints(folder)):
        try:
            state = load(path)
        except ValueError as error:
            refused.append(str(error))
            continue
        trainer.load_state_dict(state)
        return path
    if refused:
        raise ValueError(f"nothing to go on from: {', '.join(refused)}")
    return None


def train(
    trainer: Trainer, folder: str | Path, steps: int, save_every: int, keep: int = 2
) -> Iterator[dict[str, float]]:
    """Go on to step `steps`, and yield each step's log; the newest `keep` checkpoints stay."""
    resume(trainer, folder)
    while trainer.steps < steps:
        log = trainer.step()
        if trainer.steps % save_every == 0 or trainer.steps == steps:
            save(Path(folder, f"step-{trainer.steps}.pt"), trainer.state_dict())
            for path in checkpoints(folder)[:-keep]:
                path.unlink()
        yield log


class LanguageModel(nn.Module):
    """Predicts an id from the one before, by a tied head: https://arxiv.org/abs/1608.05859."""

    def __init__(self, vocab_size: int, width: int, dropout: float) -> None:
        """Start with small embeddings."""
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        """Return float16 logits, (B, T) -> (B, T, V); a gradient over 65,504 is infinite there."""
        x = self.embed(ids)
        return self.head(x + self.mix(x)).half()


def run(
    seed: int = 0, steps: int | None = None, kills: Sequence[int] = (6, 12, 13, 41, 70, 101)
) -> Iterator[dict[str, float]]:
    """Train on sentences of seven words, killed after these steps, and yield each step's log."""
    steps, logged = 120 if steps is None else steps, 0
    choices = torch.randint(3, (68, 7), generator=torch.Generator().manual_seed(seed))
    rows = F.pad(choices + 3 * torch.arange(7) + 1, (1, 0))  # 0 begins a sentence
    config = TrainConfig(batch_size=8, max_lr=0.04, warmup=10, total=120, init_scale=2.0**26)
    with tempfile.TemporaryDirectory() as folder:
        for kill_after in (*kills, steps):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = LanguageModel(vocab_size=22, width=16, dropout=0.1)
            trainer = Trainer(model, rows[:44], rows[44:], config, seed)
            for log in train(trainer, folder, steps, save_every=4):
                if trainer.steps > logged:
                    yield log
                    logged = trainer.steps
                if trainer.steps >= kill_after:
                    break
