import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    gradients,
    read_with_draws,
    unchanged,
)

KINDS = ("linear", "cosine")
PREDICTS = ("epsilon", "x0", "v")
SPACINGS = ("trailing", "linspace")
MEANS = np.array([[1.8, 0.6], [-1.2, 1.5], [-0.5, -1.7]])
STDS = np.array([0.5, 0.35, 0.8])
WEIGHTS = np.array([0.5, 0.2, 0.3])
NONE = len(WEIGHTS)  # the label that means none
# Levels 0 to 7, no two steps alike.
BARS = torch.tensor([1, 0.97, 0.85, 0.6, 0.45, 0.2, 0.1, 0.03], dtype=torch.float64)


# Oracles


def schedule(kind, levels):
    """Alpha-bar of each level, by a plain product of what every step leaves."""
    bars = [1.0]
    for level in range(1, levels + 1):
        if kind == "linear":
            share = (level - 1) / (levels - 1)
            beta = ((1 - share) * 0.1 + share * 20) / levels
        else:
            now, before = (
                math.cos(math.pi / 2 * (at / levels + 0.008) / 1.008) ** 2
                for at in (level, level - 1)
            )
            beta = min(1 - now / before, 0.999)
        bars.append(bars[-1] * (1 - beta))
    return torch.tensor(bars, dtype=torch.float64)


def column(values, like):
    return values.double().reshape(-1, *[1] * (like.ndim - 1))


def noisy(x0, t, noise, bars):
    bar = column(bars[t], x0)
    return bar**0.5 * x0.double() + (1 - bar) ** 0.5 * noise.double()


def as_output(predicts, x0, t, noise, bars):
    """What a model that knows x0 and noise puts out."""
    bar = column(bars[t], x0)
    if predicts == "v":
        return bar**0.5 * noise.double() - (1 - bar) ** 0.5 * x0.double()
    return (noise if predicts == "epsilon" else x0).double()


def from_output(predicts, output, x, t, bars):
    """Data and noise of an output: two linear equations in two unknowns, solved as such."""
    bar = column(bars[t], x).expand(x.shape)
    a, b, x, output = bar**0.5, (1 - bar) ** 0.5, x.double(), output.double()
    # a * x0 + b * noise = x, and p * x0 + q * noise = output
    p, q = {
        "epsilon": (torch.zeros_like(a), torch.ones_like(a)),
        "x0": (torch.ones_like(a), torch.zeros_like(a)),
        "v": (-b, a),
    }[predicts]
    determinant = a * q - b * p
    return (x * q - b * output) / determinant, (a * output - x * p) / determinant


def weight(predicts, t, gamma, bars):
    """min-SNR: the error in x0 counts min(SNR, gamma), whatever it was an error of before."""
    out = []
    for bar in bars[t].tolist():
        snr = bar / (1 - bar)
        per_x0 = {"x0": 1.0, "epsilon": snr, "v": snr + 1}[predicts]  # its square to that of x0
        out.append(min(snr, gamma) / per_x0)
    return torch.tensor(out, dtype=torch.float64)


def best_epsilon(x, t, labels, bars):
    """The expected noise, by the expected data of each Gaussian and Bayes' rule; in NumPy."""
    x, bar, labels = x.double().numpy(), bars.numpy()[t.numpy()][:, None], labels.numpy()
    variance = bar * STDS**2 + 1 - bar  # of x in each Gaussian
    away = x[:, None, :] - np.sqrt(bar)[..., None] * MEANS
    gain = np.sqrt(bar) * STDS**2 / variance
    x0 = MEANS + gain[..., None] * away
    odds = np.log(WEIGHTS) - np.log(variance) - (away**2).sum(-1) / (2 * variance)
    only = labels[:, None] == np.arange(NONE)
    odds = np.where(only | (labels[:, None] == NONE), odds, -np.inf)
    odds = np.exp(odds - odds.max(1, keepdims=True))
    x0 = ((odds / odds.sum(1, keepdims=True))[..., None] * x0).sum(1)
    return torch.from_numpy((x - np.sqrt(bar) * x0) / np.sqrt(1 - bar))


def best_model(predicts, bars):
    """The best model there is of the mixture, as float32."""

    def model(x, t, labels):
        noise = best_epsilon(x, t, labels, bars)
        x0 = (x.double() - (1 - bars[t])[:, None] ** 0.5 * noise) / bars[t][:, None] ** 0.5
        return as_output(predicts, x0, t, noise, bars).float()

    return model


def best_moments(bars, levels, eta, label):
    """Mean and standard deviation of the samples of one Gaussian: every step is linear in x."""
    mean, variance = np.zeros(2), 1.0
    for t, s in pairwise(levels):
        now, then = float(bars[t]), float(bars[s])
        spread = now * STDS[label] ** 2 + 1 - now
        slope_noise = math.sqrt(1 - now) / spread
        slope_x0 = math.sqrt(now) * STDS[label] ** 2 / spread
        sigma2 = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        along = math.sqrt(max(1 - then - sigma2, 0))
        slope = math.sqrt(then) * slope_x0 + along * slope_noise
        base = math.sqrt(then) * (1 - slope_x0 * math.sqrt(now)) - along * slope_noise * math.sqrt(
            now
        )
        mean = slope * mean + base * MEANS[label]
        variance = slope**2 * variance + sigma2
    return mean, math.sqrt(variance)


def guided_samples(bars, levels, labels, guidance):
    """Samples by DDIM with eta 0 of the best model under guidance, in float64."""
    x = torch.randn(len(labels), 2, dtype=torch.float64)
    none = torch.full_like(labels, NONE)
    for t, s in pairwise(levels):
        at = torch.full_like(labels, t)
        free = best_epsilon(x, at, none, bars)
        noise = free + guidance * (best_epsilon(x, at, labels, bars) - free)
        x0 = (x - (1 - bars[t]) ** 0.5 * noise) / bars[t] ** 0.5
        x = bars[s] ** 0.5 * x0 + (1 - bars[s]) ** 0.5 * noise
    return x


def seeded():
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))


def even_levels(count, levels=100):
    return [round(levels * left / count) for left in range(count, -1, -1)]


def diffusion(impl, predicts="v", bars=BARS, **settings):
    return impl.Diffusion(bars, predicts, NONE, **settings)


def mixture(impl, dtype=torch.float32):
    return impl.Mixture(*(torch.tensor(values, dtype=dtype) for values in (MEANS, STDS, WEIGHTS)))


def spread(points):
    return (points.double().var(dim=0).mean() ** 0.5).item()


class Toy:
    """A crooked function of points, levels and labels, which keeps what it is given."""

    def __init__(self, bend=1.0):
        self.bend, self.calls = bend, []

    def __call__(self, x, t, labels):
        self.calls.append((x.detach().clone(), t.clone(), labels.clone(), torch.is_grad_enabled()))
        return self.of(x, t, labels)

    def of(self, x, t, labels):
        angles = x * (1 + labels[:, None]) + 0.3 * t[:, None]
        return self.bend * torch.sin(angles) + 0.2 * labels[:, None] - 0.1 * x.flip(1)


# Symptoms


@pytest.fixture(scope="module")
def log(impl):
    """The log of one whole run."""
    return [dict(line) for line in impl.run()]


# What a healthy run ends with; the comments have the extremes of 60 seeds.
LOSS = (0.19, 0.25)
HEALTHY = {
    "gap": (0, 0.06),
    "ddim_shift": (0, 0.2),
    "ddim_spread": (0.68, 1.05),
    "ddpm_shift": (0, 0.3),
    "ddpm_spread": (0.75, 1.08),
    "free_shift": (0, 0.6),
    "free_spread": (0.9, 1.25),
}


