import contextlib
import copy
import dataclasses
import inspect
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from dojo.testing import assert_matches, read_with_draws, unchanged

IGNORE = -100
LINES = (
    "red sky at night",
    "all that glitters is not gold",
    "two wrongs",
    "the grass is always greener on the other side of the fence",
    "fortune favours the bold",
    "you reap what you sow",
)
LETTERS = "\n" + "".join(sorted(set("".join(LINES))))


class TorchAdamW(torch.optim.AdamW):
    """torch.optim.AdamW without the wrappers that import torch._dynamo, which takes a second."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)


def collate(lines):
    """Ids and labels of lines of text, padded at the right."""
    length = max(len(line) for line in lines) + 1
    ids, labels = torch.zeros(2, len(lines), length, dtype=torch.long)
    labels.fill_(IGNORE)
    for row, line in enumerate(lines):
        tokens = torch.tensor([LETTERS.index(letter) for letter in f"\n{line}\n"])
        ids[row, : len(line) + 1] = tokens[:-1]
        labels[row, : len(line) + 1] = tokens[1:]
    return ids, labels


def together(window):
    """The micro-batches of a window as one batch, padded to the longest."""
    longest = max(ids.shape[1] for ids, _ in window)
    ids = [F.pad(ids, (0, longest - ids.shape[1])) for ids, _ in window]
    labels = [F.pad(labels, (0, longest - labels.shape[1]), value=IGNORE) for _, labels in window]
    return torch.cat(ids), torch.cat(labels)


def batch(rows, lengths, vocab=7):
    """Random ids and labels; row I has lengths[I % len(lengths)] tokens, and then padding."""
    width = max(lengths)
    ids, labels = torch.randint(vocab, (2, rows, width))
    for row in range(rows):
        labels[row, lengths[row % len(lengths)] :] = IGNORE
    return ids, labels


def windows(count, vocab=7):
    """Windows of three micro-batches that differ in rows, in length and in padding."""
    return [
        [batch(2, (3, 5), vocab), batch(5, (1, 2, 2), vocab), batch(1, (9,), vocab)]
        for _ in range(count)
    ]


def small(vocab=7, dtype=torch.float32, spread=1.0):
    """A model of a matrix of embeddings, a norm and a linear layer, of sizes all different."""
    model = nn.Sequential(nn.Embedding(vocab, 5), nn.LayerNorm(5), nn.Linear(5, vocab))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(spread * torch.randn(p.shape))
    return model.to(dtype)


SETTINGS = {
    "max_lr": 0.03,
    "min_lr": 0.002,
    "warmup_steps": 3,
    "total_steps": 11,
    "accumulation_steps": 3,
    "weight_decay": 0.7,
    "betas": (0.8, 0.95),
    "max_norm": 0.4,
    "ema_decay": 0.7,
    "init_scale": 2.0**10,
    "growth_interval": 100,
}


def config(impl, **changed):
    return impl.TrainConfig(**{**SETTINGS, **changed})


def trainer(impl, model, **changed):
    return impl.Trainer(model, config(impl, **changed))


def rate(step, settings):
    """The learning rate; (1 + cos a) / 2 is the squared cosine of a / 2."""
    top, low = settings["max_lr"], settings["min_lr"]
    warmup, total = settings["warmup_steps"], settings["total_steps"]
    if step < warmup:
        return (step + 1) * top / warmup
    if step >= total:
        return low
    share = math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
    return share * top + (1 - share) * low


class Oracle:
    """The same training by torch's own optimiser and clipping, of a copy of the model."""

    def __init__(self, model, **changed):
        self.settings = {**SETTINGS, **changed}
        self.model = copy.deepcopy(model)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.masters = [p.detach().float().clone().requires_grad_() for p in self.params]
        self.averages = [m.detach().clone() for m in self.masters]
        decay = self.settings["weight_decay"]
        self.optimizer = TorchAdamW(
            [
                {"params": [m for m in self.masters if m.dim() > 1], "weight_decay": decay},
                {"params": [m for m in self.masters if m.dim() < 2], "weight_decay": 0.0},
            ],
            betas=self.settings["betas"],
            eps=1e-8,
        )
        self.steps = 0

    def step(self, window, scale=1.0):
        """Return loss, learning rate and norm of a step on a window."""
        tokens = sum((labels != IGNORE).sum().item() for _, labels in window)
        loss = 0.0
        for m in self.masters:
            m.grad = None
        for ids, labels in window:
            logits = self.model(ids).float()
            share = F.cross_entropy(logits.mT, labels, ignore_index=IGNORE, reduction="sum")
            share = share / tokens
            self.model.zero_grad()
            (share * scale).backward()
            loss += share.item()
            for p, m in zip(self.params, self.masters, strict=True):
                if p.grad is not None:
                    m.grad = p.grad.float() + (0 if m.grad is None else m.grad)
        for m in self.masters:
            if m.grad is not None:
                m.grad /= scale
        norm = clip_grad_norm_(self.masters, self.settings["max_norm"]).item()
        lr = rate(self.steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.steps += 1
        with torch.no_grad():
            for p, m, average in zip(self.params, self.masters, self.averages, strict=True):
                p.copy_(m)
                decay = self.settings["ema_decay"]
                average.copy_(decay * average + (1 - decay) * m)
        return {"loss": loss, "lr": lr, "grad_norm": norm}


def assert_close(actual, expected, what, rel=1e-5):
    assert isinstance(actual, (int, float)), f"{what} is a {type(actual).__name__}"
    close = math.isclose(actual, expected, rel_tol=rel, abs_tol=1e-9)
    assert close, f"{what} is {actual:.7g}, not {expected:.7g}"


def assert_log(log, expected, what, rel=1e-5):
    for key, value in expected.items():
        assert_close(log[key], value, f"{what}: the {key}", rel)


def assert_same_weights(model, expected, what, tolerance=2e-5):
    pairs = zip(model.named_parameters(), expected.parameters(), strict=True)
    for (name, p), q in pairs:
        assert_matches(p.detach(), q.detach(), f"{what}: {name}", rtol=tolerance, atol=tolerance)


def assert_same_averages(ema, oracle, what, tolerance=2e-5):
    pairs = zip(ema.parameters(), oracle.model.parameters(), strict=True)
    trained = [p for p, q in pairs if q.requires_grad]
    for number, (p, q) in enumerate(zip(trained, oracle.averages, strict=True)):
        what_p = f"{what}: the average of weight {number}"
        assert_matches(p.detach(), q, what_p, rtol=tolerance, atol=tolerance)


@contextlib.contextmanager
def overflowing(parameter, value=math.inf):
    """Make a gradient of this parameter infinite."""
    handle = parameter.register_hook(lambda grad: torch.full_like(grad, value))
    yield
    handle.remove()


# Symptoms: what shows in a whole run.


@pytest.fixture(scope="module")
def log(impl):
    return list(impl.run())


@pytest.mark.symptom
def test_the_run_learns_the_proverbs(log):
    start, end = log[0]["loss"], log[-1]["ema_loss"]
    assert 3.0 < start < 3.7, (
        f"the loss of the first step, of a model that knows nothing, is {start:.3f}; "
        f"to guess one of 25 tokens costs {math.log(25):.3f}"
    )
    late = sum(row["loss"] for row in log[-20:]) / 20
    assert 0.14 < end < 0.24, (
        f"the averaged weights end at a loss of {end:.3f}; in a healthy run it is 0.17 to 0.22"
    )
    assert 0.12 < late < 0.25, (
        f"the loss of the last 20 steps is {late:.3f}; in a healthy run it is 0.15 to 0.22"
    )
    assert late < end + 0.03, (
        f"the averaged weights end at {end:.3f}, far below the loss of the last steps, {late:.3f}"
    )


@pytest.mark.symptom
def test_the_norms_of_the_run(log):
    norms = [row["grad_norm"] for row in log]
    assert 0.9 < norms[0] < 4, f"the gradient's norm starts at {norms[0]:.3g}, not at 1.3 to 2.5"
    above = sum(norm > 0.5 for norm in norms)
    assert above >= 80, (
        f"before clipping the gradient's norm is above max_norm, 0.5, in {above} steps of 120; "
        "in a healthy run in 95 or more"
    )
    start, end = log[0]["weight_norm"], log[-1]["weight_norm"]
    assert 19.3 < start < 20.2, f"the weights' norm starts at {start:.2f}, not at 19.6 to 19.9"
    assert 19.9 < end < 20.9, f"the weights' norm ends at {end:.2f}, not at 20.2 to 20.6"


@pytest.mark.symptom
def test_the_learning_rate_of_the_run(log):
    assert len(log) == 120, f"120 steps were asked for, and the log has {len(log)}"
    rates = [row["lr"] for row in log]
    top = max(rates)
    assert rates.index(top) in (9, 10), f"the learning rate peaks at step {rates.index(top)}, not 9"
    assert_close(top, 3e-3, "the highest learning rate")
    assert all(a < b for a, b in itertools.pairwise(rates[:10])), "the warm-up does not rise"
    assert all(a >= b for a, b in itertools.pairwise(rates[10:])), "it rises after the warm-up"
    at = {step: f"{rates[step]:.3g}" for step in (30, 90, 119)}
    healthy = 2.7e-3 < rates[30] < 2.8e-3 and 5e-4 < rates[90] < 7e-4 and 1e-5 < rates[119] < 2e-5
    assert healthy, f"learning rates by step: {at}; in a healthy run 0.00276, 0.00057, 1.2e-05"


@pytest.mark.symptom
def test_the_overflow_of_the_run(log):
    skipped = [step for step, row in enumerate(log) if row["skipped"]]
    assert skipped == [60], f"steps {skipped[:5]} are skipped, {len(skipped)} in all, and not 60"
    for step, row in enumerate(log):
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        assert not broken or (step, broken) == (60, ["grad_norm"]), f"step {step}: {broken} broken"
    before, at, after = log[59:62]
    assert at["ema_loss"] == before["ema_loss"], "the skipped step moved the averages"
    assert at["weight_norm"] == before["weight_norm"], "the skipped step moved the weights"
    assert after["lr"] == at["lr"], "the skipped step used up a learning rate"
    scales = [math.log2(row["scale"]) for row in log]
    changes = {n + 1: b - a for n, (a, b) in enumerate(itertools.pairwise(scales)) if a != b}
    wanted = {50: 1, 61: -1, 111: 1}
    assert changes == wanted, f"the scale doubles (1) or halves (-1) at {changes}, not at {wanted}"


@pytest.mark.symptom
def test_the_run_is_the_same_however_windows_are_cut(impl):
    torch.manual_seed(1)
    model = impl.LanguageModel(len(LETTERS), context=4, width=12, n_layer=2)
    parts = [collate(LINES[:3]), collate(LINES[3:4]), collate(LINES[4:])]
    windows = [parts, parts[:2], parts[1:], [parts[2]]]
    settings = {"max_norm": 1.5, "ema_decay": 0.8}
    cut = trainer(impl, copy.deepcopy(model), **settings)
    whole = trainer(impl, model, **settings)
    for number in range(12):
        window = windows[number % len(windows)]
        one, other = cut.step(window), whole.step([together(window)])
        for name, wanted in other.items():
            close = math.isclose(one[name], wanted, rel_tol=3e-3)
            assert close, (
                f"step {number}, of {len(window)} micro-batches: {name} is {one[name]:.5g}, "
                f"and on the same tokens as one batch {wanted:.5g}"
            )


@pytest.mark.symptom
def test_at_a_low_learning_rate_every_weight_moves(impl):
    torch.manual_seed(2)
    model = impl.LanguageModel(len(LETTERS), context=4, width=12, n_layer=2).to(torch.bfloat16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    low = {"max_lr": 3e-5, "min_lr": 3e-5, "warmup_steps": 0, "weight_decay": 0.0}
    list(trainer(impl, model, **low).train([collate(LINES)] * 120))
    for name, p in model.named_parameters():
        # A norm's weights of one are too coarse to show so small a change.
        large = (before[name].abs() > 0.06) & (before[name].abs() < 0.5)
        if name.endswith("bias"):
            large = torch.ones_like(large)
        moved, of = ((p != before[name]) & large).sum().item(), large.sum().item()
        assert moved >= 0.5 * of, f"{moved} of {of} entries of {name} moved in 40 steps"


@pytest.mark.symptom
def test_a_long_window_of_one_line_is_that_line(impl):
    torch.manual_seed(3)
    model = impl.LanguageModel(len(LETTERS), context=2, width=6, n_layer=1).to(torch.bfloat16)
    line = collate(LINES[:1])
    one = trainer(impl, copy.deepcopy(model)).step([line])["grad_norm"]
    many = trainer(impl, model).step([line] * 400)["grad_norm"]
    assert math.isclose(many, one, rel_tol=0.02), (
        f"the gradient's norm for a line is {one:.4f}, and for 400 micro-batches of it {many:.4f}"
    )


# Checks: the parts, by their contract.


def test_one_step(impl):
    for max_norm in (0.4, 50.0, 1e-4):
        for weight_decay in (0.7, 0.0):
            model = small()
            changed = {"max_norm": max_norm, "weight_decay": weight_decay}
            changed["betas"] = (0.3, 0.4) if weight_decay == 0 else (0.8, 0.95)
            oracle = Oracle(model, **changed)
            training = trainer(impl, model, **changed)
            window = [batch(3, (4, 6))]
            log, wanted = training.step(window), oracle.step(window)
            what = f"a step, {changed}"
            assert_log(log, wanted, what)
            assert_same_weights(model, oracle.model, what)
            assert_same_averages(training.ema, oracle, what)


def test_the_log_of_a_step(impl):
    training = trainer(impl, small())
    log = training.step(windows(1)[0])
    names = {"loss", "lr", "grad_norm", "scale", "skipped", "weight_norm"}
    assert set(log) == names, f"the log has {sorted(log)}, not {sorted(names)}"
    for name, value in log.items():
        assert type(value) is float, f"{name} is a {type(value).__name__}, not a float"
    norm = math.sqrt(sum(p.double().square().sum().item() for p in training.model.parameters()))
    assert_close(log["weight_norm"], norm, "weight_norm, after the step")
    assert type(training.steps) is int, f"steps is a {type(training.steps).__name__}"
    assert training.steps == 1, f"after one step steps is {training.steps}"
    assert type(training.scale) is float, f"scale is a {type(training.scale).__name__}"


def test_steps_on_micro_batches_are_those_on_the_whole(impl):
    for max_norm in (0.4, 30.0):
        model = small()
        oracle = Oracle(model, max_norm=max_norm)
        training = trainer(impl, model, max_norm=max_norm)
        for number, window in enumerate(windows(9)):
            log, wanted = training.step(window), oracle.step([together(window)])
            what = f"step {number} of three micro-batches, max_norm {max_norm}"
            assert_log(log, wanted, what, rel=1e-4)
        assert_same_weights(model, oracle.model, f"9 steps, max_norm {max_norm}", 1e-4)
        assert_same_averages(training.ema, oracle, f"9 steps, max_norm {max_norm}", 1e-4)


def test_windows_of_other_lengths(impl):
    model = small()
    oracle, training = Oracle(model), trainer(impl, model)
    many = [part for window in windows(3) for part in window]
    for window in ([many[0]], many[:2], many[:5], many):
        log, wanted = training.step(window), oracle.step([together(window)])
        assert_log(log, wanted, f"a window of {len(window)} micro-batches", rel=1e-4)
    assert training.steps == 4, f"after four steps of windows of 1 to 9, steps is {training.steps}"
    assert_same_weights(model, oracle.model, "windows of 1, 2, 5 and 9 micro-batches", 1e-4)


def test_padding_counts_for_nothing(impl):
    model = small()
    oracle, training = Oracle(model), trainer(impl, model)
    for number, window in enumerate(windows(4)):
        padded = []
        for ids, labels in window:
            ids, labels = F.pad(ids, (0, 6), value=3), F.pad(labels, (0, 6), value=IGNORE)
            padded.append(
                (torch.cat([ids, ids]), torch.cat([labels, torch.full_like(labels, -100)]))
            )
        nothing = torch.ones(2, 4, dtype=torch.long), torch.full((2, 4), IGNORE)
        log = training.step([nothing, *padded, nothing])
        assert_log(log, oracle.step(window), f"step {number}, with much padding", rel=1e-4)
    assert_same_weights(model, oracle.model, "4 steps, with much padding", 1e-4)


def test_weights_in_half_precision_have_masters(impl):
    for dtype in (torch.bfloat16, torch.float16):
        model = small(dtype=dtype, spread=0.5)
        slow = {"max_lr": 3e-4, "min_lr": 1e-4, "total_steps": 40}
        oracle, training = Oracle(model, **slow), trainer(impl, model, **slow)
        for number, window in enumerate(windows(25)):
            log, wanted = training.step(window), oracle.step(window, scale=2.0**10)
            assert_log(log, wanted, f"{dtype}, step {number}", rel=1e-3)
        for (name, p), q in zip(model.named_parameters(), oracle.masters, strict=True):
            assert p.dtype == dtype, f"{name} was {dtype} and is {p.dtype}"
            # Half a unit in the last place of the largest, from the exact one.
            off = (p.detach().double() - q.double()).abs().max().item()
            unit = q.abs().max().item() * torch.finfo(dtype).eps
            assert off <= 0.55 * unit, f"{name}, {dtype}: {off:.2g} off what float32 would reach"
        assert_same_averages(training.ema, oracle, f"25 steps in {dtype}", 1e-4)
        norm = math.sqrt(sum(m.double().square().sum().item() for m in oracle.masters))
        assert_close(log["weight_norm"], norm, f"{dtype}: weight_norm, of the masters", 1e-5)


def test_decay_counts_in_half_precision(impl):
    """Of tokens that are never seen the embeddings get gradients of zero, and only decay."""
    model = small(dtype=torch.bfloat16)
    start = model[0].weight.detach().float().clone()
    settings = {"max_lr": 1e-3, "min_lr": 1e-3, "warmup_steps": 0, "weight_decay": 1.5}
    training = trainer(impl, model, **settings)
    for _ in range(60):
        training.step([batch(2, (3, 5), vocab=5)])
    kept = model[0].weight.detach().float()[5:] / start[5:]
    wanted = torch.full_like(kept, (1 - 1e-3 * 1.5) ** 60)
    assert_matches(kept, wanted, "what 60 steps of decay leave of a bfloat16 weight", rtol=6e-3)
    # The bias is no matrix, and that of a token that never comes only falls.
    assert (training.ema[0].weight[5:].abs() < start[5:].abs()).all(), "the average does not decay"


def test_dtypes_side_by_side(impl):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 5, dtype=torch.bfloat16)
            self.head = nn.Linear(5, 7)

        def forward(self, ids):
            return self.head(self.embed(ids).float())

    model = Mixed()
    oracle, training = Oracle(model), trainer(impl, model)
    for number, window in enumerate(windows(5)):
        assert_log(training.step(window), oracle.step(window, 2.0**10), f"step {number}", rel=1e-3)
    assert_same_weights(model, oracle.model, "bfloat16 beside float32", 1e-3)
    assert {p.dtype for p in training.ema.parameters()} == {torch.float32}, "averages not float32"


def test_the_loss_is_computed_in_float32(impl):
    for dtype in (torch.bfloat16, torch.float16):
        model = small(dtype=dtype, spread=2.0)
        window = [batch(40, (9, 30)), batch(3, (2,))]
        wanted = Oracle(model).step(window, 2.0**10)["loss"]
        log = trainer(impl, model).step(window)
        assert_close(log["loss"], wanted, f"the loss of 789 tokens with logits in {dtype}", 1e-5)
        model = small(dtype=dtype, spread=2.0)
        ids, labels = batch(40, (9, 30))
        logits = model(ids).detach().double().mT
        exact = F.cross_entropy(logits, labels, ignore_index=IGNORE).item()
        got = impl.evaluate(model, [(ids, labels)])
        assert_close(got, exact, f"evaluation with logits in {dtype}", 1e-5)


def test_gradients_are_summed_in_float32(impl):
    """One gradient of size one, and 300 of a thousandth, that bfloat16 would lose."""

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))

        def forward(self, ids):
            # Id 0 stands for a logit of little weight.
            return self.scores * (1.0 - 0.995 * (ids == 0).unsqueeze(-1))

    heavy = torch.ones(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
    light = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
    window = [heavy, *[light] * 300]
    model = Scores()
    wanted = Oracle(model).step(window, 2.0**10)["grad_norm"]
    got = trainer(impl, model).step(window)["grad_norm"]
    assert_close(got, wanted, "the norm of one large gradient and 300 small ones", 1e-3)


def test_clipping_goes_by_the_norm_of_the_whole(impl):
    """With max_norm below the norm of each part, and of parts that cancel."""
    model = small()
    ids = torch.randint(7, (2, 6))
    window = [(ids, torch.full_like(ids, label)) for label in (1, 4, 1, 6)]
    probe = Oracle(model)
    whole = probe.step(window)["grad_norm"]
    for max_norm in (0.3 * whole, 1.02 * whole, 3 * whole):
        ours = copy.deepcopy(model)
        oracle, training = Oracle(ours, max_norm=max_norm), trainer(impl, ours, max_norm=max_norm)
        for number in range(3):
            part = window[number:] + window[:number]
            what = f"max_norm {max_norm / whole:.2f} of the norm, step {number}"
            assert_log(training.step(part), oracle.step([together(part)]), what, rel=1e-4)
        assert_same_weights(
            ours, oracle.model, f"max_norm {max_norm / whole:.2f} of the norm", 1e-4
        )


def test_the_scale_changes_nothing_but_itself(impl):
    model = small()
    steps = windows(5)
    runs = {}
    for scale in (2.0**20, 1.0, 2.0**-4, 2.0**60):
        ours = copy.deepcopy(model)
        training = trainer(impl, ours, init_scale=scale, max_norm=0.2)
        runs[scale] = [training.step(window) for window in steps], ours
    oracle = Oracle(model, max_norm=0.2)
    for number, window in enumerate(steps):
        wanted = oracle.step(window)
        for scale, (logs, _) in runs.items():
            assert_log(logs[number], wanted, f"scale {scale:g}, step {number}", rel=1e-4)
            assert logs[number]["scale"] == scale, f"the log says scale {logs[number]['scale']}"
    for scale, (_, ours) in runs.items():
        assert_same_weights(ours, oracle.model, f"5 steps with a scale of {scale:g}", 1e-4)


def test_the_loss_is_scaled_before_it_goes_back(impl):
    """Gradients of 1e-7 are zero in float16 unless the loss is scaled."""
    model, window = small(dtype=torch.float16), windows(1)[0]
    norms = {}
    for scale in (1.0, 512.0):
        ours, seen = copy.deepcopy(model), []
        training = trainer(impl, ours, init_scale=scale)
        ours[2].weight.register_hook(lambda grad, seen=seen: seen.append(grad.float().norm()))
        training.step(window)
        norms[scale] = sum(seen).item()
    ratio = norms[512.0] / norms[1.0]
    assert math.isclose(ratio, 512, rel_tol=0.05), (
        f"with a scale of 512 gradients are {ratio:.1f} times as large as with 1"
    )


def test_small_gradients_survive_in_float16(impl):
    """Gradients of about 1e-7, which float16 holds only while they are scaled."""

    class Faint(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small(dtype=torch.float16)

        def forward(self, ids):
            return self.body(ids).float() * 1e-6

    model = Faint()
    oracle, training = Oracle(model), trainer(impl, model, init_scale=2.0**16)
    for number, window in enumerate(windows(2)):
        log, wanted = training.step(window), oracle.step(window, 2.0**16)
        assert_log(log, wanted, f"step {number} on gradients of about 1e-7 in float16", rel=3e-3)


def test_masters_are_made_with_the_trainer(impl):
    model = small()
    oracle, training = Oracle(model), trainer(impl, model)
    with torch.no_grad():
        for p in [*model.parameters(), *oracle.model.parameters()]:
            p.fill_(0.5)
    window = windows(1)[0]
    list(training.train(window))
    oracle.step(window)
    assert_same_weights(model, oracle.model, "a step from masters, of weights set by hand", 1e-4)


def test_batches_of_any_layout(impl):
    model = small()
    oracle, training = Oracle(model), trainer(impl, model)
    for number, window in enumerate(windows(3)):
        turned = [(ids.t().contiguous().t(), y.t().contiguous().t()) for ids, y in window]
        kept = list(turned)
        log = training.step(turned)
        assert_log(log, oracle.step(window), f"step {number} on transposed batches", rel=1e-4)
        same = len(turned) == len(kept) and all(a is b for a, b in zip(turned, kept, strict=True))
        assert same, "the list of micro-batches is changed"
        got, wanted = impl.evaluate(model, turned), impl.evaluate(model, window)
        assert_close(got, wanted, "evaluation on transposed batches")


def test_an_overflow_leaves_no_trace(impl):
    for value in (math.inf, -math.inf, math.nan):
        for at in range(5):
            model = small()
            oracle, training = Oracle(model), trainer(impl, model)
            for number, window in enumerate(windows(5)):
                if number == at:
                    weights = copy.deepcopy(model.state_dict())
                    averages = copy.deepcopy(training.ema.state_dict())
                    with overflowing(model[2].bias, value):
                        log = training.step(window)
                    what = f"a gradient of {value} in step {number}"
                    assert log["skipped"] == 1.0, f"{what}: skipped is {log['skipped']}"
                    norm = log["grad_norm"]
                    assert not math.isfinite(norm), f"{what}: grad_norm is {norm}"
                    assert math.isfinite(log["loss"]), f"{what}: the loss is {log['loss']}"
                    assert_close(log["lr"], rate(number, SETTINGS), f"{what}: lr")
                    assert training.steps == number, f"{what}: {training.steps} steps are taken"
                    assert training.scale == 2.0**9, f"{what}: the scale is {training.scale}"
                    for name, p in model.state_dict().items():
                        assert_matches(p, weights[name], f"{what}: {name}", rtol=0, atol=0)
                    for name, p in training.ema.state_dict().items():
                        assert_matches(p, averages[name], f"{what}: average", rtol=0, atol=0)
                    continue
                what = f"step {number}, an overflow at {at}"
                log = training.step(window)
                assert log["skipped"] == 0.0, f"{what}: skipped is {log['skipped']}"
                assert_log(log, oracle.step([together(window)]), what, rel=1e-4)
            assert_same_weights(model, oracle.model, f"5 steps, {value} in step {at}", 1e-4)
            assert_same_averages(training.ema, oracle, f"5 steps, {value} in step {at}", 1e-4)


def test_an_overflow_in_one_micro_batch_skips_the_step(impl):
    for place in range(3):
        model = small()
        training = trainer(impl, model)
        before = copy.deepcopy(model)
        count = itertools.count()
        handle = model[0].weight.register_hook(
            lambda grad, count=count, place=place: (
                torch.full_like(grad, math.inf) if next(count) == place else grad
            )
        )
        log = training.step(windows(1)[0])
        handle.remove()
        assert log["skipped"] == 1.0, f"an overflow in micro-batch {place} of 3 is not noticed"
        assert_same_weights(model, before, f"an overflow in micro-batch {place} of 3", 0)


def test_finite_gradients_may_have_a_norm_that_is_not(impl):
    model = small()
    training = trainer(impl, model)
    before = copy.deepcopy(model)
    with overflowing(model[0].weight, 1e30):  # its square is beyond float32
        log = training.step(windows(1)[0])
    assert log["skipped"] == 1.0, f"the norm is {log['grad_norm']}, and the step is not skipped"
    assert_same_weights(model, before, "a step whose norm is infinite", 0)


def test_overflows_in_a_row(impl):
    model = small()
    oracle, training = Oracle(model), trainer(impl, model, init_scale=4.0)
    window = windows(1)[0]
    with overflowing(model[0].weight):
        logs = [training.step(window) for _ in range(4)]
    scales = [log["scale"] for log in logs]
    assert scales == [4.0, 2.0, 1.0, 0.5], f"scales of four overflows: {scales}"
    assert [log["lr"] for log in logs] == [logs[0]["lr"]] * 4, "the learning rate moved on"
    for number, window in enumerate(windows(3)):
        what = f"step {number} after four overflows"
        assert_log(training.step(window), oracle.step(window), what, rel=1e-4)
    assert_same_weights(model, oracle.model, "three steps after four overflows", 1e-4)


def test_when_the_scale_grows(impl):
    model = small()
    training = trainer(impl, model, growth_interval=3, init_scale=16.0)
    # One character a step: an overflow is x. The scale is that which the step is taken with.
    steps = ".......x..x....xx........"
    wanted = [16] * 3 + [32] * 3 + [64, 64] + [32] * 3 + [16] * 3 + [32, 32, 16]
    wanted += [8] * 3 + [16] * 3 + [32] * 2
    for number, (step, scale) in enumerate(zip(steps, wanted, strict=True)):
        ahead = training.scale
        context = overflowing(model[2].weight) if step == "x" else contextlib.nullcontext()
        with context:
            log = training.step([batch(2, (3,))])
        assert log["scale"] == ahead == scale, (
            f"step {number} of {steps!r}, growth_interval 3: the scale is {log['scale']}, "
            f"not {scale}"
        )
    assert training.scale == 32, f"after {steps!r} the scale is {training.scale}, not 32"


def test_a_growth_interval_of_one(impl):
    for first in (0.5, 2.0**16, 2.0**40):
        training = trainer(impl, small(), growth_interval=1, init_scale=first)
        scales = [training.step([batch(1, (2,))])["scale"] for _ in range(10)]
        wanted = [first * 2**step for step in range(10)]
        assert scales == wanted, f"growth_interval 1: the scales are {scales}"


def test_no_gradient_is_left(impl):
    model = small()
    training = trainer(impl, model)
    training.step(windows(1)[0])
    assert all(p.grad is None for p in model.parameters()), "a gradient is left after a step"
    with overflowing(model[2].bias):
        training.step(windows(1)[0])
    assert all(p.grad is None for p in model.parameters()), "a gradient is left after an overflow"


def test_a_parameter_without_a_gradient_is_left_alone(impl):
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small()
            self.extra = nn.Linear(7, 7)

        def forward(self, ids):
            logits = self.body(ids)
            # Whatever begins with a 6 goes through the further layer.
            return self.extra(logits) if ids[0, 0] == 6 else logits

    model = Sometimes()
    oracle, training = Oracle(model), trainer(impl, model)
    for number, path in enumerate("nnynyyn"):
        window = windows(1)[0]
        for part, (ids, _) in enumerate(window):
            ids[0, 0] = 6 if path == "y" and part == 1 else 2
        log = training.step(window)
        assert_log(log, oracle.step(window), f"step {number} of a model with two ways", rel=1e-4)
        assert_same_weights(model, oracle.model, f"step {number} of a model with two ways", 1e-4)
    assert_same_averages(training.ema, oracle, "a model with two ways", 1e-4)


def test_frozen_and_tied_parameters(impl):
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7))
    model[2].weight = model[0].weight
    model[1].weight.requires_grad_(False)
    frozen = model[1].weight.detach().clone()
    oracle, training = Oracle(model), trainer(impl, model)
    for number, window in enumerate(windows(4)):
        log, wanted = training.step(window), oracle.step(window)
        assert_log(log, wanted, f"step {number}, tied and frozen", rel=1e-4)
    norm = math.sqrt(sum(m.double().square().sum().item() for m in oracle.masters))
    assert_close(log["weight_norm"], norm, "weight_norm of the masters alone")
    assert_same_weights(model, oracle.model, "4 steps, tied and frozen", 1e-4)
    assert_same_averages(training.ema, oracle, "4 steps, tied and frozen", 1e-4)
    assert_matches(model[1].weight.detach(), frozen, "a frozen weight", rtol=0, atol=0)
    assert_matches(training.ema[1].weight.detach(), frozen, "its average", rtol=0, atol=0)
    with torch.no_grad():
        model[1].weight.zero_()
    assert_matches(training.ema[1].weight.detach(), frozen, "an average of its own", rtol=0, atol=0)
    asking = [model[n].weight.requires_grad for n in (0, 1)]
    assert asking == [True, False], f"requires_grad, which was True and False, is {asking}"


