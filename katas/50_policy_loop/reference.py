"""Proximal policy optimisation on a small grid world, where a time limit cuts episodes short."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAP = """
...#.X
......
.#..#.
...O..
G..#..
"""
REWARDS = {".": -0.02, "G": 0.2, "X": 1.0, "O": -1.0, "#": 0.0}  # of a step that ends there
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left: by rows and columns


class GridWorld:
    """Deterministic moves between the 30 cells of `MAP`, numbered row by row and seen one-hot.

    `next_cell` int64, `reward` float32 and `terminal` bool, all (30, 4), say what actions do.
    """

    def __init__(self, num_envs: int, time_limit: int, generator: torch.Generator) -> None:
        """Cut episodes off after `time_limit` steps; `generator` draws where they start."""
        self.num_envs, self.time_limit, self.generator = num_envs, time_limit, generator
        lines = MAP.split()
        kinds, width = "".join(lines), len(lines[0])
        cells = torch.arange(len(kinds))
        rows, columns = cells // width, cells % width
        down, right = torch.tensor(MOVES).T
        to_rows = (rows[:, None] + down).clamp(0, len(lines) - 1)
        to_columns = (columns[:, None] + right).clamp(0, width - 1)
        targets = to_rows * width + to_columns
        walls = torch.tensor([kind == "#" for kind in kinds])
        self.next_cell = torch.where(walls[targets], cells[:, None], targets)
        self.reward = torch.tensor([REWARDS[kind] for kind in kinds])[self.next_cell]
        self.terminal = torch.tensor([kind in "XO" for kind in kinds])[self.next_cell]
        self.starts = torch.tensor([cell for cell, kind in enumerate(kinds) if kind in ".G"])

    def reset(self) -> Tensor:
        """Begin a new episode in each environment; return the first observations."""
        self.cells, self.ages = self._draw(), torch.zeros(self.num_envs, dtype=torch.int64)
        return self._observe(self.cells)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Take actions (N,); return arrived, rewards, terminated, truncated, observations.

        `arrived` is where they led to; where that was the end, `observations` begin a new episode.
        """
        rewards = self.reward[self.cells, actions]
        terminated = self.terminal[self.cells, actions]
        reached = self.next_cell[self.cells, actions]
        truncated = self.ages + 1 >= self.time_limit
        ended = terminated | truncated
        self.cells = torch.where(ended, self._draw(), reached)
        self.ages = torch.where(ended, 0, self.ages + 1)
        return self._observe(reached), rewards, terminated, truncated, self._observe(self.cells)

    def _draw(self) -> Tensor:
        drawn = torch.randint(len(self.starts), (self.num_envs,), generator=self.generator)
        return self.starts[drawn]

    def _observe(self, cells: Tensor) -> Tensor:
        return F.one_hot(cells, len(self.next_cell)).float()


def true_values(world: GridWorld, probs: Tensor, gamma: float) -> Tensor:
    """Return a policy's values, float64 (30,), without a time limit: they solve V = r + gamma P V.

    The policy is probs (30, 4); nothing follows a terminal step.
    """
    follows = F.one_hot(world.next_cell, len(probs)) * ~world.terminal[..., None]
    transition = (probs.double()[..., None] * follows).sum(dim=1)
    reward = (probs.double() * world.reward).sum(dim=1)
    return torch.linalg.solve(torch.eye(len(probs)).double() - gamma * transition, reward)