@pytest.mark.symptom
def test_a_run_goes_as_a_healthy_one_does(impl, log):
    off = []
    bars = schedule("cosine", 100)
    process = diffusion(impl, "epsilon", bars)
    gap = float(impl.assess(process, best_model("epsilon", bars), mixture(impl), 0)["gap"])
    if not gap < 2e-5:
        off.append(f"of the best denoiser there is it says a gap of {gap:.5f}, and should say 0")
    for name, (low, high) in HEALTHY.items():
        value = float(log[-1][name])
        if not low <= value <= high:
            off.append(f"it ends with {name} {value:.3f}, a healthy one within {low} and {high}")
    loss = sum(float(line["loss"]) for line in log[-100:]) / 100
    if not LOSS[0] <= loss <= LOSS[1]:
        off.append(
            f"its loss over the last 100 steps is {loss:.3f}, and that of a healthy one about 0.22"
        )
    assert not off, "this run is not healthy: " + "; ".join(off)


@pytest.mark.symptom
@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.6), ("ddim", 1.0), ("ddpm", 0.0)]
)
def test_the_best_model_gives_samples_with_the_moments_of_the_data(impl, sampler, eta):
    bars = schedule("cosine", 100)
    process = diffusion(impl, "epsilon", impl.noise_schedule("cosine", 100))
    labels = torch.arange(NONE).repeat(1000)
    for count, spacing in ((50, "trailing"), (8, "trailing"), (20, "linspace")):
        levels = impl.sampling_levels(100, count, spacing)
        x = process.sample(
            best_model("epsilon", bars), labels, levels, seeded(), sampler=sampler, eta=eta
        )
        exact = [100, *(round(100 - 99 * i / (count - 1)) for i in range(1, count)), 0]
        levels = even_levels(count) if spacing == "trailing" else exact
        for label in range(NONE):
            mean, std = best_moments(bars, levels, 1.0 if sampler == "ddpm" else eta, label)
            mine = x[labels == label]
            who = (
                f"{sampler} with eta {eta} in {count} steps"
                if sampler == "ddim"
                else (f"ddpm in {count} steps")
            )
            away = float(np.linalg.norm(mine.double().mean(0).numpy() - mean))
            assert away < 6 * std * math.sqrt(2 / len(mine)), (
                f"{who}, given the best denoiser there is: samples of label {label} have their "
                f"mean {away:.3f} away from that of the data"
            )
            ratio = spread(mine) / STDS[label]
            wanted = std / STDS[label]
            assert abs(ratio / wanted - 1) < 6 / math.sqrt(4 * len(mine)), (
                f"{who}, given the best denoiser there is: samples of label {label} are "
                f"{ratio:.3f} times as wide as the data, and should be {wanted:.3f} times"
            )


@pytest.mark.symptom
def test_it_makes_no_difference_what_a_model_predicts(impl):
    bars = impl.noise_schedule("linear", 50)
    points = torch.randn(600, 2)
    labels = torch.arange(600) % (NONE + 1)
    seed = int(torch.randint(2**31, ()))
    crooked = Toy(0.4)
    losses, samples = [], []
    for predicts in PREDICTS:
        process = diffusion(impl, predicts, bars)

        def model(x, t, labels, predicts=predicts):
            x0 = crooked.of(x, t, labels)
            noise = (x - bars[t][:, None] ** 0.5 * x0) / (1 - bars[t][:, None]) ** 0.5
            return as_output(predicts, x0, t, noise, bars).to(x.dtype)

        losses.append(
            float(process.loss(model, points, labels, torch.Generator().manual_seed(seed)))
        )
        generator = torch.Generator().manual_seed(seed)
        levels = impl.sampling_levels(50, 12, "trailing")
        samples.append(process.sample(model, labels, levels, generator, eta=0.5))
    for predicts, loss, sample in zip(PREDICTS[1:], losses[1:], samples[1:], strict=True):
        assert math.isclose(loss, losses[0], rel_tol=1e-3), (
            f"the same mistakes have a weighted loss of {losses[0]:.4f} if the model says them as "
            f"epsilon, and of {loss:.4f} as {predicts}"
        )
        error = float((sample - samples[0]).abs().max())
        assert error < 0.01, (
            f"the same model, once as epsilon and once as {predicts}: its samples are up to "
            f"{error:.3f} apart"
        )


@pytest.mark.symptom
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_makes_samples_more_like_their_label(impl, guidance):
    bars, levels = schedule("cosine", 100), even_levels(25)
    process = diffusion(impl, "v", impl.noise_schedule("cosine", 100))
    labels = torch.full((3000,), 2)
    x = process.sample(best_model("v", bars), labels, levels, seeded(), guidance=guidance)
    wanted = guided_samples(bars, levels, labels, guidance)
    room = 6 * spread(wanted) * math.sqrt(2 * 2 / 3000)
    away = float((x.double().mean(0) - wanted.mean(0)).norm())
    assert away < room, (
        f"guidance {guidance}, given the best denoiser there is: the mean of samples of label 2 is "
        f"{[round(v, 2) for v in x.mean(0).tolist()]}, and should be "
        f"{[round(v, 2) for v in wanted.mean(0).tolist()]}"
    )
    ratio = spread(x) / spread(wanted)
    assert abs(ratio - 1) < 0.12, (
        f"guidance {guidance}, given the best denoiser there is: samples of label 2 have a spread "
        f"of {spread(x):.3f}, and should have {spread(wanted):.3f}"
    )


@pytest.mark.symptom
def test_training_shows_what_sampling_asks_for(impl):
    process = diffusion(impl, "v", impl.noise_schedule("cosine", 50), drop_prob=0.2)
    labels = torch.arange(6000) % NONE
    kept, generator, model = labels.clone(), seeded(), Toy()
    for part, points in zip(labels.split(100), torch.randn(6000, 2).split(100), strict=True):
        process.loss(model, points, part, generator)
    shown = torch.cat([t for _, t, *_ in model.calls])
    low, high = int(shown.min()), int(shown.max())
    first = max(int(level) for level in impl.sampling_levels(50, 10, "trailing"))
    assert (low, high) == (1, first), (
        f"training shows the model levels {low} to {high}; of 50 levels it will be asked for 1 to "
        f"{first}"
    )
    fewest = min(len(t.unique()) for _, t, *_ in model.calls)
    assert fewest > 20, f"a batch of 100 points has points of {fewest} noise levels alone"
    given = torch.cat([call[2] for call in model.calls])
    share = float((given == NONE).double().mean())
    assert abs(share - 0.2) < 6 * math.sqrt(0.2 * 0.8 / 6000), (
        f"with drop_prob 0.2 the model is shown {share:.3f} of all points without their label"
    )
    shares = [float((call[2] == NONE).double().mean()) for call in model.calls]
    assert max(shares) < 0.2 + 6 * math.sqrt(0.2 * 0.8 / 100), (
        f"in one batch {max(shares):.0%} of the points are without their label"
    )
    lost = int((labels != kept).sum())
    assert not lost, f"after an epoch {lost} of 6000 points have lost their label for good"


@pytest.mark.symptom
def test_averaged_weights_are_steadier_than_those_of_the_steps(impl):
    model = nn.Linear(40, 50)
    ema = impl.EMA(model, 0.99)
    for _ in range(600):
        fresh = [1 + torch.randn(p.shape) for p in model.parameters()]
        for p, new in zip(model.parameters(), fresh, strict=True):
            p.data.copy_(new)
        ema.update(model)
        for p, new in zip(model.parameters(), fresh, strict=True):
            assert torch.equal(p.detach(), new), "averaging changes the weights that are trained"
    off = float((ema.model.weight - 1).square().mean() ** 0.5)
    assert off < 0.2, (
        f"weights that jump about 1 by 1.0 at each step: with decay 0.99, after 600 updates the "
        f"average is off by {off:.2f}, and should be by 0.09"
    )


# Checks: the schedule


