"""What a probe finds in a model as it runs, and that it finds nothing where nothing is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.instruments.probe.facts import Facts, OptimizerFacts, Source
from dojo.instruments.probe.findings import findings, notes
from dojo.instruments.probe.order import Order
from dojo.kata import kata_toml
from dojo.project import Project

CLASSIFIER = '''
"""A small classifier of images."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 5, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(5 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = F.max_pool2d(F.relu(self.deep(x)), 2)
        return self.head(self.drop(x.flatten(1)))


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Yield the loss of each step, and now and then the accuracy."""
    torch.manual_seed(seed)
    x, y = torch.randn(96, 1, 8, 8), torch.randint(0, 10, (96,))
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.1)
    for step in range(steps or 12):
        model.train()
        rows = torch.randint(0, 96, (32,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        log = {"loss": loss.item()}
        if step % 4 == 3:
            model.eval()
            with torch.no_grad():
                log["accuracy"] = (model(x).argmax(1) == y).float().mean().item()
        yield log
'''

LANGUAGE_MODEL = '''
"""A small language model."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (y.view(batch, length, self.heads, -1).transpose(1, 2) for y in parts)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.ln_2, self.mlp = nn.LayerNorm(width), nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, vocab: int, block: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(block, width)
        self.h = nn.ModuleList(Block(width, heads, 0.1) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        self.wte.weight = self.lm_head.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Yield the loss of each step, and now and then that of evaluation."""
    steps = steps or 16
    torch.manual_seed(seed)
    ids = torch.randint(0, 30, (100,))
    model = GPT(30, 12, 2, 4, 24)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / 4, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for step in range(steps):
        model.train()
        starts = torch.randint(0, 80, (8,)).tolist()
        x = torch.stack([ids[start : start + 12] for start in starts])
        y = torch.stack([ids[start + 1 : start + 13] for start in starts])
        _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log = {"loss": loss.item()}
        if step % 8 == 7:
            model.eval()
            with torch.no_grad():
                log["evaluation"] = model(x, y)[1].item()
        yield log
'''

# Weights in bfloat16 with masters in float32, an average of them, and steps in two halves.
MASTERS = '''
"""Mixed precision by hand."""

import copy

import torch
from torch import nn
from torch.nn import functional as F


def run(seed=0, steps=None):
    torch.manual_seed(seed)
    layers = [nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 3)]
    model = nn.Sequential(*layers).bfloat16()
    average = copy.deepcopy(model).eval()
    masters = [weight.detach().float().requires_grad_() for weight in model.parameters()]
    optimizer = torch.optim.AdamW(masters, 1e-2)
    x, y = torch.randn(64, 8).bfloat16(), torch.randint(0, 3, (64,))
    for _ in range(steps or 10):
        for half in range(2):
            loss = F.cross_entropy(model(x[half::2]).float(), y[half::2]) / 2
            loss.backward()
        for master, weight in zip(masters, model.parameters()):
            master.grad, weight.grad = weight.grad.float(), None
        optimizer.step()
        with torch.no_grad():
            for master, weight, mean in zip(masters, model.parameters(), average.parameters()):
                weight.copy_(master)
                mean.lerp_(weight, 0.1)
            average(x)
        yield {"loss": loss.item()}
'''

BY_HAND = '''
"""AdamW in plain tensors."""

import torch
from torch import nn
from torch.nn import functional as F


def run(seed=0, steps=None):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 3))
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    x, y = torch.randn(64, 7), torch.randint(0, 3, (64,))
    for step in range(1, 1 + (steps or 10)):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        with torch.no_grad():
            for p, (m, v) in zip(model.parameters(), moments):
                m.lerp_(p.grad, 0.1)
                v.lerp_(p.grad**2, 0.001)
                p.mul_(1 - 1e-4)
                p.sub_(1e-2 * m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
                p.grad = None
        yield {"loss": loss.item()}
'''

# A checkpoint runs with gradients off, and again for the backward pass; one of A and B of LoRA has
# a gradient of zero at first, and a head that starts small soon moves by more than itself.
ADAPTERS = '''
"""Low-rank adapters on a frozen base, recomputed for the backward pass."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Adapted(nn.Module):
    def __init__(self, base, rank):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return self.base(x) + self.drop(x) @ self.a.T @ self.b.T


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Adapted(nn.Linear(8, 32), 4), Adapted(nn.Linear(32, 32), 4)
        self.frozen = nn.Sequential(nn.BatchNorm1d(32)).requires_grad_(False).eval()
        self.head = nn.Linear(32, 3)
        nn.init.orthogonal_(self.head.weight, 0.001)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        x = self.frozen(F.relu(self.first(x)))
        return self.head(F.relu(checkpoint(self.second, x, use_reentrant=True)))


def run(seed=0, steps=None):
    torch.manual_seed(seed)
    model = Net().train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
    for _ in range(steps or 10):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield {"loss": loss.item()}
'''

# As each of two is trained, the other has no optimiser to step.
TWO_OPTIMISERS = '''
"""A generator and a discriminator."""

import torch
from torch import nn
from torch.nn import functional as F


def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.LeakyReLU(0.2), nn.Linear(16, outputs))


