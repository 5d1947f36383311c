import pytest
import torch

from dojo.testing import (
    SOFTMAX,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    gradients,
    layouts,
    unchanged,
)

# No two axes of a shape are equal, so that a swapped axis cannot hide.
SHAPES_AND_DIMS = [
    ((4, 7), -1),
    ((4, 7), 0),
    ((7, 4), 1),
    ((1, 6), 1),
    ((6, 1), 1),
    ((5, 3, 8), 1),
    ((5, 3, 8), -3),
    ((2, 3, 5, 4), 2),
    ((9,), 0),
]
# What each step's rounding may add up to; probabilities are at most one, scores about ten.
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 6e-2)]


def scores(*shape, dtype=torch.float32):
    """Scores spread widely enough that no slice is near uniform."""
    return (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)


def test_functional_matches_torch(impl):
    for shape, dim in SHAPES_AND_DIMS:
        x = scores(*shape)
        with unchanged(x=x):
            actual = impl.softmax_functional(x, dim=dim)
        what = f"softmax_functional of a {shape} tensor along axis {dim}"
        assert_matches(actual, torch.softmax(x, dim), what)


def test_softmax_matches_torch(impl):
    for shape, dim in SHAPES_AND_DIMS:
        x = scores(*shape)
        with unchanged(x=x), forbid(*SOFTMAX):
            actual = impl.softmax(x, dim)
        what = f"softmax of a {shape} tensor along axis {dim}"
        assert_matches(actual, torch.softmax(x, dim), what)


def test_every_slice_sums_to_one(impl):
    for shape, dim in SHAPES_AND_DIMS:
        sums = impl.softmax(scores(*shape), dim=dim).sum(dim)
        worst = sums.flatten()[(sums - 1).abs().argmax()].item()
        assert abs(worst - 1) < 1e-5, (
            f"probabilities of a {shape} tensor along axis {dim} should sum to 1; "
            f"one slice sums to {worst:.4g}"
        )


def test_softmax_defaults_to_the_last_axis(impl):
    x = scores(4, 7, 3)
    assert_matches(impl.softmax(x), torch.softmax(x, -1), "softmax without dim")
    assert_matches(impl.softmax_functional(x), torch.softmax(x, -1), "softmax_functional, no dim")
    assert_matches(impl.log_softmax(x), torch.log_softmax(x, -1), "log_softmax without dim")


def test_any_memory_layout(impl):
    for layout, x in layouts(scores(5, 3, 8)):
        assert_matches(impl.softmax(x, 1), torch.softmax(x, 1), f"softmax of a {layout} tensor")
        expected = torch.log_softmax(x, 1)
        assert_matches(impl.log_softmax(x, 1), expected, f"log_softmax of a {layout} tensor")
    row = scores(7).expand(4, 7)
    assert_matches(impl.softmax(row, 1), torch.softmax(row, 1), "softmax of an expanded tensor")


# A float32 near 10,000 has steps of 0.001, and x - logsumexp(x) is as exact as those.
NAMES_AND_ATOL = [("softmax", 1e-5), ("log_softmax", 2e-3)]


@pytest.mark.parametrize(("name", "atol"), NAMES_AND_ATOL)
def test_large_scores(impl, name, atol):
    x = scores(4, 7) + 1e4
    actual = getattr(impl, name)(x, dim=1)
    assert_matches(actual, getattr(torch, name)(x, 1), f"{name} of scores near 10,000", atol=atol)


@pytest.mark.parametrize(("name", "atol"), NAMES_AND_ATOL)
def test_very_negative_scores(impl, name, atol):
    x = scores(4, 7) - 1e4
    actual = getattr(impl, name)(x, dim=1)
    assert_matches(actual, getattr(torch, name)(x, 1), f"{name} of scores near -10,000", atol=atol)


@pytest.mark.parametrize(("name", "atol"), NAMES_AND_ATOL)
@pytest.mark.parametrize("dim", [0, 1])
def test_slices_far_apart(impl, name, atol, dim):
    # Levels 1,000 apart: exp of one slice's scores is zero next to another's.
    levels = torch.tensor([-1e3, 0.0, 1e3])
    x = scores(3, 5) + levels[:, None]
    x = x if dim == 1 else x.T
    actual = getattr(impl, name)(x, dim=dim)
    expected = getattr(torch, name)(x, dim)
    assert_matches(actual, expected, f"{name} of slices at -1000, 0 and 1000", atol=atol)


def test_masked_scores(impl):
    x = scores(4, 7)
    x[0, 2] = x[1, 0] = x[3, 6] = -torch.inf
    x[2] = -torch.inf
    alone = torch.tensor([[1.5], [-torch.inf], [0.0]])
    for name in ("softmax", "log_softmax"):
        function, expected = getattr(impl, name), getattr(torch, name)
        assert_matches(function(x, dim=1), expected(x, 1), f"{name} with scores of -inf")
        what = f"{name} of slices that hold one score, of which one is -inf"
        assert_matches(function(alone, 1), expected(alone, 1), what)


