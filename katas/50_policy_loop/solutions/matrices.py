"""Style: NumPy worlds, GAE as one matrix, gradients by torch.autograd.grad, Adam by hand."""

import collections
import math

import numpy as np
import torch
import torch.nn.functional as F

MAP = "...#.X.......#..#....O..G..#.."

Config = collections.namedtuple(
    "Config",
    "lr gamma lam num_steps epochs minibatch_size clip value_coef entropy_coef max_grad_norm",
    defaults=(0.01, 0.9, 0.8, 24, 4, 192, 0.2, 0.5, 0.04, 0.5),
)
Rollout = collections.namedtuple(
    "Rollout", "observations actions log_probs values rewards terminated truncated next_values"
)


def tables():
    kinds = np.array(list(MAP)).reshape(5, 6)
    fenced = np.pad(kinds, 1, constant_values="#")
    numbers = np.pad(np.arange(30).reshape(5, 6), 1)
    here = numbers[1:-1, 1:-1]
    leads = []
    for view in (np.s_[:-2, 1:-1], np.s_[1:-1, 2:], np.s_[2:, 1:-1], np.s_[1:-1, :-2]):
        leads.append(np.where(fenced[view] == "#", here, numbers[view]).ravel())
    pays = np.select([kinds == "G", kinds == "X", kinds == "O"], [0.2, 1.0, -1.0], -0.02).ravel()
    ends = np.isin(kinds, ["X", "O"]).ravel()
    starts = np.flatnonzero(np.isin(kinds, [".", "G"]))
    next_cell = np.stack(leads, axis=1)
    return next_cell, pays[next_cell].astype(np.float32), ends[next_cell], starts


class GridWorld:
    def __init__(self, num_envs, time_limit, generator):
        self.next_cell, self.reward, self.terminal, self.starts = map(torch.from_numpy, tables())
        self.size = num_envs
        self.limit = time_limit
        self.generator = generator

    def fresh(self):
        spots = torch.rand(self.size, generator=self.generator, dtype=torch.float64)
        return self.starts[(spots * len(self.starts)).long()]

    def reset(self):
        self.cell = self.fresh()
        self.left = torch.full((self.size,), self.limit)
        return torch.eye(30)[self.cell]

    def step(self, actions):
        at = (self.cell, actions)
        reached, rewards, terminated = self.next_cell[at], self.reward[at], self.terminal[at]
        self.left = self.left - 1
        truncated = self.left == 0
        over = torch.logical_or(terminated, truncated)
        self.cell = reached.clone()
        self.cell[over] = self.fresh()[over]
        self.left[over] = self.limit
        return torch.eye(30)[reached], rewards, terminated, truncated, torch.eye(30)[self.cell]


def true_values(world, probs, gamma):
    p = probs.detach().double().numpy()
    lead, pay, end = (getattr(world, k).numpy() for k in ("next_cell", "reward", "terminal"))
    count = len(p)
    matrix = np.eye(count)
    for cell in range(count):
        for action in range(p.shape[1]):
            if not end[cell, action]:
                matrix[cell, lead[cell, action]] -= gamma * p[cell, action]
    return torch.from_numpy(np.linalg.solve(matrix, (p * pay.astype(np.float64)).sum(axis=1)))


class ActorCritic(torch.nn.Module):
    def __init__(self, inputs, actions, width=32):
        super().__init__()
        self.parts = torch.nn.ModuleDict()
        for name, outputs in (("critic", 1), ("actor", actions)):
            first, second = torch.nn.Linear(inputs, width), torch.nn.Linear(width, outputs)
            self.parts[name] = torch.nn.Sequential(first, torch.nn.Tanh(), second)

    def forward(self, observations):
        return self.parts["actor"](observations), self.parts["critic"](observations).squeeze(-1)


def collect(world, model, observations, num_steps, generator):
    columns = collections.defaultdict(list)
    with torch.no_grad():
        for _ in range(num_steps):
            logits, _ = model(observations)
            # The largest of logits with Gumbel noise is a draw from their softmax.
            noise = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
            actions = (logits - noise.log().neg().log()).argmax(-1)
            columns["observations"].append(observations)
            columns["actions"].append(actions)
            columns["logits"].append(logits)
            arrived, *ends, observations = world.step(actions)
            columns["arrived"].append(arrived)
            for name, value in zip(("rewards", "terminated", "truncated"), ends, strict=True):
                columns[name].append(value)
        all_of = {name: torch.stack(column) for name, column in columns.items()}
        taken = F.one_hot(all_of["actions"], logits.shape[-1]).bool()
        log_probs = all_of.pop("logits").log_softmax(-1)[taken].reshape(taken.shape[:2])
        values = model(all_of["observations"])[1]
        next_values = model(all_of.pop("arrived"))[1]
    rollout = Rollout(log_probs=log_probs, values=values, next_values=next_values, **all_of)
    return rollout, observations