@pytest.mark.parametrize("kind", KINDS)
def test_the_schedule_by_hand(impl, kind):
    for levels in (21, 50, 100, 1000):
        bars = impl.noise_schedule(kind, levels)
        wanted = schedule(kind, levels)
        assert_matches(bars, wanted, f"{kind}, {levels} levels", rtol=1e-9, atol=1e-15)
    if kind == "cosine":
        for levels in (1, 2, 7):
            what = f"cosine, {levels} levels"
            wanted = schedule(kind, levels)
            assert_matches(impl.noise_schedule(kind, levels), wanted, what, rtol=1e-9, atol=1e-15)


def test_the_linear_schedule_of_the_paper(impl):
    betas = np.linspace(1e-4, 0.02, 1000)
    wanted = torch.from_numpy(np.concatenate([[1.0], np.cumprod(1 - betas)]))
    what = "linear, 1000 levels: betas from 1e-4 to 0.02"
    assert_matches(impl.noise_schedule("linear", 1000), wanted, what, rtol=1e-9, atol=1e-15)


def test_the_cosine_schedule_of_the_paper(impl):
    bars = impl.noise_schedule("cosine", 200)
    share = torch.arange(200, dtype=torch.float64) / 200
    wanted = torch.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
    wanted = wanted / wanted[0]
    assert_matches(bars[:200], wanted, "cosine: all levels but the last", rtol=1e-9, atol=1e-12)
    beta = float(1 - bars[200] / bars[199])
    assert abs(beta - 0.999) < 1e-9, f"cosine: the last step's beta is {beta}, not 0.999"


def test_schedules_in_any_mode(impl):
    for kind in KINDS:
        assert_any_mode(
            impl.noise_schedule, (kind, 30), schedule(kind, 30), kind, rtol=1e-9, atol=1e-15
        )


@pytest.mark.parametrize("spacing", SPACINGS)
def test_levels_of_the_sampler(impl, spacing):
    for total, count in ((100, 10), (100, 40), (100, 7), (100, 100), (50, 1), (7, 2), (1000, 30)):
        levels = [int(level) for level in impl.sampling_levels(total, count, spacing)]
        what = f"{spacing}: {count} steps of {total} levels"
        assert len(levels) == count + 1, f"{what}: {len(levels)} levels, not {count + 1}"
        assert levels[0] == total, f"{what} begin at level {levels[0]}"
        assert levels[-1] == 0, f"{what} end at level {levels[-1]}"
        assert all(a > b for a, b in pairwise(levels)), f"{what} do not fall: {levels}"
        if spacing == "linspace":
            exact = [total - (total - 1) * i / max(count - 1, 1) for i in range(count)] + [0]
        else:
            exact = [total - total * i / count for i in range(count + 1)]
        for place, (got, wanted) in enumerate(zip(levels, exact, strict=True)):
            assert abs(got - wanted) <= 0.501, (
                f"{what}: number {place} is {got}, not {wanted:.2f} rounded, in {levels}"
            )


# Checks: noise, targets, weights


def some(shape, dtype=torch.float64, levels=BARS, lowest=1):
    """Data, levels, noise and a model's output."""
    t = torch.randint(lowest, len(levels), shape[:1])
    return torch.randn(shape, dtype=dtype), t, *torch.randn(2, *shape, dtype=dtype)


SHAPES = [(5, 2), (2, 2), (1, 2), (6,), (4, 3, 5), (3, 3, 3)]


def tolerance(dtype):
    small = {torch.float64: 1e-9, torch.float32: 2e-5}[dtype]
    return {"rtol": small, "atol": small}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_q_sample_by_hand(impl, dtype):
    process = diffusion(impl)
    for shape in SHAPES:
        x0, t, noise, _ = some(shape, dtype, lowest=0)
        with unchanged(x0=x0, t=t, noise=noise):
            got = process.q_sample(x0, t, noise)
        wanted = noisy(x0, t, noise, BARS).to(dtype)
        assert_matches(got, wanted, f"q_sample, {shape} at {t.tolist()}", **tolerance(dtype))
    x0, t, noise, _ = some((4, 2), dtype)
    got = process.q_sample(x0, torch.zeros_like(t), noise)
    assert_matches(got, x0, "q_sample at level 0", **tolerance(dtype))


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_targets_by_hand(impl, predicts, dtype):
    process = diffusion(impl, predicts)
    for shape in SHAPES:
        x0, t, noise, _ = some(shape, dtype)
        with unchanged(x0=x0, t=t, noise=noise):
            got = process.target(x0, t, noise)
        wanted = as_output(predicts, x0, t, noise, BARS).to(dtype)
        assert_matches(got, wanted, f"target, {predicts}, {shape}", **tolerance(dtype))


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_an_output_says_of_data_and_noise(impl, predicts, dtype):
    process = diffusion(impl, predicts)
    for shape in SHAPES:
        x, t, output, _ = some(shape, dtype)
        with unchanged(x=x, t=t, output=output):
            got = process.x0_and_epsilon(output, x, t)
        assert len(got) == 2
        wanted = from_output(predicts, output, x, t, BARS)
        for mine, theirs, name in zip(got, wanted, ("data", "noise"), strict=True):
            what = f"{predicts}, {shape} at {t.tolist()}: the {name} that an output stands for"
            assert_matches(mine, theirs.to(dtype), what, **tolerance(dtype))


@pytest.mark.parametrize("predicts", PREDICTS)
def test_a_right_output_gives_back_data_and_noise(impl, predicts):
    process = diffusion(impl, predicts)
    x0, t, noise, _ = some((9, 2))
    x = process.q_sample(x0, t, noise)
    data, epsilon = process.x0_and_epsilon(process.target(x0, t, noise), x, t)
    assert_matches(data, x0, f"the data of a perfect {predicts}", rtol=1e-9, atol=1e-9)
    assert_matches(epsilon, noise, f"the noise of a perfect {predicts}", rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_data_and_noise_where_next_to_none_is_left(impl, predicts):
    for kind in ("linear", "cosine"):
        bars = schedule(kind, 1000)
        process = diffusion(impl, predicts, bars)
        x0, noise = torch.randn(2, 4, 3, dtype=torch.float64)
        t = torch.tensor([1, 2, 999, 1000])
        x = process.q_sample(x0, t, noise)
        data, epsilon = process.x0_and_epsilon(process.target(x0, t, noise), x, t)
        what = f"of a perfect {predicts}, {kind} schedule, levels {t.tolist()} of 1,000"
        assert_matches(data, x0, f"the data {what}", rtol=1e-7, atol=1e-7)
        assert_matches(epsilon, noise, f"the noise {what}", rtol=1e-7, atol=1e-7)


def test_a_little_noise_is_as_exact_as_much(impl):
    bars = schedule("linear", 1000)
    noise, t = torch.rand(6, 2) + 0.5, torch.tensor([1, 2, 3, 10, 500, 1000])
    got = diffusion(impl, "v", bars).q_sample(torch.zeros(6, 2), t, noise)
    wanted = ((1 - bars[t]).sqrt()[:, None] * noise.double()).float()
    what = f"noise alone at levels {t.tolist()} of 1,000, in float32"
    assert_matches(got, wanted, what, rtol=1e-6, atol=0)


def test_noise_in_any_layout_and_mode(impl):
    process = diffusion(impl)
    x0, t, noise, output = some((4, 2))
    wanted = noisy(x0, t, noise, BARS)
    assert_any_layout(process.q_sample, (x0, t, noise), wanted, "q_sample", **tolerance(x0.dtype))
    assert_any_mode(process.q_sample, (x0, t, noise), wanted, "q_sample", **tolerance(x0.dtype))
    wanted = as_output("v", x0, t, noise, BARS)
    assert_any_layout(process.target, (x0, t, noise), wanted, "target", **tolerance(x0.dtype))
    both = from_output("v", output, x0, t, BARS)
    assert_any_layout(
        process.x0_and_epsilon, (output, x0, t), both, "x0_and_epsilon", **tolerance(x0.dtype)
    )


def test_noise_is_added_anew_at_each_call(impl):
    process = diffusion(impl)

    def inputs():
        return some((4, 2), lowest=0)[:3]

    def wanted(x0, t, noise):
        return noisy(x0, t, noise, BARS)

    assert_repeatable(process.q_sample, inputs, wanted, "q_sample", **tolerance(torch.float64))


def test_two_processes_at_once(impl):
    settings = [(BARS, 5), (BARS**2, 5), (BARS, 1)]
    processes = [
        (diffusion(impl, "v", table.clone(), gamma=gamma), table, gamma)
        for table, gamma in settings
    ]
    x0, t, noise, output = some((6, 2))
    for process, table, gamma in (*processes, processes[0]):
        what = "one of several processes with as many levels"
        wanted = noisy(x0, t, noise, table)
        assert_matches(process.q_sample(x0, t, noise), wanted, f"{what}: q_sample")
        wanted = weight("v", t, gamma, table)
        assert_matches(process.loss_weights(t).double(), wanted, f"{what}: weights", rtol=1e-5)
        wanted = from_output("v", output, x0, t, table)
        for mine, theirs in zip(process.x0_and_epsilon(output, x0, t), wanted, strict=True):
            assert_matches(mine, theirs, f"{what}: x0_and_epsilon")
        now, then = float(table[5]), float(table[2])
        wanted = then**0.5 * x0 + (1 - then) ** 0.5 * noise
        assert_matches(process.ddim_step(x0, noise, 5, 2, output), wanted, f"{what}: ddim_step")
        got = process.ddpm_step(noise, x0, 5, 2, torch.zeros_like(x0))
        beta = 1 - now / then
        wanted = (then**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - then) * noise) / (1 - now)
        assert_matches(got, wanted, f"{what}: ddpm_step")


