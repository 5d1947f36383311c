import pytest
import torch
import torch.nn.functional as F

from dojo.testing import (
    RELU,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    gradients,
    layouts,
    unchanged,
)

# No two axes of a shape are equal; a number alone and a tensor without any come last.
SHAPES = [(4, 7), (1, 6), (5, 3, 8), (9,), (), (0, 3)]
RELUS = ["relu_functional", "relu", "ReLU"]
ALL = [*RELUS, "leaky_relu", "hardswish"]
ORACLES = {"leaky_relu": F.leaky_relu, "hardswish": F.hardswish}


def numbers(*shape, dtype=torch.float32):
    """Numbers on both sides of every kink and on none of them but 0, which about one in nine is."""
    x = 3 * torch.randn(shape, dtype=torch.float64)
    return x.where(x.abs() > 0.4, 0.0).to(dtype)


def activation(impl, name):
    return impl.ReLU.apply if name == "ReLU" else getattr(impl, name)


def oracle(name):
    return ORACLES.get(name, torch.relu)


@pytest.mark.parametrize("name", ALL)
def test_values_match_torch(impl, name):
    for shape in SHAPES:
        x = numbers(*shape)
        actual = activation(impl, name)(x)
        assert_matches(actual, oracle(name)(x), f"{name} of a {shape} tensor")


def test_relu_by_hand(impl):
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.5, 2.0])
    for name in RELUS:
        assert_matches(activation(impl, name)(x), expected, f"{name} of (-2, -0.5, 0, 0.5, 2)")


def test_leaky_relu_keeps_positive_numbers(impl):
    x = numbers(4, 7).abs() + 0.1
    assert_matches(impl.leaky_relu(x, slope=0.3), x, "leaky_relu of positive numbers")


@pytest.mark.parametrize("slope", [0.3, 0, 1.7, -0.6])
def test_leaky_relu_takes_any_slope(impl, slope):
    x = numbers(4, 7)
    actual = impl.leaky_relu(x, slope)
    assert_matches(actual, F.leaky_relu(x, slope), f"leaky_relu with a slope of {slope}")


def test_hardswish_of_large_numbers_is_the_number(impl):
    x = torch.tensor([3.0, 3.5, 6.0, 40.0, 1e6])
    assert_matches(impl.hardswish(x), x, "hardswish of 3, 3.5, 6, 40 and a million")


def test_hardswish_of_very_negative_numbers_is_zero(impl):
    x = torch.tensor([-3.0, -3.5, -6.0, -40.0, -1e6])
    assert_matches(impl.hardswish(x), torch.zeros(5), "hardswish of -3, -3.5, -6, -40, -a million")


def test_hardswish_between_its_kinks(impl):
    x = torch.tensor([-2.75, -1.5, 0.0, 1.5, 2.75])
    expected = torch.tensor([-0.1145833, -0.375, 0.0, 1.125, 2.6354167])
    assert_matches(impl.hardswish(x), expected, "hardswish of (-2.75, -1.5, 0, 1.5, 2.75)")


@pytest.mark.parametrize("name", ALL)
def test_the_input_is_left_alone(impl, name):
    x = numbers(4, 7)
    with unchanged(x=x):
        activation(impl, name)(x)


@pytest.mark.parametrize("name", ALL)
def test_nan_stays_nan(impl, name):
    x = torch.tensor([1.5, torch.nan, -4.0, torch.nan])
    actual = activation(impl, name)(x)
    assert_matches(actual, oracle(name)(x), f"{name} of numbers and NaN")


