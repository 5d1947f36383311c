"""Style: lists of Python numbers and loops over environments, torch for the networks alone."""

import math
from dataclasses import dataclass

import torch
from torch import nn

GRID = ["...#.X", "......", ".#..#.", "...O..", "G..#.."]
PAY = {".": -0.02, "G": 0.2, "X": 1.0, "O": -1.0, "#": 0.0}


def look(cell, action):
    row, column = cell // 6, cell % 6
    if action == 0:
        target = (row - 1, column)
    elif action == 1:
        target = (row, column + 1)
    elif action == 2:
        target = (row + 1, column)
    else:
        target = (row, column - 1)
    free = target[0] in range(5) and target[1] in range(6)
    if not free or GRID[target[0]][target[1]] == "#":
        target = (row, column)
    return target[0] * 6 + target[1], GRID[target[0]][target[1]]


class GridWorld:
    def __init__(self, num_envs, time_limit, generator):
        self.num_envs = num_envs
        self.time_limit = time_limit
        self.generator = generator
        self.looks = looks = [[look(cell, a) for a in range(4)] for cell in range(30)]
        self.next_cell = torch.tensor([[cell for cell, _ in row] for row in looks])
        self.reward = torch.tensor([[PAY[kind] for _, kind in row] for row in looks])
        self.terminal = torch.tensor([[kind in ("X", "O") for _, kind in row] for row in looks])
        self.starts = torch.tensor([i for i in range(30) if GRID[i // 6][i % 6] in (".", "G")])
        self.where = []
        self.steps_taken = []

    def start(self):
        number = torch.randint(0, len(self.starts), (), generator=self.generator)
        return int(self.starts[int(number)])

    def picture(self, cells):
        return torch.tensor([[float(place == cell) for place in range(30)] for cell in cells])

    def reset(self):
        self.where = [self.start() for _ in range(self.num_envs)]
        self.steps_taken = [0] * self.num_envs
        return self.picture(self.where)

    def step(self, actions):
        reached, rewards, terminated, truncated = [], [], [], []
        for n, action in enumerate(actions.tolist()):
            cell, kind = self.looks[self.where[n]][action]
            reached.append(cell)
            rewards.append(PAY[kind])
            terminated.append(kind in ("X", "O"))
            self.steps_taken[n] += 1
            truncated.append(self.steps_taken[n] == self.time_limit)
            self.where[n] = reached[n]
            if terminated[n] or truncated[n]:
                self.where[n] = self.start()
                self.steps_taken[n] = 0
        return (
            self.picture(reached),
            torch.tensor(rewards),
            torch.tensor(terminated),
            torch.tensor(truncated),
            self.picture(self.where),
        )


def true_values(world, probs, gamma):
    probs = probs.double()
    reward, goes_on = world.reward.double(), (~world.terminal).double()
    values = torch.zeros(len(probs), dtype=torch.float64)
    while True:
        worth = reward + gamma * goes_on * values[world.next_cell]
        new = (probs * worth).sum(1)
        if (new - values).abs().max() <= 1e-13:
            return new
        values = new


class ActorCritic(nn.Module):
    def __init__(self, inputs, actions, width=32):
        super().__init__()
        self.a1 = nn.Linear(inputs, width)
        self.a2 = nn.Linear(width, actions)
        self.v1 = nn.Linear(inputs, width)
        self.v2 = nn.Linear(width, 1)

    def forward(self, observations):
        logits = self.a2(torch.tanh(self.a1(observations)))
        return logits, self.v2(torch.tanh(self.v1(observations)))[..., 0]


@dataclass
class Config:
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


@dataclass
class Rollout:
    observations: torch.Tensor
    actions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    next_values: torch.Tensor


def collect(world, model, observations, num_steps, generator):
    fields = [[] for _ in range(8)]
    with torch.no_grad():
        for _ in range(num_steps):
            logits, values = model(observations)
            probs = torch.softmax(logits, -1)
            spot = torch.rand(len(probs), 1, generator=generator)
            last = probs.shape[-1] - 1
            actions = (spot > probs.cumsum(-1)).sum(-1).clamp(max=last)
            chosen = torch.log_softmax(logits, -1)[torch.arange(len(probs)), actions]
            arrived, rewards, terminated, truncated, after = world.step(actions)
            row = (observations, actions, chosen, values, rewards, terminated, truncated)
            for field, value in zip(fields, (*row, model(arrived)[1]), strict=True):
                field.append(value)
            observations = after
    return Rollout(*(torch.stack(field) for field in fields)), observations


def gae(rollout, gamma, lam):
    rewards, values, following = (
        x.tolist() for x in (rollout.rewards, rollout.values, rollout.next_values)
    )
    terminated, truncated = rollout.terminated.tolist(), rollout.truncated.tolist()
    steps, envs = len(rewards), len(rewards[0])
    advantages = [[0.0] * envs for _ in range(steps)]
    for n in range(envs):
        for t in range(steps - 1, -1, -1):
            total = rewards[t][n] - values[t][n]
            if not terminated[t][n]:
                total += gamma * following[t][n]
                if not truncated[t][n] and t + 1 < steps:
                    total += gamma * lam * advantages[t + 1][n]
            advantages[t][n] = total
    advantages = torch.tensor(advantages, dtype=rollout.values.dtype)
    return advantages, advantages + rollout.values


def ppo_loss(logits, values, actions, old_log_probs, advantages, returns, config):
    policy = torch.distributions.Categorical(logits=logits, validate_args=False)
    difference = policy.log_prob(actions) - old_log_probs
    ratio = torch.exp(difference)
    low, high = 1 - config.clip, 1 + config.clip
    # A loss with the minus inside is the larger of two.
    losses = torch.max(-advantages * ratio, -advantages * torch.clip(ratio, low, high))
    policy_loss = losses.mean()
    value_loss = ((returns - values) ** 2).mean()
    entropy = policy.entropy().mean()
    return {
        "entropy": entropy,
        "kl": (torch.expm1(difference) - difference).mean(),
        "clip_fraction": torch.logical_or(ratio < low, ratio > high).double().mean(),
        "value_loss": value_loss,
        "policy_loss": policy_loss,
        "loss": policy_loss - config.entropy_coef * entropy + config.value_coef * value_loss,
    }


def update(model, optimizer, rollout, config, generator):
    advantages, returns = gae(rollout, config.gamma, config.lam)
    steps, envs = advantages.shape
    spread = ((advantages - advantages.mean()) ** 2).mean().sqrt()
    advantages = (advantages - advantages.mean()) / (spread + 1e-8)
    sums = {}
    for _ in range(config.epochs):
        order = torch.randperm(steps * envs, generator=generator).tolist()
        while order:
            part, order = order[: config.minibatch_size], order[config.minibatch_size :]
            t = torch.tensor([i % steps for i in part])
            n = torch.tensor([i // steps for i in part])
            logits, values = model(rollout.observations[t, n])
            said = ppo_loss(
                logits,
                values,
                rollout.actions[t, n],
                rollout.log_probs[t, n],
                advantages[t, n],
                returns[t, n],
                config,
            )
            model.zero_grad()
            said["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            for name in said:
                sums[name] = sums.get(name, 0.0) + said[name].item() * len(part)
    return {name: sums[name] / config.epochs / steps / envs for name in sums}


def train(world, model, config, updates, generator):
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, eps=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / updates)
    observations = world.reset()
    earned = [0.0] * len(observations)
    for _ in range(updates):
        log = {"lr": float(schedule.get_last_lr()[0])}
        rollout, observations = collect(world, model, observations, config.num_steps, generator)
        complete = []
        rewards = rollout.rewards.tolist()
        ended = torch.logical_or(rollout.terminated, rollout.truncated).tolist()
        for t in range(config.num_steps):
            for n in range(len(earned)):
                earned[n] += rewards[t][n]
                if ended[t][n]:
                    complete.append(earned[n])
                    earned[n] = 0.0
        log["episode_return"] = math.fsum(complete) / len(complete) if complete else math.nan
        log.update(update(model, optimizer, rollout, config, generator))
        schedule.step()
        yield log


def run(seed=0, steps=None):
    steps = 40 if steps is None else steps
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    model = ActorCritic(30, 4)
    torch.set_rng_state(state)
    generator = torch.Generator()
    generator.manual_seed(1000 + seed)
    config = Config()
    world = GridWorld(32, 8, generator)
    cells = torch.eye(30)
    for log in train(world, model, config, steps, generator):
        logits, values = (out.detach().double() for out in model(cells))
        truth = true_values(world, logits.softmax(-1), config.gamma)
        here = world.starts
        log["value"] = float(truth[here].mean())
        log["value_error"] = float((values[here] - truth[here]).pow(2).mean().sqrt())
        yield log
