"""Masters, moments and averages are slices of flat float32 vectors."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn

SAYINGS = """time flies/haste makes waste/look before you leap/measure twice and cut once/still \
waters run deep/the early bird gets the worm and the second mouse the cheese/no news is good news/\
practice makes perfect/many hands make light work/too many cooks spoil the broth/a watched pot \
never boils/people who live in glass houses should not throw stones/you can lead a horse to water \
but you cannot make it drink/when the cat is away the mice will play/give a man a fish and you \
feed him for a day/a bird in the hand is worth two in the bush"""
LINES = tuple(SAYINGS.split("/"))
TOKENS = {c: i for i, c in enumerate(sorted({"\n", *"".join(LINES)}))}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.proj(torch.relu(self.fc(self.norm(x))))


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, context, width, n_layer):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.places = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(context))
        self.blocks = nn.ModuleList(Block(width) for _ in range(n_layer))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    p.normal_().mul_(0.1)
                    if ".proj." in name:
                        p.div_(n_layer**0.5)
                elif "norm" not in name or "bias" in name:
                    p.zero_()

    def forward(self, ids):
        shifted, x = ids, 0.0
        for place in self.places:
            x = x + place(self.embed(shifted))
            shifted = torch.cat([torch.zeros_like(ids[:, :1]), shifted[:, :-1]], 1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


@dataclass
class TrainConfig:
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


def lr_at(step, config):
    warmup, total = config.warmup_steps, config.total_steps
    if step < warmup:
        return float(np.linspace(config.max_lr / warmup, config.max_lr, warmup)[step])
    if step >= total:
        return float(config.min_lr)
    angle = np.pi * (step - warmup) / (total - warmup)
    return float(config.min_lr + (config.max_lr - config.min_lr) * np.cos(angle / 2) ** 2)


def parameter_groups(model, weight_decay):
    trained = list(filter(lambda p: p.requires_grad, model.parameters()))
    vectors = [p for p in trained if p.dim() in (0, 1)]
    known = set(map(id, vectors))
    matrices = [p for p in trained if id(p) not in known]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def loss_and_count(model, ids, labels):
    real = labels != -100
    logprobs = torch.log_softmax(model(ids)[real].float(), dim=-1)
    return -logprobs.gather(1, labels[real][:, None]).sum(), int(real.sum())


class Trainer:
    def __init__(self, model, config):
        self.model = model
        self.config = config
        self.steps = 0
        self.scale = float(config.init_scale)
        self._good_in_a_row = 0
        groups = parameter_groups(model, config.weight_decay)
        self._params = [p for group in groups for p in group["params"]]
        sizes = [p.numel() for p in self._params]
        ends = np.cumsum(sizes).tolist()
        self._slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        decays = [torch.full((p.numel(),), g["weight_decay"]) for g in groups for p in g["params"]]
        self._decay = torch.cat(decays)
        self._master = torch.cat([p.detach().float().flatten() for p in self._params])
        self._mean = torch.zeros_like(self._master)
        self._square = torch.zeros_like(self._master)
        self._count = torch.zeros_like(self._master, dtype=torch.int64)
        self._average = self._master.clone()
        self.ema = copy.deepcopy(model).to(torch.float32)
        self.ema.requires_grad_(False)
        place = {id(p): number for number, p in enumerate(self._params)}
        both = zip(self.ema.parameters(), model.parameters(), strict=True)
        self._shown = [(mine, place[id(p)]) for mine, p in both if id(p) in place]

    def train(self, micro_batches):
        source = iter(micro_batches)
        while True:
            window = [
                pair for _, pair in zip(range(self.config.accumulation_steps), source, strict=False)
            ]
            if window:
                yield self.step(window)
            if len(window) < self.config.accumulation_steps:
                return

    def step(self, window):
        lr, scale = lr_at(self.steps, self.config), self.scale
        total = sum((labels != -100).sum().item() for _, labels in window)
        gradient = torch.zeros_like(self._master)
        reached = torch.zeros_like(self._master, dtype=torch.bool)
        loss = 0.0
        for ids, labels in window:
            summed, _ = loss_and_count(self.model, ids, labels)
            loss += summed.item() / total
            (summed * (scale / total)).backward()
            for p, where in zip(self._params, self._slices, strict=True):
                if p.grad is not None:
                    gradient[where] += p.grad.flatten()
                    reached[where] = True
            self.model.zero_grad(set_to_none=True)
        gradient /= scale
        norm = float(torch.linalg.vector_norm(gradient))
        skipped = not np.isfinite(norm)
        if skipped:
            self.scale /= 2
            self._good_in_a_row = 0
        else:
            self._update(gradient * min(1.0, self.config.max_norm / (norm + 1e-6)), reached, lr)
            self._good_in_a_row += 1
            if self._good_in_a_row == self.config.growth_interval:
                self.scale *= 2
                self._good_in_a_row = 0
        return {
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            "scale": scale,
            "skipped": 1.0 if skipped else 0.0,
            "weight_norm": float(torch.linalg.vector_norm(self._master)),
        }

    @torch.no_grad()
    def _update(self, gradient, reached, lr):
        config = self.config
        beta1, beta2 = config.betas
        self.steps += 1
        self._count += reached
        mean = beta1 * self._mean + (1 - beta1) * gradient
        square = beta2 * self._square + (1 - beta2) * gradient**2
        self._mean = torch.where(reached, mean, self._mean)
        self._square = torch.where(reached, square, self._square)
        count = self._count.clamp(min=1).double()
        mean = self._mean / (1 - beta1**count).float()
        square = self._square / (1 - beta2**count).float()
        moved = self._master * (1 - lr * self._decay) - lr * mean / (square.sqrt() + 1e-8)
        self._master = torch.where(reached, moved, self._master)
        decay = config.ema_decay
        self._average = decay * self._average + (1 - decay) * self._master
        for p, where in zip(self._params, self._slices, strict=True):
            p.copy_(self._master[where].view_as(p))
        for mine, number in self._shown:
            mine.copy_(self._average[self._slices[number]].view_as(mine))
        for mine, theirs in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)


def evaluate(model, batches):
    was_training = model.training
    model.train(False)
    with torch.inference_mode():
        pairs = [loss_and_count(model, ids, labels) for ids, labels in batches]
    model.train(was_training)
    return sum(loss.item() for loss, _ in pairs) / sum(count for _, count in pairs)


def as_batch(lines):
    longest = max(len(line) for line in lines)
    ids = [[0, *(TOKENS[c] for c in line), *[0] * (longest - len(line))] for line in lines]
    labels = [[*(TOKENS[c] for c in line), 0, *[-100] * (longest - len(line))] for line in lines]
    return torch.tensor(ids), torch.tensor(labels)


def run(seed=0, steps=None):
    steps = 120 if steps is None else steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(25, 8, 32, 3).bfloat16()
    rng = np.random.default_rng(seed)
    config = TrainConfig(3e-3, 1e-5, 10, steps, 3)
    trainer = Trainer(model, config)
    factor = torch.ones((), dtype=torch.bfloat16)
    model.head.weight.register_hook(lambda grad: grad * factor)
    parts = [as_batch(LINES[i : i + 4]) for i in (0, 4, 8, 12)]
    done = 0
    while done < steps:
        for log in trainer.train([parts[i] for i in rng.permutation(4)]):
            log["ema_loss"] = evaluate(trainer.ema, [as_batch(LINES)])
            yield log
            done += 1
            factor.fill_(float("inf") if done == steps // 2 else 1.0)
            if done == steps:
                return