def test_unlikely_entries_keep_their_digits(impl):
    # The first is about the smallest normal number of float32; a zero in its place is wrong too.
    for dtype, gaps, rtol in [
        (torch.float32, [-87.0, -40.0, -9.0], 1e-4),
        (torch.float64, [-700.0, -300.0, -90.0, -9.0], 1e-10),
    ]:
        x = torch.tensor([*gaps, 0.0], dtype=dtype)
        expected = torch.softmax(x.double(), 0).to(dtype)
        what = f"softmax of scores {gaps} below the best in {dtype}"
        assert_matches(impl.softmax(x, 0), expected, what, rtol=rtol, atol=0)


def test_log_softmax_matches_torch(impl):
    for shape, dim in SHAPES_AND_DIMS:
        x = scores(*shape)
        with unchanged(x=x), forbid(*SOFTMAX):
            actual = impl.log_softmax(x, dim)
        what = f"log_softmax of a {shape} tensor along axis {dim}"
        assert_matches(actual, torch.log_softmax(x, dim), what)


def test_log_softmax_of_unlikely_entries(impl):
    x = torch.tensor([[0.0, -200.0, -1e4], [300.0, 0.0, 299.0]])
    expected = torch.log_softmax(x.double(), 1).float()
    assert_matches(impl.log_softmax(x, dim=1), expected, "log_softmax of scores far below the best")


@pytest.mark.parametrize("name", ["softmax_functional", "softmax", "log_softmax"])
def test_dtype_is_kept(impl, name):
    oracle = torch.log_softmax if name == "log_softmax" else torch.softmax
    for dtype, atol in DTYPES:
        x = scores(5, 3, 8, dtype=dtype)
        with unchanged(x=x):
            actual = getattr(impl, name)(x, dim=1)
        expected = oracle(x.double(), 1).to(dtype)
        rtol = 2e-2 * (atol > 1e-2)
        assert_matches(actual, expected, f"{name} in {dtype}", rtol=rtol, atol=atol)


def test_backward_matches_autograd(impl):
    for shape, dim in SHAPES_AND_DIMS:
        x = scores(*shape).requires_grad_()
        grad_out = torch.randn(shape)
        out = torch.softmax(x, dim)
        with unchanged(out=out, grad_out=grad_out), forbid(*SOFTMAX):
            actual = impl.softmax_backward(grad_out, out.detach(), dim)
        (expected,) = gradients(out, [x], grad_out)
        what = f"the gradient of softmax along axis {dim}, shape {shape}"
        assert_matches(actual, expected, what)


def test_backward_keeps_the_dtype(impl):
    for dtype, atol in DTYPES:
        x = scores(5, 3, 8, dtype=dtype)
        grad_out, out = torch.randn(5, 3, 8).to(dtype), torch.softmax(x, 1)
        with unchanged(grad_out=grad_out, out=out):
            actual = impl.softmax_backward(grad_out, out, 1)
        exact = x.double().requires_grad_()
        (expected,) = gradients(torch.softmax(exact, 1), [exact], grad_out.double())
        what = f"softmax_backward in {dtype}"
        assert_matches(actual, expected.to(dtype), what, rtol=0, atol=atol)


def test_backward_defaults_to_the_last_axis(impl):
    x = scores(4, 7, 3).requires_grad_()
    grad_out = torch.randn(4, 7, 3)
    out = torch.softmax(x, -1)
    actual = impl.softmax_backward(grad_out=grad_out, out=out.detach())
    (expected,) = gradients(out, [x], grad_out)
    assert_matches(actual, expected, "softmax_backward without dim")


def test_backward_of_equal_gradients_is_zero(impl):
    # Probabilities always sum to one, so pushing all of them up equally moves no score.
    out = torch.softmax(scores(4, 7, dtype=torch.float64), 1)
    actual = impl.softmax_backward(torch.full_like(out, 2.5), out, dim=1)
    assert_matches(actual, torch.zeros_like(out), "the gradient when all outputs share one")


def test_backward_takes_strided_gradients(impl):
    x = scores(5, 3, 8).requires_grad_()
    out = torch.softmax(x, 1)
    for layout, grad_out in layouts(torch.randn(5, 3, 8)):
        actual = impl.softmax_backward(grad_out, out.detach(), 1)
        (expected,) = gradients(out, [x], grad_out)
        assert_matches(actual, expected, f"the gradient for an upstream gradient that is {layout}")


FORWARD = ["softmax_functional", "softmax", "log_softmax"]
FUNCTIONS = [*FORWARD, "softmax_backward"]


def arguments(name, dim, *shape, dtype=torch.float32):
    """Positional arguments of the function of this name."""
    x = scores(*shape, dtype=dtype)
    if name == "softmax_backward":
        return torch.randn(shape).to(dtype), torch.softmax(x, dim), dim
    return x, dim


