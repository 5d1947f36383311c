import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.function import BackwardCFunction

from dojo.kernels import DEVICE, guarded, run, speed
from dojo.testing import (
    CROSS_ENTROPY,
    SOFTMAX,
    assert_any_mode,
    assert_gradients_reach,
    assert_matches,
    assert_repeatable,
    forbid,
    layouts,
)

# Rows and classes never agree in number, so that a swapped axis cannot hide. Widths are one, odd,
# powers of two and what lies beside them.
SHAPES = [(5, 1), (1, 7), (9, 17), (6, 16), (3, 300), (70, 5)]
# Wider than a block of 4,096, of 8,192 and, for those who take less, of many smaller ones.
WIDE = 10_007
# Logits of about ten are known to 1e-6 in float32, and so is the logarithm of a probability: a
# relative error of a probability, and an absolute one of p - 1. Those in float16 are rounded once
# more, by one unit in the last place (2 to the -10th) at most; two are allowed.
TOLERANCES = {
    torch.float32: {"rtol": 5e-5, "atol": 5e-6},
    torch.float16: {"rtol": 2e-3, "atol": 5e-6},
}
DTYPES = list(TOLERANCES)
BANNED = (*CROSS_ENTROPY, *SOFTMAX, "logsumexp", "exp", "log")


def batch(n, c, dtype=torch.float32, ignored=()):
    """Return logits spread widely enough that no row is near uniform, and targets."""
    logits = (3 * torch.randn(n, c)).to(DEVICE, dtype)
    targets = torch.randint(c, (n,)).to(DEVICE)
    targets[list(ignored)] = -100
    return logits, targets


@contextlib.contextmanager
def guarded_both_ways(*banned):
    """Run the block inside `guarded` and `forbid`, and what a Function does backward as well.

    Neither sees what autograd calls from within `backward`, and on a GPU that is another thread.
    """
    apply = BackwardCFunction.apply

    def guarded_apply(node, *grads):
        with memory, forbid(*banned):
            return apply(node, *grads)

    with guarded() as memory, forbid(*banned):
        BackwardCFunction.apply = guarded_apply
        try:
            yield memory
        finally:
            BackwardCFunction.apply = apply


def step(impl, logits, targets, *args, upstream=1.0, banned=(), **kwargs):
    """Return the loss of guarded copies, and the gradient of `upstream * loss` for the logits.

    That logits are left as they were is for one test to say, not for all of them.
    """
    with guarded_both_ways(*banned) as memory:
        logits = memory.place(logits, "logits", written=True).requires_grad_()
        targets = memory.place(targets, "targets")
        loss = impl.cross_entropy(logits, targets, *args, **kwargs)
        assert_differentiable(loss)
        (upstream * loss).backward()
    return loss.detach(), logits.grad


def assert_differentiable(loss):
    assert isinstance(loss, torch.Tensor), f"the loss is a {type(loss).__name__}, not a tensor"
    assert loss.requires_grad, "autograd can not go back through the loss"


def exact(logits, targets, *args, upstream=1.0, **kwargs):
    """Return what `step` is to return, by PyTorch's operator in float64, rounded once."""
    leaf = logits.detach().double().requires_grad_()
    loss = F.cross_entropy(leaf, targets, *args, **kwargs)
    (grad,) = torch.autograd.grad(upstream * loss, leaf)
    return loss.detach().to(logits.dtype), grad.to(logits.dtype)


def assert_step(actual, expected, behaviour, **tolerance):
    """Compare a loss and a gradient with the expected ones."""
    for name, got, wanted in zip(("loss", "gradient"), actual, expected, strict=True):
        tolerance = tolerance or TOLERANCES[wanted.dtype]
        assert_matches(got, wanted, f"the {name} of {behaviour}", **tolerance)


# The loss and its gradient.


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradient_match_torch(impl, dtype):
    for n, c in SHAPES[:: 1 if dtype == torch.float32 else 2]:
        logits, targets = batch(n, c, dtype)
        actual = step(impl, logits, targets, banned=BANNED)
        assert_step(actual, exact(logits, targets), f"({n}, {c}) logits in {dtype}")