def gae(rollout, gamma, lam):
    deltas = rollout.rewards - rollout.values
    deltas = deltas + gamma * torch.where(rollout.terminated, 0, rollout.next_values)
    ends = (rollout.terminated | rollout.truncated).long()
    before = ends.cumsum(0) - ends  # how many episodes have ended before a step
    time = torch.arange(len(deltas))
    ahead = time[None, :] - time[:, None]
    weights = torch.where(ahead < 0, 0.0, (gamma * lam) ** ahead.clamp(min=0).double())
    same = before[:, None, :] == before[None, :, :]
    sums = torch.einsum("ts,tsn,sn->tn", weights, same.double(), deltas.double())
    advantages = sums.to(deltas.dtype)
    return advantages, advantages + rollout.values


def ppo_loss(logits, values, actions, old_log_probs, advantages, returns, config):
    log_ratio = -F.cross_entropy(logits, actions, reduction="none") - old_log_probs
    ratio = log_ratio.exp()
    bound = torch.where(advantages > 0, 1 + config.clip, 1 - config.clip)
    unclipped = ratio * advantages
    surrogate = torch.where(unclipped < bound * advantages, unclipped, bound * advantages)
    log_probs = F.log_softmax(logits, -1)
    parts = {
        "policy_loss": surrogate.mean().neg(),
        "value_loss": F.mse_loss(values, returns),
        "entropy": -torch.einsum("ba,ba->b", log_probs.exp(), log_probs).mean(),
    }
    parts["loss"] = (
        parts["policy_loss"]
        + config.value_coef * parts["value_loss"]
        - config.entropy_coef * parts["entropy"]
    )
    parts["kl"] = (ratio - log_ratio).detach().mean() - 1
    parts["clip_fraction"] = ((ratio.detach() - 1).abs() > config.clip).float().mean()
    return parts


def update(model, optimizer, rollout, config, generator):
    advantages, returns = gae(rollout, config.gamma, config.lam)
    scaled = (advantages - advantages.mean()) / (advantages.std(unbiased=False) + 1e-8)
    size = scaled.numel()
    data = torch.utils.data.TensorDataset(
        *(
            field.reshape(size, *field.shape[2:])
            for field in (rollout.observations, rollout.actions, rollout.log_probs, scaled, returns)
        )
    )
    names, rows, weights = [], [], []
    weights_of_model = list(model.parameters())
    for _ in range(config.epochs):
        order = torch.rand(size, generator=generator, dtype=torch.float64).argsort()
        for start in range(0, size, config.minibatch_size):
            observations, *rest = data[order[start : start + config.minibatch_size]]
            stats = ppo_loss(*model(observations), *rest, config)
            grads = torch.autograd.grad(stats["loss"], weights_of_model, allow_unused=True)
            norm = math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))
            for weight, grad in zip(weights_of_model, grads, strict=True):
                factor = min(1.0, config.max_grad_norm / (norm + 1e-6))
                weight.grad = None if grad is None else grad * factor
            optimizer.step()
            names = list(stats)
            rows.append([value.item() for value in stats.values()])
            weights.append(len(observations))
    return dict(zip(names, np.average(rows, axis=0, weights=weights).tolist(), strict=True))


class Adam:
    """Adam, https://arxiv.org/abs/1412.6980, with eps 1e-5."""

    def __init__(self, weights):
        self.weights, self.count, self.lr = list(weights), 0, 0.0
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights]

    @torch.no_grad()
    def step(self):
        self.count += 1
        for weight, (mean, square) in zip(self.weights, self.moments, strict=True):
            if weight.grad is not None:
                mean.mul_(0.9).add_(weight.grad, alpha=0.1)
                square.mul_(0.999).addcmul_(weight.grad, weight.grad, value=0.001)
                root = (square / (1 - 0.999**self.count)).sqrt() + 1e-5
                weight -= self.lr * mean / (1 - 0.9**self.count) / root


def train(world, model, config, updates, generator):
    optimizer = Adam(model.parameters())
    observations = world.reset()
    purse = np.zeros(len(observations))
    for k in range(updates):
        optimizer.lr = config.lr * (updates - k) / updates
        rollout, observations = collect(world, model, observations, config.num_steps, generator)
        over = (rollout.terminated | rollout.truncated).numpy()
        paid = []
        for rewards, ends in zip(rollout.rewards.double().numpy(), over, strict=True):
            purse = purse + rewards
            paid.extend(purse[ends])
            purse = purse * ~ends
        log = {"lr": optimizer.lr, "episode_return": float(np.mean(paid)) if paid else math.nan}
        yield {**log, **update(model, optimizer, rollout, config, generator)}


def run(seed=0, steps=None):
    steps = 40 if steps is None else steps
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 77)
        model = ActorCritic(30, 4)
    config, world = Config(), GridWorld(32, 8, generator)
    for line in train(world, model, config, steps, generator):
        with torch.no_grad():
            logits, values = model(torch.eye(30))
        truth = true_values(world, logits.softmax(-1), 0.9)[world.starts]
        error = (values[world.starts] - truth).square().mean().sqrt()
        yield {**line, "value": truth.mean().item(), "value_error": error.item()}
