import math

import pytest
import torch
import torch.nn.functional as F

from dojo.testing import (
    CROSS_ENTROPY,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    forbid_autograd,
    gradients,
    layouts,
    unchanged,
)

# Rows and classes never agree in number, so that a swapped axis cannot hide.
SHAPES = [(6, 4), (3, 9), (1, 5), (8, 1)]
SMOOTHING = [0.0, 0.15, 1.0]
# An absolute tolerance for several roundings of probabilities up to one and of logits up to about
# ten, and a relative one for the loss, a sum of rows.
DTYPES = [
    (torch.float64, 1e-12, 0),
    (torch.float32, 1e-5, 1e-5),
    (torch.float16, 1e-2, 4e-3),
    (torch.bfloat16, 6e-2, 3e-2),
]


def batch(n, c, dtype=torch.float32):
    """Return logits spread widely enough that no row is near uniform, and targets, all valid."""
    logits = (3 * torch.randn(n, c, dtype=torch.float64)).to(dtype)
    return logits, torch.randint(c, (n,))


def batch_with_ignored(ignore_index=-100):
    """Return logits (9, 4), targets and the rows that count, whose targets are 1 and 3 alone."""
    logits = 3 * torch.randn(9, 4)
    targets = torch.tensor([0, 3, 1, 0, 1, 1, 3, 0, 0])
    kept = torch.tensor([1, 2, 4, 5, 6])
    targets[[0, 3, 7, 8]] = ignore_index
    return logits, targets, kept


def exact_loss(logits, targets, *args, **kwargs):
    """Return PyTorch's loss, computed in float64 and in the dtype of the logits."""
    return F.cross_entropy(logits.double(), targets, *args, **kwargs).to(logits.dtype)


def exact_gradient(logits, targets, **kwargs):
    """Return autograd's gradient of PyTorch's loss, computed in float64, in the logits' dtype."""
    leaf = logits.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(leaf, targets, **kwargs), leaf)
    return grad.to(logits.dtype)


# The loss.


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize(("n", "c"), SHAPES)
def test_loss_matches_torch(impl, n, c, smoothing):
    logits, targets = batch(n, c)
    with unchanged(logits=logits, targets=targets), forbid(*CROSS_ENTROPY):
        actual = impl.cross_entropy(logits, targets, label_smoothing=smoothing)
    expected = exact_loss(logits, targets, label_smoothing=smoothing)
    assert_matches(actual, expected, f"the loss of ({n}, {c}) logits, smoothing {smoothing}")


def test_loss_of_known_probabilities(impl):
    # The true class has probability 1/2: its surprise is log 2.
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    actual = impl.cross_entropy(logits, torch.tensor([0]))
    assert_matches(actual, torch.tensor(math.log(2)), "the loss when the true class has p = 1/2")


def test_smoothed_loss_of_known_probabilities(impl):
    # 0.7 for the surprise log 2 of the true class, 0.1 for each of log 2, 2 log 2 and 2 log 2.
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    actual = impl.cross_entropy(logits, torch.tensor([0]), label_smoothing=0.3)
    expected = torch.tensor(1.2 * math.log(2))
    assert_matches(actual, expected, "the loss for p = (1/2, 1/4, 1/4) with smoothing 0.3")


def test_confident_and_right_costs_nothing(impl):
    _, targets = batch(6, 4)
    logits = 40.0 * F.one_hot(targets, 4)
    actual = impl.cross_entropy(logits, targets)
    assert_matches(actual, torch.tensor(0.0), "the loss when every true class leads by 40")


def test_confident_and_wrong_costs_its_lead(impl):
    logits = torch.tensor([[60.0, 0.0, 1.0], [0.0, 90.0, 2.0]])
    actual = impl.cross_entropy(logits, torch.tensor([1, 0]))
    assert_matches(actual, torch.tensor(75.0), "the loss of true classes 60 and 90 behind")


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_ignored_rows_may_as_well_be_removed(impl, smoothing):
    logits, targets, kept = batch_with_ignored()
    actual = impl.cross_entropy(logits, targets, label_smoothing=smoothing)
    expected = impl.cross_entropy(logits[kept], targets[kept], label_smoothing=smoothing)
    assert_matches(
        actual,
        expected.clone(),
        f"the loss of 9 rows, 4 of them ignored, beside that of the other 5, smoothing {smoothing}",
    )


