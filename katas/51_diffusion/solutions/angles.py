"""Levels as angles: x is the data and the noise turned, v is x turned on by a right angle."""

import copy
from types import SimpleNamespace

import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal


def noise_schedule(kind, num_levels):
    t = torch.arange(1, num_levels + 1, dtype=torch.float64)
    if kind == "linear":
        keep = 1 - (0.1 + 19.9 * (t - 1) / (num_levels - 1)) / num_levels
    else:
        quarter = torch.pi / 2
        cosine = torch.cos(quarter * (torch.cat([t[:1] * 0, t]) / num_levels + 0.008) / 1.008)
        keep = torch.maximum((cosine[1:] / cosine[:-1]) ** 2, torch.full_like(t, 0.001))
    return torch.cat([torch.ones(1, dtype=torch.float64), keep.log().cumsum(0).exp()])


def sampling_levels(num_levels, count, spacing):
    low = 0 if spacing == "trailing" else 1
    gaps = count if spacing == "trailing" else max(count - 1, 1)
    levels = [num_levels - round((num_levels - low) * i / gaps) for i in range(count)]
    return torch.tensor([*levels, 0])


def turn(angle, a, b):
    return angle.cos() * a + angle.sin() * b, angle.cos() * b - angle.sin() * a


class Diffusion:
    def __init__(self, alpha_bars, predicts, num_labels, gamma=5.0, drop_prob=0.0):
        self.alpha_bars = alpha_bars
        self.predicts = predicts
        self.num_labels = num_labels
        self.gamma = gamma
        self.drop_prob = drop_prob
        self.angles = torch.atan2((1 - alpha_bars).sqrt(), alpha_bars.sqrt())

    def angle(self, t, like):
        return self.angles[t].reshape(len(t), *[1 for _ in like.shape[1:]])

    def q_sample(self, x0, t, noise):
        x, _ = turn(self.angle(t, x0), x0.double(), noise.double())
        return x.to(x0.dtype)

    def target(self, x0, t, noise):
        _, v = turn(self.angle(t, x0), x0.double(), noise.double())
        return SimpleNamespace(epsilon=noise, x0=x0, v=v.to(x0.dtype)).__dict__[self.predicts]

    def x0_and_epsilon(self, output, x, t):
        angle, wide = self.angle(t, x), x.double()
        if self.predicts == "v":
            x0, epsilon = turn(-angle, wide, output.double())
        elif self.predicts == "x0":
            x0, epsilon = output, (wide - angle.cos() * output) / angle.sin()
        else:
            x0, epsilon = (wide - angle.sin() * output) / angle.cos(), output
        return x0.to(x.dtype), epsilon.to(x.dtype)

    def loss_weights(self, t):
        angle = self.angles[t]
        snr = angle.tan() ** -2
        limited = torch.where(snr < self.gamma, snr, torch.tensor(self.gamma).double())
        if self.predicts == "v":
            limited = limited * angle.sin() ** 2
        if self.predicts == "epsilon":
            limited = limited * angle.tan() ** 2
        return limited.float()

    def loss(self, model, x0, labels, generator):
        shares = torch.rand(len(x0), generator=generator, dtype=torch.float64)
        t = (shares * (len(self.alpha_bars) - 1)).long() + 1
        keep = torch.bernoulli(torch.full(labels.shape, 1 - self.drop_prob), generator=generator)
        noise = torch.empty_like(x0).normal_(generator=generator)
        seen = labels * keep.long() + self.num_labels * (1 - keep.long())
        output = model(self.q_sample(x0, t, noise), t, seen)
        rows = (output - self.target(x0, t, noise)).pow(2).reshape(len(x0), -1).mean(1)
        return torch.dot(rows, self.loss_weights(t).to(rows.dtype)) / len(x0)

    def guided(self, model, x, t, labels, guidance):
        free = model(x, t, torch.zeros_like(labels) + self.num_labels)
        return torch.lerp(free, model(x, t, labels), float(guidance))

    def ddpm_step(self, x, x0, t, s, noise):
        angle = self.angles[int(t)]
        epsilon = (x.double() - angle.cos() * x0) / angle.sin()
        return self.ddim_step(x0.double(), epsilon, t, s, noise.double(), 1.0).to(x.dtype)

    def ddim_step(self, x0, epsilon, t, s, noise, eta=0.0):
        now, then = self.angles[int(t)], self.angles[int(s)]
        # Of the noise at s, the part that is old makes this angle with the whole.
        lean = (then.tan() / now.tan()).clamp(max=1)
        fresh = eta * then.sin() * (1 - lean**2).sqrt()
        old = (then.sin() ** 2 - fresh**2).clamp(min=0).sqrt()
        out = then.cos() * x0.double() + old * epsilon.double() + fresh * noise.double()
        return out.to(x0.dtype)

    def sample(self, model, labels, levels, generator, *, sampler="ddim", eta=0.0, guidance=1.0):
        grad = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            count = len(labels)
            shape = (count, 2)
            levels = [int(level) for level in levels]
            noises = torch.randn(len(levels), *shape, generator=generator)
            x = noises[0]
            while len(levels) > 1:
                t, *levels = levels
                rows = torch.tensor([t]).expand(count).contiguous()
                output = self.guided(model, x, rows, labels, guidance)
                x0, epsilon = self.x0_and_epsilon(output, x, rows)
                noise = noises[len(levels)]
                if sampler == "ddim":
                    x = self.ddim_step(x0, epsilon, t, levels[0], noise, eta)
                else:
                    x = self.ddpm_step(x, x0, t, levels[0], noise)
            return x
        finally:
            torch.set_grad_enabled(grad)