class ActorCritic(nn.Module):
    """Maps observations (..., D) to logits (..., A) and values (...), by two separate networks."""

    def __init__(self, inputs: int, actions: int, width: int = 32) -> None:
        """Begin with PyTorch's weights, close to the uniform policy and to values of zero."""
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, actions))
        self.critic = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and values."""
        return self.actor(observations), self.critic(observations).squeeze(-1)


class Config(NamedTuple):
    """The settings; an update is a rollout of `num_steps` and the epochs on it."""

    lr: float = 0.01
    gamma: float = 0.9
    lam: float = 0.8
    num_steps: int = 24
    epochs: int = 4
    minibatch_size: int = 192
    clip: float = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.04
    max_grad_norm: float = 0.5


class Rollout(NamedTuple):
    """What N environments did in T steps: all (T, N), observations (T, N, D)."""

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    next_values: Tensor  # of the observations that the actions led to


@torch.no_grad()
def collect(
    world: GridWorld,
    model: nn.Module,
    observations: Tensor,
    num_steps: int,
    generator: torch.Generator,
) -> tuple[Rollout, Tensor]:
    """Act `num_steps` times, from observations (N, D) on; return also those to go on from."""
    steps, arrivals = [], []
    for _ in range(num_steps):
        logits, values = model(observations)
        log_probs = logits.log_softmax(dim=-1)
        drawn = torch.multinomial(log_probs.exp(), 1, generator=generator)
        actions, taken = drawn.squeeze(-1), log_probs.gather(-1, drawn).squeeze(-1)
        arrived, *outcome, following = world.step(actions)
        steps.append((observations, actions, taken, values, *outcome))
        arrivals.append(arrived)
        observations = following
    _, next_values = model(torch.stack(arrivals))
    columns = (torch.stack(column) for column in zip(*steps, strict=True))
    return Rollout(*columns, next_values), observations


def gae(rollout: Rollout, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return advantages, https://arxiv.org/abs/1506.02438, and the critic's targets, both (T, N).

    Nothing follows a terminal step; after a truncated one counts the value of where it led to.
    """
    bootstrap = rollout.next_values * ~rollout.terminated
    deltas = rollout.rewards + gamma * bootstrap - rollout.values
    goes_on = ~(rollout.terminated | rollout.truncated)
    advantages = torch.empty_like(deltas)
    following = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        advantages[t] = following = deltas[t] + gamma * lam * following * goes_on[t]
    return advantages, advantages + rollout.values


def ppo_loss(
    logits: Tensor,
    values: Tensor,
    actions: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    returns: Tensor,
    config: Config,
) -> dict[str, Tensor]:
    """Return the loss of B transitions, https://arxiv.org/abs/1707.06347, and its parts, all ()."""
    log_probs = logits.log_softmax(dim=-1)
    log_ratio = log_probs.gather(-1, actions[:, None]).squeeze(-1) - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    value_loss = (values - returns).square().mean()
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1).mean()
    loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    kl = (ratio - 1 - log_ratio).mean()  # k3 of http://joschu.net/blog/kl-approx.html
    clip_fraction = ((ratio - 1).abs() > config.clip).float().mean()
    parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    return {"loss": loss} | parts | {"kl": kl.detach(), "clip_fraction": clip_fraction}


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    config: Config,
    generator: torch.Generator,
) -> dict[str, float]:
    """Train on a rollout for `epochs`; return the means of what `ppo_loss` said meanwhile."""
    advantages, returns = gae(rollout, config.gamma, config.lam)
    size = advantages.numel()
    normalised = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    fields = (rollout.observations, rollout.actions, rollout.log_probs, normalised, returns)
    columns = [field.flatten(0, 1) for field in fields]
    totals: dict[str, float] = {}
    for _ in range(config.epochs):
        order = torch.randperm(size, generator=generator)
        for chosen in order.split(config.minibatch_size):
            observations, *rest = (column[chosen] for column in columns)
            stats = ppo_loss(*model(observations), *rest, config)
            optimizer.zero_grad()
            stats["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(chosen)
    return {name: total / (config.epochs * size) for name, total in totals.items()}


def train(
    world: GridWorld, model: nn.Module, config: Config, updates: int, generator: torch.Generator
) -> Iterator[dict[str, float]]:
    """Train by Adam with a rate that falls to zero, and yield the log of each update."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, eps=1e-5)
    observations = world.reset()
    earned = torch.zeros(len(observations))
    for number in range(updates):
        lr = config.lr * (1 - number / updates)
        optimizer.param_groups[0]["lr"] = lr
        rollout, observations = collect(world, model, observations, config.num_steps, generator)
        finished = []
        for t, ended in enumerate(rollout.terminated | rollout.truncated):
            earned = earned + rollout.rewards[t]
            finished += earned[ended].tolist()
            earned = torch.where(ended, 0.0, earned)
        episode_return = sum(finished) / len(finished) if finished else math.nan
        stats = update(model, optimizer, rollout, config, generator)
        yield {"lr": lr, "episode_return": episode_return} | stats


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Train for 40 updates by default; log also what the policy is truly worth at the starts."""
    generator = torch.Generator().manual_seed(seed)
    world, config = GridWorld(num_envs=32, time_limit=8, generator=generator), Config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ActorCritic(*world.next_cell.shape)
    for log in train(world, model, config, 40 if steps is None else steps, generator):
        with torch.no_grad():
            logits, values = model(torch.eye(len(world.next_cell)))
        truth = true_values(world, logits.softmax(dim=-1), config.gamma)
        error = (values - truth)[world.starts].square().mean().sqrt().item()
        yield log | {"value": truth[world.starts].mean().item(), "value_error": error}