def test_logits_of_ignored_rows_do_not_matter(impl):
    logits, targets, kept = batch_with_ignored()
    before = impl.cross_entropy(logits, targets, label_smoothing=0.15).clone()
    other = 50 * torch.randn(9, 4)
    other[kept] = logits[kept]
    after = impl.cross_entropy(other, targets, label_smoothing=0.15)
    assert_matches(after, before, "the smoothed loss once the logits of ignored rows have changed")


# As an index, -1 is the last class and 1000 is far outside.
@pytest.mark.parametrize("ignore_index", [-1, 1000])
def test_another_ignore_index(impl, ignore_index):
    logits, targets, kept = batch_with_ignored(ignore_index)
    actual = impl.cross_entropy(logits, targets, ignore_index=ignore_index)
    expected = impl.cross_entropy(logits[kept], targets[kept])
    what = f"the loss with ignore_index={ignore_index}, beside that without these rows"
    assert_matches(actual, expected.clone(), what)


@pytest.mark.parametrize("smoothing", SMOOTHING[:2])
def test_a_class_can_be_ignored(impl, smoothing):
    logits, targets, kept = batch_with_ignored(2)
    actual = impl.cross_entropy(logits, targets, 2, smoothing)
    expected = impl.cross_entropy(logits[kept], targets[kept], 2, smoothing)
    what = f"the loss with ignore_index=2, a class, and smoothing {smoothing}, beside without"
    assert_matches(actual, expected.clone(), what)


@pytest.mark.parametrize("ignore_index", [-100, 0, 2])
def test_loss_with_ignored_rows_matches_torch(impl, ignore_index):
    logits, targets, _ = batch_with_ignored(ignore_index)
    with unchanged(logits=logits, targets=targets), forbid(*CROSS_ENTROPY):
        actual = impl.cross_entropy(logits, targets, ignore_index, 0.15)
    expected = exact_loss(logits, targets, ignore_index=ignore_index, label_smoothing=0.15)
    assert_matches(actual, expected, f"the smoothed loss with ignore_index={ignore_index}")


@pytest.mark.parametrize("smoothing", SMOOTHING[:2])
def test_loss_is_nan_if_all_rows_are_ignored(impl, smoothing):
    logits, _ = batch(3, 4)
    actual = impl.cross_entropy(logits, torch.full((3,), -100), label_smoothing=smoothing)
    assert_matches(actual, torch.tensor(torch.nan), "the loss when every row is ignored")


# Logits near 10,000 have steps of 0.001 in float32, and a log-probability that is a difference of
# such numbers is as exact as those.
@pytest.mark.parametrize("smoothing", SMOOTHING[:2])
@pytest.mark.parametrize("level", [1e4, -1e4])
def test_loss_of_extreme_logits(impl, level, smoothing):
    logits, targets = batch(6, 4)
    logits += level
    actual = impl.cross_entropy(logits, targets, label_smoothing=smoothing)
    expected = exact_loss(logits, targets, label_smoothing=smoothing)
    assert_matches(actual, expected, f"the loss of logits near {level:,.0f}", atol=3e-3)


def test_loss_of_logits_far_apart(impl):
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, -9e3, 0.0], [2e4, 1e4, 3e4]])
    targets = torch.tensor([2, 1, 2])
    actual = impl.cross_entropy(logits, targets, label_smoothing=0.15)
    expected = exact_loss(logits, targets, label_smoothing=0.15)
    assert_matches(actual, expected, "the loss of logits 10,000 apart", rtol=1e-5)


@pytest.mark.parametrize(("dtype", "atol", "rtol"), DTYPES)
def test_loss_keeps_the_dtype(impl, dtype, atol, rtol):
    logits, targets = batch(6, 4, dtype)
    with unchanged(logits=logits, targets=targets):
        actual = impl.cross_entropy(logits, targets, label_smoothing=0.15)
    expected = exact_loss(logits, targets, label_smoothing=0.15)
    assert_matches(actual, expected, f"the loss in {dtype}", rtol=rtol, atol=atol)


