import contextlib
import copy
import functools
import inspect
import math
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    layouts,
    refuses,
    unchanged,
)

OPTIONS = ("lr", "betas", "eps", "weight_decay")
# All of them different, far from the defaults, and large enough for each to show.
USUAL = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 0.02, "weight_decay": 0.4}
OTHER = {"lr": 0.07, "betas": (0.6, 0.9), "eps": 0.01, "weight_decay": 0.9}
# Rounding of some ten operations a step on values of about one.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6}
HALF = (torch.float16, torch.bfloat16)

TORCH_OPTIM = str(Path(torch.optim.__file__).parent)
TORCH_CLIPPING = sys.modules["torch.nn.utils.clip_grad"].__file__


class TorchAdamW(torch.optim.AdamW):
    """torch.optim.AdamW without the wrappers that import torch._dynamo at their first call.

    That takes longer than all tests of this file, and each run would pay it.
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)


def parameter(values):
    return values.detach().clone().requires_grad_()


def parameters(*shapes, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def twins(params):
    """The same values once more, for torch's optimiser."""
    return [parameter(p) for p in params]


def gradient_like(p):
    """A gradient with a third of its entries so small that eps counts, whatever it is."""
    g = torch.randn(p.shape, dtype=p.dtype)
    return torch.where(torch.rand(p.shape) < 1 / 3, g * 1e-8, g)


def give_gradients(params, others, which=None):
    """Give both sides the same gradients, or None to those that are not among `which`."""
    for number, (p, q) in enumerate(zip(params, others, strict=True)):
        p.grad = q.grad = None
        if which is None or number in which:
            p.grad = gradient_like(p)
            q.grad = p.grad.clone()


def take_steps(ours, theirs, params, others, count=1, which=None):
    for _ in range(count):
        give_gradients(params, others, which)
        ours.step()
        theirs.step()


def assert_same_parameters(params, others, behaviour):
    for number, (p, q) in enumerate(zip(params, others, strict=True)):
        tolerance = TOLERANCES[p.dtype]
        what = f"{behaviour}: parameter {number}, of shape {tuple(p.shape)}"
        assert_matches(p, q, what, rtol=tolerance, atol=tolerance)


def assert_same_state(actual, expected, behaviour, tolerance=None):
    """Compare two state dicts; torch's has more options."""
    assert set(actual) == {"state", "param_groups"}, f"{behaviour}: the keys are {set(actual)}"
    numbers, wanted = set(actual["state"]), set(expected["state"])
    assert numbers == wanted, f"{behaviour}: state of the parameters {numbers}, not of {wanted}"
    for number, theirs in expected["state"].items():
        state = actual["state"][number]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}, f"{behaviour}: {set(state)}"
        steps = float(state["step"])
        assert steps == float(theirs["step"]), f"{behaviour}: parameter {number} counts {steps}"
        for name in ("exp_avg", "exp_avg_sq"):
            what = f"{behaviour}: {name} of parameter {number}"
            off = TOLERANCES[theirs[name].dtype] if tolerance is None else tolerance
            assert_matches(state[name], theirs[name], what, rtol=off, atol=off)
    groups = actual["param_groups"]
    assert len(groups) == len(expected["param_groups"]), f"{behaviour}: {len(groups)} groups"
    for number, (group, theirs) in enumerate(zip(groups, expected["param_groups"], strict=True)):
        what = f"{behaviour}: group {number}"
        assert list(group["params"]) == theirs["params"], f"{what} has {group['params']}"
        for name in OPTIONS:
            value, wanted = group[name], theirs[name]
            if name == "betas":
                value, wanted = tuple(value), tuple(wanted)
            assert value == wanted, f"{what}: {name} is {value}, not {wanted}"


def assert_rounded_once(actual, exact, behaviour):
    """Compare a tensor in half precision with float64; what it comes from is right in float32."""
    assert_matches(actual, exact.to(actual.dtype), behaviour, rtol=1e-2, atol=1e-2)
    nearest = (exact.to(actual.dtype).double() - exact).abs()
    error = (actual.detach().double() - exact).abs()
    worse = error > nearest + 1e-6 * (1 + exact.abs())
    assert not worse.any(), (
        f"{behaviour}: {int(worse.sum())} of {worse.numel()} values are not the nearest in "
        f"{actual.dtype}, as one rounding at the end gives"
    )


@contextlib.contextmanager
def banned():
    """Fail if anything of torch.optim or of torch's clipping runs.

    All of it is Python, so its functions are known by their files, whatever they are called by and
    wherever they were imported.
    """
    seen = []

    def watch(frame, event, arg):
        file = frame.f_code.co_filename
        if event == "call" and (file.startswith(TORCH_OPTIM) or file == TORCH_CLIPPING):
            seen.append(frame.f_code.co_name)

    before = sys.getprofile()
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    assert not seen, f"the brief bans torch.optim and torch's clipping: {seen[0]} was called"


# The update


def test_worked_example(impl):
    p = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    optimizer = impl.AdamW([p], lr=0.1, betas=(0.5, 0.75), eps=0.5, weight_decay=0.5)
    p.grad = torch.tensor([0.5, -1.5], dtype=torch.float64)
    optimizer.step()
    # The first step goes along g / (|g| + eps), whatever the betas are.
    expected = torch.tensor([1.9 - 0.1 * 0.5 / 1, -0.95 + 0.1 * 1.5 / 2], dtype=torch.float64)
    assert_matches(p, expected, "the first step", rtol=1e-12)
    p.grad = torch.tensor([0.0, 3.0], dtype=torch.float64)
    optimizer.step()
    # m = 0.125 and 1.125, over 0.75; v = 3/4 g1^2 / 4 + g2^2 / 4, over 7/16.
    m = [0.125 / 0.75, 1.125 / 0.75]
    v = [(0.1875 * 0.25) / 0.4375, (0.1875 * 2.25 + 2.25) / 0.4375]
    wanted = [
        0.95 * 1.85 - 0.1 * m[0] / (math.sqrt(v[0]) + 0.5),
        0.95 * -0.875 - 0.1 * m[1] / (math.sqrt(v[1]) + 0.5),
    ]
    assert_matches(p, torch.tensor(wanted, dtype=torch.float64), "the second step", rtol=1e-12)