def test_known_probabilities(impl):
    # The true classes have probabilities 1/2 and 1/8: their surprises are log 2 and 3 log 2.
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.25, 0.625]], device=DEVICE).log()
    targets = torch.tensor([0, 0], device=DEVICE)
    loss, grad = step(impl, logits, targets)
    expected = torch.tensor(2.0).log() * 2
    assert_matches(loss, expected, "the loss when the true classes have p = 1/2 and 1/8")
    expected = torch.tensor([[-0.25, 0.125, 0.125], [-0.4375, 0.125, 0.3125]])
    assert_matches(grad, expected, "the gradient when the true classes have p = 1/2 and 1/8")


def test_arguments_by_name(impl):
    logits, targets = batch(6, 4)
    targets[[1, 4]] = 9
    actual = step(impl, logits=logits, targets=targets, ignore_index=9)
    expected = exact(logits, targets, ignore_index=9)
    assert_step(actual, expected, "a call with every argument by name")


def test_without_a_gradient(impl):
    logits, targets = batch(6, 4)
    loss = run(impl.cross_entropy, logits, targets)
    expected, _ = exact(logits, targets)
    assert_matches(loss, expected, "the loss of logits that need no gradient")


def test_mean_over_many_rows(impl):
    logits, targets = batch(67, 600, torch.float16, ignored=range(7, 67, 5))
    logits[-4:] *= 5  # their losses are larger, so that the mean shows if one is left out
    targets[-1] = 100  # a class, though its opposite is ignored
    loss = run(impl.cross_entropy, logits, targets)
    expected, _ = exact(logits, targets)
    behaviour = "the loss of (67, 600) float16 logits, some rows ignored"
    assert_matches(loss, expected, behaviour, **TOLERANCES[torch.float16])


def test_number_of_rows_is_not_rounded(impl):
    # bfloat16 holds whole numbers up to 256, float16 up to 2,048: more rows than that on a GPU.
    n = 259 if DEVICE == "cpu" else 2_051
    logits, targets = batch(n, 3)
    expected = exact(logits, targets, upstream=n)
    behaviour = f"({n}, 3) logits, when {n} times the loss is differentiated"
    assert_step(step(impl, logits, targets, upstream=n), expected, behaviour)


# Rows of more than a block.


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_target_anywhere_in_a_wide_row(impl, place):
    logits, _ = batch(1, WIDE)
    target = round(place * (WIDE - 1))
    targets = torch.tensor([target], device=DEVICE)
    loss = run(impl.cross_entropy, logits, targets)
    expected, _ = exact(logits, targets)
    behaviour = f"the loss of a row of {WIDE:,} logits whose target is class {target:,}"
    assert_matches(loss, expected, behaviour, **TOLERANCES[logits.dtype])


# The share of the row where its mass lies.
@pytest.mark.parametrize(("first", "last"), [(0, 0.1), (0.45, 0.55), (0.9, 1)])
def test_mass_anywhere_in_a_wide_row(impl, first, last):
    logits, targets = batch(1, WIDE)
    logits[:, : round(first * WIDE)] -= 30
    logits[:, round(last * WIDE) :] -= 30
    behaviour = f"a row of {WIDE:,} logits, large from {first:.0%} to {last:.0%} of the way"
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour)


@pytest.mark.parametrize("slope", [40, -40])
def test_rising_and_falling_rows(impl, slope):
    logits, targets = batch(1, WIDE)
    logits += torch.linspace(0, slope, WIDE, device=DEVICE)
    behaviour = f"a row of {WIDE:,} logits that changes by {slope} along the way"
    # Logits reach 50, where a float32 is known to 4e-6.
    tolerance = {"rtol": 2e-4, "atol": 1e-5}
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour, **tolerance)