def test_loss_of_any_memory_layout(impl):
    original, targets = batch(6, 4)
    strided = torch.stack([targets, targets.flip(0)], dim=1)[:, 0]
    for layout, logits in layouts(original):
        actual = impl.cross_entropy(logits, strided)
        assert_matches(actual, exact_loss(logits, targets), f"the loss of logits, {layout}")
    row = original[:1].expand(6, 4)
    assert_matches(impl.cross_entropy(row, targets), exact_loss(row, targets), "the loss, expanded")


def test_autograd_through_the_loss(impl):
    logits, targets, _ = batch_with_ignored()
    leaf = logits.clone().requires_grad_()
    loss = impl.cross_entropy(leaf, targets, label_smoothing=0.15)
    assert loss.requires_grad, "autograd can not go back through the loss"
    (actual,) = gradients(loss, [leaf], torch.tensor(1.0))
    expected = exact_gradient(logits, targets, label_smoothing=0.15)
    assert_matches(actual, expected, "autograd's gradient of this loss, beside that of PyTorch's")


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_autograd_scales_the_gradient_by_what_comes_from_above(impl, smoothing):
    logits, targets, _ = batch_with_ignored()
    logits.requires_grad_()
    loss = impl.cross_entropy(logits, targets, label_smoothing=smoothing)
    assert loss.requires_grad, "autograd can not go back through the loss"
    (grad,) = torch.autograd.grad(-2.5 * loss, logits)
    expected = -2.5 * exact_gradient(logits, targets, label_smoothing=smoothing)
    assert_matches(grad, expected, "the gradient of -2.5 times the loss")


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_autograd_goes_back_more_than_once(impl, smoothing):
    logits, targets, _ = batch_with_ignored()
    logits.requires_grad_()
    loss = impl.cross_entropy(logits, targets, label_smoothing=smoothing)
    assert loss.requires_grad, "autograd can not go back through the loss"
    expected = exact_gradient(logits, targets, label_smoothing=smoothing)
    for factor in (3.0, -0.5, 1.0):
        (grad,) = gradients(loss, [logits], torch.tensor(factor))
        what = f"the gradient of {factor} times the loss, one of three of the same graph"
        assert_matches(grad, factor * expected, what)


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_autograd_finds_zero_if_all_rows_are_ignored(impl, smoothing):
    logits = torch.randn(3, 5, requires_grad=True)
    targets = torch.full((3,), -100)
    loss = impl.cross_entropy(logits, targets, label_smoothing=smoothing)
    assert loss.requires_grad, "autograd can not go back through the loss of ignored rows alone"
    (grad,) = torch.autograd.grad(loss, logits)
    assert_matches(grad, torch.zeros(3, 5), "the gradient of a loss for which no row counts")


# The gradient.


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize(("n", "c"), SHAPES)
def test_gradient_matches_autograd(impl, n, c, smoothing):
    logits, targets = batch(n, c)
    with unchanged(logits=logits, targets=targets), forbid(*CROSS_ENTROPY), forbid_autograd():
        actual = impl.cross_entropy_backward(logits, targets, label_smoothing=smoothing)
    expected = exact_gradient(logits, targets, label_smoothing=smoothing)
    assert_matches(actual, expected, f"the gradient of ({n}, {c}) logits, smoothing {smoothing}")
    leaf = logits.clone().requires_grad_()
    loss = impl.cross_entropy(leaf, targets, label_smoothing=smoothing)
    assert loss.requires_grad, "autograd can not go back through the loss"
    (actual,) = gradients(loss, [leaf], torch.tensor(1.0))
    what = f"autograd's gradient of ({n}, {c}) logits, smoothing {smoothing}"
    assert_matches(actual, expected, what)


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_gradient_of_a_row_sums_to_zero(impl, smoothing):
    # A shift of all logits of a row changes no probability.
    logits, targets = batch(6, 4, torch.float64)
    sums = impl.cross_entropy_backward(logits, targets, label_smoothing=smoothing).sum(1)
    what = f"the sum of each row's gradient, smoothing {smoothing}"
    assert_matches(sums, torch.zeros(6, dtype=torch.float64), what)