def test_the_average_is_a_model_of_its_own(impl):
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small(dtype=torch.bfloat16)
            self.register_buffer("seen", torch.zeros(2, dtype=torch.bfloat16))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.register_buffer("unsaved", torch.zeros(()), persistent=False)

        def forward(self, ids):
            if self.training:
                self.seen += 0.5
                self.calls += 1
                self.unsaved += 2.0
            return self.body(ids)

    model = Buffered()
    training = trainer(impl, model)
    ema = training.ema
    assert type(ema) is Buffered, f"ema is a {type(ema).__name__}, not a {type(model).__name__}"
    for (name, p), q in zip(ema.named_parameters(), model.parameters(), strict=True):
        assert p.dtype == torch.float32, f"the average of {name} is {p.dtype}"
        assert not p.requires_grad, f"the average of {name} asks for a gradient"
        assert_matches(p, q.detach().float(), f"the average of {name} at the start", rtol=0, atol=0)
    for window in windows(2):
        training.step(window)
    assert training.ema is ema, "ema is another object after a step"
    assert model.seen.tolist() == [3.0, 3.0], f"two windows of three left {model.seen.tolist()}"
    wanted = torch.tensor([3.0, 3.0])
    assert_matches(ema.seen, wanted, "the average's floating buffer", rtol=0, atol=0)
    assert_matches(ema.calls, torch.tensor(6), "the average's whole-numbered buffer")
    what = "the average's buffer that is not in the state dict"
    assert_matches(ema.unsaved, torch.tensor(12.0), what)
    with overflowing(model.body[2].bias):
        training.step(windows(1)[0])
    assert ema.calls == 6, "an overflow changed the buffers of the average"
    kept = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in [*ema.parameters(), *ema.buffers()]:
            p.zero_()
    for name, value in model.state_dict().items():
        assert_matches(value, kept[name], f"{name}, as the averages change", rtol=0, atol=0)