def test_decay_does_not_depend_on_the_gradient(impl):
    # Two parameters with the same gradients, one of them at zero, where nothing decays.
    for scale in (1e-3, 1.0, 1e3):
        p = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
        zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        options = {"lr": 0.1, "betas": (0.7, 0.9), "eps": 1e-6, "weight_decay": 0.5}
        optimizer = impl.AdamW([p, zero], **options)
        p.grad = scale * torch.randn(3, dtype=torch.float64)
        zero.grad = p.grad.clone()
        optimizer.step()
        what = f"what one step takes off beyond the gradient's part, gradients of about {scale:g}"
        assert_matches(p - zero, torch.full_like(p, 1.9), what, rtol=1e-9)


def test_options_one_at_a_time(impl):
    cases = [
        {},
        {"lr": 0},
        {"lr": 1},
        {"lr": 2.5},
        {"betas": [0.5, 0.0]},
        {"betas": (0.0, 0.0)},
        {"betas": (0.99, 0.3)},
        {"eps": 0},
        {"eps": 1},
        {"eps": 1e-3},
        {"weight_decay": 0},
        {"weight_decay": 1},
        {"weight_decay": 7.5},
        USUAL,
    ]
    for options in cases:
        for as_group in (False, True):
            params = parameters((3, 5), (4,))
            others = twins(params)
            if as_group:
                ours = impl.AdamW([{"params": params, **options}], **OTHER)
                theirs = TorchAdamW([{"params": others, **options}], **OTHER)
            else:
                ours, theirs = impl.AdamW(params, **options), TorchAdamW(others, **options)
            take_steps(ours, theirs, params, others, count=2)
            where = "in a group" if as_group else "as arguments"
            assert_same_parameters(params, others, f"two steps with {options} {where}")
    params = parameters((3, 2))
    others = twins(params)
    ours = impl.AdamW(params, *USUAL.values())
    take_steps(ours, TorchAdamW(others, **USUAL), params, others)
    assert_same_parameters(params, others, "options by position")


def test_a_hundred_steps_beside_torch(impl):
    """Three groups, gradients that come now and then, and a round trip of the state half way."""
    shapes = [(3, 5), (4,), (), (2, 3, 2), (7, 1), (6,), (0, 2)]
    # The first parameters are not the first to get a gradient.
    comes = [
        lambda step: step >= 7 and step % 3 == 0,
        lambda step: step == 60,
        lambda step: step < 20,
        lambda step: True,
        lambda step: step % 10 == 4,
        lambda step: False,
        lambda step: step > 2,
    ]

    def groups(params):
        return [
            {"params": params[:3], "weight_decay": 0},
            {"params": params[3:4], "lr": 0.01, "betas": (0.7, 0.9)},
            {"params": params[4:], "eps": 1e-5},
        ]

    others = parameters(*shapes[::2]) + parameters(*shapes[1::2], dtype=torch.float32)
    theirs = TorchAdamW(groups(others), **USUAL)
    params = twins(others)
    ours = impl.AdamW(groups(params), **USUAL)
    sides = {"": (ours, params)}
    for step in range(100):
        if step == 50:
            sides = {}
            for trip, kind, source in (
                (", by its own state", impl.AdamW, ours),
                (", by torch's state", impl.AdamW, theirs),
                (", torch's optimiser by its state", TorchAdamW, ours),
            ):
                mine = twins(params)
                sides[trip] = kind(groups(mine), **OTHER), mine
                sides[trip][0].load_state_dict(copy.deepcopy(source.state_dict()))
        for n, q in enumerate(others):
            q.grad = gradient_like(q) if comes[n](step) else None
        for group in theirs.param_groups:
            group["lr"] *= 0.99
        theirs.step()
        for trip, (optimizer, mine) in sides.items():
            optimizer.zero_grad()
            for p, q in zip(mine, others, strict=True):
                p.grad = None if q.grad is None else q.grad.clone()
            for group, other in zip(optimizer.param_groups, theirs.param_groups, strict=True):
                group["lr"] = other["lr"]
            optimizer.step()
            if step in (0, 1, 2, 8, 30, 49, 50, 61, 99):
                what = f"step {step + 1} of a hundred{trip}"
                assert_same_parameters(mine, others, what)
    expected = theirs.state_dict()
    for trip, (optimizer, _) in list(sides.items())[:2]:
        assert_same_state(optimizer.state_dict(), expected, f"after a hundred steps{trip}")


def test_a_parameter_without_a_gradient_is_left_alone(impl):
    params = parameters((3, 2), (4,), (5,))
    others = twins(params)
    ours, theirs = impl.AdamW(params, **USUAL), TorchAdamW(others, **USUAL)
    ours.step()
    assert_same_parameters(params, others, "a step without any gradient")
    assert not ours.state_dict()["state"], "a step without any gradient leaves state"
    take_steps(ours, theirs, params, others, which={1, 2})
    assert_same_parameters(params, others, "the first parameter has no gradient")
    before = copy.deepcopy(ours.state_dict()["state"][1])
    rest = params[1].detach().clone()
    take_steps(ours, theirs, params, others, count=3, which={0, 2})
    assert_matches(params[1], rest, "a parameter that had a gradient earlier", rtol=0, atol=0)
    after = ours.state_dict()["state"][1]
    assert float(after["step"]) == float(before["step"]) == 1, "a step without gradient counts"
    for name in ("exp_avg", "exp_avg_sq"):
        assert_matches(after[name], before[name], f"{name} without a gradient", rtol=0, atol=0)
    for p, q in zip(params, others, strict=True):
        p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
    ours.step()
    theirs.step()
    assert_same_parameters(params, others, "a gradient of zeros")
    assert_same_state(ours.state_dict(), theirs.state_dict(), "after a gradient of zeros")


