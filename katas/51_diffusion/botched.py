"""Diffusion on Gaussian mixtures, where the best denoiser is known: DDPM, DDIM, guidance, EMA."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

Model = Callable[[Tensor, Tensor, Tensor], Tensor]  # points (N, 2), levels (N,), labels (N,)


def noise_schedule(kind: str, num_levels: int) -> Tensor:
    """Return alpha-bar of levels 0, which is the data, to num_levels: float64 (num_levels + 1,)."""
    levels = torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
    if kind == "linear":  # https://arxiv.org/abs/2006.11239, stretched to any number of levels
        betas = torch.linspace(0.1, 20, num_levels, dtype=torch.float64) / num_levels
    else:  # https://arxiv.org/abs/2102.09672
        signal = torch.cos((levels + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    return torch.cat([levels.new_ones(1), (1 - betas).cumprod(dim=0)])


def sampling_levels(num_levels: int, count: int, spacing: str) -> list[int]:
    """Return count + 1 levels, from num_levels to 0, https://arxiv.org/abs/2305.08891, table 2."""
    if spacing == "trailing":  # equal steps down to level 0; "linspace" has them down to level 1
        return [round(num_levels * left / count) for left in range(count, -1, -1)]
    return [*torch.linspace(num_levels, 1, count).round().int().tolist(), 0]