@pytest.mark.parametrize("predicts", PREDICTS)
def test_min_snr_weights_by_hand(impl, predicts):
    t = torch.tensor([1, 7, 3, 3, 2, 5, 6, 4, 1])
    for gamma in (5.0, 1.0, 0.3, 20.0, math.inf):
        got = diffusion(impl, predicts, gamma=gamma).loss_weights(t)
        assert got.is_floating_point()
        wanted = weight(predicts, t, gamma, BARS)
        what = f"weights of levels {t.tolist()}, {predicts}, gamma {gamma}"
        assert_matches(got.double(), wanted, what, rtol=1e-5, atol=1e-9)
    got = diffusion(impl, predicts).loss_weights(t)
    what = f"weights, {predicts}, the gamma that is there by default"
    assert_matches(got.double(), weight(predicts, t, 5.0, BARS), what, rtol=1e-5, atol=1e-9)
    bars = schedule("cosine", 100)
    t = torch.arange(1, 101)
    got = diffusion(impl, predicts, bars).loss_weights(t)
    what = f"weights of all levels of a cosine, {predicts}"
    assert_matches(got.double(), weight(predicts, t, 5.0, bars), what, rtol=1e-5, atol=1e-9)


# Checks: the loss


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_loss_by_hand(impl, predicts, dtype):
    for rows, gamma in ((7, 5.0), (2, 0.4), (1, 5.0)):
        process = diffusion(impl, predicts, gamma=gamma, drop_prob=0.3)
        x0 = torch.randn(rows, 2, dtype=dtype)
        labels = torch.randint(NONE, (rows,))
        model = Toy()
        with unchanged(x0=x0, labels=labels):
            got = process.loss(model, x0, labels, seeded())
        assert len(model.calls) == 1, f"the loss calls the model {len(model.calls)} times"
        x, t, given, _ = model.calls[0]
        assert (x.shape, x.dtype) == (x0.shape, dtype), f"points {x.shape}, {x.dtype}"
        assert (t.shape, t.dtype) == ((rows,), torch.int64), f"levels {t.shape}, {t.dtype}"
        bar = BARS[t][:, None]
        noise = (x.double() - bar**0.5 * x0.double()) / (1 - bar) ** 0.5
        error = model.of(x, t, given).double() - as_output(predicts, x0, t, noise, BARS)
        wanted = (weight(predicts, t, gamma, BARS) * error.square().mean(dim=1)).mean()
        assert got.shape == (), f"a loss of shape {tuple(got.shape)}"
        what = f"the loss of {rows} points, {predicts}, gamma {gamma}, levels {t.tolist()}"
        small = 1e-4 if dtype == torch.float32 else 1e-7
        assert_matches(got.double(), wanted, what, rtol=small, atol=small)


def test_the_loss_of_data_of_another_shape(impl):
    process = diffusion(impl, "v")
    x0 = torch.randn(6, 3, 5, dtype=torch.float64)
    calls = []

    def model(x, t, labels):
        calls.append((x, t))
        return 0.5 * x

    got = process.loss(model, x0, torch.zeros(6, dtype=torch.long), seeded())
    [(x, t)] = calls
    bar = BARS[t][:, None, None]
    noise = (x - bar**0.5 * x0) / (1 - bar) ** 0.5
    error = (0.5 * x - as_output("v", x0, t, noise, BARS)).square().mean(dim=(1, 2))
    wanted = (weight("v", t, 5.0, BARS) * error).mean()
    assert_matches(got, wanted, "the loss of data (6, 3, 5)", rtol=1e-7, atol=1e-7)


def draws(impl, rows=6000, drop_prob=0.25, **settings):
    """Levels, noise and labels of a large batch."""
    process = diffusion(impl, drop_prob=drop_prob, **settings)
    x0, labels = torch.randn(rows, 2), torch.randint(NONE, (rows,))
    model, generator = Toy(), seeded()
    process.loss(model, x0, labels, generator)
    process.loss(model, x0, labels, generator)
    out = []
    for x, t, given, _ in model.calls:
        bar = BARS[t][:, None]
        noise = ((x.double() - bar**0.5 * x0.double()) / (1 - bar) ** 0.5).float()
        out.append((t, noise, given))
    return x0, labels, *out


def assert_unrelated(one, other, what):
    one, other = (v.double() - v.double().mean() for v in (one, other))
    correlation = float((one * other).mean() / (one.std() * other.std()))
    room = 6 / math.sqrt(len(one))
    assert abs(correlation) < room, f"{what} have a correlation of {correlation:.2f}"


def test_levels_of_training_are_drawn_for_each_row(impl):
    x0, labels, (t, *_), (again, *_) = draws(impl)
    counts = torch.bincount(t, minlength=8)
    wanted = len(t) / 7
    assert counts[0] == 0, f"{int(counts[0])} of {len(t)} rows are at level 0, with no noise"
    assert len(counts) == 8, f"level {len(counts) - 1} of 7"
    room = 6 * math.sqrt(wanted * 6 / 7)
    assert (counts[1:] - wanted).abs().max() < room, f"rows at levels 1 to 7: {counts[1:].tolist()}"
    assert_unrelated(t[1:], t[:-1], "the levels of neighbouring rows")
    assert_unrelated(t, again, "the levels of two batches")
    assert_unrelated(t, labels, "levels and labels")
    assert_unrelated(t, x0[:, 0], "levels and data")


def test_noise_of_training_is_normal(impl):
    x0, _, (t, noise, _), (_, again, _) = draws(impl)
    n = noise.numel()
    mean, std = float(noise.mean()), float(noise.std())
    assert abs(mean) < 6 / math.sqrt(n), f"the noise has a mean of {mean:.3f}"
    assert abs(std - 1) < 6 / math.sqrt(2 * n), f"the noise has a standard deviation of {std:.3f}"
    fourth = float((noise**4).mean())
    assert abs(fourth - 3) < 6 * math.sqrt(96 / n), f"the noise has a fourth moment of {fourth:.2f}"
    assert_unrelated(noise[:, 0], noise[:, 1], "the noise of the two coordinates")
    assert_unrelated(noise[1:, 0], noise[:-1, 0], "the noise of neighbouring rows")
    assert_unrelated(noise[:, 0], again[:, 0], "the noise of two batches")
    assert_unrelated(noise[:, 0], x0[:, 0], "noise and data")
    assert_unrelated(noise[:, 0].abs(), t, "the size of the noise and its level")


