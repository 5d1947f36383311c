"""Everything by NumPy tables and data predictions; guidance in one call of twice the rows."""

import copy
import math

import numpy as np
import torch
from torch import nn


def noise_schedule(kind, num_levels):
    bars = np.empty(num_levels + 1)
    bars[0] = 1.0
    for t in range(1, num_levels + 1):
        if kind == "linear":
            beta = (0.1 + (20 - 0.1) * (t - 1) / (num_levels - 1)) / num_levels
        else:

            def f(u):
                return math.cos((u / num_levels + 0.008) / 1.008 * math.pi / 2) ** 2

            beta = min(0.999, 1 - f(t) / f(t - 1))
        bars[t] = bars[t - 1] * (1 - beta)
    return torch.from_numpy(bars)


def sampling_levels(num_levels, count, spacing):
    if spacing == "trailing":
        exact = np.arange(count + 1) * num_levels / count
    elif count == 1:
        exact = np.array([0, num_levels])
    else:
        exact = np.concatenate([[0], np.linspace(1, num_levels, count)])
    return tuple(int(level) for level in np.floor(exact + 0.5)[::-1])


class Diffusion:
    def __init__(self, alpha_bars, predicts, num_labels, gamma=5.0, drop_prob=0.0):
        self.alpha_bars = alpha_bars
        self.predicts, self.num_labels = predicts, num_labels
        self.gamma, self.drop_prob = gamma, drop_prob
        self.table = alpha_bars.numpy()

    def _at(self, t, like):
        rows = self.table[t.numpy()].reshape((-1,) + (1,) * (like.ndim - 1))
        a = torch.from_numpy(np.sqrt(rows)).to(like)
        s = torch.from_numpy(np.sqrt(1 - rows)).to(like)
        return a, s

    def q_sample(self, x0, t, noise):
        a, s = self._at(t, x0)
        return a * x0 + s * noise

    def target(self, x0, t, noise):
        a, s = self._at(t, x0)
        return {"epsilon": lambda: noise, "x0": lambda: x0, "v": lambda: a * noise - s * x0}[
            self.predicts
        ]()

    def x0_and_epsilon(self, output, x, t):
        a, s = self._at(t, x)
        if self.predicts == "x0":
            x0 = output
        elif self.predicts == "epsilon":
            x0 = (x - s * output) / a
        else:
            x0 = a * x - s * output
        if self.predicts == "v":
            return x0, s * x + a * output
        return x0, (x - a * x0) / s if self.predicts == "x0" else output

    def loss_weights(self, t):
        bars = self.table[t.numpy()]
        per_x0 = np.minimum(bars / (1 - bars), self.gamma)
        share = {"x0": 1.0, "epsilon": (1 - bars) / bars, "v": 1 - bars}[self.predicts]
        return torch.from_numpy(per_x0 * share)

    def loss(self, model, x0, labels, generator):
        rows = len(x0)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        coins = torch.rand(rows, generator=generator)
        t = 1 + torch.randint(len(self.table) - 1, (rows,), generator=generator)
        seen = torch.where(coins < self.drop_prob, torch.full_like(labels, self.num_labels), labels)
        off = model(self.q_sample(x0, t, noise), t, seen) - self.target(x0, t, noise)
        weights = self.loss_weights(t).to(off).reshape((-1,) + (1,) * (off.ndim - 1))
        return (weights * off * off).mean()

    def guided(self, model, x, t, labels, guidance):
        none = torch.full_like(labels, self.num_labels)
        both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([none, labels]))
        free, given = both[: len(x)], both[len(x) :]
        return (1 - guidance) * free + guidance * given

    def ddpm_step(self, x, x0, t, s, noise):
        now, then = float(self.table[t]), float(self.table[s])
        if s == 0:
            return x0.clone()
        # Two independent measurements of x at s: from the data, and from x. Precisions add up.
        kept = now / then
        from_x0, from_x = 1 / (1 - then), kept / (1 - kept)
        total = from_x0 + from_x
        mean = (from_x0 * math.sqrt(then) * x0 + from_x / math.sqrt(kept) * x) / total
        return mean + noise / math.sqrt(total)

    def ddim_step(self, x0, epsilon, t, s, noise, eta=0.0):
        now, then = float(self.table[t]), float(self.table[s])
        sigma = eta * math.sqrt((1 - now / then) * (1 - then) / (1 - now))
        old = math.sqrt(max(0.0, 1 - then - sigma * sigma))
        return math.sqrt(then) * x0 + old * epsilon + sigma * noise

    def sample(self, model, labels, levels, generator, *, sampler="ddim", eta=0.0, guidance=1.0):
        with torch.no_grad():
            x = torch.empty(len(labels), 2).normal_(generator=generator)
            for place in range(len(levels) - 1):
                t, s = levels[place], levels[place + 1]
                at = torch.full((len(labels),), t)
                output = self.guided(model, x, at, labels, guidance)
                x0, epsilon = self.x0_and_epsilon(output, x, at)
                fresh = torch.empty_like(x)
                if s:
                    fresh.normal_(generator=generator)
                else:
                    fresh.zero_()
                if sampler == "ddpm":
                    x = self.ddpm_step(x, x0, t, s, fresh)
                else:
                    x = self.ddim_step(x0, epsilon, t, s, fresh, eta)
        return x