def test_each_parameter_counts_its_own_steps(impl):
    first = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for groups in (False, True):
        early, late = parameter(first), parameter(first)
        params = [{"params": [early]}, {"params": [late]}] if groups else [early, late]
        optimizer = impl.AdamW(params, lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.0)
        for _ in range(5):
            early.grad = torch.randn(2, dtype=torch.float64)
            optimizer.step()
        late.grad = torch.tensor([0.3, -40.0], dtype=torch.float64)
        optimizer.step()
        # Its first step: by lr along the sign, however small or large the gradient.
        expected = torch.tensor([0.9, -1.9], dtype=torch.float64)
        where = "in another group" if groups else "in the same group"
        what = f"the first gradient of a parameter, after five of one {where}"
        assert_matches(late, expected, what, rtol=1e-12)


def test_a_step_starts_from_what_it_finds(impl):
    """Parameters and gradients changed in place between steps, and two optimisers alive at once."""
    sides = []
    for options in (USUAL, OTHER):
        params = parameters((3, 2), (4,))
        others = twins(params)
        sides.append((impl.AdamW(params, **options), TorchAdamW(others, **options), params, others))
    for step in range(4):
        for ours, theirs, params, others in sides:
            if step == 0:
                give_gradients(params, others)
            for p, q in zip(params, others, strict=True):
                p.grad.mul_(-0.7).add_(0.1)
                q.grad.copy_(p.grad)
            with torch.no_grad():
                params[0][0] = others[0][0] = step
            if step == 2:
                params[1].data = others[1].data = torch.randn(4, dtype=torch.float64)
                others[1].data = others[1].data.clone()
            ours.step()
            theirs.step()
            what = f"two optimisers, parameters and gradients changed in place, step {step + 1}"
            assert_same_parameters(params, others, what)