@pytest.mark.parametrize(
    ("n", "c", "dtype"),
    [(2, 1025, torch.float32), (1, 4096, torch.float32), (2, 4097, torch.float16)],
)
def test_widths_beside_powers_of_two(impl, n, c, dtype):
    logits, targets = batch(n, c, dtype)
    expected = exact(logits, targets)
    assert_step(step(impl, logits, targets), expected, f"({n}, {c}) logits in {dtype}")


def test_gradient_of_a_wide_row_sums_to_zero(impl):
    # A shift of all logits of a row changes no probability.
    logits, _ = batch(2, WIDE)
    targets = torch.tensor([0, WIDE // 2], device=DEVICE)
    _, grad = step(impl, logits, targets)
    what = f"the sum of the gradient of each row of {WIDE:,}"
    assert_matches(grad.double().sum(1).float(), torch.zeros(2), what)


# Ignored rows.


def test_ignored_rows_may_as_well_be_removed(impl):
    logits, targets = batch(9, 4, ignored=[0, 3, 7, 8])
    kept = targets != -100
    loss, grad = step(impl, logits, targets)
    expected_loss, expected_grad = exact(logits[kept], targets[kept])
    assert_matches(loss, expected_loss, "the loss of 9 rows, 4 of them ignored, is that of the 5")
    what = "the gradient of 5 rows beside 4 ignored ones is that without those"
    assert_matches(grad[kept], expected_grad, what)
    assert_matches(grad[~kept], torch.zeros(4, 4), "the gradient of ignored rows", rtol=0, atol=0)


def test_another_ignore_index(impl):
    # -1 would be the last class as an index; the others are 0 and -100 in 32 bits. First without
    # a row that is ignored, since its target would lead far outside the logits.
    for ignored in ([], [2, 3]):
        for ignore_index in (-1, 2**40, 2**32 - 100):
            logits, targets = batch(7, 5)
            targets[[0, 4]] = torch.tensor([0, 4], device=DEVICE)
            targets[ignored] = ignore_index
            actual = step(impl, logits, targets, ignore_index)
            expected = exact(logits, targets, ignore_index=ignore_index)
            what = f"7 rows with ignore_index={ignore_index}, {len(ignored)} of them ignored"
            assert_step(actual, expected, what)


def test_ignored_rows_may_hold_anything(impl):
    for dtype in DTYPES:
        logits, targets = batch(9, 4, dtype, ignored=[0, 3, 4, 7])
        expected = exact(logits, targets)
        logits[0], logits[3], logits[4, 1], logits[7] = torch.nan, -torch.inf, torch.inf, torch.inf
        what = f"5 rows of {dtype} beside ignored ones of NaN, -inf and inf"
        assert_step(step(impl, logits, targets), expected, what)
    logits[:], targets[:] = torch.nan, -100
    _, grad = step(impl, logits, targets)
    what = "the gradient when every row is ignored and holds NaN"
    assert_matches(grad, torch.zeros_like(logits), what, rtol=0, atol=0)


@pytest.mark.parametrize("ignore_index", [0, 1])
def test_a_class_can_be_ignored(impl, ignore_index):
    logits, targets = batch(7, 5)
    targets[[2, 3]] = ignore_index
    targets[4] = (ignore_index + 1) % 5
    ignored = targets == ignore_index
    loss, grad = step(impl, logits, targets, ignore_index)
    behaviour = f"the gradient of rows of class {ignore_index}, which is ignored"
    zeros = torch.zeros(int(ignored.sum()), 5)
    assert_matches(grad[ignored], zeros, behaviour, rtol=0, atol=0)
    expected = exact(logits, targets, ignore_index=ignore_index)
    assert_step((loss, grad), expected, f"a batch in which class {ignore_index} is ignored")


def test_all_rows_ignored(impl):
    logits, targets = batch(3, 4, ignored=range(3))
    loss, grad = step(impl, logits, targets)
    assert_matches(loss, torch.tensor(torch.nan), "the loss when every row is ignored")
    assert_matches(grad, torch.zeros(3, 4), "the gradient when every row is ignored", atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(impl, dtype):
    logits, targets = batch(0, 5, dtype)
    loss, grad = step(impl, logits, targets)
    assert_matches(loss, torch.tensor(torch.nan, dtype=dtype), "the loss of no rows")
    assert_matches(grad, torch.zeros(0, 5, dtype=dtype), "the gradient of no rows")


# What comes before the logits and after the loss.


@pytest.mark.parametrize(("upstream", "dtype"), [(3.0, torch.float32), (-0.25, torch.float16)])
def test_gradient_is_multiplied_by_the_upstream_one(impl, upstream, dtype):
    logits, targets = batch(6, 4, dtype, ignored=[2])
    actual = step(impl, logits, targets, upstream=upstream)
    expected = exact(logits, targets, upstream=upstream)
    behaviour = f"a batch in {dtype}, when {upstream} times the loss is differentiated"
    assert_step(actual, expected, behaviour)


def test_loss_used_twice(impl):
    logits, targets = batch(6, 4, ignored=[2])
    leaf = logits.clone().requires_grad_()
    with guarded_both_ways():
        loss = impl.cross_entropy(leaf, targets)
        assert_differentiable(loss)
        (loss * loss + 2 * loss).backward()
    value, grad = exact(logits, targets)
    behaviour = "the gradient of loss² + 2 loss"
    assert_matches(leaf.grad, (2 * value + 2) * grad, behaviour, **TOLERANCES[logits.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_left_as_they_were(impl, dtype):
    logits, targets = batch(6, 4, dtype, ignored=[2])
    with guarded_both_ways() as memory:
        placed = memory.place(logits, "logits").requires_grad_()
        loss = impl.cross_entropy(placed, memory.place(targets, "targets"))
        assert_differentiable(loss)
        loss.backward()


def test_backward_twice(impl):
    logits, targets = batch(6, 4)
    leaf = logits.clone().requires_grad_()
    with guarded_both_ways():
        loss = impl.cross_entropy(leaf, targets)
        assert_differentiable(loss)
        loss.backward(retain_graph=True)
        first, leaf.grad = leaf.grad.clone(), None
        loss.backward()
    _, grad = exact(logits, targets)
    tolerance = TOLERANCES[logits.dtype]
    assert_matches(first, grad, "the gradient when backward is run once", **tolerance)
    assert_matches(leaf.grad, grad, "the gradient when backward is run again", **tolerance)


def test_twice_the_loss_backward_twice(impl):
    # The second gradient is added to the first, in the memory of the first.
    for dtype in DTYPES:
        logits, targets = batch(6, 4, dtype, ignored=[2])
        leaf = logits.clone().requires_grad_()
        with guarded_both_ways():
            twice = 2 * impl.cross_entropy(leaf, targets)
            twice.backward(retain_graph=True)
            (again,) = torch.autograd.grad(twice, leaf, retain_graph=True)
            first = leaf.grad.clone()
            twice.backward(retain_graph=True)
            second = leaf.grad.clone()
            (-0.5 * twice).backward()
        _, grad = exact(logits, targets, upstream=2.0)
        what = f"the gradient in {dtype} of twice the loss"
        tolerance = TOLERANCES[dtype]
        assert_matches(first, grad, what, **tolerance)
        assert_matches(again, grad, f"{what}, asked for again", **tolerance)
        assert_matches(second, 2 * grad, f"{what}, backward twice", **tolerance)
        expected = 1.5 * grad
        assert_matches(leaf.grad, expected, f"{what}, and then of minus the loss", **tolerance)


def test_upstream_gradient_of_float16_before_rounding(impl):
    # Probabilities near 1e-8 have a digit or none in float16, and 32,768 of them have all.
    logits, targets = batch(5, 9, torch.float16)
    logits[:, 6:] = torch.tensor([-11.0, -12.0, -13.0])
    targets %= 6
    leaf = logits.clone().requires_grad_()
    upstream = torch.tensor(32768.0, dtype=torch.float16, device=DEVICE)
    with guarded_both_ways():
        (upstream * impl.cross_entropy(leaf, targets)).backward()
    _, grad = exact(logits, targets, upstream=32768.0)
    what = "the gradient of float16 logits whose loss is scaled by 32,768"
    assert_matches(leaf.grad, grad, what, rtol=2e-3, atol=1e-5)


def test_two_losses_at_once(impl):
    ours = []
    with guarded_both_ways():
        for ignored in ([2], [0, 4, 5]):
            logits, targets = batch(6, 4, ignored=ignored)
            leaf = logits.clone().requires_grad_()
            ours.append((leaf, targets, impl.cross_entropy(leaf, targets)))
        for _, _, loss in ours:
            loss.backward()
    for number, (leaf, targets, loss) in enumerate(ours, 1):
        actual = loss.detach(), leaf.grad
        behaviour = f"batch {number} of two, both forward and then both backward"
        assert_step(actual, exact(leaf, targets), behaviour)


def test_logits_used_elsewhere(impl):
    # A penalty on the logits, which autograd works out from the logits once more, afterwards.
    logits, targets = batch(6, 4)
    leaf = logits.clone().requires_grad_()
    with guarded_both_ways():
        hidden = leaf * 1.5
        penalty = (hidden * hidden).sum()
        loss = impl.cross_entropy(hidden, targets)
        assert_differentiable(loss)
        (loss + 0.3 * penalty).backward()
    _, grad = exact(logits * 1.5, targets)
    expected = 1.5 * (grad + 0.6 * 1.5 * logits)
    behaviour = "the gradient when the logits are squared elsewhere"
    assert_matches(leaf.grad, expected, behaviour, rtol=5e-5, atol=2e-5)


# What must hold of every function.


def of_torch(logits, targets, *args):
    """Return PyTorch's loss, worked out in float64; autograd can go back through it."""
    return F.cross_entropy(logits.double(), targets, *args).to(logits.dtype)


def test_nothing_stays_from_an_earlier_call(impl):
    def inputs():
        logits, targets = batch(6, 4)
        targets[torch.randint(6, ()).item()] = -100
        return logits, targets

    tolerance = TOLERANCES[torch.float32]
    assert_repeatable(impl.cross_entropy, inputs, of_torch, "the loss", **tolerance)
    logits, targets = batch(6, 4)
    for ignore_index in (1, 2, 1):
        actual = step(impl, logits, targets, ignore_index)
        expected = exact(logits, targets, ignore_index=ignore_index)
        behaviour = f"the same batch as before, with ignore_index={ignore_index}"
        assert_step(actual, expected, behaviour)


def test_under_any_mode(impl):
    for dtype in DTYPES:
        inputs = batch(6, 4, dtype, ignored=[2])
        call, tolerance = impl.cross_entropy, TOLERANCES[dtype]
        assert_any_mode(call, inputs, of_torch(*inputs), f"the loss in {dtype}", **tolerance)


def test_gradients_under_another_default_dtype(impl):
    default = torch.get_default_dtype()
    for dtype in DTYPES:
        logits, targets = batch(6, 4, dtype, ignored=[2])
        for other in (torch.float64, torch.float16):
            try:
                torch.set_default_dtype(other)
                actual = step(impl, logits, targets)
            finally:
                torch.set_default_dtype(default)
            behaviour = f"a batch in {dtype} where {other} is the default dtype"
            assert_step(actual, exact(logits, targets), behaviour)


def test_gradients_reach_the_logits(impl):
    logits, targets = batch(6, 4, ignored=[2])
    inputs = {"logits": logits, "targets": targets}
    assert_gradients_reach(impl.cross_entropy, of_torch, inputs, ["logits"], "the loss")


# Memory layouts.


@pytest.mark.parametrize(
    ("n", "c", "dtype"), [(6, 19, torch.float16), (2, 4099, torch.float32)], ids=str
)
def test_logits_of_any_layout(impl, n, c, dtype):
    original, targets = batch(n, c, dtype)
    expected = exact(original, targets)
    for layout, logits in list(layouts(original))[1:]:  # the other tests have contiguous ones
        behaviour = f"({n}, {c}) logits in {dtype} that are {layout}"
        assert_step(step(impl, logits, targets), expected, behaviour)


@pytest.mark.parametrize("axis", [0, 1])
def test_expanded_logits(impl, axis):
    # The leaf is one row, or one column: its gradient is a sum over those it was expanded to.
    original, targets = batch(5, 7)
    original = original[:1] if axis == 0 else original[:, :1]
    leaf = original.clone().requires_grad_()
    with guarded_both_ways() as memory:
        loss = impl.cross_entropy(leaf.expand(5, 7), memory.place(targets, "targets"))
        assert_differentiable(loss)
        (3 * loss).backward()
    value, grad = exact(original.expand(5, 7), targets, upstream=3.0)
    name = ["rows", "columns"][axis]
    tolerance = TOLERANCES[torch.float32]
    assert_matches(loss, value, f"the loss of expanded {name}", **tolerance)
    expected = grad.sum(axis, keepdim=True)
    assert_matches(leaf.grad, expected, f"the gradient of expanded {name}", **tolerance)


def test_targets_of_any_layout(impl):
    logits, targets = batch(6, 4, ignored=[4])
    columns = torch.stack([targets, (targets + 1) % 4, targets.flip(0)], dim=1)
    actual = step(impl, logits, columns[:, 0])
    assert_step(actual, exact(logits, targets), "targets that are a column of a matrix")
    same = targets[:1].expand(6)
    assert_step(step(impl, logits, same), exact(logits, same), "targets that are expanded")


# Extreme logits.


# Logits near 10,000 have steps of 0.001 in float32 and so has their logsumexp: that much of the
# loss, and that share of a probability, may be lost.
@pytest.mark.parametrize("level", [1e4, -1e4])
def test_large_logits(impl, level):
    logits, targets = batch(6, 5)
    logits += level
    tolerance = {"rtol": 3e-3, "atol": 3e-3}
    behaviour = f"logits near {level:,.0f}"
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour, **tolerance)


def test_rows_far_apart(impl):
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, -9e3, 0.0], [2e4, 1e4, 3e4], [1.0, 2.0, 4.0]])
    logits, targets = logits.to(DEVICE), torch.tensor([2, 1, 2, 0], device=DEVICE)
    tolerance = {"rtol": 1e-5, "atol": 1e-3}
    behaviour = "logits 10,000 apart"
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour, **tolerance)