@pytest.mark.parametrize("name", ["relu_functional", "relu"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
def test_integers_stay_integers(impl, name, dtype):
    info = torch.iinfo(dtype)
    x = torch.tensor([[info.min, 0, 1], [info.min + 5, info.max, info.max - 1]], dtype=dtype)
    assert_matches(activation(impl, name)(x), torch.relu(x), f"{name} in {dtype}")


# Half a dozen roundings of numbers up to about ten: a step of bfloat16 there is 0.06.
DTYPES = [
    (torch.float64, 1e-12, 1e-12),
    (torch.float16, 4e-3, 4e-3),
    (torch.bfloat16, 3e-2, 3e-2),
]


@pytest.mark.parametrize(("dtype", "rtol", "atol"), DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_dtype_is_kept(impl, name, dtype, rtol, atol):
    x = numbers(5, 3, 8, dtype=dtype)
    actual = activation(impl, name)(x)
    expected = oracle(name)(x.double()).to(dtype)
    assert_matches(actual, expected, f"{name} in {dtype}", rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ALL)
def test_any_memory_layout(impl, name):
    for layout, x in layouts(numbers(5, 3, 8)):
        assert_matches(activation(impl, name)(x), oracle(name)(x), f"{name} of a {layout} tensor")
    row = numbers(7).expand(4, 7)
    assert_matches(activation(impl, name)(row), oracle(name)(row), f"{name} of an expanded tensor")


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardswish", "ReLU"])
def test_banned_operators_are_not_used(impl, name):
    x = numbers(4, 7).requires_grad_()
    with forbid(*RELU):
        activation(impl, name)(x).sum().backward()


@pytest.mark.parametrize("name", RELUS)
def test_autograd_through_relu(impl, name):
    x = numbers(5, 3, 8).requires_grad_()
    grad_out = torch.randn(5, 3, 8)
    (actual,) = gradients(activation(impl, name)(x), [x], grad_out)
    (expected,) = gradients(torch.relu(x), [x], grad_out)
    assert_matches(actual, expected, f"the gradient through {name}")


def test_autograd_through_leaky_relu(impl):
    # Not at 0, where either slope will do.
    x = numbers(5, 3, 8)
    x = x.where(x != 0, 0.2).requires_grad_()
    grad_out = torch.randn(5, 3, 8)
    (actual,) = gradients(impl.leaky_relu(x, slope=0.3), [x], grad_out)
    (expected,) = gradients(F.leaky_relu(x, 0.3), [x], grad_out)
    assert_matches(actual, expected, "the gradient through leaky_relu with a slope of 0.3")


def test_autograd_through_hardswish(impl):
    x = numbers(5, 3, 8)
    x = x.where(x != 0, 0.2).requires_grad_()
    grad_out = torch.randn(5, 3, 8)
    (actual,) = gradients(impl.hardswish(x), [x], grad_out)
    (expected,) = gradients(F.hardswish(x), [x], grad_out)
    assert_matches(actual, expected, "the gradient through hardswish")


def test_gradient_of_hardswish_at_zero(impl):
    # The derivative of x (x + 3) / 6 is (2x + 3) / 6: a half.
    x = torch.zeros(3, requires_grad=True)
    (actual,) = gradients(impl.hardswish(x), [x], torch.tensor([1.0, -4.0, 2.0]))
    assert_matches(actual, torch.tensor([0.5, -2.0, 1.0]), "the gradient through hardswish at 0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", ["leaky_relu", "hardswish"])
def test_gradients_of_huge_numbers(impl, name, dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([-largest / 4, largest / 4], dtype=dtype, requires_grad=True)
    (actual,) = gradients(activation(impl, name)(x), [x], torch.ones(2, dtype=dtype))
    slope = 0.01 if name == "leaky_relu" else 0.0
    expected = torch.tensor([slope, 1.0], dtype=dtype)
    assert_matches(actual, expected, f"the gradient through {name} at ±{largest / 4:.3g}")


def test_function_stops_the_gradient_of_negative_numbers(impl):
    x = (-numbers(4, 7).abs() - 0.5).requires_grad_()
    (actual,) = gradients(impl.ReLU.apply(x), [x], torch.randn(4, 7))
    assert_matches(actual, torch.zeros(4, 7), "the gradient through ReLU.apply of negative numbers")


def test_function_takes_strided_gradients(impl):
    x = numbers(4, 7).requires_grad_()
    grad_out = torch.randn(7, 4)
    (actual,) = gradients(impl.ReLU.apply(x).T, [x], grad_out)
    (expected,) = gradients(torch.relu(x).T, [x], grad_out)
    assert_matches(actual, expected, "the gradient through ReLU.apply, transposed afterwards")
    (actual,) = gradients(impl.ReLU.apply(x).sum(), [x], torch.tensor(1.0))
    assert_matches(actual, (x > 0).float(), "the gradient of the sum of ReLU.apply")


def test_function_applied_twice(impl):
    # Each call keeps what its own backward pass needs.
    x, y = numbers(4, 7).requires_grad_(), numbers(4, 7).requires_grad_()
    grad_out = torch.randn(4, 7)
    actual = gradients(impl.ReLU.apply(x) + 3 * impl.ReLU.apply(y), [x, y], grad_out)
    expected = gradients(torch.relu(x) + 3 * torch.relu(y), [x, y], grad_out)
    for got, wanted, which in zip(actual, expected, ["first", "second"], strict=True):
        assert_matches(got, wanted, f"the gradient for the input of the {which} of two ReLU.apply")


def test_backward_matches_autograd(impl):
    for shape in SHAPES:
        x = numbers(*shape).requires_grad_()
        grad_out = torch.randn(shape)
        with unchanged(x=x, grad_out=grad_out), forbid(*RELU):
            actual = impl.relu_backward(grad_out, x.detach())
        (expected,) = gradients(torch.relu(x), [x], grad_out)
        assert_matches(actual, expected, f"relu_backward of a {shape} tensor")


def test_backward_is_zero_where_x_is_zero(impl):
    actual = impl.relu_backward(torch.tensor([1.5, -2.0, 0.5]), torch.tensor([0.0, -0.0, 0.0]))
    assert_matches(actual, torch.zeros(3), "relu_backward where x is 0")


def test_backward_keeps_the_sign_of_the_gradient(impl):
    grad_out = numbers(4, 7)
    actual = impl.relu_backward(grad_out, torch.rand(4, 7) + 0.1)
    assert_matches(actual, grad_out, "relu_backward where every x is positive")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_backward_keeps_the_dtype(impl, dtype):
    x, grad_out = numbers(5, 3, 8, dtype=dtype), torch.randn(5, 3, 8).to(dtype)
    actual = impl.relu_backward(grad_out=grad_out, x=x)
    assert_matches(actual, grad_out * (x > 0), f"relu_backward in {dtype}")


def test_backward_takes_any_layout(impl):
    x = numbers(5, 3, 8)
    for layout, grad_out in layouts(torch.randn(5, 3, 8)):
        expected = grad_out * (x > 0)
        actual = impl.relu_backward(grad_out, x)
        assert_matches(actual, expected, f"relu_backward of a gradient that is {layout}")
    one = torch.ones(()).expand(5, 3, 8)
    actual = impl.relu_backward(one, x)
    assert_matches(actual, (x > 0).float(), "relu_backward of an expanded gradient")


def assert_between(actual, one, other, behaviour):
    low, high = min(one, other) - 1e-6, max(one, other) + 1e-6
    inside = ((actual >= low) & (actual <= high)).all()
    assert inside, f"{behaviour} should lie between {one} and {other}: it is {actual.tolist()}"


@pytest.mark.parametrize("slope", [0.3, -2, 0, 1, 1.7, None])
def test_gradient_of_leaky_relu(impl, slope):
    options = {} if slope is None else {"slope": slope}
    low = options.get("slope", 0.01)
    x = torch.tensor([-2.0, -0.001, 0.001, 5.0, 0.0, -0.0], requires_grad=True)
    (actual,) = gradients(impl.leaky_relu(x, **options), [x], torch.ones(6))
    what = f"the gradient through leaky_relu, options {options}"
    assert_matches(actual[:4], torch.tensor([low, low, 1.0, 1.0]), what)
    assert_between(actual[4:], low, 1, f"{what}, at 0")


@pytest.mark.parametrize(("kink", "left", "right"), [(-3.0, 0.0, -0.5), (3.0, 1.5, 1.0)])
def test_gradient_of_hardswish_at_its_kinks(impl, kink, left, right):
    x = torch.tensor([kink - 1e-3, kink + 1e-3, kink], requires_grad=True)
    (actual,) = gradients(impl.hardswish(x), [x], torch.ones(3))
    what = f"the gradient through hardswish near {kink}"
    assert_matches(actual[:2], torch.tensor([left, right]), what, atol=1e-3)
    assert_between(actual[2:], left, right, f"the gradient through hardswish at {kink}")


@pytest.mark.parametrize("slope", [1e5, -1e5])
def test_slope_beyond_float16(impl, slope):
    x = torch.tensor([-0.25, -(2.0**-10), 0.0, 3.0], dtype=torch.float16)
    expected = torch.tensor([-0.25 * slope, -(2.0**-10) * slope, 0.0, 3.0]).half()
    actual = impl.leaky_relu(x, slope)
    assert_matches(actual, expected, f"leaky_relu in float16 with a slope of {slope:g}")


def test_values_at_the_edge_of_the_dtype(impl):
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        info = torch.finfo(dtype)
        sizes = [info.max, info.max / 2, info.max**0.5, 1e3, info.tiny, info.tiny / 4]
        x = torch.tensor([sign * size for size in sizes for sign in (1, -1)], dtype=dtype)
        for name in ALL:
            wide = x.double()
            # Torch's hardswish overflows at the largest float64.
            expected = torch.where(wide >= 3, wide, oracle(name)(wide)).to(dtype)
            what = f"{name} of {', '.join(f'{number:.3g}' for number in x.tolist())} in {dtype}"
            # The smallest numbers of a dtype have few digits.
            actual = activation(impl, name)(x.clone())
            assert_matches(actual, expected, what, rtol=4 * info.eps, atol=info.tiny / 8)


def test_gradients_of_small_numbers_and_beside_nan(impl):
    tiny = torch.finfo(torch.float32).tiny
    numbers = torch.tensor([tiny, tiny / 4, -tiny, -tiny / 4, 2.5, -2.0, torch.nan])
    grad_out = torch.tensor([1.5, -0.5, 2.0, 3.0, -1.0, 0.5, 1.0])
    for name in ALL:
        x = numbers.clone().requires_grad_()
        expected = oracle(name)(x)
        (wanted,) = gradients(expected, [x], grad_out)
        actual = activation(impl, name)(x)
        assert actual.requires_grad, f"autograd can not go back through {name} where x holds NaN"
        (got,) = gradients(actual, [x], grad_out)
        what = f"the gradient through {name} of {numbers[:-1].tolist()} beside NaN"
        assert_matches(got[:-1], wanted[:-1], what)
    got = impl.relu_backward(grad_out, numbers)[:-1]
    wanted = torch.tensor([1.5, -0.5, 0.0, 0.0, -1.0, 0.0])
    assert_matches(got, wanted, f"relu_backward of {numbers[:-1].tolist()} beside NaN")


def test_many_numbers(impl):
    for n in (5001, 70_001):
        for name in [*ALL, "relu_backward"]:
            function, expected = results(impl, name)
            tensors = [numbers(n) for _ in range(2 if name == "relu_backward" else 1)]
            assert_matches(function(*tensors), expected(*tensors), f"{name} of {n:,} numbers")


@pytest.mark.parametrize("slope", [0, 1, 1.0, 0.3, -2])
def test_leaky_relu_makes_a_tensor_of_its_own(impl, slope):
    for sign in (1, -1):
        assert_repeatable(
            lambda x: impl.leaky_relu(x, slope),
            lambda sign=sign: [sign * (numbers(4, 7).abs() + 0.1)],
            lambda x: F.leaky_relu(x, slope),
            f"leaky_relu of {'positive' if sign > 0 else 'negative'} numbers, slope {slope}",
        )


def test_relu_of_positive_numbers_is_a_tensor_of_its_own(impl):
    for name in [*RELUS, "hardswish", "relu_backward"]:
        function, expected = results(impl, name)
        count = 2 if name == "relu_backward" else 1
        assert_repeatable(
            function,
            lambda count=count: [numbers(4, 7).abs() + 3 for _ in range(count)],
            expected,
            f"{name} of positive numbers",
        )


def results(impl, name):
    """The function of this name, and torch's."""
    if name == "relu_backward":
        return impl.relu_backward, lambda grad_out, x: grad_out * (x > 0)
    return activation(impl, name), oracle(name)


def inputs(name):
    return [numbers(5, 3, 8) for _ in range(2 if name == "relu_backward" else 1)]


@pytest.mark.parametrize("name", [*ALL, "relu_backward"])
def test_repeatable(impl, name):
    function, expected = results(impl, name)
    assert_repeatable(function, lambda: inputs(name), expected, name)


@pytest.mark.parametrize("name", [*ALL, "relu_backward"])
def test_any_mode_and_layout(impl, name):
    function, expected = results(impl, name)
    tensors = inputs(name)
    assert_any_mode(function, tensors, expected(*tensors), name)
    assert_any_layout(function, tensors, expected(*tensors), name)