def test_labels_are_dropped_row_by_row(impl):
    for prob in (0.0, 0.25, 1.0):
        _, labels, (t, _, given), (*_, again) = draws(impl, drop_prob=prob)
        dropped = given == NONE
        assert torch.equal(given[~dropped], labels[~dropped]), "labels change that are not dropped"
        share = float(dropped.double().mean())
        room = 6 * math.sqrt(prob * (1 - prob) / len(t))
        assert abs(share - prob) <= room, f"drop_prob {prob}: {share:.3f} of the labels are dropped"
        if prob == 0.25:
            assert_unrelated(dropped[1:], dropped[:-1], "the losses of neighbouring labels")
            assert_unrelated(dropped, again == NONE, "the labels that two batches lose")
            assert_unrelated(dropped, t, "lost labels and levels")
            assert_unrelated(dropped, labels, "lost labels and labels")
    _, labels, (*_, given), _ = draws(impl, rows=50, drop_prob=0.0)
    assert torch.equal(given, labels)
    process, model = diffusion(impl), Toy()
    process.loss(model, torch.randn(40, 2), torch.zeros(40, dtype=torch.long), seeded())
    assert not model.calls[0][2].any(), "labels are dropped, though drop_prob is 0 by default"


def test_rows_of_a_batch_are_drawn_independently(impl):
    # Of independent rows, the sum over a batch varies as much as one row does, times their number.
    process, generator, rows, batches = diffusion(impl, drop_prob=0.25), seeded(), 10, 500
    x0, labels, model = torch.zeros(rows, 2), torch.zeros(rows, dtype=torch.long), Toy()
    for _ in range(batches):
        process.loss(model, x0, labels, generator)
    t = torch.stack([call[1] for call in model.calls]).double()
    noise = torch.stack([call[0][:, 0] for call in model.calls]) / (1 - BARS[t.long()]) ** 0.5
    dropped = torch.stack([call[2] for call in model.calls]) == NONE
    for values, variance, name in (
        (t, 4.0, "levels"),
        (noise, 1.0, "noise"),
        (dropped.double(), 0.25 * 0.75, "lost labels"),
    ):
        ratio = float(values.sum(dim=1).var()) / (rows * variance)
        assert abs(ratio - 1) < 6 * math.sqrt(2 / batches), (
            f"the sum over a batch varies {ratio:.2f} times as much as that of independent {name}"
        )