def test_the_largest_float16_logits(impl):
    largest = torch.finfo(torch.float16).max
    logits = torch.tensor([[largest, largest, -largest], [-largest, -largest, -largest]])
    logits = logits.to(DEVICE, torch.float16)
    targets = torch.tensor([1, 2], device=DEVICE)
    # Half of log 2 and log 3, beside a logsumexp that is known to 0.004.
    tolerance = {"rtol": 1e-2, "atol": 1e-2}
    behaviour = "logits of 65,504 and -65,504"
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour, **tolerance)


def test_float16_losses_whose_sum_is_beyond_float16(impl):
    logits = torch.zeros(5, 3, dtype=torch.float16, device=DEVICE)
    logits[:, 1] = torch.tensor([3e4, 2e4, 4e4, 3.5e4, 2.5e4])
    targets = torch.tensor([0, 2, 0, 2, 0], device=DEVICE)
    behaviour = "float16 losses of 20,000 to 40,000"
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour)


def test_float16_logits_of_about_a_hundred(impl):
    # A float16 near 100 has steps of 1/16: a logsumexp in float16 would cost 3% of a probability.
    logits, targets = batch(4, 50, torch.float16)
    logits = (logits.float() / 3 + 90).half()
    # A float32 near 100 is known to 4e-6.
    tolerance = {"rtol": 2e-3, "atol": 1e-5}
    behaviour = "(4, 50) float16 logits near 90"
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour, **tolerance)