def test_decays_of_the_average_at_the_edge(impl):
    for decay in (0.0, 1.0, 0.9):
        model = small()
        oracle = Oracle(model, ema_decay=decay)
        training = trainer(impl, model, ema_decay=decay)
        for window in windows(4):
            training.step(window)
            oracle.step(window)
        assert_same_averages(training.ema, oracle, f"ema_decay {decay}", 1e-4)


def test_train_makes_windows(impl):
    model = small()
    oracle, training = Oracle(model), trainer(impl, model)
    parts = [batch(1 + n % 3, (1 + n, 3)) for n in range(8)]
    logs = list(training.train(part for part in parts))
    assert len(logs) == 3, f"8 micro-batches, three a step, made {len(logs)} steps and not 3"
    for number, log in enumerate(logs):
        wanted = oracle.step(parts[3 * number : 3 * number + 3])
        assert_log(log, wanted, f"window {number} of 8 micro-batches", rel=1e-4)
    assert list(training.train([])) == [], "no micro-batches made a step"
    again = list(training.train(parts[:4]))
    assert len(again) == 2, f"4 micro-batches made {len(again)} steps and not 2"
    for number, window in enumerate((parts[:3], parts[3:4])):
        what = f"window {number} of a second call"
        assert_log(again[number], oracle.step(window), what, rel=1e-4)
    assert training.steps == 5, f"steps is {training.steps} after 5"
    assert_same_weights(model, oracle.model, "two calls of train", 1e-4)