class Mixture:
    def __init__(self, means, stds, weights):
        self.means = means
        self.stds = stds
        self.weights = weights

    def sample(self, count, generator):
        noise = torch.randn(count, 2, generator=generator, dtype=self.means.dtype)
        draws = torch.rand(count, 1, generator=generator)
        labels = (draws > self.weights.cumsum(0)[:-1]).sum(1)
        scale = torch.diag(self.stds)[labels].sum(1, keepdim=True)
        return torch.addcmul(self.means[labels], scale, noise), labels

    def epsilon(self, x, t, labels, alpha_bars):
        # The noise is the score, up to a factor; autograd knows the score of a mixture.
        wide = x.detach().double()
        bars = alpha_bars[t]
        count = len(self.means)
        weights = self.weights.double().expand(len(x), -1)
        only = torch.nn.functional.one_hot(labels, count + 1)[:, :count].double()
        weights = torch.where((labels == count)[:, None], weights, only).log()
        variances = bars[:, None] * self.stds.double() ** 2 + 1 - bars[:, None]
        centres = bars.sqrt()[:, None, None] * self.means.double()
        with torch.inference_mode(False), torch.enable_grad():
            wide = wide.clone().requires_grad_()
            spread = variances[..., None, None].sqrt() * torch.eye(2, dtype=torch.float64)
            parts = MultivariateNormal(centres, scale_tril=spread, validate_args=False)
            mixed = MixtureSameFamily(
                Categorical(logits=weights, validate_args=False), parts, validate_args=False
            )
            (score,) = torch.autograd.grad(mixed.log_prob(wide).sum(), wide)
        return (-(1 - bars).sqrt()[:, None] * score).to(x.dtype)


class Denoiser(nn.Module):
    def __init__(self, num_labels, width=64):
        super().__init__()
        self.num_labels = num_labels
        features = 2 + 8 + num_labels + 1
        self.first = nn.Linear(features, 2 * width)
        self.second = nn.Linear(2 * width, width)
        self.third = nn.Linear(width, 2)

    def forward(self, x, t, labels):
        share = t.to(x.dtype)[:, None] / 200
        waves = share * torch.tensor([1.0, 2.0, 4.0, 40.0])
        labels = torch.nn.functional.one_hot(labels, self.num_labels + 1).to(x.dtype)
        h = torch.cat([x, waves.sin(), waves.cos(), labels], dim=1)
        h = torch.tanh(self.first(h))
        return self.third(torch.nn.functional.silu(self.second(h)))


class EMA:
    def __init__(self, model, decay):
        self.decay = decay
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False)
        self.seen = 0

    def update(self, model):
        self.seen = self.seen + 1
        share = 1 - min(self.decay, (1 + self.seen) / (10 + self.seen))
        new = dict(model.named_parameters())
        for name, mean in self.model.named_parameters():
            mean.data = mean.data + share * (new[name].data - mean.data)
        for name, buffer in model.named_buffers():
            self.model.get_buffer(name).data = buffer.clone()


def assess(diffusion, model, mixture, seed):
    generator = torch.Generator()
    generator.manual_seed(seed)
    points, labels = mixture.sample(2000, generator)
    highest = diffusion.alpha_bars.shape[0] - 1
    t = torch.randint(highest, (2000,), generator=generator) + 1
    noise = torch.randn(2000, 2, generator=generator)
    x = diffusion.q_sample(points, t, noise)
    none = torch.full((2000,), diffusion.num_labels)
    given = torch.stack([none[::2], labels[1::2]], dim=1).flatten()
    with torch.no_grad():
        _, mine = diffusion.x0_and_epsilon(model(x, t, given), x, t)
    best = mixture.epsilon(x, t, given, diffusion.alpha_bars)
    report = {"gap": torch.nn.functional.mse_loss(mine, best).item()}
    levels = sampling_levels(highest, 40, "trailing")
    plans = [("ddim", 0), ("ddpm", diffusion.num_labels - 1), ("free", diffusion.num_labels)]
    for name, label in plans:
        data = points[labels.eq(label)] if name != "free" else points
        how = "ddim" if name == "free" else name
        samples = diffusion.sample(model, none[:1000] * 0 + label, levels, generator, sampler=how)
        report[f"{name}_shift"] = (samples.mean(0) - data.mean(0)).pow(2).sum().sqrt().item()
        report[f"{name}_spread"] = (samples.var(0).sum() / data.var(0).sum()).sqrt().item()
    return report


def run(seed=0, steps=None):
    total = 600 if steps is None else steps
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    means = torch.tensor([[1.8, 0.6], [-1.2, 1.5], [-0.5, -1.7]])
    mixture = Mixture(means, torch.tensor([0.5, 0.35, 0.7]), torch.tensor([0.5, 0.2, 0.3]))
    diffusion = Diffusion(noise_schedule("cosine", 100), "v", 3, 5.0, 0.2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Denoiser(3)
    ema = EMA(model, 0.98)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    points, labels = mixture.sample(5120, generator)
    for step in range(total):
        part = slice(step % 20 * 256, step % 20 * 256 + 256)
        loss = diffusion.loss(model, points[part], labels[part], generator)
        for p in model.parameters():
            p.grad = None
        loss.backward()
        optimizer.step()
        ema.update(model)
        log = {"loss": loss.item()}
        if (step + 1) % 100 == 0 or step == total - 1:
            log.update(assess(diffusion, ema.model, mixture, seed))
        yield log