@pytest.mark.parametrize(("n", "c"), [(3, 7), (1, WIDE)])
def test_classes_that_are_ruled_out(impl, n, c):
    # The first and the last fifth of the classes are -inf, as those of a padded vocabulary are.
    logits, targets = batch(n, c)
    margin = -(-c // 5)
    logits[:, :margin] = -torch.inf
    logits[:, -margin:] = -torch.inf
    targets = targets % (c - 2 * margin) + margin
    behaviour = f"({n}, {c}) logits, the first and last {margin:,} of a row -inf"
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour)


@pytest.mark.parametrize("first", [True, False])
def test_half_of_a_wide_row_ruled_out(impl, first):
    logits, targets = batch(1, WIDE)
    half = WIDE // 2
    logits[:, slice(half) if first else slice(half, None)] = -torch.inf
    targets = targets % half + (half if first else 0)
    which = "first" if first else "second"
    behaviour = f"a row of {WIDE:,} logits, the {which} half -inf"
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour)


def test_target_that_is_ruled_out(impl):
    logits, targets = batch(3, 6)
    logits[1, targets[1]] = -torch.inf
    expected = exact(logits, targets)
    assert_step(step(impl, logits, targets), expected, "a target whose logit is -inf")


# On hardware alone.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_at_the_size_of_a_model(impl, dtype):
    logits, targets = batch(513, 50_257, dtype, ignored=range(0, 513, 4))
    behaviour = f"(513, 50257) logits in {dtype}"
    expected = exact(logits, targets, upstream=7.0)
    for _ in range(3):
        assert_step(step(impl, logits, targets, upstream=7.0), expected, behaviour)