def test_train_reads_no_further_than_it_must(impl):
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield batch(1, (2, 4))

    training = trainer(impl, small(), accumulation_steps=2)
    logs = training.train(endless())
    for number in range(1, 4):
        next(logs)
        assert len(read) == 2 * number, f"{len(read)} micro-batches are read for {number} steps"
        assert training.steps == number, f"{training.steps} steps are taken when {number} are asked"


def test_an_accumulation_of_one(impl):
    model = small()
    oracle, training = Oracle(model), trainer(impl, model, accumulation_steps=1)
    parts = windows(1)[0]
    for number, log in enumerate(training.train(parts)):
        assert_log(log, oracle.step([parts[number]]), f"step {number} of single batches", rel=1e-4)
    assert training.steps == 3, f"three micro-batches, one a step: steps is {training.steps}"


def test_learning_rates_over_a_run(impl):
    training = trainer(impl, small())
    rates = [training.step([batch(1, (2,))])["lr"] for _ in range(4)]
    for _ in range(5):
        rates += [log["lr"] for log in training.train([batch(1, (2,))] * 4)]
    for step, got in enumerate(rates):
        assert_close(got, rate(step, SETTINGS), f"the learning rate of step {step}")
    assert len(rates) == 14


def test_learning_rates_worked_by_hand(impl):
    root = math.sqrt(3) / 2
    values = {"max_lr": 0.8, "min_lr": 0.2, "warmup_steps": 4, "total_steps": 10}
    expected = {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 0.8, 5: 0.5 + 0.3 * root, 6: 0.65, 7: 0.5}
    expected |= {8: 0.35, 9: 0.5 - 0.3 * root, 10: 0.2, 11: 0.2, 16: 0.2, 22: 0.2, 10**6: 0.2}
    for step, wanted in expected.items():
        got = impl.lr_at(step, config(impl, **values))
        assert_close(got, wanted, f"the learning rate of step {step}", 1e-12)