def test_gradient_of_known_probabilities(impl):
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    actual = impl.cross_entropy_backward(logits, torch.tensor([0]))
    expected = torch.tensor([[-0.5, 0.25, 0.25]])
    assert_matches(actual, expected, "the gradient for p = (1/2, 1/4, 1/4), the first being true")


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_ignored_rows_get_no_gradient(impl, smoothing):
    logits, targets, kept = batch_with_ignored()
    actual = impl.cross_entropy_backward(logits, targets, label_smoothing=smoothing).clone()
    actual[kept] = 0
    assert_matches(
        actual,
        torch.zeros(9, 4),
        f"the gradient of ignored rows (the others cut out), smoothing {smoothing}",
    )


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_other_rows_get_the_same_gradient_without_ignored_ones(impl, smoothing):
    logits, targets, kept = batch_with_ignored()
    actual = impl.cross_entropy_backward(logits, targets, label_smoothing=smoothing)[kept]
    expected = impl.cross_entropy_backward(logits[kept], targets[kept], label_smoothing=smoothing)
    assert_matches(
        actual,
        expected.clone(),
        f"the gradient of 5 rows beside 4 ignored ones, and without those, smoothing {smoothing}",
    )


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 2, 1000])
def test_gradient_with_any_ignore_index(impl, ignore_index):
    logits, targets, _ = batch_with_ignored(ignore_index)
    for smoothing in SMOOTHING:
        options = {"ignore_index": ignore_index, "label_smoothing": smoothing}
        with unchanged(logits=logits, targets=targets), forbid(*CROSS_ENTROPY), forbid_autograd():
            actual = impl.cross_entropy_backward(logits, targets, ignore_index, smoothing)
        expected = exact_gradient(logits, targets, **options)
        assert_matches(actual, expected, f"the gradient with {options}")
        leaf = logits.clone().requires_grad_()
        loss = impl.cross_entropy(leaf, targets, **options)
        assert_matches(loss, exact_loss(logits, targets, **options), f"the loss with {options}")
        (grad,) = gradients(loss, [leaf], torch.tensor(1.0))
        assert_matches(grad, expected, f"autograd's gradient of the loss with {options}")


@pytest.mark.parametrize("smoothing", SMOOTHING[:2])
def test_gradient_is_zero_if_all_rows_are_ignored(impl, smoothing):
    logits, _ = batch(3, 4)
    targets = torch.full((3,), -100)
    actual = impl.cross_entropy_backward(logits, targets, label_smoothing=smoothing)
    assert_matches(actual, torch.zeros(3, 4), "the gradient when every row is ignored")


# Here a probability is exp of a difference of numbers near 10,000: see above.
@pytest.mark.parametrize("level", [1e4, -1e4])
def test_gradient_of_extreme_logits(impl, level):
    logits, targets = batch(6, 4)
    logits += level
    actual = impl.cross_entropy_backward(logits, targets, label_smoothing=0.15)
    expected = exact_gradient(logits, targets, label_smoothing=0.15)
    assert_matches(actual, expected, f"the gradient of logits near {level:,.0f}", atol=3e-3)


def test_gradient_of_logits_far_apart(impl):
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, -9e3, 0.0], [2e4, 1e4, 3e4]])
    targets = torch.tensor([2, 1, 2])
    actual = impl.cross_entropy_backward(logits, targets, label_smoothing=0.15)
    expected = exact_gradient(logits, targets, label_smoothing=0.15)
    assert_matches(actual, expected, "the gradient of logits 10,000 apart")


@pytest.mark.parametrize(("dtype", "atol", "rtol"), DTYPES)
def test_gradient_keeps_the_dtype(impl, dtype, atol, rtol):
    logits, targets = batch(6, 4, dtype)
    with unchanged(logits=logits, targets=targets):
        actual = impl.cross_entropy_backward(logits, targets, label_smoothing=0.15)
    expected = exact_gradient(logits, targets, label_smoothing=0.15)
    # A gradient is a probability divided by the six rows.
    assert_matches(actual, expected, f"the gradient in {dtype}", rtol=rtol, atol=atol / 6)


