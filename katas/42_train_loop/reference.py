"""Mixed-precision training of a small language model, which learns sixteen proverbs by heart."""

import copy
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, get_total_norm, rnn

IGNORE = -100  # the label of padding
TEXT = """time flies, haste makes waste, look before you leap, measure twice and cut once, \
still waters run deep, the early bird gets the worm and the second mouse the cheese, no news is \
good news, practice makes perfect, many hands make light work, too many cooks spoil the broth, \
a watched pot never boils, people who live in glass houses should not throw stones, you can lead \
a horse to water but you cannot make it drink, when the cat is away the mice will play, give a \
man a fish and you feed him for a day, a bird in the hand is worth two in the bush"""
ALPHABET = "\n" + "".join(sorted(set(TEXT)))  # a newline begins and ends each proverb
Batch = tuple[Tensor, Tensor]  # ids and labels, both int64 (B, T)


def _block(width: int) -> nn.Sequential:
    norm, fc, proj = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    return nn.Sequential(OrderedDict(norm=norm, fc=fc, act=nn.GELU(), proj=proj))


class LanguageModel(nn.Module):
    """Predicts the next token from the last `context`: ids (B, T) -> logits (B, T, vocab_size).

    After Bengio et al., https://www.jmlr.org/papers/v3/bengio03a.html, with residual blocks.
    """

    def __init__(self, vocab_size: int, context: int, width: int, n_layer: int) -> None:
        """Start as GPT-2 does: what the blocks add up to does not grow with their number."""
        super().__init__()
        self.context = context
        self.embed = nn.Embedding(vocab_size, width)
        self.mix = nn.Linear(context * width, width)
        self.blocks = nn.ModuleList(_block(width) for _ in range(n_layer))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() >= 2:
                scale = n_layer**-0.5 if name.endswith("proj.weight") else 1.0
                nn.init.normal_(p, std=0.1 * scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits; what would stand before the first token counts as token 0."""
        windows = F.pad(ids, (self.context - 1, 0)).unfold(1, self.context, 1)
        x = self.mix(self.embed(windows).flatten(2))
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropy over all labels that are not `IGNORE`, in float32."""
    logits, labels = logits.float().flatten(0, 1), labels.flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return all parameters that train in two groups: matrices decay, and the rest does not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class TrainConfig:
    """What a trainer needs to know; steps are those of the optimiser."""

    max_lr: float
    min_lr: float
    warmup_steps: int
    total_steps: int
    accumulation_steps: int
    weight_decay: float = 0.5
    betas: tuple[float, float] = (0.9, 0.95)
    max_norm: float = 0.5
    ema_decay: float = 0.95
    init_scale: float = 2.0**20
    growth_interval: int = 50


def lr_at(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine, then `min_lr`."""
    if step < config.warmup_steps:
        return config.max_lr * (step + 1) / config.warmup_steps
    if step >= config.total_steps:
        return config.min_lr
    progress = (step - config.warmup_steps) / (config.total_steps - config.warmup_steps)
    return config.min_lr + (config.max_lr - config.min_lr) * (1 + math.cos(math.pi * progress)) / 2


class AdamW:
    """Adam with decoupled weight decay, https://arxiv.org/abs/1711.05101, on float32 masters.

    The model's weights, in the precision that it computes in, are rounded copies of the masters.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        """Take groups of parameters, each with a weight decay of its own."""
        self.groups, self.betas = groups, betas
        params = [p for group in groups for p in group["params"]]
        self.masters = {p: p.detach().to(torch.float32, copy=True) for p in params}
        self.means = {p: torch.zeros_like(master) for p, master in self.masters.items()}
        self.squares = {p: torch.zeros_like(master) for p, master in self.masters.items()}
        self.counts = dict.fromkeys(params, 0)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update each master that has a gradient, and round it to the weight."""
        beta1, beta2 = self.betas
        for group in self.groups:
            for p in group["params"]:
                master = self.masters[p]
                if master.grad is None:
                    continue
                self.counts[p] += 1
                self.means[p].lerp_(master.grad, 1 - beta1)
                self.squares[p].lerp_(master.grad.square(), 1 - beta2)
                mean = self.means[p] / (1 - beta1 ** self.counts[p])
                square = self.squares[p] / (1 - beta2 ** self.counts[p])
                master.mul_(1 - lr * group["weight_decay"])
                master.addcdiv_(mean, square.sqrt() + 1e-8, value=-lr)
                p.copy_(master)


class Trainer:
    """Trains a model on windows of micro-batches, each of them one step of the optimiser."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        """Take over the training of a model, whose weights may be of any floating dtype."""
        self.model, self.config = model, config
        self.optimizer = AdamW(parameter_groups(model, config.weight_decay), config.betas)
        self.ema = copy.deepcopy(model).float().requires_grad_(False)
        self.steps, self.scale = 0, config.init_scale
        self._clean_steps = 0  # since the last overflow

    def train(self, micro_batches: Iterable[Batch]) -> Iterator[dict[str, float]]:
        """Yield the log of each step; the last window is what is left."""
        batches = iter(micro_batches)
        while window := list(itertools.islice(batches, self.config.accumulation_steps)):
            yield self.step(window)

    def step(self, window: Sequence[Batch]) -> dict[str, float]:
        """Take one step on the mean loss of all tokens of the window; skip it on an overflow."""
        config = self.config
        lr, scale = lr_at(self.steps, config), self.scale
        tokens = sum(int((labels != IGNORE).sum()) for _, labels in window)
        loss = 0.0
        for ids, labels in window:
            share = token_loss(self.model(ids), labels) / tokens
            (share * scale).backward()
            self._collect_gradients()
            loss += share.item()
        masters = [master for master in self.optimizer.masters.values() if master.grad is not None]
        for master in masters:
            master.grad /= scale
        norm = clip_grad_norm_(masters, config.max_norm).item()
        skip = not math.isfinite(norm)
        if skip:
            self.scale, self._clean_steps = 0.5 * self.scale, 0
        else:
            self.optimizer.step(lr)
            self._update_ema()
            self.steps += 1
            self._clean_steps += 1
            if self._clean_steps % config.growth_interval == 0:
                self.scale *= 2.0
        for master in masters:
            master.grad = None
        log = {"loss": loss, "lr": lr, "grad_norm": norm, "scale": scale, "skipped": float(skip)}
        return log | {"weight_norm": get_total_norm(self.optimizer.masters.values()).item()}

    def _collect_gradients(self) -> None:
        """Move a micro-batch's gradients to the masters, where they are summed in float32."""
        for p, master in self.optimizer.masters.items():
            if p.grad is not None:
                grad = p.grad.float()
                master.grad = grad if master.grad is None else master.grad + grad
                p.grad = None

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Move the averages towards the masters; buffers are copied."""
        decay = self.config.ema_decay
        for average, p in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            if p in self.optimizer.masters:
                average.mul_(decay).add_(self.optimizer.masters[p], alpha=1 - decay)
        for average, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            average.copy_(buffer)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the mean loss of all tokens of the batches, in evaluation mode."""
    training = model.training
    model.eval()
    loss, tokens = 0.0, 0
    for ids, labels in batches:
        loss += token_loss(model(ids), labels).item()
        tokens += int((labels != IGNORE).sum())
    model.train(training)
    return loss / tokens


def collate(lines: Sequence[str]) -> Batch:
    """Return ids and labels, the ids one place on, padded at the right to the longest line."""
    rows = [torch.tensor([ALPHABET.index(character) for character in f"\n{x}\n"]) for x in lines]
    ids = rnn.pad_sequence([row[:-1] for row in rows], batch_first=True)
    labels = rnn.pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=IGNORE)
    return ids, labels


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Train in epochs of four micro-batches, two steps each, and yield the log of each step."""
    steps = 120 if steps is None else steps
    lines = TEXT.split(", ")
    batches = [collate(lines[start : start + 4]) for start in range(0, len(lines), 4)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(len(ALPHABET), context=8, width=32, n_layer=3).to(torch.bfloat16)
    config = TrainConfig(
        max_lr=3e-3, min_lr=1e-5, warmup_steps=10, total_steps=steps, accumulation_steps=3
    )
    trainer = Trainer(model, config)
    # An overflow, as float16 and bad batches bring it: the step has to leave no trace.
    spike = torch.ones((), dtype=torch.bfloat16)
    model.head.weight.register_hook(lambda grad: grad * spike)
    generator = torch.Generator().manual_seed(seed)
    everything, logged = [collate(lines)], 0
    for _ in range(math.ceil(steps / 2)):
        order = torch.randperm(len(batches), generator=generator).tolist()
        epoch = [batches[number] for number in order]
        for log in itertools.islice(trainer.train(epoch), steps - logged):
            yield log | {"ema_loss": evaluate(trainer.ema, everything)}
            logged += 1
            spike.fill_(math.inf if logged == steps // 2 else 1.0)