def test_learning_rates_of_other_schedules(impl):
    for top, low, warmup, total in (
        (3e-4, 3e-5, 10, 100),
        (1.5, 0.0, 3, 20),
        (0.7, 0.1, 0, 9),
        (0.7, 0.1, 5, 5),
        (0.7, 0.1, 1, 2),
        (0.7, 0.1, 0, 0),
        (0.4, 0.4, 3, 8),
    ):
        values = {"max_lr": top, "min_lr": low, "warmup_steps": warmup, "total_steps": total}
        for step in range(2 * total + 3):
            got = impl.lr_at(step, config(impl, **values))
            assert_close(got, rate(step, values), f"step {step} of {values}", 1e-9)


def test_settings_have_their_order_and_defaults(impl):
    made = impl.TrainConfig(0.1, 0.2, 3, 4, 5)
    assert dataclasses.is_dataclass(made), "TrainConfig is no dataclass"
    wanted = {
        **dict(zip(list(SETTINGS)[:5], (0.1, 0.2, 3, 4, 5), strict=True)),
        **{"weight_decay": 0.5, "betas": (0.9, 0.95), "max_norm": 0.5, "ema_decay": 0.95},
        **{"init_scale": 2.0**20, "growth_interval": 50},
    }
    got = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    assert list(got) == list(wanted), f"the settings are {list(got)}, not {list(wanted)}"
    assert got == wanted, f"the settings are {got}, not {wanted}"