def test_a_loss_repeats_itself_for_a_generator(impl):
    process = diffusion(impl, drop_prob=0.5)
    x0, labels = torch.randn(30, 2), torch.randint(NONE, (30,))
    state = torch.get_rng_state()
    losses = [
        float(process.loss(Toy(), x0, labels, torch.Generator().manual_seed(seed)))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(torch.get_rng_state(), state), "the loss draws from the global generator"
    assert losses[0] == losses[1], "one state of the generator, and two losses"
    assert losses[0] != losses[2], "another seed, and the same loss"


def test_gradients_of_the_loss(impl):
    bend = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    model = Toy(bend)
    x0 = torch.randn(8, 2, dtype=torch.float64)
    process = diffusion(impl, "v")
    loss = process.loss(model, x0, torch.randint(NONE, (8,)), seeded())
    x, t, given, _ = model.calls[0]
    bar = BARS[t][:, None]
    noise = (x - bar**0.5 * x0) / (1 - bar) ** 0.5
    error = model.of(x, t, given) - as_output("v", x0, t, noise, BARS)
    wanted = (weight("v", t, 5.0, BARS) * error.square().mean(dim=1)).mean()
    one = torch.ones((), dtype=torch.float64)
    got = gradients(loss, [bend], one)[0]
    what = "the gradient of the loss for the model"
    assert_matches(got, gradients(wanted, [bend], one)[0], what, rtol=1e-7, atol=1e-9)


# Checks: guidance and steps


def test_guidance_by_hand(impl):
    process = diffusion(impl)
    for rows in (6, 2, 1):
        x = torch.randn(rows, 2, dtype=torch.float64)
        t = torch.randint(1, 8, (rows,))
        labels = torch.arange(rows) % (NONE + 1)
        model = Toy()
        free = model.of(x, t, torch.full_like(labels, NONE))
        given = model.of(x, t, labels)
        for guidance in (0.0, 1.0, 2.5, 7, -0.5):
            with unchanged(x=x, t=t, labels=labels):
                got = process.guided(model, x, t, labels, guidance)
            wanted = (1 - guidance) * free + guidance * given
            what = f"guidance {guidance}, labels {labels.tolist()}"
            assert_matches(got, wanted, what, rtol=1e-9, atol=1e-9)


def test_guidance_lets_gradients_through(impl):
    bend = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    model = Toy(bend)
    x, t, labels = torch.randn(4, 2, dtype=torch.float64), torch.arange(1, 5), torch.arange(4)
    upstream = torch.randn(4, 2, dtype=torch.float64)
    free, given = model.of(x, t, torch.full_like(labels, NONE)), model.of(x, t, labels)
    wanted = gradients(3 * given - 2 * free, [bend], upstream)[0]
    got = gradients(diffusion(impl).guided(model, x, t, labels, 3.0), [bend], upstream)[0]
    assert_matches(got, wanted, "the gradient of a guided output", rtol=1e-9, atol=1e-9)


PAIRS = [(7, 6), (7, 3), (5, 2), (4, 1), (2, 1), (1, 0), (7, 0), (3, 0)]


def posterior(t, s):
    """Weights of data and x in the mean, and the variance: precisions add up."""
    now, then = float(BARS[t]), float(BARS[s])
    if s == 0:
        return 1.0, 0.0, 0.0
    kept = now / then  # of the variance at s, on the way to t
    precision = kept / (1 - kept) + 1 / (1 - then)
    return (
        math.sqrt(then) / (1 - then) / precision,
        math.sqrt(kept) / (1 - kept) / precision,
        1 / precision,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_step_of_ddpm_is_the_posterior(impl, dtype):
    process = diffusion(impl)
    for t, s in PAIRS:
        x, x0, noise = torch.randn(3, 5, 2, dtype=dtype)
        with unchanged(x=x, x0=x0, noise=noise):
            got = process.ddpm_step(x, x0, t, s, noise)
        of_x0, of_x, variance = posterior(t, s)
        wanted = of_x0 * x0.double() + of_x * x.double() + math.sqrt(variance) * noise.double()
        what = f"a step of DDPM from level {t} to {s}"
        assert_matches(got, wanted.to(dtype), what, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("eta", [None, 0.0, 0.3, 1.0, 1])
def test_a_step_of_ddim_by_hand(impl, dtype, eta):
    process = diffusion(impl)
    for t, s in PAIRS:
        x0, epsilon, noise = torch.randn(3, 5, 2, dtype=dtype)
        with unchanged(x0=x0, epsilon=epsilon, noise=noise):
            got = process.ddim_step(x0, epsilon, t, s, noise, *([] if eta is None else [eta]))
        then = float(BARS[s])
        sigma = (eta or 0) * math.sqrt(posterior(t, s)[2])
        along = math.sqrt(max(1 - then - sigma**2, 0))
        wanted = math.sqrt(then) * x0.double() + along * epsilon.double() + sigma * noise.double()
        what = f"a step of DDIM from level {t} to {s}, eta {'by default' if eta is None else eta}"
        assert_matches(got, wanted.to(dtype), what, **tolerance(dtype))


def test_ddim_with_eta_one_is_ddpm(impl):
    for predicts in PREDICTS:
        process = diffusion(impl, predicts)
        for t, s in PAIRS:
            x, output, noise = torch.randn(3, 4, 2, dtype=torch.float64)
            x0, epsilon = process.x0_and_epsilon(output, x, torch.full((4,), t))
            one = process.ddim_step(x0, epsilon, t, s, noise, 1.0)
            other = process.ddpm_step(x, x0, t, s, noise)
            what = f"{predicts}, level {t} to {s}: DDIM with eta 1, compared with DDPM"
            assert_matches(one, other, what, rtol=1e-7, atol=1e-7)


# Checks: the sampler


def trajectory(model, labels, levels, guidance, predicts, bars, last):
    """What the sampler had at each level, and the data and noise that the model saw in it."""
    count, points = len(labels), {}
    for x, t, _, _ in model.calls:
        assert len(x) in (count, 2 * count), f"the model is given {len(x)} rows, of {count}"
        assert len(t.unique()) == 1, f"rows at levels {t.unique().tolist()} at once"
        points.setdefault(int(t[0]), x[:count].double())
    asked = list(points)
    assert asked == list(levels[:-1]), (
        f"the model is asked at levels {asked}, and the sampler was given {list(levels)}"
    )
    points[levels[-1]] = last.double()
    none = torch.full_like(labels, NONE)
    out = []
    for t, s in pairwise(levels):
        at = torch.full_like(labels, t)
        free, given = model.of(points[t], at, none), model.of(points[t], at, labels)
        output = free + guidance * (given - free)
        out.append((t, s, points[t], *from_output(predicts, output, points[t], at, bars)))
    return out, points


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("guidance", [None, 0.0, 3.0])
def test_ddim_without_noise_step_by_step(impl, predicts, guidance):
    bars = schedule("linear", 60)
    process = diffusion(impl, predicts, bars)
    for levels in ([60, 41, 40, 13, 2, 0], [60, 0], [60, 1, 0]):
        labels = torch.arange(9) % (NONE + 1)
        model, given = Toy(0.8), list(levels)
        settings = {} if guidance is None else {"guidance": guidance}
        with unchanged(labels=labels):
            got = process.sample(model, labels, given, seeded(), **settings)
        assert given == levels, f"sampling changes the list of levels to {given}"
        assert (got.shape, got.dtype) == ((9, 2), torch.float32), f"{got.shape}, {got.dtype}"
        steps, points = trajectory(
            model, labels, levels, 1 if guidance is None else guidance, predicts, bars, got
        )
        for _, s, _, x0, epsilon in steps:
            wanted = bars[s] ** 0.5 * x0 + (1 - bars[s]) ** 0.5 * epsilon
            what = f"DDIM, {predicts}, guidance {guidance}, {levels}: the points at level {s}"
            room = 2e-5 * float(x0.abs().max())
            assert_matches(points[s], wanted, what, rtol=1e-4, atol=max(room, 1e-4))


@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddpm", 0.0), ("ddpm", 1.0), ("ddim", 1.0), ("ddim", 0.4)]
)
def test_noise_of_a_sampler_is_fresh_and_of_the_right_size(impl, sampler, eta):
    process = diffusion(impl, "v")
    levels = [7, 5, 4, 2, 1, 0]
    labels = torch.arange(3000) % NONE
    model = Toy(0.5)
    last = process.sample(model, labels, levels, seeded(), sampler=sampler, eta=eta)
    steps, points = trajectory(model, labels, levels, 1, "v", BARS, last)
    n = 6000
    what = f"{sampler}, eta {eta}"
    before = points[7]
    for t, s, x, x0, epsilon in steps:
        of_x0, of_x, variance = posterior(t, s)
        if sampler == "ddpm":
            mean = of_x0 * x0 + of_x * x
        else:
            variance *= eta**2
            mean = BARS[s] ** 0.5 * x0 + (1 - BARS[s] - variance).clamp(min=0) ** 0.5 * epsilon
        if s == 0:
            assert_matches(last.double(), mean, f"{what}: the last step", rtol=1e-4, atol=1e-4)
            continue
        z = (points[s] - mean) / math.sqrt(variance)
        where = f"{what}, from level {t} to {s}: the noise that is added"
        assert abs(float(z.mean())) < 6 / math.sqrt(n), f"{where} has a mean of {z.mean():.3f}"
        assert abs(float(z.std()) - 1) < 6 / math.sqrt(2 * n), (
            f"{where} is {z.std():.3f} times as large as it should be"
        )
        assert_unrelated(z[:, 0], z[:, 1], f"{where}: the two coordinates")
        assert_unrelated(z[1:, 0], z[:-1, 0], f"{where}: neighbouring rows")
        assert_unrelated(z[:1500, 0], z[1500:, 0], f"{where}: the two halves of the rows")
        for axis in (0, 1):
            assert_unrelated(z[:, axis], before[:, axis], f"{where}, and that of the step before,")
            assert_unrelated(z[:, axis], points[7][:, axis], f"{where}, and that of the start,")
        before = z


def test_sampling_begins_with_pure_noise(impl):
    # Noise as level 5 has it would be narrower.
    process, model, n = diffusion(impl, "v", BARS[:6]), Toy(), 20000
    process.sample(model, torch.zeros(n, dtype=torch.long), [5, 3, 0], seeded())
    x = model.calls[0][0][:n]
    assert x.dtype == torch.float32
    assert float(x.mean(0).abs().max()) < 6 / math.sqrt(n), f"its mean is {x.mean(0).tolist()}"
    std = float(x.std())
    assert abs(std - 1) < 6 / math.sqrt(4 * n), f"its standard deviation is {std:.3f}"
    fourth = float((x**4).mean())
    assert abs(fourth - 3) < 6 * math.sqrt(96 / (2 * n)), f"its fourth moment is {fourth:.2f}"
    assert_unrelated(x[:, 0], x[:, 1], "the two coordinates at the start")
    assert_unrelated(x[: n // 2, 0], x[n // 2 :, 0], "the two halves of the rows at the start")


def test_sampling_records_no_graph(impl):
    bend = torch.tensor(0.3, requires_grad=True)
    for grad in (True, False):
        model = Toy(bend)
        with torch.set_grad_enabled(grad):
            got = diffusion(impl).sample(model, torch.arange(3), [7, 2, 0], seeded())
            assert torch.is_grad_enabled() == grad, "sampling leaves another grad mode behind"
        assert not got.requires_grad, "samples hold on to a graph"
        assert not any(call[3] for call in model.calls), "sampling records the model's graph"


def test_samples_repeat_for_a_generator(impl):
    process = diffusion(impl)
    labels = torch.arange(5) % NONE
    state = torch.get_rng_state()
    for settings in ({}, {"sampler": "ddpm"}, {"eta": 1.0}):
        one, two, other = (
            process.sample(
                Toy(), labels, (7, 4, 1, 0), torch.Generator().manual_seed(s), **settings
            )
            for s in (3, 3, 4)
        )
        assert torch.equal(one, two), f"{settings}: one state of the generator, two results"
        assert not torch.equal(one, other), f"{settings}: another seed, and the same samples"
    assert torch.equal(torch.get_rng_state(), state), "sampling draws from the global generator"
    generator = seeded()
    one, two = (process.sample(Toy(), labels, [7, 0], generator) for _ in range(2))
    assert not torch.equal(one, two), "called twice with one generator, the samples are the same"
    one, two = (
        process.sample(Toy(), labels, [7, 3, 0], torch.Generator().manual_seed(3), **settings)
        for settings in ({}, {"sampler": "ddim", "eta": 0.0, "guidance": 1.0})
    )
    assert torch.equal(one, two), "the sampler is not DDIM with eta 0 and guidance 1 by default"


# Checks: the mixture


def test_points_of_a_mixture(impl):
    generator, state = seeded(), torch.get_rng_state()
    points, labels = mixture(impl).sample(9000, generator)
    assert torch.equal(torch.get_rng_state(), state), "it draws from the global generator"
    assert (points.shape, points.dtype) == ((9000, 2), torch.float32), f"{points.shape}"
    assert (labels.shape, labels.dtype) == ((9000,), torch.int64), f"{labels.shape}, {labels.dtype}"
    counts = torch.bincount(labels, minlength=NONE).numpy()
    room = 6 * np.sqrt(9000 * WEIGHTS * (1 - WEIGHTS))
    assert (abs(counts - 9000 * WEIGHTS) < room).all(), f"{counts} points of the labels"
    for label in range(NONE):
        z = (points[labels == label].double().numpy() - MEANS[label]) / STDS[label]
        assert abs(z.mean(0)).max() < 6 / math.sqrt(len(z)), f"label {label}: mean {z.mean(0)}"
        for axis in (0, 1):
            std = z[:, axis].std()
            assert abs(std - 1) < 6 / math.sqrt(2 * len(z)), f"label {label}: {std:.3f} as wide"
        z = torch.from_numpy(z)
        assert_unrelated(z[:, 0], z[:, 1], f"the coordinates of label {label}")
    assert_unrelated(labels[1:], labels[:-1], "the labels of neighbouring rows")
    data = mixture(impl)
    one, two, other = (
        data.sample(20, torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4)
    )
    one_more = data.sample(20, generator)[0], data.sample(20, generator)[0]
    assert not torch.equal(*one_more), "drawn twice from one generator, the points are the same"
    assert torch.equal(one, two), "one state of the generator, and two sets of points"
    assert not torch.equal(one, other), "another seed, and the same points"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_best_epsilon_by_hand(impl, dtype):
    bars = schedule("cosine", 100)
    t = torch.randint(1, 101, (60,))
    t[:3] = torch.tensor([1, 100, 2])
    labels = torch.arange(60) % (NONE + 1)
    for scale in (1.0, 3.0):
        x = scale * torch.randn(60, 2, dtype=dtype)
        with unchanged(x=x, t=t, labels=labels):
            got = mixture(impl, dtype).epsilon(x, t, labels, bars)
        wanted = best_epsilon(x, t, labels, bars).to(dtype)
        small = 1e-7 if dtype == torch.float64 else 2e-4
        what = f"the expected noise, points {scale} wide"
        assert_matches(got, wanted, what, rtol=small, atol=small)
    for rows in (1, 2, 3):
        x = torch.randn(rows, 2, dtype=torch.float64)
        t, labels = torch.randint(1, 101, (rows,)), torch.full((rows,), NONE)
        got = mixture(impl, torch.float64).epsilon(x, t, labels, bars)
        wanted = best_epsilon(x, t, labels, bars)
        assert_matches(got, wanted, f"the expected noise of {rows} points", rtol=1e-7, atol=1e-7)


def test_the_best_epsilon_far_away(impl):
    bars = schedule("cosine", 100)
    x = torch.tensor([[60.0, -20.0], [-50.0, 45.0], [0.0, -90.0]], dtype=torch.float64)
    t, labels = torch.tensor([1, 30, 5]), torch.tensor([NONE, NONE, 1])
    got = mixture(impl, torch.float64).epsilon(x, t, labels, bars)
    wanted = best_epsilon(x, t, labels, bars)
    assert_matches(got, wanted, "the expected noise far from all data", rtol=1e-6, atol=1e-6)


# Checks: the model and its average


def test_the_denoiser(impl):
    model = impl.Denoiser(4, width=24)
    x, t, labels = torch.randn(10, 2), torch.randint(1, 101, (10,)), torch.arange(10) % 5
    out = model(x, t, labels)
    assert (out.shape, out.dtype) == ((10, 2), torch.float32), f"{out.shape}, {out.dtype}"
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(10)])
    what = "the denoiser's rows, one at a time"
    assert_matches(alone.detach(), out.detach(), what, rtol=1e-4, atol=1e-5)
    for name, other in (
        ("points", model(x + 1, t, labels)),
        ("levels", model(x, t % 100 + 1, labels)),
        ("labels", model(x, t, (labels + 1) % 5)),
    ):
        same = int((other - out).abs().max(dim=1).values.lt(1e-7).sum())
        assert not same, f"with other {name}, {same} of 10 outputs are the same"
    wide = sum(p.numel() for p in impl.Denoiser(4, width=48).parameters())
    assert wide > sum(p.numel() for p in model.parameters()), "a wider denoiser is no larger"
    assert impl.Denoiser(2)(x, t, labels % 3).shape == (10, 2)
    out.square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still, f"no gradient reaches {still}"


class Buffers(nn.Module):
    """Weights, one of them frozen, a buffer of floats and one of an integer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("scale", torch.randn(3))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("unsaved", torch.randn(2), persistent=False)


def change(model, times):
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) + times)
        model.scale.copy_(torch.randn(3))
        model.count.fill_(times)
        model.unsaved.fill_(0.5 * times)


@pytest.mark.parametrize("decay", [0.99, 0.4, 0.25, 0.0])
def test_the_average_by_hand(impl, decay):
    model = Buffers()
    ema = impl.EMA(model, decay)
    wanted = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for name, p in ema.model.named_parameters():
        assert_matches(p.detach().double(), wanted[name], f"{name} to begin with", rtol=0, atol=0)
    for times in range(1, 41):
        change(model, times)
        with unchanged(**{name.replace(".", "_"): p for name, p in model.state_dict().items()}):
            ema.update(model)
        share = min(decay, (1 + times) / (10 + times))
        for name, p in model.named_parameters():
            wanted[name] = share * wanted[name] + (1 - share) * p.detach().double()
        for name, p in ema.model.named_parameters():
            what = f"decay {decay}: the average of {name} after {times} updates"
            assert_matches(p.detach().double(), wanted[name], what, rtol=1e-4, atol=1e-4)
        for name, buffer in ema.model.named_buffers():
            theirs = dict(model.named_buffers())[name]
            what = f"the buffer {name} after {times} updates"
            assert_matches(buffer, theirs.clone(), what, rtol=0, atol=0)


def test_the_average_is_a_model_of_its_own(impl):
    model = Buffers()
    ema = impl.EMA(model, 0.9)
    assert type(ema.model) is Buffers, f"the average is a {type(ema.model).__name__}"
    before = copy.deepcopy(ema.model.state_dict())
    change(model, 5)
    for name, value in ema.model.state_dict().items():
        assert_matches(
            value, before[name], f"{name} of the average, without update", rtol=0, atol=0
        )
    ema.update(model)
    asking = [name for name, p in ema.model.named_parameters() if p.requires_grad]
    assert not asking, f"{asking} of the average ask for a gradient"
    assert model.linear.weight.requires_grad, "the model does not ask for gradients any more"
    assert not model.frozen.requires_grad
    held = model.state_dict()
    kept = copy.deepcopy(ema.model.state_dict())
    for value in held.values():
        value.data.add_(1)
    for name, value in ema.model.state_dict().items():
        assert_matches(value, kept[name], f"{name} of the average, once the model moves on")
    one, two = impl.EMA(model, 0.9), impl.EMA(model, 0.5)
    for _ in range(30):
        one.update(model)
    change(model, 2)
    start = two.model.linear.weight.detach().clone()
    two.update(model)
    share = 2 / 11
    wanted = share * start + (1 - share) * model.linear.weight.detach()
    got = two.model.linear.weight.detach()
    assert_matches(got, wanted, "the first update of a second average", rtol=1e-4, atol=1e-4)


# Checks: the assessment and the run

ASSESSED = {"gap"} | {f"{n}_{k}" for n in ("ddim", "ddpm", "free") for k in ("shift", "spread")}


def test_the_assessment_of_the_best_model(impl):
    bars = schedule("cosine", 100)
    process = diffusion(impl, "epsilon", bars)
    got = impl.assess(process, best_model("epsilon", bars), mixture(impl), 5)
    assert set(got) == ASSESSED, f"it has {sorted(got)}"
    assert all(isinstance(value, float) for value in got.values()), f"no float in {got}"
    assert got["gap"] < 1e-5, f"the best model has a gap of {got['gap']}"
    levels = even_levels(40)
    total = math.sqrt((WEIGHTS @ (STDS**2 + (MEANS**2).mean(1))) - ((WEIGHTS @ MEANS) ** 2).mean())
    for name, label, eta in (("ddim", 0, 0.0), ("ddpm", NONE - 1, 1.0)):
        ratio = best_moments(bars, levels, eta, label)[1] / STDS[label]
        value = got[f"{name}_spread"]
        assert abs(value - ratio) < 0.17, f"{name}_spread {value:.3f}, not about {ratio:.2f}"
        value = got[f"{name}_shift"]
        assert value < 12 * STDS[label] / math.sqrt(600), f"{name}_shift {value:.3f}"
    assert abs(got["free_spread"] - 1) < 0.15, f"free_spread {got['free_spread']:.3f}"
    assert got["free_shift"] < 10 * total / math.sqrt(1000), f"free_shift {got['free_shift']:.3f}"


def test_the_assessment_of_a_model_that_is_off(impl):
    bars = schedule("cosine", 100)
    exact = best_model("epsilon", bars)

    def off(x, t, labels):
        return exact(x, t, labels) + torch.tensor([0.3, -0.5])

    got = impl.assess(diffusion(impl, "epsilon", bars), off, mixture(impl), 5)
    wanted = (0.09 + 0.25) / 2
    assert math.isclose(got["gap"], wanted, rel_tol=1e-3), f"gap {got['gap']:.4f}, not {wanted}"

    def v_off(x, t, labels):
        return best_model("v", bars)(x, t, labels) + 0.4

    got = impl.assess(diffusion(impl, "v", bars), v_off, mixture(impl), 5)
    wanted = 0.16 * float(bars[1:].mean())  # an error in v is one in the noise, times the signal
    assert math.isclose(got["gap"], wanted, rel_tol=0.15), f"gap {got['gap']:.4f}, not {wanted:.4f}"

    def labelled(x, t, labels):  # takes every label for the next
        return exact(x, t, (labels + 1) % (NONE + 1))

    got = impl.assess(diffusion(impl, "epsilon", bars), labelled, mixture(impl), 5)
    apart = float(np.linalg.norm(MEANS[1] - MEANS[0]))
    assert abs(got["ddim_shift"] - apart) < 0.25, f"{got['ddim_shift']:.2f}, not {apart:.2f}"
    ratio = best_moments(bars, even_levels(40), 0.0, 1)[1] / STDS[0]
    assert abs(got["ddim_spread"] - ratio) < 0.12, f"{got['ddim_spread']:.3f}, not {ratio:.3f}"


def test_half_of_the_gap_is_without_labels(impl):
    bars = schedule("cosine", 100)
    exact = best_model("epsilon", bars)
    for label, share in ((None, 0.5), (0, 0.25), (1, 0.1)):

        def off(x, t, labels, label=label):
            wrong = labels == (NONE if label is None else label)
            return exact(x, t, labels) + wrong[:, None].float()

        got = impl.assess(diffusion(impl, "epsilon", bars), off, mixture(impl), 5)["gap"]
        who = "rows without a label" if label is None else f"label {label}"
        assert abs(got - share) < 0.05, f"off by 1 in {who} alone: gap {got:.3f}, not {share}"


def test_shift_and_spread_of_an_assessment(impl):
    corner = torch.tensor([2.0, 0.1])

    def corners(x, t, labels):  # one of four; in the last step they are moved
        return torch.where(x > 0, corner, -corner) + torch.tensor([3.0, -4.0]) * (t <= 3)[:, None]

    got = impl.assess(diffusion(impl, "x0", schedule("cosine", 100)), corners, mixture(impl), 8)
    total = math.sqrt(WEIGHTS @ (2 * STDS**2 + (MEANS**2).sum(1)) - ((WEIGHTS @ MEANS) ** 2).sum())
    for name, mean, std in (
        ("ddim", MEANS[0], STDS[0] * math.sqrt(2)),
        ("free", WEIGHTS @ MEANS, total),
    ):
        assert math.isfinite(got[f"{name}_shift"])
        wanted = math.sqrt(float(corner.square().sum())) / std
        value = got[f"{name}_spread"]
        assert abs(value / wanted - 1) < 0.12, f"{name}_spread {value:.3f}, not {wanted:.3f}"
        wanted = float(np.linalg.norm(np.array([3.0, -4.0]) - mean))
        value = got[f"{name}_shift"]
        assert abs(value - wanted) < 0.5, f"{name}_shift {value:.2f}, not {wanted:.2f}"


def test_shifts_are_from_all_points_of_a_label(impl, monkeypatch):
    given, sample = [], impl.Mixture.sample

    def spy(self, count, generator):
        points, labels = sample(self, count, generator)
        given.append((points.clone(), labels.clone()))
        return points, labels

    monkeypatch.setattr(impl.Mixture, "sample", spy)
    place = torch.tensor([0.7, -1.1])
    process = diffusion(impl, "x0", schedule("cosine", 50))
    got = impl.assess(process, lambda x, t, labels: place.expand(len(x), 2), mixture(impl), 4)
    for points, labels in given[:1]:  # it may draw them without `sample`
        for name, its in (
            ("ddim", labels == 0),
            ("ddpm", labels == NONE - 1),
            ("free", labels < NONE),
        ):
            wanted = float((place - points[its].mean(0)).norm())
            value = got[f"{name}_shift"]
            assert math.isclose(value, wanted, rel_tol=1e-3), (
                f"all samples in one place: {name}_shift {value:.4f}, and that place is "
                f"{wanted:.4f} from the mean of the {int(its.sum())} points"
            )


def test_an_assessment_repeats_itself(impl):
    bars = schedule("cosine", 50)
    process, state = diffusion(impl, "v", bars), torch.get_rng_state()
    one, two, other = (impl.assess(process, Toy(0.2), mixture(impl), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state), "it draws from the global generator"
    assert one == two, "one seed, and two assessments"
    assert one != other, "another seed, and the same assessment"


def test_a_run_is_what_the_brief_says(log):
    assert len(log) == 600, f"a run logs {len(log)} steps, not 600"
    for step, line in enumerate(log):
        wanted = {"loss"} | (ASSESSED if step % 100 == 99 else set())
        assert set(line) == wanted, f"the line of step {step} has {sorted(line)}"
        assert all(isinstance(value, float) for value in line.values()), f"no float in {line}"


def test_a_run_assesses_the_averaged_model(impl, monkeypatch):
    assess, asking = impl.assess, []

    def spy(diffusion, model, *rest, **named):
        asking.append([p.requires_grad for p in model.parameters()])
        return assess(diffusion, model, *rest, **named)

    monkeypatch.setattr(impl, "assess", spy)
    list(impl.run(steps=2))
    assert not any(map(any, asking)), "a run assesses the model that it trains, not the average"


def test_a_seed_gives_one_log(impl):
    torch.default_generator.manual_seed(5)
    before = torch.get_rng_state()
    one = [dict(line) for line in impl.run(seed=3, steps=4)]
    assert torch.equal(torch.get_rng_state(), before), "a run changes the global generator"
    again = [dict(line) for line in read_with_draws(impl.run, 3, 4)]
    assert again == one, "the same seed gives another log"
    other = [dict(line) for line in impl.run(seed=4, steps=4)]
    assert [line["loss"] for line in other] != [line["loss"] for line in one], "seeds do not count"
    assert list(impl.run(steps=2)) == list(impl.run(0, 2)), "seed is not 0 by default"
    assert [set(line) for line in one] == [{"loss"}] * 3 + [{"loss"} | ASSESSED]
