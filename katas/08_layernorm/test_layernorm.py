from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dojo.testing import (
    NORMALISATION,
    assert_all_match,
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

# Numbers are judged here, not PyTorch's warnings about them, which would come first.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# No two axes of a shape are equal, so that a swapped axis cannot hide.
SHAPES = [(6, 4), (4, 6), (1, 5), (9, 1), (5, 2), (2, 3, 5), (5, 3, 1), (3, 2, 4, 7), (7,), (1,)]
# Large enough to count beside variances of about one to ten, and far from its square root.
EPS = 0.3
# So small beside those variances that a float64 result shows nothing of it.
TINY = 1e-12
NAMES = ("dx", "dweight", "dbias")


def rows(*shape, dtype=torch.float64):
    """Return x, weight, bias and an upstream gradient; rows differ in level and spread."""
    *leading, d = shape
    spread = 1 + 2 * torch.rand(*leading, 1, dtype=dtype)
    level = 3 * torch.randn(*leading, 1, dtype=dtype)
    x = level + spread * torch.randn(shape, dtype=dtype)
    weight = (1.5 + torch.rand(d, dtype=dtype)) * (-1.0) ** torch.arange(d)
    return x, weight, 1 + torch.rand(d, dtype=dtype), torch.randn(shape, dtype=dtype)


def oracle(x, weight, bias, eps=1e-5):
    """Return PyTorch's output."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def oracle_gradients(x, weight, grad_out, eps=1e-5):
    """Return autograd's gradients for x, weight and bias, in float64."""
    bias = torch.zeros_like(weight)
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    return gradients(oracle(*leaves, eps=eps), leaves, grad_out.double())


def normalised(x, eps=TINY):
    """Return x_hat, written out here."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + eps) ** 0.5


def backward(impl, grad_out, x, weight, eps=EPS):
    """Return the gradients; an input that is written over is named, not blamed on them."""
    with unchanged(grad_out=grad_out, x=x, weight=weight):
        return impl.layernorm_backward(grad_out, x, weight, eps)


FUNCTIONS = ["layernorm_functional", "layernorm", "layernorm_backward"]


def arguments(name, *shape, dtype=torch.float64):
    """Return the tensors that the function of that name takes."""
    x, weight, bias, grad_out = rows(*shape, dtype=dtype)
    return (grad_out, x, weight) if name == "layernorm_backward" else (x, weight, bias)


def expected_of(name, first, second, third, eps=1e-5):
    """Return what the function of that name gives for its tensors, in float64."""
    if name == "layernorm_backward":
        return oracle_gradients(second, third, first, eps)
    return oracle(first.double(), second.double(), third.double(), eps)


# The output.


@pytest.mark.parametrize("shape", SHAPES)
def test_functional_matches_torch(impl, shape):
    x, weight, bias, _ = rows(*shape)
    with unchanged(x=x, weight=weight, bias=bias):
        actual = impl.layernorm_functional(x, weight, bias, EPS)
    expected = oracle(x, weight, bias, EPS)
    assert_matches(actual, expected, f"layernorm_functional of x of shape {shape}")


@pytest.mark.parametrize("shape", SHAPES)
def test_layernorm_matches_torch(impl, shape):
    x, weight, bias, _ = rows(*shape)
    with unchanged(x=x, weight=weight, bias=bias), forbid(*NORMALISATION), forbid_autograd():
        actual = impl.layernorm(x, weight, bias, EPS)
    assert_matches(actual, oracle(x, weight, bias, EPS), f"layernorm of x of shape {shape}")


@pytest.mark.parametrize("d", [3, 4, 40])
def test_rows_get_mean_zero_and_variance_one(impl, d):
    x, weight, bias, _ = rows(5, d)
    out = impl.layernorm(x, torch.ones_like(weight), torch.zeros_like(bias), TINY)
    zeros = torch.zeros(5, dtype=x.dtype)
    assert_matches(out.mean(1), zeros, f"with weight 1 and bias 0, the mean of a row of {d}")
    variance = ((out - out.mean(1, keepdim=True)) ** 2).mean(1)
    behaviour = f"with weight 1 and bias 0, the biased variance of a row of {d}"
    assert_matches(variance, zeros + 1, behaviour)


def test_rows_do_not_mix(impl):
    x, weight, bias, grad_out = rows(6, 4)
    together = impl.layernorm(x, weight, bias, EPS)
    alone = impl.layernorm(x[2:3], weight, bias, EPS)
    assert_matches(together[2:3], alone, "the output of a row beside others and alone")
    together, _, _ = backward(impl, grad_out, x, weight)
    alone, _, _ = backward(impl, grad_out[2:3], x[2:3], weight)
    assert_matches(together[2:3], alone, "dx of a row beside others and alone")


def test_size_of_x_cancels(impl):
    # x and its standard deviation eight times as large, eps with the variance: same x_hat.
    x, weight, bias, _ = rows(6, 4)
    before = impl.layernorm(x, weight, bias, EPS)
    after = impl.layernorm(8 * x, weight, bias, 64 * EPS)
    assert_matches(after, before, "the output when x is 8 times and eps 64 times as large")


def test_constant_rows(impl):
    x, weight, bias, grad_out = rows(5, 4)
    x[1], x[3] = 2.0, 0.0
    for name in ("layernorm_functional", "layernorm"):
        out = getattr(impl, name)(x, weight, bias)
        assert_matches(out[1], bias, f"the output of {name} for a row of twos is bias")
        assert_matches(out[3], bias, f"the output of {name} for a row of zeros is bias")
    scaled = weight * grad_out
    expected = (scaled - scaled.mean(1, keepdim=True)) / 1e-5**0.5
    with unchanged(grad_out=grad_out, x=x, weight=weight):
        dx, _, _ = impl.layernorm_backward(grad_out, x, weight)
    assert_matches(dx[1], expected[1], "dx of a row of twos, without eps")
    assert_matches(dx[3], expected[3], "dx of a row of zeros, without eps")


@pytest.mark.parametrize("eps", [1e-3, 5.0])
def test_eps_counts_beside_the_variance(impl, eps):
    x, weight, bias, grad_out = rows(6, 4)
    expected = oracle(x, weight, bias, eps)
    for name in ("layernorm_functional", "layernorm"):
        actual = getattr(impl, name)(x, weight, bias, eps=eps)
        assert_matches(actual, expected, f"{name} with eps={eps}")
    dx, _, _ = backward(impl, grad_out, x, weight, eps)
    expected, _, _ = oracle_gradients(x, weight, grad_out, eps)
    assert_matches(dx, expected, f"dx with eps={eps}")


def test_eps_defaults_to_1e_minus_5(impl):
    x, weight, bias, grad_out = rows(6, 4)
    x = x * 2e-3  # variances of about 1e-5 too
    expected = oracle(x, weight, bias)
    for name in ("layernorm_functional", "layernorm"):
        actual = getattr(impl, name)(x=x, weight=weight, bias=bias)
        assert_matches(actual, expected, f"{name} of rows with a small variance, without eps")
    with unchanged(grad_out=grad_out, x=x, weight=weight):
        actual = impl.layernorm_backward(grad_out=grad_out, x=x, weight=weight)
    for name, got, wanted in zip(NAMES, actual, oracle_gradients(x, weight, grad_out), strict=True):
        assert_matches(got, wanted, f"{name} of rows with a small variance, without eps")


def test_rows_far_from_zero(impl):
    level = torch.tensor([3e3, -2e3, 4e3, -3e3, 2e3])
    x = level[:, None] + torch.randn(5, 33)
    _, weight, bias, grad_out = rows(5, 33, dtype=torch.float32)
    # A float32 sum of 33 such numbers is exact to about 0.1, the mean to 0.003, and weight is
    # at most 2.5. Squares of them are exact to about 0.5, beside a variance of one.
    expected = oracle(x.double(), weight.double(), bias.double()).float()
    for name in ("layernorm_functional", "layernorm"):
        out = getattr(impl, name)(x, weight, bias)
        assert_matches(out, expected, f"{name} of rows near 3,000", rtol=0, atol=3e-2)
    dx, _, _ = backward(impl, grad_out, x, weight, eps=1e-5)
    expected, _, _ = oracle_gradients(x, weight, grad_out)
    assert_matches(dx, expected.float(), "dx of rows near 3,000", rtol=0, atol=5e-2)


def test_worked_example(impl):
    # Mean 3, variance 4, and sqrt(4 + 5) = 3: x_hat is -2/3 and 2/3.
    x = torch.tensor([1.0, 5.0], dtype=torch.float64)
    weight, bias = torch.tensor([9.0, 3.0]).double(), torch.tensor([10.0, 20.0]).double()
    for name in ("layernorm_functional", "layernorm"):
        out = getattr(impl, name)(x, weight, bias, 5.0)
        assert_matches(out, torch.tensor([4.0, 22.0]).double(), f"{name} of 1 and 5")
    grad_out = torch.tensor([1.0, 0.0]).double()
    dx, dweight, dbias = impl.layernorm_backward(grad_out, x, weight, 5.0)
    assert_matches(dweight, torch.tensor([-2 / 3, 0.0]).double(), "dweight of 1 and 5")
    assert_matches(dbias, torch.tensor([1.0, 0.0]).double(), "dbias of 1 and 5")
    # 9 less their mean 4.5 is 4.5; 2/3 * 3 = 2 lies along x_hat; (4.5 - 2) / 3 is left.
    assert_matches(dx, torch.tensor([5 / 6, -5 / 6]).double(), "dx of 1 and 5")


# The gradients, beside autograd's.


@pytest.mark.parametrize("shape", SHAPES)
def test_dx_matches_autograd(impl, shape):
    x, weight, _, grad_out = rows(*shape)
    with forbid(*NORMALISATION), forbid_autograd():
        dx, _, _ = backward(impl, grad_out, x, weight)
    expected, _, _ = oracle_gradients(x, weight, grad_out, EPS)
    assert_matches(dx, expected, f"dx for x of shape {shape}")


@pytest.mark.parametrize("shape", SHAPES)
def test_dweight_matches_autograd(impl, shape):
    x, weight, _, grad_out = rows(*shape)
    _, dweight, _ = backward(impl, grad_out, x, weight)
    _, expected, _ = oracle_gradients(x, weight, grad_out, EPS)
    assert_matches(dweight, expected, f"dweight for x of shape {shape}")


@pytest.mark.parametrize("shape", SHAPES)
def test_dbias_matches_autograd(impl, shape):
    x, weight, _, grad_out = rows(*shape)
    _, _, dbias = backward(impl, grad_out, x, weight)
    _, _, expected = oracle_gradients(x, weight, grad_out, EPS)
    assert_matches(dbias, expected, f"dbias for x of shape {shape}")


# What must hold of the gradients, whatever the formula. Neither the level nor the scale of a row
# changes the output, so no dx may push along either.


def test_dx_sums_to_zero(impl):
    x, weight, _, grad_out = rows(4, 7)
    dx, _, _ = backward(impl, grad_out, x, weight)
    behaviour = "a shift of a whole row changes no output, so its dx sums to zero"
    assert_matches(dx.sum(1), torch.zeros(4, dtype=x.dtype), behaviour)


def test_dx_is_orthogonal_to_x_hat(impl):
    x, weight, _, grad_out = rows(4, 7)
    dx, _, _ = backward(impl, grad_out, x, weight, TINY)
    behaviour = "without eps a rescaled row changes no output, so the sum of dx * x_hat is zero"
    assert_matches((dx * normalised(x)).sum(1), torch.zeros(4, dtype=x.dtype), behaviour)


def test_dx_grows_with_weight(impl):
    x, weight, _, grad_out = rows(4, 7)
    before, _, _ = backward(impl, grad_out, x, weight)
    for factor in (2.0, -3.0, 0.0):
        after, _, _ = backward(impl, grad_out, x, weight * factor)
        assert_matches(after, before * factor, f"dx when weight is {factor:g} times as large")


def test_upstream_gradients_apart_from_mean_and_variance(impl):
    # Remove the parts that would move the mean or the variance: what is left is only scaled.
    x, weight, _, grad_out = rows(9)
    x_hat = normalised(x)
    basis, _ = torch.linalg.qr(torch.stack([weight, weight * x_hat, x_hat], dim=1))
    grad_out = grad_out - basis @ (basis.T @ grad_out)
    dx, _, _ = backward(impl, grad_out, x, weight)
    expected = weight * grad_out / (((x - x.mean()) ** 2).mean() + EPS) ** 0.5
    behaviour = "dx when the upstream gradient would move neither the mean nor the variance"
    assert_matches(dx, expected, behaviour)


def test_dweight_does_not_depend_on_the_level_of_x(impl):
    x, weight, _, grad_out = rows(4, 7)
    _, before, _ = backward(impl, grad_out, x, weight)
    _, after, _ = backward(impl, grad_out, x + 5, weight)
    assert_matches(after, before, "dweight when every feature is 5 more")


def test_dweight_and_dbias_do_not_depend_on_weight(impl):
    x, weight, _, grad_out = rows(4, 7)
    before = backward(impl, grad_out, x, weight)
    after = backward(impl, grad_out, x, weight * 2 - 1)
    assert_matches(after[1], before[1], "dweight under another weight")
    assert_matches(after[2], before[2], "dbias under another weight")


def test_weight_with_zeros(impl):
    x, weight, bias, grad_out = rows(4, 7)
    weight[2] = weight[5] = 0.0
    out = impl.layernorm(x, weight, bias, EPS)
    assert_matches(out, oracle(x, weight, bias, EPS), "the output when a weight is zero")
    actual = backward(impl, grad_out, x, weight)
    expected = oracle_gradients(x, weight, grad_out, EPS)
    for name, got, wanted in zip(NAMES, actual, expected, strict=True):
        assert_matches(got, wanted, f"{name} when a weight is zero")


# The inputs.


def test_backward_leaves_its_inputs_alone(impl):
    x, weight, _, grad_out = rows(4, 7)
    backward(impl, grad_out, x, weight)


def expanded(x):
    """Return the layouts of x and one that repeats its first row in place of all."""
    return [*layouts(x), ("expanded from one row", x[:1, :1].expand(x.shape))]


def test_forward_takes_any_memory_layout(impl):
    x, weight, bias, _ = rows(3, 2, 5)
    for layout, strided in expanded(x):
        expected = oracle(strided, weight, bias, EPS)
        for name in ("layernorm_functional", "layernorm"):
            actual = getattr(impl, name)(strided, weight, bias, EPS)
            assert_matches(actual, expected, f"{name} of an x that is {layout}")
    for (layout, weight_too), (_, bias_too) in zip(layouts(weight), layouts(bias), strict=True):
        actual = impl.layernorm(x, weight_too, bias_too, EPS)
        expected = oracle(x, weight, bias, EPS)
        assert_matches(actual, expected, f"layernorm with weight and bias that are {layout}")


def test_backward_takes_any_memory_layout(impl):
    x, weight, _, grad_out = rows(3, 2, 5)
    for layout, strided in expanded(x):
        actual = backward(impl, grad_out, strided, weight)
        expected = oracle_gradients(strided, weight, grad_out, EPS)
        for name, got, wanted in zip(NAMES, actual, expected, strict=True):
            assert_matches(got, wanted, f"{name} for an x that is {layout}")
    for layout, strided in expanded(grad_out):
        actual = backward(impl, strided, x, weight)
        expected = oracle_gradients(x, weight, strided, EPS)
        for name, got, wanted in zip(NAMES, actual, expected, strict=True):
            assert_matches(got, wanted, f"{name} for an upstream gradient that is {layout}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(impl, dtype):
    x, weight, bias, grad_out = rows(7, 33, dtype=dtype)
    # Means of 33 numbers below about twenty, in float32.
    tolerance = {"rtol": 1e-5, "atol": 1e-5 if dtype == torch.float64 else 5e-5}
    expected = oracle(x.double(), weight.double(), bias.double(), EPS).to(dtype)
    for name in ("layernorm_functional", "layernorm"):
        out = getattr(impl, name)(x, weight, bias, EPS)
        assert_matches(out, expected, f"{name} in {dtype}", **tolerance)
    actual = backward(impl, grad_out, x, weight)
    expected = oracle_gradients(x, weight, grad_out, EPS)
    for name, got, wanted in zip(NAMES, actual, expected, strict=True):
        assert_matches(got, wanted.to(dtype), f"{name} in {dtype}", **tolerance)


# What must hold of every function.


@pytest.mark.parametrize("shape", [(5, 4), (7,), (1,), (3, 1)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_calls_do_not_disturb_each_other(impl, name, shape):
    assert_repeatable(
        getattr(impl, name),
        partial(arguments, name, *shape),
        partial(expected_of, name),
        f"{name} of shape {shape}",
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_argument_in_any_layout(impl, name):
    for shape in ((5, 4), (2, 3, 5)):
        inputs = arguments(name, *shape)
        assert_any_layout(getattr(impl, name), inputs, expected_of(name, *inputs), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_expanded_arguments(impl, name):
    inputs = arguments(name, 2, 5, 4)
    for place, argument in enumerate(inputs):
        for axis in range(argument.ndim):
            expanded = argument.narrow(axis, 0, 1).expand(argument.shape)
            mixed = [*inputs[:place], expanded, *inputs[place + 1 :]]
            behaviour = f"{name} with argument {place + 1} expanded along axis {axis}"
            with unchanged(expanded=expanded):
                actual = getattr(impl, name)(*mixed)
            assert_all_match(actual, expected_of(name, *mixed), behaviour)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_mode(impl, name):
    for dtype, atol in ((torch.float64, 1e-7), (torch.float32, 5e-5)):
        inputs = arguments(name, 5, 4, dtype=dtype)
        expected = expected_of(name, *inputs, EPS)
        if name == "layernorm_backward":
            expected = tuple(part.to(dtype) for part in expected)
        else:
            expected = expected.to(dtype)
        call = partial(getattr(impl, name), eps=EPS)
        assert_any_mode(call, inputs, expected, f"{name} of {dtype}", atol=atol)


@pytest.mark.parametrize("shape", [(3, 1500), (33000, 2), (2, 66000)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_many_rows_and_many_features(impl, name, shape):
    inputs = arguments(name, *shape)
    actual = getattr(impl, name)(*inputs)
    assert_all_match(actual, expected_of(name, *inputs), f"{name} of shape {shape}")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_tensor_for_every_argument(impl, name):
    x, *_ = rows(7)
    with unchanged(x=x):
        actual = getattr(impl, name)(x, x, x, EPS)
    assert_all_match(actual, expected_of(name, x, x, x, EPS), f"{name} of one tensor three times")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_weights_and_biases_of_zero(impl, name):
    inputs = arguments(name, 5, 4)
    for tensor in inputs:
        tensor[..., 1] = 0.0
    actual = getattr(impl, name)(*inputs)
    assert_all_match(actual, expected_of(name, *inputs), f"{name} with zeros in every argument")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_keeps_its_digits(impl, name):
    inputs = arguments(name, 5, 33)
    actual = getattr(impl, name)(*inputs, 1)
    expected = expected_of(name, *inputs, 1)
    assert_all_match(actual, expected, f"{name} of float64", rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exponent", [-48, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_and_large_numbers(impl, dtype, exponent):
    x, weight, bias, grad_out = rows(6, 4, dtype=dtype)
    scale = 2.0**exponent
    expected = expected_of("layernorm", x, weight, bias, EPS).to(dtype)
    for name in ("layernorm_functional", "layernorm"):
        actual = getattr(impl, name)(scale * x, weight, bias, scale**2 * EPS)
        assert_matches(actual, expected, f"{name} of x times 2 to the {exponent}", atol=5e-5)
    dx, dweight, _ = impl.layernorm_backward(grad_out, scale * x, weight, scale**2 * EPS)
    exact = oracle_gradients(x, weight, grad_out, EPS)
    behaviour = f"for x times 2 to the {exponent}"
    assert_matches(dx * scale, exact[0].to(dtype), f"dx {behaviour}", atol=5e-5)
    assert_matches(dweight, exact[1].to(dtype), f"dweight {behaviour}", atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_near_the_largest_number(impl, dtype):
    # The sums of the squares are about half of the largest number, and D times those is too much.
    scale = 2.0 ** (62 if dtype == torch.float32 else 510)
    unit = torch.tensor([[1.0, -1.0, 0.5, -0.75], [0.25, 0.5, 1.0, 1.0]], dtype=dtype)
    weight, bias = torch.tensor([2.0, -1.5, 3.0, 0.5]).to(dtype), torch.randn(4).to(dtype)
    grad_out = torch.randn(2, 4).to(dtype)
    expected = oracle(unit.double(), weight.double(), bias.double(), 1e-30).to(dtype)
    for name in ("layernorm_functional", "layernorm"):
        actual = getattr(impl, name)(scale * unit, weight, bias)
        assert_matches(actual, expected, f"{name} of {dtype} with squares near the largest number")
    dx, dweight, dbias = impl.layernorm_backward(grad_out, scale * unit, weight)
    exact = oracle_gradients(unit, weight, grad_out, 1e-30)
    for name, got, wanted in zip(NAMES, (dx * scale, dweight, dbias), exact, strict=True):
        what = f"{name} of {dtype} with squares near the largest number"
        assert_matches(got, wanted.to(dtype), what, rtol=1e-5)