def test_gradients_from_autograd_in_a_small_model(impl):
    x, y = torch.randn(9, 4), torch.randn(9, 3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    other = copy.deepcopy(model)
    ours = impl.AdamW(model.parameters(), **USUAL)
    theirs = TorchAdamW(other.parameters(), **USUAL)
    for net, optimizer in ((model, ours), (other, theirs)):
        for _ in range(5):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    what = "five steps on a model, its parameters from a generator"
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_matches(p, q, what, rtol=1e-4, atol=1e-5)


def test_many_parameters_and_large_ones(impl):
    shapes = [(1 + n % 3,) for n in range(257)]
    params = parameters(*shapes, (70_001,), (3, 300), dtype=torch.float32)
    others = twins(params)
    ours, theirs = impl.AdamW(params, **USUAL), TorchAdamW(others, **USUAL)
    for _ in range(2):
        for p, q in zip(params, others, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    assert_same_parameters(params[250:], others[250:], "259 parameters, one of 70,001 entries")


def test_a_late_step(impl):
    """Counts as they are after a long training, by way of a state dict."""
    for steps in (257, 2_049, 40_000, 10**6):
        params = parameters((3, 2))
        others = twins(params)
        ours = impl.AdamW(params, lr=0.05, betas=(0.999, 0.999999))
        theirs = TorchAdamW(others, lr=0.05, betas=(0.999, 0.999999))
        take_steps(ours, theirs, params, others)
        state = ours.state_dict()
        state["state"][0]["step"] = steps
        ours.load_state_dict(state)
        state["state"][0]["step"] = torch.tensor(float(steps))
        theirs.load_state_dict(copy.deepcopy(state))
        take_steps(ours, theirs, params, others, count=2)
        assert_same_parameters(params, others, f"the two steps after {steps}")
        assert float(ours.state_dict()["state"][0]["step"]) == steps + 2, f"count after {steps}"


# Memory, layouts and modes


def test_parameters_and_gradients_of_any_layout(impl):
    values, first, second = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    other = parameter(values)
    theirs = TorchAdamW([other], **USUAL)
    for g in (first, second):
        other.grad = g.clone()
        theirs.step()
    for layout, p in layouts(values):
        for (grad_layout, one), (_, two) in zip(layouts(first), layouts(second), strict=True):
            memory = p.detach()
            start = memory.clone()
            p.requires_grad_()
            optimizer = impl.AdamW([p], **USUAL)
            for g in (one, two):
                p.grad = g
                with unchanged(gradient=g):
                    optimizer.step()
            assert p.grad is two, "a step has put another gradient in the place of the one it found"
            what = f"two steps of a parameter {layout}, its gradients {grad_layout}"
            assert_matches(p, other, what, rtol=1e-12)
            assert_matches(memory, other, f"{what}, in its own memory", rtol=1e-12)
            assert p.is_leaf, f"{what}: it is no leaf"
            assert p.requires_grad, f"{what}: it asks for no gradient"
            if p._base is not None and p._base.shape[-1] == 9:
                between = p._base[..., ::2]
                assert between.isnan().all(), f"{what}: the memory between its entries is written"
            memory.copy_(start)


def test_nothing_is_recorded(impl):
    p, q = parameters((3, 2), (4,))
    optimizer = impl.AdamW([p, q], **USUAL)
    other = [parameter(p), parameter(q)]
    theirs = TorchAdamW(other, **USUAL)
    for _ in range(2):
        for mine, its in zip((p, q), other, strict=True):
            # As backward(create_graph=True) leaves them.
            mine.grad = torch.randn(mine.shape, dtype=torch.float64, requires_grad=True) * 1.5
            its.grad = mine.grad.detach().clone()
        norm = impl.clip_grad_norm_([p, q], 0.25)
        wanted = torch_clip_grad_norm_(other, 0.25)
        assert_matches(norm, wanted, "the norm of gradients that require a gradient", rtol=1e-12)
        assert not norm.requires_grad, "the norm is on autograd's record"
        optimizer.step()
        theirs.step()
    assert_same_parameters([p, q], other, "gradients that require a gradient")
    for number, state in optimizer.state_dict()["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            asks = state[name].requires_grad
            assert not asks, f"{name} of parameter {number} is on autograd's record"
    assert p.grad_fn is None, "a parameter is on autograd's record"
    assert torch.is_grad_enabled(), "grad mode is off after a step"


def test_repeatable(impl):
    def two_steps(kind, p, one, two, lr):
        p = parameter(p)
        optimizer = kind([p], **{**USUAL, "lr": lr})
        for g in (one, two):
            p.grad = g
            optimizer.step()
        return p.detach()

    def inputs():
        return [
            *(torch.randn(3, 4, dtype=torch.float64) for _ in range(3)),
            0.1 * torch.rand(()).item(),
        ]

    ours, theirs = (
        functools.partial(two_steps, impl.AdamW),
        functools.partial(two_steps, TorchAdamW),
    )
    assert_repeatable(ours, inputs, theirs, "two steps", rtol=1e-12)
    given = inputs()
    assert_any_layout(ours, given, theirs(*given), "two steps from what is", rtol=1e-12)

    def clipped(clip, one, two):
        params = with_gradients(one.clone(), two.clone())
        return clip(params, 0.3), *(p.grad for p in params)

    def gradients():
        return [torch.randn(3, 4), torch.randn(5)]

    assert_repeatable(
        functools.partial(clipped, impl.clip_grad_norm_),
        gradients,
        functools.partial(clipped, torch_clip_grad_norm_),
        "clipping",
    )


def test_any_mode(impl):
    values, one, two = (torch.randn(3, 4) for _ in range(3))
    other = parameter(values)
    theirs = TorchAdamW([other], **USUAL)
    for g in (one, two):
        other.grad = g.clone()
        norm = torch_clip_grad_norm_([other], 0.5)
        theirs.step()

    def steps(values, one, two):
        p = values.detach().clone().requires_grad_()
        optimizer = impl.AdamW([p], **USUAL)
        for g in (one, two):
            p.grad = g.clone()
            norm = impl.clip_grad_norm_([p], 0.5)
            optimizer.step()
            state = optimizer.state_dict()
            optimizer = impl.AdamW([p])
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        return p.detach(), norm, optimizer.state_dict()["state"][0]["exp_avg"]

    expected = (other.detach(), norm, theirs.state_dict()["state"][0]["exp_avg"])
    assert_any_mode(steps, (values, one, two), expected, "two steps with clipping", rtol=1e-5)
    default = torch.get_default_dtype()
    p = parameter(values)
    q = parameter(values)
    ours, theirs = impl.AdamW([p], **USUAL), TorchAdamW([q], **USUAL)
    try:
        torch.set_default_dtype(torch.float16)
        assert_matches(
            impl.clip_grad_norm_([p], 1.0),
            torch.zeros((), dtype=torch.float32),
            "the norm of no gradients where float16 is the default dtype",
        )
        for _ in range(3):
            p.grad = torch.randn(3, 4, dtype=torch.float32)
            q.grad = p.grad.clone()
            ours.step()
            theirs.step()
    finally:
        torch.set_default_dtype(default)
    assert_same_parameters([p], [q], "three steps where float16 is the default dtype")


def test_zero_grad_reaches_every_group(impl):
    params = parameters((3,), (2, 2), (4,))
    optimizer = impl.AdamW([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    give_gradients(params, twins(params))
    optimizer.zero_grad()
    left = [number for number, p in enumerate(params) if p.grad is not None]
    assert not left, f"zero_grad leaves a gradient to the parameters {left}"
    before = [p.detach().clone() for p in params]
    optimizer.step()
    for p, value in zip(params, before, strict=True):
        assert_matches(p, value, "a step after zero_grad", rtol=0, atol=0)


# Half precision


def test_half_precision_is_rounded_once_a_step(impl):
    for dtype in HALF:
        p = torch.randn(40, dtype=torch.float64).to(dtype).requires_grad_()
        wide = torch.randn(3, dtype=torch.float64, requires_grad=True)  # beside it, in one group
        q, other = parameter(p.double()), parameter(wide)
        optimizer, theirs = impl.AdamW([p, wide], **USUAL), TorchAdamW([q, other], **USUAL)
        for step in range(12):
            p.grad = torch.randn(40, dtype=torch.float64).to(dtype)
            wide.grad = torch.randn(3, dtype=torch.float64)
            q.grad, other.grad = p.grad.double(), wide.grad.clone()
            with torch.no_grad():
                q.copy_(p)
            optimizer.step()
            theirs.step()
            assert_rounded_once(p, q.detach(), f"{dtype}, step {step + 1}")
        assert_same_parameters([wide], [other], f"float64 beside {dtype}")
        state = optimizer.state_dict()["state"]
        wanted = theirs.state_dict()["state"]
        for name in ("exp_avg", "exp_avg_sq"):
            what = f"{name} of a parameter in {dtype}"
            assert_matches(state[0][name], wanted[0][name].float(), what, rtol=1e-5, atol=1e-7)


def test_half_precision_at_the_edge(impl):
    """Gradients with squares outside float16, and an eps that is zero there."""
    for dtype in HALF:
        for size in (3e-5, 1e-3, 300.0, 6e4):
            p = torch.randn(20).to(dtype).requires_grad_()
            q = parameter(p.double())
            options = {"lr": 0.2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
            optimizer, theirs = impl.AdamW([p], **options), TorchAdamW([q], **options)
            for step in range(3):
                p.grad = (size * torch.randn(20).sign()).to(dtype)
                p.grad[step::5] = 0
                q.grad = p.grad.double()
                with torch.no_grad():
                    q.copy_(p)
                optimizer.step()
                theirs.step()
                what = f"{dtype}, gradients of {size:g} and zeros, step {step + 1}"
                assert_rounded_once(p, q.detach(), what)


def test_moments_keep_their_digits_through_a_state_dict(impl):
    for dtype in (*HALF, torch.float32, torch.float64):
        p = torch.randn(30).to(dtype).requires_grad_()
        q = parameter(p)
        optimizer, other = impl.AdamW([p], **USUAL), impl.AdamW([q], **OTHER)
        for _ in range(3):
            p.grad = torch.randn(30).to(dtype)
            optimizer.step()
        with torch.no_grad():
            q.copy_(p)
        before = optimizer.state_dict()
        other.load_state_dict(before)
        after = other.state_dict()
        for name in ("exp_avg", "exp_avg_sq"):
            what = f"{name} of a parameter in {dtype}, loaded"
            expected = before["state"][0][name]
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert expected.dtype == wide, f"{name} of a parameter in {dtype} is {expected.dtype}"
            assert_matches(after["state"][0][name], expected, what, rtol=0, atol=0)
        p.grad = torch.randn(30).to(dtype)
        q.grad = p.grad.clone()
        optimizer.step()
        other.step()
        assert_matches(q, p, f"the step after loading, {dtype}", rtol=0, atol=0)


def test_state_of_another_dtype_is_loaded_into_the_right_one(impl):
    for dtype, other in ((torch.float64, torch.float32), (torch.float32, torch.bfloat16)):
        theirs = parameter(torch.randn(6).to(other))
        source = TorchAdamW([theirs], **USUAL)
        theirs.grad = torch.randn(6).to(other)
        source.step()
        p = torch.randn(6).to(dtype).requires_grad_()
        optimizer = impl.AdamW([p])
        optimizer.load_state_dict(source.state_dict())
        for name in ("exp_avg", "exp_avg_sq"):
            expected = source.state_dict()["state"][0][name].to(dtype)
            what = f"{name} from {other}, loaded for a parameter in {dtype}"
            assert_matches(optimizer.state_dict()["state"][0][name], expected, what, rtol=0, atol=0)


# Groups


def test_param_groups(impl):
    a, b, c, d = parameters((3,), (2, 2), (4,), ())
    given = [
        {"params": (p for p in (a, b)), "lr": 0.3, "betas": [0.5, 0.7]},
        {"params": (c,), "weight_decay": 0},
        {"params": [d], "eps": 1, "lr": 0},
    ]
    keys = [set(group) for group in given]
    optimizer = impl.AdamW((group for group in given), **USUAL)
    wanted = [
        {**USUAL, "lr": 0.3, "betas": (0.5, 0.7)},
        {**USUAL, "weight_decay": 0},
        {**USUAL, "eps": 1, "lr": 0},
    ]
    assert isinstance(optimizer.param_groups, list), "param_groups is not a list"
    assert len(optimizer.param_groups) == 3, f"{len(optimizer.param_groups)} groups, not 3"
    members = [[a, b], [c], [d]]
    for number, (group, options) in enumerate(zip(optimizer.param_groups, wanted, strict=True)):
        for name in OPTIONS:
            value = tuple(group[name]) if name == "betas" else group[name]
            assert value == options[name], f"group {number}: {name} is {value}"
        assert isinstance(group["params"], list), f"group {number}: params is not a list"
        same = [p is q for p, q in zip(group["params"], members[number], strict=True)]
        assert all(same), f"group {number} does not hold the parameters themselves"
    assert [set(group) for group in given] == keys, "a group that was passed in got more options"
    plain = impl.AdamW([a, b])
    for name, value in {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.01,
    }.items():
        got = plain.param_groups[0][name]
        assert (tuple(got) if name == "betas" else got) == value, f"{name} is {got} by default"


def test_optimisers_from_the_same_groups_share_no_options(impl):
    params = parameters((3, 2), (4,))
    given = [{"params": [params[0]], "lr": 0.2}, {"params": [params[1]]}]
    one, two = impl.AdamW(given, **USUAL), impl.AdamW(given, **OTHER)
    one.param_groups[0]["lr"] = 5.0
    one.param_groups[1]["weight_decay"] = 3.0
    assert given[0]["lr"] == 0.2, "an option changed in param_groups changes what was passed in"
    got = two.param_groups[0]["lr"], two.param_groups[1]["weight_decay"]
    assert got == (0.2, OTHER["weight_decay"]), f"another optimiser's options are now {got}"


def test_options_changed_in_param_groups_count_from_the_next_step(impl):
    params = parameters((3, 2), (4,))
    others = twins(params)
    ours = impl.AdamW([{"params": params[:1]}, {"params": params[1:]}], **USUAL)
    theirs = TorchAdamW([{"params": others[:1]}, {"params": others[1:]}], **USUAL)
    take_steps(ours, theirs, params, others)
    for name, value in {**OTHER, "lr": 0.0}.items():
        for optimizer in (ours, theirs):
            optimizer.param_groups[1][name] = value
        take_steps(ours, theirs, params, others)
        assert_same_parameters(params, others, f"{name} of the second group changed to {value}")
    assert_same_state(ours.state_dict(), theirs.state_dict(), "options changed in param_groups")


def test_bad_options_are_refused(impl):
    cases = [
        {"lr": -0.1},
        {"eps": -1e-8},
        {"weight_decay": -1},
        {"betas": (-0.1, 0.9)},
        {"betas": (0.9, -0.5)},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, 1)},
        {"betas": (0.5, 1.5)},
    ]
    p, q = parameters((3,), (2,))
    for options in cases:
        (name,) = options
        second = {"params": [q], **options}
        what = f"{name} {options[name]}"
        with refuses(what, name):
            impl.AdamW([p, q], **options)
        with refuses(f"{what} of the second group", name):
            impl.AdamW([{"params": [p]}, second], **USUAL)


def test_no_parameters_or_one_twice_are_refused(impl):
    p, q = parameters((3,), (3,))
    with torch.no_grad():
        q.copy_(p)
    impl.AdamW([p, q])  # equal values are two parameters all the same
    impl.AdamW([*parameters((0,), (0,)), p])  # and so are two that have no memory
    cases = {
        "no parameters": [],
        "an empty generator": (p for p in ()),
        "a group without parameters": [{"params": []}],
        "a parameter twice": [p, q, p],
        "a parameter twice in a group": [{"params": [q]}, {"params": [p, p]}],
        "a parameter in two groups": [{"params": [p, q]}, {"params": [p]}],
    }
    for name, params in cases.items():
        try:
            impl.AdamW(params)
        except ValueError:
            continue
        pytest.fail(f"{name}: no ValueError", pytrace=False)


# State


def stepped(impl, which=(2, 0), steps=2):
    """An optimiser in two groups of which some parameters have had gradients, and torch's."""
    params = parameters((3, 2), (4,), (), (2, 2, 2))
    others = twins(params)
    ours = impl.AdamW([{"params": params[:1], "lr": 0.2}, {"params": params[1:]}], **USUAL)
    theirs = TorchAdamW([{"params": others[:1], "lr": 0.2}, {"params": others[1:]}], **USUAL)
    for number in which:
        take_steps(ours, theirs, params, others, count=steps, which={number})
    return ours, theirs, params, others


def test_state_dict_has_torchs_form(impl):
    ours, theirs, *_ = stepped(impl)
    state = ours.state_dict()
    assert_same_state(state, theirs.state_dict(), "parameters 2 and 0 have had gradients")
    for group in state["param_groups"]:
        assert all(type(number) is int for number in group["params"]), f"{group['params']}"
    step = state["state"][0]["step"]
    if isinstance(step, torch.Tensor):
        assert step.shape == (), f"step has the shape {tuple(step.shape)}"
    assert isinstance(step, (int, float, torch.Tensor)), f"step is a {type(step).__name__}"


def test_state_dict_is_a_snapshot(impl):
    ours, theirs, params, others = stepped(impl)
    kept = ours.state_dict()
    expected = copy.deepcopy(theirs.state_dict())
    take_steps(ours, theirs, params, others, count=2)
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["lr"] = 0.01
    assert_same_state(kept, expected, "a state dict, after two more steps")
    # What becomes of it is nothing to the optimiser.
    for state in kept["state"].values():
        state["exp_avg"].zero_()
        state["exp_avg_sq"].fill_(9)
        state["step"] = 77
    kept["param_groups"][0]["lr"] = 55.0
    kept["param_groups"][1]["params"].clear()
    del kept["state"][0]
    take_steps(ours, theirs, params, others, count=2)
    assert_same_parameters(params, others, "a state dict was changed")
    assert_same_state(ours.state_dict(), theirs.state_dict(), "a state dict was changed")


def test_load_state_dict_replaces_everything(impl):
    source, theirs, params, others = stepped(impl)
    loaded, _, mine, _ = stepped(impl, which=(1, 3, 1), steps=3)
    loaded.param_groups[1]["eps"] = 0.5
    with torch.no_grad():
        for p, q in zip(mine, params, strict=True):
            p.copy_(q)
    state = source.state_dict()
    before = copy.deepcopy(state)
    loaded.load_state_dict(state)
    assert_same_state(state, before, "a state dict that was loaded", tolerance=0)
    assert_same_state(loaded.state_dict(), theirs.state_dict(), "loaded over other state")
    same = [p is q for p, q in zip(mine[1:], loaded.param_groups[1]["params"], strict=True)]
    assert all(same), "after loading, param_groups does not hold the optimiser's own parameters"
    # The two share nothing, and neither shares with the dict.
    twice, _, again, _ = stepped(impl, which=())
    twice.load_state_dict(state)
    give_gradients(again, twins(again))
    twice.step()
    twice.param_groups[0]["lr"] = 9.0
    assert_same_state(state, before, "a state dict, after a step of what it was loaded into", 0)
    take_steps(loaded, theirs, mine, others, count=3)
    assert_same_parameters(mine, others, "steps after loading, another optimiser loaded the same")
    assert_same_state(loaded.state_dict(), theirs.state_dict(), "steps after loading")
    untouched = [p.detach().clone() for p in params]
    for p, q in zip(params, untouched, strict=True):
        assert_matches(p, q, "the parameters whose state was loaded elsewhere", rtol=0, atol=0)


def test_load_state_dict_takes_any_form_of_the_same(impl):
    """Entries in another order, betas as a list, counts as int, float or tensor."""
    for count in (int, float, lambda step: torch.tensor(float(step))):
        source, theirs, params, others = stepped(impl, which=(2, 0, 1))
        state = source.state_dict()
        state["state"] = dict(sorted(state["state"].items(), reverse=True))
        for entry in state["state"].values():
            entry["step"] = count(entry["step"])
        for group in state["param_groups"]:
            group["betas"] = list(group["betas"])
            group["amsgrad"] = group["maximize"] = False
        loaded, _, mine, _ = stepped(impl, which=())
        with torch.no_grad():
            for p, q in zip(mine, params, strict=True):
                p.copy_(q)
        before = copy.deepcopy(state)
        loaded.load_state_dict(state)
        take_steps(loaded, theirs, mine, others, count=2)
        assert_same_state(state, before, "a state dict, after steps of what it was loaded into", 0)
        what = f"a count of the type {type(count(1)).__name__}"
        assert_same_parameters(mine, others, what)
        assert_same_state(loaded.state_dict(), theirs.state_dict(), what)


def test_a_state_dict_of_other_groups_is_refused(impl):
    others = {
        "one group in place of two": [4],
        "three groups in place of two": [1, 2, 1],
        "as many parameters in groups of other sizes": [2, 2],
        "a parameter less": [1, 2],
        "a parameter more": [1, 4],
    }
    for name, sizes in others.items():
        optimizer, theirs, params, twins_ = stepped(impl)
        source = impl.AdamW([{"params": parameters(*[(2,)] * size)} for size in sizes], **OTHER)
        for group in source.param_groups:
            for p in group["params"]:
                p.grad = torch.ones(2, dtype=torch.float64)
        source.step()
        try:
            optimizer.load_state_dict(source.state_dict())
        except ValueError:
            pass
        else:
            pytest.fail(f"{name}: no ValueError", pytrace=False)
        what = f"after the state dict was refused ({name})"
        assert_same_state(optimizer.state_dict(), theirs.state_dict(), what)
        take_steps(optimizer, theirs, params, twins_)
        assert_same_parameters(params, twins_, what)


# Clipping


def with_gradients(*grads):
    """One parameter for each gradient, or None; the gradient is the tensor itself."""
    params = []
    for g in grads:
        p = torch.zeros(3) if g is None else torch.ones_like(g, requires_grad=False)
        p.requires_grad_()
        p.grad = g
        params.append(p)
    return params


def test_clipping_matches_torch(impl):
    shapes = [(3, 5), (4,), (), (2, 3, 2), (0,)]
    for dtype in (torch.float64, torch.float32):
        for max_norm in (0, 0.3, 1, 2.5, 5.5, 1e-9, math.inf):
            for size in (1.0, 0.0, 1e-7, 1e6):
                grads = [size * torch.randn(shape, dtype=dtype) for shape in shapes]
                params = with_gradients(None, *grads, None)
                others = with_gradients(None, *(g.clone() for g in grads), None)
                norm = impl.clip_grad_norm_((p for p in params), max_norm)
                wanted = torch_clip_grad_norm_(others, max_norm)
                what = f"{dtype}, max_norm {max_norm}, gradients of about {size:g}"
                tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 2e-6, "atol": 0}
                assert_matches(norm, wanted, f"the norm from before: {what}", **tolerance)
                for number, (p, q) in enumerate(zip(params, others, strict=True)):
                    if q.grad is None:
                        assert p.grad is None, f"{what}: parameter {number} now has a gradient"
                        continue
                    assert_matches(p.grad, q.grad, f"gradient {number}: {what}", **tolerance)
                    assert (p == 1).all(), f"{what}: parameter {number} itself is changed"
                for p, g in zip(params[1:], grads, strict=False):
                    assert p.grad is g, f"{what}: another gradient stands in the place of the old"


def test_clipping_worked_example(impl):
    a, b = torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([[4.0]], dtype=torch.float64)
    norm = impl.clip_grad_norm_(with_gradients(a, b), 2.5)
    assert_matches(norm, torch.tensor(5.0, dtype=torch.float64), "the norm of (3, 0) and (4)")
    assert_matches(a, torch.tensor([1.5, 0.0], dtype=torch.float64), "(3, 0), halved", rtol=1e-6)
    assert_matches(b, torch.tensor([[2.0]], dtype=torch.float64), "(4), halved", rtol=1e-6)
    c = torch.tensor([0.3, 0.4])
    kept = c.clone()
    norm = impl.clip_grad_norm_(params=with_gradients(c), max_norm=1)
    assert_matches(norm, torch.tensor(0.5), "the norm of (0.3, 0.4)")
    assert_matches(c, kept, "gradients below the limit", rtol=0, atol=0)


def test_clipping_without_gradients(impl):
    for name, params in {"none of them": with_gradients(None, None), "no parameters": []}.items():
        norm = impl.clip_grad_norm_(params, 1.0)
        assert_matches(norm, torch.zeros(()), f"the norm where there is no gradient ({name})")
        assert all(p.grad is None for p in params), f"a gradient has come about ({name})"


def test_clipping_in_place_in_any_layout(impl):
    values, other = (torch.randn(3, 4, dtype=torch.float64) for _ in range(2))
    norm = (values.square().sum() + other.square().sum()).sqrt()
    factor = 0.5 / (norm + 1e-6)
    for layout, g in layouts(values):
        params = with_gradients(other.clone(), g)
        memory = g.detach()
        what = f"the second gradient {layout}"
        got = impl.clip_grad_norm_(params, 0.5)
        assert_matches(got, norm, f"the norm, {what}", rtol=1e-12)
        assert_matches(memory, values * factor, f"in its own memory, {what}", rtol=1e-12)
        assert_matches(params[0].grad, other * factor, f"the first, {what}", rtol=1e-12)
        # A norm of its own, and a second call that sees what the first has left.
        kept = got.clone()
        again = impl.clip_grad_norm_(params, 0.1)
        assert_matches(again, norm * factor, f"the norm of clipped gradients, {what}", rtol=1e-9)
        assert_matches(got, kept, f"the norm, after a second call, {what}", rtol=0, atol=0)


def test_clipping_in_half_precision(impl):
    for dtype in HALF:
        for size in (3e-5, 1e-2, 1.0, 6e4):
            grads = [(size * torch.rand(shape)).to(dtype) for shape in ((30,), (5, 4))]
            exact = torch.cat([g.double().flatten() for g in grads]).square().sum().sqrt()
            norm = impl.clip_grad_norm_(with_gradients(*(g.clone() for g in grads)), math.inf)
            what = f"{dtype}, gradients of up to {size:g}"
            assert_matches(norm, exact.float(), f"the norm: {what}", rtol=1e-5, atol=0)
            params = with_gradients(*(g.clone() for g in grads))
            impl.clip_grad_norm_(params, 3.0)
            factor = (3.0 / (exact + 1e-6)).clamp(max=1.0)
            for p, g in zip(params, grads, strict=True):
                assert_rounded_once(p.grad, g.double() * factor, f"a clipped gradient: {what}")
        values = torch.randn(3, 4).to(dtype)
        for wide in (torch.float32, torch.float64):
            other = torch.randn(5, dtype=wide)
            exact = torch.cat([values.double().flatten(), other.double()]).square().sum().sqrt()
            for layout, g in layouts(values):
                impl.clip_grad_norm_(with_gradients(g, other.clone()), 0.5)
                what = f"a gradient in {dtype}, {layout}, beside one in {wide}"
                assert_rounded_once(g, values.double() * (0.5 / (exact + 1e-6)), what)


def test_clipping_of_mixed_dtypes(impl):
    for dtypes, wide in (
        ((torch.bfloat16, torch.float64, torch.float32, torch.float16), torch.float64),
        ((torch.float16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.float32, torch.float64), torch.float64),
    ):
        grads = [torch.randn(5 + n).to(dtype) for n, dtype in enumerate(dtypes)]
        exact = torch.cat([g.double() for g in grads]).square().sum().sqrt()
        params = with_gradients(*(g.clone() for g in grads))
        norm = impl.clip_grad_norm_(params, 0.7)
        assert_matches(norm, exact.to(wide), f"the norm of {dtypes}", rtol=1e-6, atol=0)
        for p, g in zip(params, grads, strict=True):
            expected, what = g.double() * 0.7 / (exact + 1e-6), f"{g.dtype} among {dtypes}"
            if g.dtype in HALF:
                assert_rounded_once(p.grad, expected, what)
            else:
                assert_matches(p.grad, expected.to(g.dtype), what, rtol=2e-6, atol=0)


def test_clipping_of_many_and_of_large_ones(impl):
    for dtype in (torch.float32, torch.bfloat16):
        grads = [torch.randn(1 + n % 3).to(dtype) for n in range(300)]
        grads.append((0.05 * torch.randn(70_001)).to(dtype))
        exact = torch.cat([g.double() for g in grads]).square().sum().sqrt()
        params = with_gradients(*(g.clone() for g in grads))
        norm = impl.clip_grad_norm_(params, 1)
        what = f"301 gradients in {dtype}, one of 70,001 entries"
        assert_matches(norm, exact.float(), f"the norm: {what}", rtol=1e-5, atol=0)
        after = torch.cat([p.grad.double() for p in params]).square().sum().sqrt()
        assert_matches(after, torch.ones_like(after), f"the norm after: {what}", rtol=2e-3, atol=0)


# The schedule


def test_learning_rates_worked_by_hand(impl):
    root = math.sqrt(3) / 2
    expected = {
        0: 0.2,
        1: 0.4,
        2: 0.6,
        3: 0.8,
        4: 0.8,
        5: 0.5 + 0.3 * root,
        6: 0.65,
        7: 0.5,
        8: 0.35,
        9: 0.5 - 0.3 * root,
        10: 0.2,
        11: 0.2,
        13: 0.2,
        16: 0.2,
        22: 0.2,
        10**6: 0.2,
    }
    for step, wanted in expected.items():
        got = impl.lr_at(step, max_lr=0.8, min_lr=0.2, warmup=4, total=10)
        assert isinstance(got, float), f"step {step}: a {type(got).__name__}, not a float"
        assert math.isclose(got, wanted, rel_tol=1e-12), f"step {step}: {got}, not {wanted}"
    assert math.isclose(impl.lr_at(6, 0.8, 0.2, 4, 10), 0.65), "arguments by position"


def test_learning_rates_of_other_schedules(impl):
    for max_lr, min_lr, warmup, total in (
        (3e-4, 3e-5, 10, 100),
        (1.5, 0.0, 3, 20),
        (0.7, 0.1, 0, 9),
        (0.7, 0.1, 5, 5),
        (0.7, 0.1, 1, 2),
        (0.7, 0.1, 0, 1),
        (0.7, 0.1, 0, 0),
        (0.4, 0.4, 3, 8),
        (6e-4, 6e-5, 2_000, 600_000),
    ):
        steps = {0, 1, 2, 3, warmup - 1, warmup, warmup + 1, total - 1, total, total + 1, 2 * total}
        steps |= {warmup // 2, total // 3, total // 2, 3 * total, 2 * total - warmup}
        for step in sorted(step for step in steps if step >= 0):
            if step < warmup:
                wanted = (step + 1) * max_lr / warmup
            elif step < total:
                # (1 + cos a) / 2 is the squared cosine of a / 2.
                share = math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
                wanted = share * max_lr + (1 - share) * min_lr
            else:
                wanted = min_lr
            got = impl.lr_at(step, max_lr, min_lr, warmup, total)
            what = f"max_lr {max_lr}, min_lr {min_lr}, warmup {warmup}, total {total}"
            close = math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-15)
            assert close, f"step {step} of {what}: {got}, not {wanted}"


# The ban


def test_without_torchs_optimisers_and_clipping(impl):
    for dtype in (torch.float64, torch.float32, *HALF):
        params = [torch.randn(3, 4).to(dtype).requires_grad_(), torch.ones((), dtype=dtype)]
        with banned(), forbid("fused_adam", "fused_adamw"):
            optimizer = impl.AdamW(
                [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}], lr=0.1
            )
            for step in range(2):
                for p in params[step:]:
                    p.grad = torch.full_like(p, 0.3)
                impl.clip_grad_norm_(params, impl.lr_at(step, 0.5, 0.1, 1, 4))
                optimizer.step()
                optimizer.load_state_dict(optimizer.state_dict())
                optimizer.zero_grad()