def oracle(name, *args):
    """Torch's result in float64, brought back to the arguments' dtype."""
    *tensors, dim = args
    exact = [tensor.double() for tensor in tensors]
    if name == "softmax_backward":
        grad_out, out = exact
        # Softmax undoes the logarithm of probabilities.
        x = out.log().requires_grad_()
        (result,) = gradients(torch.softmax(x, dim), [x], grad_out)
    else:
        result = (torch.log_softmax if name == "log_softmax" else torch.softmax)(*exact, dim)
    return result.to(tensors[0].dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_repeatable(impl, name):
    function = getattr(impl, name)
    assert_repeatable(
        function, lambda: arguments(name, 1, 5, 3, 8), lambda *args: oracle(name, *args), name
    )
    tensors = arguments(name, 1, 5, 3, 8)[:-1]
    for dim in (1, 2, 0, -2):
        if name == "softmax_backward":
            tensors = tensors[0], torch.softmax(scores(5, 3, 8), dim)
        expected = oracle(name, *tensors, dim)
        what = f"{name} of one tensor along axis {dim}, after others"
        assert_matches(function(*tensors, dim), expected, what)
    if name == "softmax_backward":
        return
    # What is kept of the old scores, such as their maximum, is far from the new ones.
    (x,) = tensors
    for change in (1000, -2000):
        x += change
        what = f"{name} of a tensor after {change} has been added to it in place"
        assert_matches(function(x, 1), oracle(name, x, 1), what, atol=2e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_layout_of_each_argument(impl, name):
    inputs = arguments(name, 1, 5, 3, 8)
    assert_any_layout(getattr(impl, name), inputs, oracle(name, *inputs), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_mode(impl, name):
    inputs = arguments(name, 1, 5, 3, 8)
    assert_any_mode(getattr(impl, name), inputs, oracle(name, *inputs), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_axes_may_be_empty(impl, name):
    for shape, dim in [((0, 3), 1), ((4, 0), 0), ((2, 0, 3), -1)]:
        inputs = arguments(name, dim, *shape)
        expected = torch.empty(shape)
        assert_matches(getattr(impl, name)(*inputs), expected, f"{name} of a {shape} tensor")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_large_tensors(impl, name):
    for shape, dim in [((3, 1500), 1), ((5000, 3), 0), ((5000, 3), 1)]:
        inputs = arguments(name, dim, *shape)
        if name != "softmax_backward":
            # In one slice the best scores come last, in the other first.
            slices = inputs[0].movedim(dim, -1)
            slices[0] += torch.linspace(-30, 30, shape[dim])
            slices[1] -= torch.linspace(-30, 30, shape[dim])
        actual, expected = getattr(impl, name)(*inputs), oracle(name, *inputs)
        what = f"{name} of a {shape} tensor along axis {dim}"
        assert_matches(actual, expected, what, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float16(impl, name):
    inputs = arguments(name, 1, 5, 3, 8, dtype=torch.float16)
    expected = oracle(name, *inputs)
    actual = getattr(impl, name)(*inputs)
    assert_matches(actual, expected, f"{name} in float16", rtol=1e-2, atol=4e-3)


# The sums of float16: 65,520 is beyond its largest number, and past 2,048 it has no odd one.
@pytest.mark.parametrize("name", FORWARD)
def test_float16_of_many_scores(impl, name):
    for n in (5000, 65_520):
        x = torch.zeros(3, n, dtype=torch.float16)
        x[1, 7] = x[2, -7] = 4
        actual = getattr(impl, name)(x, 1)
        # One step of the smallest float16 numbers, and the roundings of others.
        what = f"{name} of {n:,} scores in float16"
        assert_matches(actual, oracle(name, x, 1), what, rtol=5e-3, atol=1.3e-7)


def test_backward_of_many_probabilities_in_float16(impl):
    out = torch.full((2, 4096), 2.0**-12, dtype=torch.float16)
    grad_out = torch.full((2, 4096), 3.0, dtype=torch.float16)
    grad_out[1, ::2] = 1
    expected = out * (grad_out - torch.tensor([[3.0], [2.0]]))
    actual = impl.softmax_backward(grad_out, out, 1)
    what = "softmax_backward of 4,096 equal probabilities in float16"
    assert_matches(actual, expected.half(), what, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", FORWARD)
def test_scores_at_the_edge_of_the_dtype(impl, name):
    # In log_softmax equal scores may lose log 3, which is less than a step of theirs.
    atol = [1e-5, 1.2, 1.2] if name == "log_softmax" else [1e-5] * 3
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        edge = torch.finfo(dtype).max
        x = torch.tensor([[edge, -edge, edge / 2], [-edge, -edge, -edge], [edge] * 3], dtype=dtype)
        actual, expected = getattr(impl, name)(x, 1), oracle(name, x, 1)
        for row in range(3):
            what = f"{name} of scores {[f'{number:.3g}' for number in x[row].tolist()]} in {dtype}"
            assert_matches(actual[row], expected[row], what, rtol=1e-2, atol=atol[row])


def test_backward_of_one_tensor_twice(impl):
    out = torch.softmax(scores(4, 7), 1)
    with unchanged(out=out):
        actual = impl.softmax_backward(out, out, 1)
    expected = oracle("softmax_backward", out, out, 1)
    assert_matches(actual, expected, "softmax_backward of one tensor as both arguments")