class Mixture:
    def __init__(self, means, stds, weights):
        self.means, self.stds, self.weights = means, stds, weights

    def sample(self, count, generator):
        edges = self.weights.double().cumsum(0)
        draws = torch.rand(count, generator=generator, dtype=torch.float64)
        labels = torch.searchsorted(edges, draws, right=True).clamp(max=len(edges) - 1)
        points = torch.randn(count, 2, generator=generator, dtype=self.means.dtype)
        return self.means[labels] + points * self.stds[labels].unsqueeze(1), labels

    def epsilon(self, x, t, labels, alpha_bars):
        out = torch.zeros_like(x, dtype=torch.float64)
        bar = alpha_bars[t]
        logs, noises = [], []
        for mean, std, weight in zip(self.means, self.stds, self.weights, strict=True):
            var = bar * std.double() ** 2 + 1 - bar
            away = x.double() - bar.sqrt()[:, None] * mean.double()
            logs.append(weight.double().log() - var.log() - 0.5 * away.square().sum(1) / var)
            noises.append((1 - bar).sqrt()[:, None] * away / var[:, None])
        logs = torch.stack(logs)
        shares = (logs - torch.logsumexp(logs, 0)).exp()
        for label, noise in enumerate(noises):
            share = torch.where(labels == len(noises), shares[label], (labels == label).double())
            out += share[:, None] * noise
        return out.to(x.dtype)


class Denoiser(nn.Module):
    """Levels have an embedding each."""

    def __init__(self, num_labels, width=64):
        super().__init__()
        self.point = nn.Linear(2, width)
        self.level = nn.Embedding(1001, width)
        self.label = nn.Embedding(num_labels + 1, width)
        nn.init.normal_(self.level.weight, std=0.05)
        self.ramp = nn.Linear(2, width)
        self.body = nn.Sequential(
            nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU()
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x, t, labels):
        share = (t / 100).to(x)[:, None]
        ramp = self.ramp(torch.cat([share, share.square()], 1))
        return self.head(self.body(self.point(x) + ramp + self.level(t) + self.label(labels)))


class EMA:
    def __init__(self, model, decay):
        self.model = copy.deepcopy(model)
        for p in self.model.parameters():
            p.requires_grad = False
        self.decay, self.count = decay, 0

    def update(self, model):
        self.count += 1
        d = min(self.decay, (self.count + 1) / (self.count + 10))
        source = dict(model.named_parameters())
        for name, p in self.model.named_parameters():
            p.data.mul_(d).add_(source[name].data, alpha=1 - d)
        buffers = dict(model.named_buffers())
        for name, b in self.model.named_buffers():
            b.copy_(buffers[name])


def assess(diffusion, model, mixture, seed):
    rng = torch.Generator().manual_seed(1000 + seed)
    points, labels = mixture.sample(2000, rng)
    noise = torch.randn(2000, 2, generator=rng)
    top = len(diffusion.alpha_bars) - 1
    t = torch.randint(1, top + 1, (2000,), generator=rng)
    x = diffusion.q_sample(points, t, noise)
    shown = labels.clone()
    shown[::2] = diffusion.num_labels
    with torch.no_grad():
        found = diffusion.x0_and_epsilon(model(x, t, shown), x, t)[1]
    off = found - mixture.epsilon(x, t, shown, diffusion.alpha_bars)
    out = {"gap": float((off**2).mean())}
    levels = sampling_levels(top, 40, "trailing")
    last = diffusion.num_labels - 1
    for name, label, data in (
        ("ddim", 0, points[labels == 0]),
        ("ddpm", last, points[labels == last]),
        ("free", last + 1, points),
    ):
        kind = "ddpm" if name == "ddpm" else "ddim"
        got = diffusion.sample(model, torch.full((1000,), label), levels, rng, sampler=kind)
        out[name + "_shift"] = float(torch.dist(got.mean(0), data.mean(0)))
        out[name + "_spread"] = math.sqrt(float(got.var(0).sum() / data.var(0).sum()))
    return out


def run(seed=0, steps=None):
    steps = 600 if steps is None else steps
    rng = torch.Generator().manual_seed(seed + 77)
    mixture = Mixture(
        torch.tensor([[1.8, 0.6], [-1.2, 1.5], [-0.5, -1.7]]),
        torch.tensor([0.5, 0.35, 0.7]),
        torch.tensor([0.5, 0.2, 0.3]),
    )
    process = Diffusion(noise_schedule("cosine", 100), "v", 3, drop_prob=0.2)
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed + 77)
    model = Denoiser(3)
    torch.set_rng_state(before)
    average = EMA(model, 0.98)
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    points, labels = mixture.sample(5120, rng)
    for step in range(steps):
        rows = torch.arange(256) + 256 * (step % 20)
        adam.zero_grad()
        loss = process.loss(model, points[rows], labels[rows], rng)
        loss.backward()
        adam.step()
        average.update(model)
        line = {"loss": float(loss.detach())}
        if step % 100 == 99 or step == steps - 1:
            line.update(assess(process, average.model, mixture, seed))
        yield line