def test_groups_own_each_parameter_once(impl):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 5)
            self.gain = nn.Parameter(torch.ones(()))
            self.table = nn.Parameter(torch.ones(2, 3))
            self.conv = nn.Conv1d(5, 4, 3)
            self.norm = nn.LayerNorm(4)
            self.inner = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5, bias=False))
            self.head = nn.Linear(5, 7)
            self.head.weight = self.embed.weight
            self.frozen = nn.Linear(3, 2).requires_grad_(False)

    model = Parts()
    names = {p: name for name, p in model.named_parameters()}
    groups = impl.parameter_groups(model, 0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0], "two groups: 0.3, then 0.0"
    got = [sorted(names[p] for p in group["params"]) for group in groups]
    matrices = ["conv.weight", "embed.weight", "inner.0.weight", "inner.1.weight", "table"]
    rest = ["conv.bias", "gain", "head.bias", "inner.0.bias", "norm.bias", "norm.weight"]
    for actual, wanted, what in zip(got, (matrices, rest), ("decay", "do not"), strict=True):
        assert actual == wanted, f"of the parameters these {what}: {actual}, and not {wanted}"
    assert all(type(group["params"]) is list for group in groups), "params is no list"


def test_evaluate_weighs_tokens_alike(impl):
    model = nn.Sequential(nn.Embedding(7, 5), nn.Dropout(0.5), nn.Linear(5, 7))
    batches = [batch(2, (3, 5)), batch(5, (1, 9)), batch(1, (1,))]
    batches.append((batches[0][0], torch.full_like(batches[0][1], IGNORE)))
    sure = nn.Sequential(model[0], model[2])
    ids, labels = together(batches)
    exact = F.cross_entropy(sure(ids).mT.double(), labels, ignore_index=IGNORE).item()
    for mode in (True, False):
        model.train(mode)
        got = impl.evaluate(model, (pair for pair in batches))
        assert type(got) is float, f"evaluate returns a {type(got).__name__}"
        assert_close(got, exact, f"the loss of four uneven batches, training mode {mode}")
        modes = {module.training for module in model.modules()}
        assert modes == {mode}, f"training mode was {mode}, and afterwards is {modes}"
    assert all(p.grad is None for p in model.parameters()), "evaluation left gradients"