@pytest.mark.gpu
def test_more_classes_than_a_block_can_hold(impl):
    # No block of Triton's holds more than 2 to the 20th elements.
    classes = 2**20 + 1
    logits, _ = batch(2, classes)
    targets = torch.tensor([classes - 1, 0], device=DEVICE)
    behaviour = f"(2, {classes}) logits"
    assert_step(step(impl, logits, targets), exact(logits, targets), behaviour)


@pytest.mark.gpu
def test_speed(impl):
    logits = torch.randn(8192, 32_000, device=DEVICE, dtype=torch.float16).requires_grad_()
    targets = torch.randint(32_000, (8192,), device=DEVICE)
    compiled = torch.compile(F.cross_entropy)

    def call(function):
        (grad,) = torch.autograd.grad(function(logits, targets), logits)
        return grad

    ratio = speed(
        lambda: call(impl.cross_entropy),
        lambda: call(F.cross_entropy),
        lambda: call(compiled),
    )
    assert ratio >= 0.625, f"at (8192, 32000) float16, {ratio:.2f} times as fast as PyTorch's best"


# The shape, and whether rows are adjacent in memory in place of classes.
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("n", "c", "transposed"), [(70_001, 32_768, False), (32_768, 70_001, True)]
)
def test_more_than_2_to_the_31_logits(impl, n, c, transposed):
    # The logits lie in the middle of a buffer, and so does what a wrapped offset would reach.
    lead = 2**31
    buffer = torch.empty(lead + n * c, dtype=torch.float16, device=DEVICE).normal_()
    logits = buffer[lead:].view(c, n).T if transposed else buffer[lead:].view(n, c)
    logits[n - 2 :] *= 4  # their loss is like that of no other row
    targets = torch.full((n,), -100, device=DEVICE)
    rows = torch.tensor([0, 1, n - 2, n - 1], device=DEVICE)
    targets[rows] = torch.tensor([c - 1, 0, c // 2, c - 1], device=DEVICE)
    leaf = logits.requires_grad_()
    loss = impl.cross_entropy(leaf, targets)
    what = f"({n}, {c}) logits, of which rows {rows.tolist()} count"
    expected, grad = exact(logits[rows], targets[rows])
    assert_matches(loss, expected, f"the loss of {what}", **TOLERANCES[torch.float16])
    (actual,) = torch.autograd.grad(loss, leaf)
    assert_matches(actual[rows], grad, f"the gradient of {what}", **TOLERANCES[torch.float16])
    for start in range(2, n - 2, 4096):
        part = actual[start : min(start + 4096, n - 2)]
        assert not part.any(), f"the gradient of ignored rows from {start} is not zero: {what}"