@dataclass(frozen=True)
class Diffusion:
    """A schedule, and what models predict: "epsilon", "x0" or "v". Label num_labels means none."""

    alpha_bars: Tensor  # float64 (levels + 1,)
    predicts: str
    num_labels: int
    gamma: float = 5.0
    drop_prob: float = 0.0

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scales of signal and noise at levels t (N,), each (N, 1, ...) as `like`."""
        alpha_bar = self.alpha_bars[t].view(-1, *[1] * (like.ndim - 1))
        return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the data x0 (N, ...), with noise of the same shape, at levels t (N,)."""
        signal, sigma = self.scales(t, x0)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return what the model should predict for q_sample(x0, t, noise)."""
        signal, sigma = self.scales(t, x0)
        if self.predicts == "v":  # https://arxiv.org/abs/2202.00512
            return signal * noise - sigma * x0
        return noise if self.predicts == "epsilon" else x0

    def x0_and_epsilon(self, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return data and noise according to a model's output for x (N, ...) at levels t >= 1."""
        signal, sigma = self.scales(t, x)
        if self.predicts == "epsilon":
            return (x - sigma * output) / signal, output
        if self.predicts == "x0":
            return output, (x - signal * output) / sigma
        return signal * x - sigma * output, sigma * x + signal * output

    def loss_weights(self, t: Tensor) -> Tensor:
        """Return the min-SNR weights (N,) of levels t >= 1, https://arxiv.org/abs/2303.09556."""
        snr = self.alpha_bars[t] / (1 - self.alpha_bars[t])
        if self.predicts == "v":
            snr = snr + 1
        weights = snr.clamp(max=self.gamma)
        return weights if self.predicts == "x0" else weights / snr

    def loss(self, model: Model, x0: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error, weighted, on data x0 (N, ...) at random levels, as ()."""
        t = torch.randint(1, len(self.alpha_bars), labels.shape, generator=generator)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        dropped = torch.rand(labels.shape, generator=generator) < self.drop_prob
        given = labels.masked_fill_(dropped, self.num_labels)
        output = model(self.q_sample(x0, t, noise), t, given)
        errors = (output - self.target(x0, t, noise)).square().flatten(1).mean(dim=1)
        return (self.loss_weights(t).to(errors.dtype) * errors).mean()

    def guided(self, model: Model, x: Tensor, t: Tensor, labels: Tensor, guidance: float) -> Tensor:
        """Return the output with guidance by labels, 1 for none, https://arxiv.org/abs/2207.12598."""
        given = model(x, t, labels)
        free = model(x, t, torch.full_like(labels, self.num_labels))
        return free + guidance * (given - free)

    def ddpm_step(self, x: Tensor, x0: Tensor, t: int, s: int, noise: Tensor) -> Tensor:
        """Return a sample of the posterior at level s < t, given x at level t and the data x0."""
        now, then = self.alpha_bars[t], self.alpha_bars[s]
        alpha = now / then
        beta = 1 - alpha
        mean = (then.sqrt() * beta * x0 + alpha.sqrt() * (1 - then) * x) / (1 - now)
        variance = beta * (1 - then) / (1 - now)
        return mean + variance.sqrt() * noise

    def ddim_step(
        self, x0: Tensor, epsilon: Tensor, t: int, s: int, noise: Tensor, eta: float = 0.0
    ) -> Tensor:
        """Step from level t to s < t as equation 12 of https://arxiv.org/abs/2010.02502 does."""
        now, then = self.alpha_bars[t], self.alpha_bars[s]
        variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        direction = (1 - then - variance).clamp(min=0).sqrt()
        return then.sqrt() * x0 + direction * epsilon + variance.sqrt() * noise

    @torch.no_grad()
    def sample(
        self,
        model: Model,
        labels: Tensor,
        levels: Sequence[int],
        generator: torch.Generator,
        *,
        sampler: str = "ddim",
        eta: float = 0.0,
        guidance: float = 1.0,
    ) -> Tensor:
        """Return a point for each label, float32 (N, 2), by steps from each level to the next."""
        x = torch.randn(len(labels), 2, generator=generator)
        stride = levels[0] // (len(levels) - 1)
        for t, _ in pairwise(levels):
            s = max(t - stride, 0)
            at = torch.full_like(labels, t)
            x0, epsilon = self.x0_and_epsilon(self.guided(model, x, at, labels, guidance), x, at)
            noise = torch.randn(x.shape, generator=generator)
            if sampler == "ddpm":
                x = self.ddpm_step(x, x0, t, s, noise)
            else:
                x = self.ddim_step(x0, epsilon, t, s, noise, eta)
        return x


@dataclass(frozen=True)
class Mixture:
    """Round Gaussians in the plane; the label of a point is the number of its Gaussian."""

    means: Tensor  # (K, 2)
    stds: Tensor  # (K,)
    weights: Tensor  # (K,), with a sum of 1

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return points (count, 2), and their labels (count,)."""
        labels = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, generator=generator)
        return self.means[labels] + self.stds[labels, None] * noise, labels

    def epsilon(self, x: Tensor, t: Tensor, labels: Tensor, alpha_bars: Tensor) -> Tensor:
        """Return the expected noise in points x (N, 2) at levels t (N,); a label may be none."""
        alpha_bar = alpha_bars[t][:, None]
        signal, sigma = alpha_bar.sqrt().to(x.dtype), (1 - alpha_bar).sqrt().to(x.dtype)
        variances = (signal * self.stds) ** 2 + sigma**2  # (N, K)
        away = x[:, None] - signal[:, None] * self.means  # (N, K, 2)
        densities = -away.square().sum(dim=2) / (2 * variances) - variances.log()
        label, known = labels[:, None], len(self.means)
        others = (torch.arange(known) != label) & (label < known)
        densities = (densities + self.weights.log()).masked_fill(others, -math.inf)
        means = sigma[:, None] * away / variances[..., None]
        return (densities.softmax(dim=1)[..., None] * means).sum(dim=1)


class Denoiser(nn.Module):
    """A small network from points, levels and labels to what a diffusion model predicts."""

    def __init__(self, num_labels: int, width: int = 64) -> None:
        """Have an embedding for each label, and one for none."""
        super().__init__()
        self.register_buffer("frequencies", 1000 ** -torch.linspace(0, 1, 16))
        self.inputs = nn.Linear(2 + 2 * 16, width)
        self.labels = nn.Embedding(num_labels + 1, width)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Map points (N, 2), levels (N,) and labels (N,) to (N, 2)."""
        angles = t[:, None] * self.frequencies
        h = self.inputs(torch.cat([x, angles.sin(), angles.cos()], dim=1))
        return self.out(self.layers(h + self.labels(labels)))


class EMA:
    """A moving average of a model's weights, over a window that grows at first."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with a copy of the model."""
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights, and copy its buffers."""
        self.updates += 1
        self.decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mean, new in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(new, 1 - self.decay)
        for mine, new in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(new)


@torch.no_grad()
def assess(diffusion: Diffusion, model: Model, mixture: Mixture, seed: int) -> dict[str, float]:
    """Return how far a model is from the best one, and its samples from the data."""
    generator = torch.Generator().manual_seed(seed)
    points, labels = mixture.sample(2000, generator)
    t = torch.randint(1, len(diffusion.alpha_bars), labels.shape, generator=generator)
    x = diffusion.q_sample(points, t, torch.randn(points.shape, generator=generator))
    none = diffusion.num_labels
    given = labels.masked_fill(torch.arange(len(labels)) % 2 == 0, none)
    _, epsilon = diffusion.x0_and_epsilon(model(x, t, given), x, t)
    best = mixture.epsilon(x, t, given, diffusion.alpha_bars)
    log = {"gap": (epsilon - best).square().mean().item()}
    levels = sampling_levels(len(diffusion.alpha_bars) - 1, 40, "trailing")
    for name, label in {"ddim": 0, "ddpm": none - 1, "free": none}.items():
        data = points if label == none else points[labels == label]
        sampler = "ddpm" if name == "ddpm" else "ddim"
        asked = labels.new_full((1000,), label)
        samples = diffusion.sample(model, asked, levels, generator, sampler=sampler)
        log[f"{name}_shift"] = (samples.mean(dim=0) - data.mean(dim=0)).norm().item()
        log[f"{name}_spread"] = (samples.std(dim=0).norm() / data.std(dim=0).norm()).item()
    return log


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Train a denoiser of a mixture; yield each step's loss, and every 100 steps an assessment."""
    steps = 600 if steps is None else steps
    generator = torch.Generator().manual_seed(seed)
    means = torch.tensor([[1.8, 0.6], [-1.2, 1.5], [-0.5, -1.7]])
    mixture = Mixture(means, torch.tensor([0.5, 0.35, 0.7]), torch.tensor([0.5, 0.2, 0.3]))
    diffusion = Diffusion(noise_schedule("cosine", 100), "v", num_labels=3, drop_prob=0.2)
    with torch.random.fork_rng(devices=[]):  # initial weights draw from the global generator
        torch.manual_seed(seed)
        model = Denoiser(num_labels=3)
    ema, optimizer = EMA(model, decay=0.98), torch.optim.Adam(model.parameters(), lr=3e-3)
    points, labels = mixture.sample(5120, generator)
    batches = list(zip(points.split(256), labels.split(256), strict=True))
    for step in range(steps):
        loss = diffusion.loss(model, *batches[step % len(batches)], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
        log = {"loss": loss.item()}
        if (step + 1) % 100 == 0 or step + 1 == steps:
            log |= assess(diffusion, ema.model, mixture, seed)
        yield log