def test_evaluate_records_no_graph(impl):
    seen = []
    model = small()
    model[2].register_forward_hook(lambda _, __, out: seen.append(out.requires_grad))
    impl.evaluate(model, [batch(2, (3,))])
    assert seen == [False], "evaluation records a graph"
    assert torch.is_grad_enabled(), "evaluation turned gradients off for good"


def test_modes_and_batches_stay(impl):
    for mode in (True, False):
        model = nn.Sequential(nn.Embedding(7, 5), nn.Dropout(0.2), nn.Linear(5, 7)).train(mode)
        training = trainer(impl, model)
        window = windows(1)[0]
        tensors = {f"tensor_{n}": x for n, x in enumerate(itertools.chain(*window))}
        with unchanged(**tensors):
            training.step(window)
            list(training.train(window))
            impl.evaluate(training.ema, window)
        modes = {module.training for module in model.modules()}
        assert modes == {mode}, f"training mode was {mode}, and after a step is {modes}"
        assert all(p.requires_grad for p in model.parameters()), "requires_grad was changed"


def test_trainers_do_not_meet(impl):
    model = small()
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    settings = config(impl, warmup_steps=0)
    oracles = Oracle(first, warmup_steps=0), Oracle(second, warmup_steps=0)
    trainers = impl.Trainer(first, settings), impl.Trainer(second, settings)
    for _ in range(3):
        for training, oracle in zip(trainers, oracles, strict=True):
            window = windows(1)[0]
            assert_log(training.step(window), oracle.step(window), "one of two", rel=1e-4)
    assert_same_weights(first, oracles[0].model, "the first of two trainers", 1e-4)
    assert_same_weights(second, oracles[1].model, "the second of two trainers", 1e-4)
    assert settings == config(impl, warmup_steps=0), f"the settings are changed: {settings}"