def run(seed=0, steps=None):
    torch.manual_seed(seed)
    maker, judge = network(3, 2), network(2, 1)
    of_maker = torch.optim.Adam(maker.parameters(), 1e-3)
    of_judge = torch.optim.Adam(judge.parameters(), 1e-3)
    for _ in range(steps or 10):
        real, fake = torch.randn(32, 2) + 2, maker(torch.randn(32, 3))
        loss = F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()
        of_judge.zero_grad()
        loss.backward()
        of_judge.step()
        loss = F.softplus(-judge(fake)).mean()
        of_maker.zero_grad()
        loss.backward()
        of_maker.step()
        yield {"loss": loss.item()}
'''

HEALTHY = {
    "classifier": CLASSIFIER,
    "language model": LANGUAGE_MODEL,
    "masters": MASTERS,
    "by hand": BY_HAND,
    "adapters": ADAPTERS,
    "two optimisers": TWO_OPTIMISERS,
}

# What is changed, into what; then the sentences that say so, and nothing else.
WRONG = {
    "nobody owns a parameter": (
        LANGUAGE_MODEL,
        '        {"params": vectors, "weight_decay": 0.0},\n',
        "",
        "No optimiser owns h.0.ln_1.weight, h.0.ln_1.bias, h.0.attn.qkv.bias and 15 more, and they "
        "never changed.",
    ),
    "the optimiser owns another model": (
        CLASSIFIER,
        "    schedule =",
        "    model = Net()\n    schedule =",
        "No optimiser owns conv.weight, conv.bias, norm.weight and 5 more, and they never changed.",
        "No gradient reached SGD[0][0], SGD[0][1], SGD[0][2] and 5 more in 12 steps.",
    ),
    "no gradient": (
        CLASSIFIER,
        "F.relu(self.norm(self.conv(x)))",
        "F.relu(self.norm(self.conv(x))).detach()",
        "No gradient reached conv.weight, conv.bias, norm.weight and norm.bias in 12 steps.",
    ),
    "no gradient by hand": (
        BY_HAND.replace("model.parameters(), moments", "model[2].parameters(), moments[2:]"),
        "model(x), y)",
        "model[2](model[:2](x).detach()), y)",
        "No gradient reached 0.weight and 0.bias in 10 backward calls.",
    ),
    "gradients are lost": (
        CLASSIFIER.replace("        optimizer.zero_grad()\n", ""),
        "        optimizer.step()\n",
        "        optimizer.zero_grad()\n        optimizer.step()\n",
        "A backward pass gave each of the 8 parameters a gradient, and none was there as an "
        "optimiser took its 12 steps.",
    ),
    "a layer is not used": (
        CLASSIFIER,
        "self.drop = nn.Dropout(0.3)",
        "self.drop, self.skip = nn.Dropout(0.3), nn.Linear(3, 4, bias=False)",
        "No gradient reached skip.weight in 12 steps.",
    ),
    "zero gradient": (
        CLASSIFIER,
        "loss = F.cross_entropy(model(x[rows]), y[rows])",
        "loss = 0 * F.cross_entropy(model(x[rows]), y[rows])",
        "In 12 steps the gradient of each of the 8 parameters was exactly zero.",
    ),
    "large update": (
        LANGUAGE_MODEL,
        "lr=3e-3",
        "lr=0.9",
        r"An update of .* was larger than the weight: [\d.e+]+ times for .* at step \d+\.",
        "",
    ),
    "small update": (
        CLASSIFIER,
        "lr=0.1",
        "lr=1e-10",
        "conv.weight, norm.weight, deep.weight and 3 more got a gradient, and in 12 steps no "
        "update of more than 1e-7 of the weight.",
    ),
    "NaN": (
        CLASSIFIER,
        "x = F.relu(self.norm(self.conv(x)))",
        "x = F.relu(self.norm(self.conv(x))).sub(0.1).sqrt()",
        "The outputs of Net had NaN at step 1, and its inputs had none.",
        "The gradient of each of the 8 parameters was infinite or NaN as an optimiser took a step, "
        "first at step 1.",
    ),
    "NaN in the weights": (
        CLASSIFIER,
        "        optimizer.step()\n",
        "        optimizer.step()\n"
        "        model.head.weight.data.mul_(math.nan if step == 4 else 1)\n",
        "The outputs of head had NaN at step 6: its weights had.",
        "",
    ),
    "explosion": (
        CLASSIFIER,
        "x = F.relu(self.norm(self.conv(x)))",
        "x = F.relu(self.norm(self.conv(1e6 * x)))",
        r"Activations explode: the outputs of conv had a size of \d\.\d+e\+05 at step \d+, and of "
        r"\d\.\d+e\+05 at first\.",
    ),
    "vanishing": (
        CLASSIFIER,
        "x.flatten(1)))",
        "1e-9 * x.flatten(1)))",
        "Activations vanish: the outputs of drop were of ",
        "",
    ),
    "dead units": (
        CLASSIFIER,
        "self.drop = nn.Dropout(0.3)",
        "self.drop = nn.Threshold(1e3, 0)",
        "Activations vanish: the outputs of drop were all zero in all its 15 calls.",
        "In 12 steps the gradient of conv.weight, conv.bias, norm.weight and 4 more was exactly "
        "zero.",
    ),
    "dropout in evaluation": (
        LANGUAGE_MODEL,
        "p = self.dropout if self.training else 0.0",
        "p = self.dropout",
        "Dropout was active in h.0.attn and h.1.attn while gradients were off, in evaluation mode "
        "too.",
    ),
    "functional dropout": (
        CLASSIFIER,
        "self.drop(x.flatten(1))",
        "F.dropout(x.flatten(1), 0.3)",
        "Dropout was active in Net while gradients were off, in evaluation mode too.",
    ),
    "dropout outside": (
        CLASSIFIER,
        "(model(x).argmax(1) == y)",
        "(model(F.dropout(x)).argmax(1) == y)",
        "Dropout was active in a function outside all modules while gradients were off.",
    ),
    "evaluation in training mode": (
        CLASSIFIER,
        "            model.eval()\n",
        "",
        "Dropout was active in drop while gradients were off.",
        "norm, in training mode, changed its running statistics while gradients were off.",
    ),
    "a part in training mode": (
        CLASSIFIER,
        "model.eval()",
        "model.eval().norm.train()",
        "norm was called in training mode while the model, Net, was in evaluation mode.",
        "norm, in training mode, changed its running statistics while gradients were off.",
    ),
    "a part in evaluation mode": (
        CLASSIFIER,
        "model.train()",
        "model.train().norm.eval()",
        "norm was called in evaluation mode while the model, Net, was in training mode.",
    ),
    "memory in common": (
        LANGUAGE_MODEL,
        "self.wte.weight = self.lm_head.weight",
        "self.lm_head.weight.data = self.wte.weight.data",
        "wte.weight and lm_head.weight are not tied, yet in the same memory, which is updated for "
        "each.",
    ),
    "warm-up again and again": (
        LANGUAGE_MODEL,
        "min(step / 4,",
        "min(step % 8 / 4,",
        "The learning rate of AdamW jumped from 0.00179 to 0 at its step 9.",
    ),
    "learning rate below zero": (
        LANGUAGE_MODEL,
        "0.5 + 0.5 * math.cos(math.pi * step / steps)",
        "1 - step / 12",
        "The learning rate of AdamW was -0.00025, below zero, at its step 14.",
    ),
    "no learning rate": (
        CLASSIFIER,
        "lr=0.1",
        "lr=0.0",
        "conv.weight, norm.weight, deep.weight and 3 more got a gradient, and in 12 steps no "
        "update of more than 1e-7 of the weight.",
        "The learning rate of SGD was zero in 12 steps.",
    ),
}


@pytest.fixture
def probed(tmp_path):
    """Probe a text in this process."""
    import torch

    from dojo.instruments.probe import worker

    torch.set_num_threads(1)

    def probed(text, steps=None, seed=0, seconds=30):
        path = tmp_path / "botched.py"
        path.write_text(text)
        folder = str(tmp_path)
        return worker.probed(Order(folder, folder, str(path), seed, steps, 1, seconds, 0))

    return probed


def named(facts, name):
    return next(one for one in (*facts.modules, *facts.parameters) if one.name == name)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_system_has_no_findings(probed, name):
    for seed in (0, 1):
        facts = probed(HEALTHY[name], seed=seed)
        assert facts.error == ""
        assert [finding.sentence for finding in findings(facts)] == []


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(probed, name):
    text, before, after, *expected = WRONG[name]
    assert text.count(before) == 1
    facts = probed(text.replace(before, after))
    assert facts.error == ""
    said = [finding.sentence for finding in findings(facts)]
    for sentence in filter(None, expected):
        assert any(sentence in one or re.fullmatch(sentence, one) for one in said), said
    if "" not in expected:  # it has no consequences of its own
        assert len(said) == len(expected), said


def test_what_is_no_fault_is_noted(probed):
    facts = probed(LANGUAGE_MODEL)
    assert notes(facts) == ["wte.weight and lm_head.weight are names of one tensor."]
    assert named(facts, "wte.weight").tied == ("lm_head.weight",)
    assert notes(probed(BY_HAND)) == [
        "No optimiser of torch took a step, so who owns a parameter is not known."
    ]
    (masters,) = notes(probed(MASTERS))
    assert masters == (
        "Sequential.0.weight, Sequential.0.bias, Sequential.3.weight and Sequential.3.bias "
        "changed, though no optimiser of torch owns them."
    )
    assert "are frozen." in notes(probed(ADAPTERS))[0]
    never_evaluated = CLASSIFIER.replace("            model.eval()\n", "")
    assert notes(probed(never_evaluated)) == [
        "Net was in training mode in 3 of 3 calls with gradients off."
    ]
    trained_once = CLASSIFIER.replace("        model.train()\n", "")
    assert notes(probed(trained_once)) == [
        "Net was in evaluation mode in 8 of 12 calls with gradients on."
    ]


def test_the_figures_are_those_of_torch(probed):
    """Worked out from the file itself, with a hook of its own in place of those of the probe."""
    text = """
        import torch
        from torch import nn

        outputs, weights, gradients = [], [], []

        def run(seed=0, steps=None):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
            model[1].register_forward_hook(lambda module, args, y: outputs.append(y.detach()))
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            for _ in range(steps or 4):
                optimizer.zero_grad()
                model(torch.randn(6, 5)).square().mean().backward()
                weights.append(model[2].weight.detach().clone())
                gradients.append(model[2].weight.grad.clone())
                optimizer.step()
                schedule.step()
                yield {}
            y, gradient, weight = outputs[-1], gradients[-1], weights[-1]
            assert 0 < (y == 0).float().mean() < 1
            seen = [y.mean(), y.std(correction=0), (y == 0).float().mean()]
            seen += [y.square().mean() ** 0.5]
            seen += [gradient.norm(), weight.norm(), 0.1 * 0.9 ** 3 * gradient.norm()]
            raise ValueError(" ".join(str(float(one)) for one in seen))
    """
    facts = probed(textwrap.dedent(text))
    assert facts.error.startswith("ValueError in run, line ")
    expected = [float(word) for word in facts.error.rpartition(": ")[2].split()]
    relu, weight = named(facts, "1"), named(facts, "2.weight")
    actual = [relu.mean, relu.spread, relu.zeros, relu.size]
    actual += [weight.gradient, weight.weight, weight.update]
    assert actual == pytest.approx(expected, rel=1e-4)
    assert weight.ratio == pytest.approx(weight.update / weight.weight)
    assert (relu.shape, relu.dtype, relu.calls, relu.nans) == ((6, 7), "float32", 4, 0)
    (optimizer,) = facts.optimizers
    assert optimizer.rates == [pytest.approx([0.1, 0.09, 0.081, 0.0729])]


def test_a_run_goes_as_it_goes_unprobed(probed, tmp_path):
    """The probe draws no random numbers and changes no value."""
    wanted = tmp_path / "losses"
    text = LANGUAGE_MODEL.replace(
        "        yield log\n",
        f"        with open({str(wanted)!r}, 'a') as file:\n"
        '            file.write(f"{loss.item()}\\n")\n        yield log\n',
    )
    probed(text, steps=5)
    losses = wanted.read_text().split()
    scope = {}
    exec(LANGUAGE_MODEL, scope)
    assert [str(log["loss"]) for log in scope["run"](0, 5)] == losses


def test_the_hooks_are_taken_off(probed):
    import torch
    from torch.nn import functional
    from torch.nn.modules import module
    from torch.optim import optimizer

    def present():
        return [
            functional.dropout,
            functional.scaled_dot_product_attention,
            torch.dropout,
            dict(module._global_forward_hooks),
            dict(module._global_forward_pre_hooks),
            dict(module._global_module_registration_hooks),
            dict(optimizer._global_optimizer_pre_hooks),
            dict(optimizer._global_optimizer_post_hooks),
        ]

    before = present()
    assert probed("1 / 0").error == "botched.py, line 1: ZeroDivisionError: division by zero"
    probed(CLASSIFIER, steps=2)
    assert present() == before


RATES = {
    "warm-up by steps, then steps down": [1, 1, 5, 5, 9, 9, 9, 3, 3, 3, 1, 1],
    "warm-up of one step": [0, 9, 9, 9, 9],
    "linear to zero": [4, 3, 2, 1, 0],
    "one step": [0.5],
    "none": [],
}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_schedules_that_people_choose_are_no_jumps(rates):
    facts = Facts(Source.RUN, 1, [], [], [OptimizerFacts("SGD", len(rates), [rates])])
    assert findings(facts) == []


@pytest.mark.parametrize(
    ("rates", "sentence"),
    [
        ([9, 9, 9, 0.1, 0.1, 0.1], "jumped from 9 to 0.1 at its step 4."),
        ([9, 8, 7, 6, 9, 8, 7], "jumped from 6 to 9 at its step 5."),
        ([1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1], "jumped from 4 to 0 at its step 5, the first of 2 "),
    ],
)
def test_a_jump_of_one_group_names_it(rates, sentence):
    facts = Facts(Source.RUN, 1, [], [], [OptimizerFacts("SGD", 9, [[1] * len(rates), rates])])
    (finding,) = findings(facts)
    assert f"The learning rate of SGD's group 1 {sentence}" in finding.sentence


def test_infinite_and_missing_values_have_figures():
    import torch

    from dojo.instruments.probe.tensors import figures

    masked = figures(torch.tensor([3.0, -float("inf"), 5.0, 0.0]))
    assert (masked.mean, masked.zeros, masked.nans) == (pytest.approx(8 / 3), 0.25, 0)
    assert not masked.has_infinity
    assert figures(torch.tensor([1.0, float("inf")])).has_infinity
    assert figures(torch.tensor([float("nan"), 4.0])).nans == 0.5
    assert figures(torch.full((3,), float("nan"))).nans == 1
    assert figures(torch.full((3,), 60_000.0, dtype=torch.float16)).size == pytest.approx(60_000)
    assert figures(torch.full((3,), 3e38)).size == pytest.approx(3e38)
    assert figures(torch.ones(0)) is None
    assert figures(torch.ones(3, dtype=torch.int64)) is None


SYSTEM_TOML = """
title = "System"
topic = "systems"
level = "easy"
minutes = 5
default = ["drops"]

[[bug]]
id = "drops"
title = "Drops out in evaluation"
kind = "state"
find = "self.drop(x.flatten(1))"
replace = "F.dropout(x.flatten(1), 0.3)"
killed_by = ["test_one"]
hints = ["In which mode is it evaluated?", "Look at the dropout."]
why = "The function drops by default."
"""

PART_TESTS = """
import torch


def test_one(impl):
    x = torch.randn(9, 1, 8, 8)
    model = impl.Net().eval()
    assert torch.equal(model(x), model(x))


def test_two(impl):
    torch.nn.Linear(3, 4)(torch.ones(2, 3))
    assert impl.Net()(torch.ones(2, 1, 8, 8)).shape == (2, 10)
"""


@pytest.fixture
def system(project):
    folder = project.katas / "02_system"
    folder.mkdir()
    (folder / "reference.py").write_text(CLASSIFIER.lstrip())
    (folder / "kata.toml").write_text(SYSTEM_TOML)
    (folder / "test_system.py").write_text(PART_TESTS)
    kata = kata_toml.load(folder)
    kata.botched.write_text(kata.planted_source(kata.default))
    return kata


@pytest.fixture
def probe(project):
    def call(*arguments):
        return CliRunner().invoke(main, ["probe", *map(str, arguments)], obj=project)

    return call


@pytest.mark.slow
def test_a_probe_in_the_terminal(system, probe, project):
    said = "Dropout was active in Net while gradients were off, in evaluation mode too."
    result = probe("system", "--steps", 5, "--seed", 3)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "02_system: 5 steps of run(), seed 3"
    assert lines[-1] == f"* {said}"
    assert any(re.match(r"conv +Conv2d +32 x 6 x 8 x 8 +float32 ", line) for line in lines)
    assert any(re.match(r"head.bias +10 +float32 .* SGD$", line) for line in lines)
    assert "SGD: 5 steps, learning rate 0.1" in lines


def test_a_probe_as_json_and_as_a_page(system, probe, probed, tmp_path, monkeypatch):
    said = "Dropout was active in Net while gradients were off, in evaluation mode too."
    facts = probed(system.planted_source(("drops",)), steps=5)
    monkeypatch.setattr("dojo.cli.probe_command.probe", lambda *_, **__: facts)
    document = json.loads(probe("system", "--json").output)
    assert (document["kata"], document["steps"], document["source"]) == ("02_system", 5, "run")
    assert [finding["sentence"] for finding in document["findings"]] == [said]
    assert document["findings"][0]["kind"] == "dropout"

    page = tmp_path / "system.html"
    result = probe("system", "--html", page)
    assert result.output == f"wrote {page}\n"
    text = page.read_text()
    assert said in text
    assert '<th scope="row">norm.weight</th>' in text
    assert "https:" not in text
    assert probe("system", "--html", tmp_path / "no" / "x.html").exit_code == 1


def test_numbers_that_json_has_no_sign_for_are_texts(system, probe, probed, monkeypatch):
    facts = probed(
        CLASSIFIER.replace("x = F.relu(self.norm", "x = float('nan') * F.relu(self.norm")
    )
    monkeypatch.setattr("dojo.cli.probe_command.probe", lambda *_, **__: facts)
    document = json.loads(probe("system", "--json").output)
    gradients = [one["gradient"] for one in document["parameters"]]
    assert gradients == ["nan"] * 8


@pytest.mark.slow
def test_of_a_kata_without_a_run_the_tests_are_probed(system, probe):
    system.botched.write_text(system.correct_source.partition("def run(")[0])
    result = probe("system")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "02_system: 2 tests, seed 0; values are of the last call"
    assert lines[-1] == "Nothing stands out."
    assert any(re.match(r"Net.head +Linear +2 x 10 ", line) for line in lines)
    assert not any(line.startswith("Linear") for line in lines)  # which the test has of its own

    system.botched.write_text(system.planted_source(("drops",)).partition("def run(")[0])
    said = "Dropout was active in Net, which was in evaluation mode."
    assert probe("system").output.splitlines()[-1] == f"* {said}"


def test_where_nothing_is_to_be_probed_one_line_says_so(system, probe):
    result = probe("scale")
    assert result.exit_code == 0
    assert result.output == (
        "01_scale: its tests call no module of your file, so there is nothing to probe\n"
    )


def test_a_run_without_modules_has_nothing_to_probe(system, probe, probed, monkeypatch):
    facts = probed("def run(seed=0, steps=None):\n    yield {'loss': 1.0}\n")
    monkeypatch.setattr("dojo.cli.probe_command.probe", lambda *_, **__: facts)
    result = probe("system")
    assert result.exit_code == 0
    assert result.output == (
        "02_system: run() calls no module and no optimiser of torch, so there is nothing to probe\n"
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("assert step < 2, 'diverged'", "AssertionError in run, line 49: diverged"),
        ("raise SystemExit('over')", "SystemExit in run, line 49: over"),
        ("while True: pass", "still running after 1 s: an endless loop?"),
    ],
)
def test_what_was_seen_before_a_run_broke_is_kept(probed, line, reason):
    text = CLASSIFIER.replace("        yield log", f"        {line}\n        yield log")
    facts = probed(text, seconds=1)
    assert facts.error == reason
    assert named(facts, "head").calls > 0
    assert named(facts, "head.weight").updates > 0


def test_a_run_that_broke_ends_in_an_error(system, probe, probed, monkeypatch):
    facts = probed(CLASSIFIER.replace("        yield log", "        raise ValueError('odd')"))
    monkeypatch.setattr("dojo.cli.probe_command.probe", lambda *_, **__: facts)
    result = probe("system")
    assert result.exit_code == 1
    assert result.output.startswith("02_system: 0 steps of run(), seed 0\n")
    assert result.output.splitlines()[-1] == (
        "Error: 02_system: the run broke: ValueError in run, line 49: odd"
    )
    facts = probed("def run(:\n")
    result = probe("system")
    assert result.exit_code == 1
    assert result.output == (
        "Error: 02_system: the run broke: botched.py, line 1: SyntaxError: invalid syntax\n"
    )


def test_a_run_with_more_steps_than_there_is_time_for_is_cut(probed, monkeypatch):
    monkeypatch.setattr("dojo.instruments.probe.worker._PATIENCE", 0.0)
    facts = probed(CLASSIFIER)
    assert (facts.cut, facts.steps, facts.error) == (True, 1, "")
    assert probed(CLASSIFIER, steps=3).steps == 3


def test_a_process_that_is_killed_is_told(system, probe):
    text = system.correct_source.replace(
        "torch.manual_seed(seed)", f"os.kill(os.getpid(), {signal.SIGKILL:d})"
    )
    system.botched.write_text(f"import os\n{text}")
    result = probe("system")
    assert result.exit_code == 1
    assert "the process was ended by SIGKILL: out of memory?" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is not limited here")
def test_memory_is_limited(system, probe, monkeypatch):
    monkeypatch.setenv("KATA_MEMORY_GB", "0.5")
    text = system.correct_source.replace("model = Net()", "model = torch.zeros(2**30)")
    system.botched.write_text(text)
    result = probe("system")
    assert result.exit_code == 1
    assert "the run broke: RuntimeError in run, line " in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["sytem"], 1, "did you mean 02_system?"),
        (["system", "--steps", "0"], 2, "0 is not in the range"),
        (["system", "--json", "--html", "x.html"], 2, "give --json or --html, not both"),
    ],
)
def test_wrong_usage_gets_a_reason(system, probe, arguments, code, reason):
    result = probe(*arguments)
    assert result.exit_code == code
    assert reason in result.output


def test_facts_survive_the_way_between_processes(probed):
    facts = probed(LANGUAGE_MODEL, steps=3)
    assert Facts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


def test_help_imports_no_torch():
    code = (
        "import sys; from dojo.cli import main\n"
        "try: main(['probe', '--help'])\n"
        "except SystemExit: sys.exit(1 if {'torch', 'numpy', 'jinja2'} & set(sys.modules) else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Project.here().root / "scripts")}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