def test_gradient_of_any_memory_layout(impl):
    original, targets = batch(6, 4)
    strided = torch.stack([targets, targets.flip(0)], dim=1)[:, 0]
    expected = exact_gradient(original, targets)
    for layout, logits in layouts(original):
        actual = impl.cross_entropy_backward(logits, strided)
        assert_matches(actual, expected, f"the gradient for logits, {layout}")
    row = original[:1].expand(6, 4)
    actual = impl.cross_entropy_backward(row, targets)
    assert_matches(actual, exact_gradient(row.clone(), targets), "the gradient for expanded logits")


# Both functions.

FUNCTIONS = ["cross_entropy", "cross_entropy_backward"]


def oracle(name, logits, targets, ignore_index=-100, label_smoothing=0.0):
    exact = exact_loss if name == "cross_entropy" else exact_gradient
    return exact(logits, targets, ignore_index=ignore_index, label_smoothing=label_smoothing)


@pytest.mark.parametrize("options", [(), (2, 0.15)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_repeatable(impl, name, options):
    assert_repeatable(
        getattr(impl, name),
        lambda: (*batch(6, 4), *options),
        lambda *args: oracle(name, *args),
        name,
    )


def test_results_are_new_where_no_row_counts(impl):
    for name in FUNCTIONS:
        assert_repeatable(
            getattr(impl, name),
            lambda: (torch.randn(6, 4), torch.full((6,), -100)),
            lambda *args, name=name: (
                torch.tensor(torch.nan) if name == "cross_entropy" else torch.zeros(6, 4)
            ),
            f"{name} where no row counts",
        )


def test_the_two_functions_share_nothing(impl):
    logits, targets = batch(6, 4)
    for name in ("cross_entropy", "cross_entropy_backward", "cross_entropy"):
        actual, expected = getattr(impl, name)(logits, targets), oracle(name, logits, targets)
        assert_matches(actual, expected, f"{name} before the logits change in place")
        logits.mul_(-1.5).add_(torch.randn(6, 4))
        for other in FUNCTIONS:
            actual = getattr(impl, other)(logits, targets)
            what = f"{other} of logits changed in place since {name}"
            assert_matches(actual, oracle(other, logits, targets), what)
        targets.copy_((targets + 1) % 4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_options_for_the_same_tensors(impl, name):
    logits, targets = batch(9, 4)
    for options in [(-100, 0.15), (2, 0.15), (2, 0.0), (-100, 0.0), (-100, 1.0)]:
        actual = getattr(impl, name)(logits, targets, *options)
        what = f"{name} with (ignore_index, label_smoothing) = {options}, after others"
        assert_matches(actual, oracle(name, logits, targets, *options), what)


@pytest.mark.parametrize("smoothing", [0, 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_smoothing_may_be_an_integer(impl, name, smoothing):
    logits, targets = batch(6, 4)
    actual = getattr(impl, name)(logits, targets, label_smoothing=smoothing)
    expected = oracle(name, logits, targets, -100, float(smoothing))
    assert_matches(actual, expected, f"{name} with the integer {smoothing} as smoothing")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_layout_of_each_argument(impl, name):
    logits, targets = batch(6, 4)
    options = torch.stack([targets, targets.flip(0)], dim=1)[:, 0], 2, 0.15
    assert_any_layout(
        lambda logits: getattr(impl, name)(logits, *options),
        [logits],
        oracle(name, logits, *options),
        name,
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_mode(impl, name):
    inputs = (*batch(6, 4), 2, 0.15)
    assert_any_mode(getattr(impl, name), inputs, oracle(name, *inputs), name)


@pytest.mark.parametrize("ignore_index", [-(2**63), 2**63 - 1, 2**40 + 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_ignore_index_far_away(impl, name, ignore_index):
    logits, targets, kept = batch_with_ignored(ignore_index)
    if ignore_index > 0:
        kept = torch.cat([kept, torch.tensor([0])])
        targets[0] = 1  # as 32 bits see 2**40 + 1
    actual = getattr(impl, name)(logits, targets, ignore_index, 0.15)
    expected = oracle(name, logits[kept], targets[kept], -100, 0.15)
    if name == "cross_entropy_backward":
        expected = torch.zeros_like(logits).index_copy(0, kept, expected)
    assert_matches(actual, expected, f"{name} with ignore_index={ignore_index}")


# An absolute tolerance for the loss, and one for a gradient times its rows.
LARGE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = [(n, c, dtype) for n, c in [(5000, 3), (3, 1500)] for dtype in LARGE]
SIZES += [(70_000, 2, torch.float16)]  # where neither 16 bits nor float16 can count the rows


@pytest.mark.parametrize(("n", "c", "dtype"), SIZES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_many_rows_and_classes(impl, name, n, c, dtype):
    # The losses of true classes about 100 behind: in float16 neither rows nor classes can be added.
    # They grow from row to row, so that parts of the rows are no sample of all.
    logits = torch.randn(n, c)
    logits[:, 0] += torch.linspace(60, 140, n)
    logits, targets = logits.to(dtype), torch.randint(1, c, (n,))
    targets[1::40] = -100
    rtol = LARGE[dtype]
    actual = getattr(impl, name)(logits, targets, label_smoothing=0.15)
    atol = 1e-5 if name == "cross_entropy" else 1e-7 + 2 * rtol / n
    expected = oracle(name, logits, targets, -100, 0.15)
    what = f"{name} of ({n:,}, {c:,}) logits in {dtype}"
    assert_matches(actual, expected, what, rtol=2 * rtol, atol=atol)


def test_as_many_classes_as_the_largest_float16(impl):
    # Equal logits: each class has 1/65,000, and the loss is log 65,000, smoothed or not.
    logits, targets = torch.zeros(2, 65_000, dtype=torch.float16), torch.tensor([3, 64_999])
    for smoothing in (0.0, 0.15):
        what = f"of 65,000 equal logits in float16, smoothing {smoothing}"
        loss = impl.cross_entropy(logits, targets, label_smoothing=smoothing)
        assert_matches(loss, torch.tensor(math.log(65_000)).half(), f"the loss {what}", rtol=4e-3)
        grad = impl.cross_entropy_backward(logits, targets, label_smoothing=smoothing)
        expected = oracle("cross_entropy_backward", logits, targets, -100, smoothing)
        # Two steps of the smallest float16 numbers.
        assert_matches(grad, expected, f"the gradient {what}", rtol=4e-3, atol=1.3e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_logits_further_apart_than_the_largest_number(impl, dtype):
    far = 0.6 * torch.finfo(dtype).max
    logits = torch.tensor([[far, -far, 0.0]], dtype=dtype)
    about = f"({far:.3g}, {-far:.3g}, 0) in {dtype}"
    for target, expected in [(0, 0.0), (1, torch.inf)]:
        targets = torch.tensor([target])
        expected_grad = torch.tensor([[1.0 - (target == 0), -1.0 * (target == 1), 0.0]])
        leaf = logits.clone().requires_grad_()
        loss = impl.cross_entropy(leaf, targets)
        what = f"the loss of {about}, the true class being number {target}"
        assert_matches(loss, torch.tensor(expected, dtype=dtype), what)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert_matches(grad, expected_grad.to(dtype), f"autograd's gradient of {what}")
        grad = impl.cross_entropy_backward(logits, targets)
        assert_matches(grad, expected_grad.to(dtype), f"the gradient of {what}")


@pytest.mark.parametrize("smoothing", [None, *SMOOTHING])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_autograd_without_ignored_rows(impl, dtype, smoothing):
    logits, targets = batch(6, 4, dtype)
    options = {} if smoothing is None else {"label_smoothing": smoothing}
    leaf = logits.clone().requires_grad_()
    loss = impl.cross_entropy(leaf, targets, **options)
    assert loss.requires_grad, f"autograd can not go back through the loss in {dtype}, {options}"
    (actual,) = torch.autograd.grad(loss, leaf)
    atol = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
    expected = exact_gradient(logits, targets, **options)
    what = f"autograd's gradient of the loss in {dtype}, {options or 'no options'}"
    assert_matches(actual, expected, what, rtol=0, atol=atol)