def test_initial_weights_of_the_model(impl):
    for n_layer in (1, 4, 9):
        model = impl.LanguageModel(61, context=3, width=40, n_layer=n_layer)
        names = dict(model.named_parameters())
        for name, p in names.items():
            if p.dim() < 2:
                value = 0.0 if name.endswith("bias") else 1.0
                assert (p == value).all(), f"{name} does not start with {value}"
                continue
            projects = name in {f"blocks.{i}.proj.weight" for i in range(n_layer)}
            wanted = 0.1 / math.sqrt(n_layer) if projects else 0.1
            got = p.detach().std().item()
            close = math.isclose(got, wanted, rel_tol=0.1)
            assert close, (
                f"{n_layer} blocks: {name} starts with a spread of {got:.4f}, not {wanted:.4f}"
            )
        missing = [i for i in range(n_layer) if f"blocks.{i}.proj.weight" not in names]
        assert not missing, f"there is no blocks.{missing[0]}.proj.weight"


def test_what_the_model_sees(impl):
    model = impl.LanguageModel(11, context=3, width=8, n_layer=2)
    ids = torch.randint(1, 11, (2, 7))
    logits = model(ids).detach()
    assert logits.shape == (2, 7, 11), f"the logits are {tuple(logits.shape)}, not (2, 7, 11)"
    for place in range(7):
        other = ids.clone()
        other[1, place] = 0
        moved = (model(other).detach() - logits).abs().amax(-1) > 1e-6
        wanted = torch.zeros(2, 7, dtype=torch.bool)
        wanted[1, place : place + 3] = True
        assert_matches(moved, wanted, f"the logits that see id {place}, context 3")
    padded = model(F.pad(ids, (2, 0))).detach()[:, 2:]
    assert_matches(padded, logits, "logits where zeros stand before the first id", atol=1e-5)
    assert model(ids[:, :1]).shape == (2, 1, 11), "a single id"


def test_the_run_repeats_itself(impl):
    state = torch.get_rng_state()
    first = list(impl.run(seed=5, steps=7))
    assert torch.equal(torch.get_rng_state(), state), "run draws from the global generator"
    second = read_with_draws(impl.run, 5, 7)
    assert len(first) == 7, f"run(steps=7) logs {len(first)} steps"
    same = [repr(row) for row in first] == [repr(row) for row in second]
    assert same, "two runs with the same seed differ"
    other = list(impl.run(seed=6, steps=2))
    assert other[0]["loss"] != first[0]["loss"], "two seeds give the same run"
    names = {"loss", "lr", "grad_norm", "scale", "skipped", "weight_norm", "ema_loss"}
    for row in first:
        assert set(row) == names, f"a step of the run logs {sorted(row)}"
