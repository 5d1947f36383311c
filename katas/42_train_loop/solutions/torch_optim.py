"""torch.optim.AdamW on master parameters, a LambdaLR, and windows that are cut before training."""

import copy
import dataclasses
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

PROVERBS = [
    "time flies",
    "haste makes waste",
    "look before you leap",
    "measure twice and cut once",
    "still waters run deep",
    "the early bird gets the worm and the second mouse the cheese",
    "no news is good news",
    "practice makes perfect",
    "many hands make light work",
    "too many cooks spoil the broth",
    "a watched pot never boils",
    "people who live in glass houses should not throw stones",
    "you can lead a horse to water but you cannot make it drink",
    "when the cat is away the mice will play",
    "give a man a fish and you feed him for a day",
    "a bird in the hand is worth two in the bush",
]
CHARS = sorted({"\n", *"".join(PROVERBS)})


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.proj(F.gelu(self.fc(self.norm(x))))


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, context, width, n_layer):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.context = nn.Conv1d(width, width, context)
        self.blocks = nn.Sequential(*[Residual(width) for _ in range(n_layer)])
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocab_size))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding):
                nn.init.normal_(module.weight, 0.0, 0.1)
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.normal_(block.proj.weight, 0.0, 0.1 / math.sqrt(n_layer))

    def forward(self, ids):
        before = ids.new_zeros(len(ids), self.context.kernel_size[0] - 1)
        x = self.embed(torch.cat([before, ids], dim=1))
        return self.out(self.blocks(self.context(x.transpose(1, 2)).transpose(1, 2)))


@dataclasses.dataclass
class TrainConfig:
    max_lr: float
    min_lr: float
    warmup_steps: int
    total_steps: int
    accumulation_steps: int
    weight_decay: float = 0.5
    betas: tuple = (0.9, 0.95)
    max_norm: float = 0.5
    ema_decay: float = 0.95
    init_scale: float = 2.0**20
    growth_interval: int = 50


def lr_at(step, config):
    if step < config.warmup_steps:
        return config.max_lr / config.warmup_steps * (step + 1)
    length = max(config.total_steps - config.warmup_steps, 1)
    share = min((step - config.warmup_steps) / length, 1.0) if step < config.total_steps else 1.0
    half_cosine = 0.5 + 0.5 * math.cos(math.pi * share)
    return half_cosine * config.max_lr + (1 - half_cosine) * config.min_lr


def parameter_groups(model, weight_decay):
    decay, rest = [], []
    for p in model.parameters():
        if p.requires_grad:
            (decay if p.dim() > 1 else rest).append(p)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


class Trainer:
    def __init__(self, model, config):
        self.model, self.config = model, config
        groups = parameter_groups(model, config.weight_decay)
        self.pairs = []
        for group in groups:
            masters = [nn.Parameter(p.detach().clone().float()) for p in group["params"]]
            self.pairs += zip(group["params"], masters, strict=True)
            group["params"] = masters
        # The schedule multiplies a rate of one.
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=config.betas, eps=1e-8)
        self.scheduler = LambdaLR(self.optimizer, lambda step: lr_at(step, config))
        self.ema = copy.deepcopy(model)
        for p in self.ema.parameters():
            p.requires_grad = False
        for tensor in [*self.ema.parameters(), *self.ema.buffers()]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()
        own = {id(p): master for p, master in self.pairs}
        self.averaged = [
            (average, own[id(p)])
            for average, p in zip(self.ema.parameters(), model.parameters(), strict=True)
            if id(p) in own
        ]
        self.scale = float(config.init_scale)
        self.steps = 0
        self.until_growth = config.growth_interval

    def train(self, micro_batches):
        window = []
        for micro_batch in micro_batches:
            window.append(micro_batch)
            if len(window) == self.config.accumulation_steps:
                yield self.step(window)
                window = []
        if window:
            yield self.step(window)

    def step(self, window):
        count = sum((labels >= 0).sum().item() for _, labels in window)
        log = {"loss": 0.0, "lr": self.scheduler.get_last_lr()[0], "scale": self.scale}
        for ids, labels in window:
            loss = losses(self.model, ids, labels).sum() / count
            (loss * self.scale).backward()
            log["loss"] += loss.item()
            for p, master in self.pairs:
                if p.grad is None:
                    continue
                if master.grad is None:
                    master.grad = torch.zeros_like(master)
                master.grad.add_(p.grad)
                p.grad = None
        masters = [master for _, master in self.pairs]
        for master in masters:
            if master.grad is not None:
                master.grad.mul_(1 / self.scale)
        norm = nn.utils.clip_grad_norm_(masters, self.config.max_norm)
        good = bool(norm.isfinite())
        if good:
            self.optimizer.step()
            self.scheduler.step()
            self.steps += 1
            self.finish()
        self.optimizer.zero_grad()
        self.rescale(good)
        weight_norm = sum(master.detach().double().square().sum() for master in masters) ** 0.5
        return {
            **log,
            "grad_norm": norm.item(),
            "skipped": 0.0 if good else 1.0,
            "weight_norm": weight_norm.item(),
        }

    @torch.no_grad()
    def finish(self):
        for p, master in self.pairs:
            p.copy_(master)
        for average, master in self.averaged:
            average += (1 - self.config.ema_decay) * (master - average)
        for mine, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            mine.copy_(buffer)

    def rescale(self, good):
        self.until_growth -= 1
        if not good:
            self.scale /= 2
        elif self.until_growth == 0:
            self.scale *= 2
        if not good or self.until_growth == 0:
            self.until_growth = self.config.growth_interval


def losses(model, ids, labels):
    logits = model(ids).float()
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")


def evaluate(model, batches):
    mode = model.training
    model.eval()
    with torch.no_grad():
        total = count = 0
        for ids, labels in batches:
            total += losses(model, ids, labels).sum().item()
            count += (labels >= 0).sum().item()
    model.train(mode)
    return total / count


def encode(lines):
    width = max(map(len, lines)) + 1
    ids = torch.full((len(lines), width), 0)
    labels = torch.full((len(lines), width), -100)
    for row, line in enumerate(lines):
        numbers = [CHARS.index(c) for c in "\n" + line + "\n"]
        ids[row, : len(line) + 1] = torch.tensor(numbers[:-1])
        labels[row, : len(line) + 1] = torch.tensor(numbers[1:])
    return ids, labels


def run(seed=0, steps=None):
    steps = 120 if steps is None else steps
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LanguageModel(len(CHARS), 8, 32, 3).bfloat16()
    torch.set_rng_state(state)
    trainer = Trainer(model, TrainConfig(3e-3, 1e-5, 10, steps, 3))
    overflow = [False]
    model.out[1].weight.register_hook(lambda grad: grad * math.inf if overflow[0] else grad)
    generator = torch.Generator().manual_seed(seed + 1000)
    batches = [encode(PROVERBS[i : i + 4]) for i in range(0, 16, 4)]
    number = 0
    while number < steps:
        order = torch.randperm(4, generator=generator)
        for log in trainer.train([batches[i] for i in order]):
            yield {**log, "ema_loss": evaluate(trainer.ema, [encode(PROVERBS)])}
            number += 1
            overflow[0] = number == steps // 2
            if number == steps:
                return
