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

# The batch and the features never agree in number, so that a swapped axis cannot hide.
SHAPES = [(6, 4), (4, 6), (2, 5), (9, 1), (33, 7)]
# Large enough to count beside variances of about one to ten, and far from its square root.
EPS = 0.3
# So small beside those variances that a float64 result shows nothing of it.
TINY = 1e-12


@pytest.fixture(autouse=True)
def one_thread():
    """Keep PyTorch's batch_norm from waking every core for a handful of numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(n, c, dtype=torch.float64):
    """Return x, gamma, beta and an upstream gradient; features differ in level and spread."""
    spread, level = 1 + 2 * torch.rand(c, dtype=dtype), 3 * torch.randn(c, dtype=dtype)
    x = level + spread * torch.randn(n, c, dtype=dtype)
    gamma = (1.5 + torch.rand(c, dtype=dtype)) * (-1.0) ** torch.arange(c)
    return x, gamma, 1 + torch.rand(c, dtype=dtype), torch.randn(n, c, dtype=dtype)


def oracle(x, gamma, beta, eps=1e-5):
    """Return PyTorch's output in training mode."""
    return F.batch_norm(x, None, None, gamma, beta, training=True, eps=eps)


def oracle_gradients(x, gamma, beta, grad_out, eps=1e-5):
    """Return autograd's gradients for x, gamma and beta, in float64."""
    # PyTorch's own gradient is wrong for an expanded gamma.
    leaves = [t.detach().double().contiguous().requires_grad_() for t in (x, gamma, beta)]
    return gradients(oracle(*leaves, eps=eps), leaves, grad_out.double())


def normalised(x, eps=TINY):
    """Return x_hat, written out here."""
    centred = x - x.mean(0)
    return centred / ((centred**2).mean(0) + eps) ** 0.5


def backward(impl, x, gamma, beta, grad_out, eps=EPS):
    """Return the gradients of one forward and one backward call."""
    _, cache = impl.batchnorm_forward(x, gamma, beta, eps)
    return impl.batchnorm_backward(grad_out, cache)


def both(impl, x, gamma, beta, grad_out, eps=1e-5):
    """Return the output and the gradients."""
    out, cache = impl.batchnorm_forward(x, gamma, beta, eps)
    return out, *impl.batchnorm_backward(grad_out, cache)


def oracle_of_both(x, gamma, beta, grad_out, eps=1e-5):
    """Return PyTorch's output and autograd's gradients, in the dtype of x."""
    exact = oracle(x.double(), gamma.double(), beta.double(), eps)
    parts = exact, *oracle_gradients(x, gamma, beta, grad_out, eps)
    return tuple(part.to(x.dtype) for part in parts)


# The output.


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_matches_torch(impl, shape):
    x, gamma, beta, _ = batch(*shape)
    with forbid(*NORMALISATION):
        out, _ = impl.batchnorm_forward(x, gamma, beta)
    assert_matches(out, oracle(x, gamma, beta), f"the output for x of shape {shape}")


@pytest.mark.parametrize("n", [3, 5, 40])
def test_features_get_mean_zero_and_variance_one(impl, n):
    x, gamma, beta, _ = batch(n, 3)
    out, _ = impl.batchnorm_forward(x, torch.ones_like(gamma), torch.zeros_like(beta), TINY)
    zeros = torch.zeros_like(gamma)
    assert_matches(out.mean(0), zeros, f"with gamma 1 and beta 0, the mean of {n} outputs")
    variance = ((out - out.mean(0)) ** 2).mean(0)
    behaviour = f"with gamma 1 and beta 0, the biased variance of {n} outputs"
    assert_matches(variance, zeros + 1, behaviour)


@pytest.mark.parametrize("eps", [1e-3, EPS, 5.0])
def test_eps_counts_beside_the_variance(impl, eps):
    x, gamma, beta, grad_out = batch(6, 4)
    out, cache = impl.batchnorm_forward(x, gamma, beta, eps=eps)
    assert_matches(out, oracle(x, gamma, beta, eps), f"the output for eps={eps}")
    dx, _, _ = impl.batchnorm_backward(grad_out, cache)
    expected, _, _ = oracle_gradients(x, gamma, beta, grad_out, eps)
    assert_matches(dx, expected, f"dx for eps={eps}")


def test_eps_defaults_to_1e_minus_5(impl):
    x, gamma, beta, grad_out = batch(6, 4)
    x = x * 2e-3  # variances of about 1e-5 too
    out, cache = impl.batchnorm_forward(x=x, gamma=gamma, beta=beta)
    assert_matches(out, oracle(x, gamma, beta), "the output for small variances, without eps")
    dx, _, _ = impl.batchnorm_backward(grad_out=grad_out, cache=cache)
    expected, _, _ = oracle_gradients(x, gamma, beta, grad_out)
    assert_matches(dx, expected, "dx for small variances, without eps")


def test_constant_feature(impl):
    x, gamma, beta, grad_out = batch(8, 3)
    x[:, 1] = 2.0
    out, cache = impl.batchnorm_forward(x, gamma, beta)
    expected = beta[1].expand(8)
    assert_matches(out[:, 1], expected, "the output of a constant feature is beta")
    dx, _, _ = impl.batchnorm_backward(grad_out, cache)
    expected = gamma[1] * (grad_out[:, 1] - grad_out[:, 1].mean()) / 1e-5**0.5
    assert_matches(dx[:, 1], expected, "dx of a constant feature")


def test_features_far_from_zero(impl):
    level = torch.tensor([3e3, -2e3, 4e3, -3e3, 2e3])
    x = level + torch.randn(33, 5)
    _, gamma, beta, grad_out = batch(33, 5, torch.float32)
    out, cache = impl.batchnorm_forward(x, gamma, beta)
    # A float32 sum of 33 such numbers is exact to about 0.1, the mean to 0.003, and gamma is
    # at most 2.5. Squares of them are exact to about 0.5, beside a variance of one.
    expected = oracle(x.double(), gamma.double(), beta.double()).float()
    assert_matches(out, expected, "the output of features near 3,000", rtol=0, atol=3e-2)
    dx, _, _ = impl.batchnorm_backward(grad_out, cache)
    expected, _, _ = oracle_gradients(x, gamma, beta, grad_out)
    assert_matches(dx, expected.float(), "dx of features near 3,000", rtol=0, atol=5e-2)


def test_worked_example(impl):
    # Mean 3, variance 4, and sqrt(4 + 5) = 3: x_hat is -2/3 and 2/3.
    x = torch.tensor([[1.0], [5.0]], dtype=torch.float64)
    gamma, beta = torch.tensor([9.0], dtype=torch.float64), torch.tensor([10.0]).double()
    out, cache = impl.batchnorm_forward(x, gamma, beta, 5.0)
    assert_matches(out, torch.tensor([[4.0], [16.0]]).double(), "the output of 1 and 5")
    dx, dgamma, dbeta = impl.batchnorm_backward(torch.tensor([[1.0], [0.0]]).double(), cache)
    assert_matches(dgamma, torch.tensor([-2 / 3]).double(), "dgamma of 1 and 5")
    assert_matches(dbeta, torch.tensor([1.0]).double(), "dbeta of 1 and 5")
    # 9 / 3 * (1 - 1/2 - 2/3 * 1/3) and its negative.
    assert_matches(dx, torch.tensor([[5 / 6], [-5 / 6]]).double(), "dx of 1 and 5")


# The gradients, beside autograd's and beside differences.


@pytest.mark.parametrize("shape", SHAPES)
def test_dx_matches_autograd(impl, shape):
    x, gamma, beta, grad_out = batch(*shape)
    with forbid(*NORMALISATION), forbid_autograd():
        dx, _, _ = backward(impl, x, gamma, beta, grad_out)
    expected, _, _ = oracle_gradients(x, gamma, beta, grad_out, EPS)
    assert_matches(dx, expected, f"dx for x of shape {shape}")


@pytest.mark.parametrize("shape", SHAPES)
def test_dgamma_matches_autograd(impl, shape):
    x, gamma, beta, grad_out = batch(*shape)
    _, dgamma, _ = backward(impl, x, gamma, beta, grad_out)
    _, expected, _ = oracle_gradients(x, gamma, beta, grad_out, EPS)
    assert_matches(dgamma, expected, f"dgamma for x of shape {shape}")


@pytest.mark.parametrize("shape", SHAPES)
def test_dbeta_matches_autograd(impl, shape):
    x, gamma, beta, grad_out = batch(*shape)
    _, _, dbeta = backward(impl, x, gamma, beta, grad_out)
    assert_matches(dbeta, grad_out.sum(0), f"dbeta for x of shape {shape}")


@pytest.mark.parametrize(("index", "name"), [(0, "x"), (1, "gamma"), (2, "beta")])
def test_backward_is_the_slope_of_forward(impl, index, name):
    *inputs, grad_out = batch(5, 3)
    actual = backward(impl, *inputs, grad_out)[index]

    def loss(value):
        out, _ = impl.batchnorm_forward(*inputs[:index], value, *inputs[index + 1 :], EPS)
        return (out * grad_out).sum().item()

    expected = torch.zeros_like(inputs[index])
    for k in range(expected.numel()):
        step = torch.zeros_like(expected)
        step.view(-1)[k] = 1e-5
        slope = (loss(inputs[index] + step) - loss(inputs[index] - step)) / 2e-5
        expected.view(-1)[k] = slope
    # A central difference is as exact as the square of its step and the rounding over the step.
    behaviour = f"d{name}, beside what batchnorm_forward does when {name} moves by 0.00001"
    assert_matches(actual, expected, behaviour, rtol=1e-6, atol=1e-7)


# What must hold of dx, whatever the formula. Neither the level nor the scale of a feature changes
# the output, so no dx may push along either.


def test_dx_sums_to_zero(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    dx, _, _ = backward(impl, x, gamma, beta, grad_out)
    behaviour = "a shift of a whole feature changes no output, so its dx sums to zero"
    assert_matches(dx.sum(0), torch.zeros_like(gamma), behaviour)


def test_dx_is_orthogonal_to_x_hat(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    dx, _, _ = backward(impl, x, gamma, beta, grad_out, TINY)
    behaviour = "without eps a rescaled feature changes no output, so the sum of dx * x_hat is zero"
    assert_matches((dx * normalised(x)).sum(0), torch.zeros_like(gamma), behaviour)


def test_equal_upstream_gradients_move_nothing(impl):
    x, gamma, beta, _ = batch(7, 4)
    grad_out = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=x.dtype).expand(7, 4)
    dx, _, _ = backward(impl, x, gamma, beta, grad_out)
    behaviour = "dx when all examples of a feature get the same upstream gradient"
    assert_matches(dx, torch.zeros_like(x), behaviour)


def test_upstream_gradients_along_x_hat_move_nothing(impl):
    x, gamma, beta, _ = batch(7, 4)
    grad_out = normalised(x) * torch.tensor([1.0, -2.0, 0.5, 3.0])
    dx, _, _ = backward(impl, x, gamma, beta, grad_out, TINY)
    behaviour = "dx when the upstream gradient is a multiple of x_hat, without eps"
    assert_matches(dx, torch.zeros_like(x), behaviour)


def test_upstream_gradients_apart_from_mean_and_x_hat(impl):
    # What is orthogonal to a constant and to x_hat moves neither the mean nor the variance.
    x, gamma, beta, grad_out = batch(7, 4)
    x_hat = normalised(x)
    grad_out = grad_out - grad_out.mean(0)
    grad_out = grad_out - x_hat * (grad_out * x_hat).mean(0)
    dx, _, _ = backward(impl, x, gamma, beta, grad_out)
    expected = gamma * grad_out / (((x - x.mean(0)) ** 2).mean(0) + EPS) ** 0.5
    behaviour = "dx when the upstream gradient has no part along a constant or along x_hat"
    assert_matches(dx, expected, behaviour)


def test_dx_grows_with_gamma(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    factor = torch.tensor([2.0, -3.0, 0.0, 0.5], dtype=x.dtype)
    before, _, _ = backward(impl, x, gamma, beta, grad_out)
    after, _, _ = backward(impl, x, gamma * factor, beta, grad_out)
    assert_matches(after, before * factor, "dx when gamma is 2, -3, 0 and 0.5 times as large")


def test_dgamma_does_not_depend_on_gamma(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    _, before, _ = backward(impl, x, gamma, beta, grad_out)
    factor = torch.tensor([2.0, -3.0, 0.0, 0.5], dtype=x.dtype)
    _, after, _ = backward(impl, x, gamma * factor, beta, grad_out)
    assert_matches(after, before, "dgamma when gamma is 2, -3, 0 and 0.5 times as large")


def test_gradients_do_not_depend_on_beta(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    before = backward(impl, x, gamma, beta, grad_out)
    after = backward(impl, x, gamma, beta + 4, grad_out)
    for name, one, other in zip(("dx", "dgamma", "dbeta"), before, after, strict=True):
        assert_matches(other, one, f"{name} when beta is 4 more")


def test_dx_shrinks_as_x_grows(impl):
    # x and its standard deviation eight times as large, eps with the variance: same x_hat.
    x, gamma, beta, grad_out = batch(7, 4)
    before, _, _ = backward(impl, x, gamma, beta, grad_out, EPS)
    after, _, _ = backward(impl, 8 * x, gamma, beta, grad_out, 64 * EPS)
    assert_matches(after, before / 8, "dx when x is 8 times and eps 64 times as large")


def test_features_do_not_mix(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    together = backward(impl, x, gamma, beta, grad_out)
    alone = backward(impl, x[:, 2:3], gamma[2:3], beta[2:3], grad_out[:, 2:3])
    for name, one, other in zip(("dx", "dgamma", "dbeta"), alone, together, strict=True):
        assert_matches(other[..., 2:3], one, f"{name} of a feature beside others and alone")


# The cache and the inputs.


def test_one_cache_serves_several_backward_calls(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    _, cache = impl.batchnorm_forward(x, gamma, beta, EPS)
    first = [g.clone() for g in impl.batchnorm_backward(grad_out.clone(), cache)]
    impl.batchnorm_backward(torch.randn_like(grad_out), cache)
    again = impl.batchnorm_backward(grad_out.clone(), cache)
    for name, one, other in zip(("dx", "dgamma", "dbeta"), first, again, strict=True):
        assert_matches(other, one, f"{name} of a third backward call, like the first")


def test_caches_do_not_disturb_each_other(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    _, cache = impl.batchnorm_forward(x, gamma, beta, EPS)
    expected = [g.clone() for g in impl.batchnorm_backward(grad_out.clone(), cache)]
    _, other_gamma, other_beta, _ = others = batch(7, 4)
    for what, arguments in [
        ("another batch", others[:3]),
        ("the same x with another gamma, beta and eps", (x, other_gamma, other_beta, 5.0)),
    ]:
        impl.batchnorm_forward(*arguments)
        actual = impl.batchnorm_backward(grad_out.clone(), cache)
        for name, one, other in zip(("dx", "dgamma", "dbeta"), expected, actual, strict=True):
            assert_matches(other, one, f"{name} after {what} went forward")


def test_inputs_are_left_alone(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    with unchanged(x=x, gamma=gamma, beta=beta, grad_out=grad_out):
        backward(impl, x, gamma, beta, grad_out)


def test_any_memory_layout(impl):
    x, gamma, beta, grad_out = batch(7, 4)
    expected = oracle_gradients(x, gamma, beta, grad_out, EPS)
    for layout, strided in layouts(x):
        out, cache = impl.batchnorm_forward(strided, gamma, beta, EPS)
        assert_matches(out, oracle(x, gamma, beta, EPS), f"the output for an x that is {layout}")
        dx, _, _ = impl.batchnorm_backward(grad_out, cache)
        assert_matches(dx, expected[0], f"dx for an x that is {layout}")
    for layout, strided in layouts(grad_out):
        actual = backward(impl, x, gamma, beta, strided)
        for name, one, other in zip(("dx", "dgamma", "dbeta"), expected, actual, strict=True):
            assert_matches(other, one, f"{name} for an upstream gradient that is {layout}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(impl, dtype):
    x, gamma, beta, grad_out = batch(33, 7, dtype)
    out, cache = impl.batchnorm_forward(x, gamma, beta, EPS)
    exact = oracle(x.double(), gamma.double(), beta.double(), EPS)
    # Sums of 33 numbers below about ten, in float32.
    tolerance = {"rtol": 1e-5, "atol": 1e-5 if dtype == torch.float64 else 5e-5}
    assert_matches(out, exact.to(dtype), f"the output in {dtype}", **tolerance)
    actual = impl.batchnorm_backward(grad_out, cache)
    expected = oracle_gradients(x, gamma, beta, grad_out, EPS)
    for name, one, other in zip(("dx", "dgamma", "dbeta"), expected, actual, strict=True):
        assert_matches(other, one.to(dtype), f"{name} in {dtype}", **tolerance)


# What must hold of both functions. Results are the output, dx, dgamma and dbeta.


def test_calls_do_not_disturb_each_other(impl):
    behaviour = "the output and the gradients"
    assert_repeatable(partial(both, impl), partial(batch, 7, 4), oracle_of_both, behaviour)


def test_backward_calls_of_one_cache_do_not_disturb_each_other(impl):
    x, gamma, beta, _ = batch(7, 4)
    out, cache = impl.batchnorm_forward(x, gamma, beta)
    out.fill_(torch.nan)  # as an activation in place would change it
    assert_repeatable(
        lambda grad_out: impl.batchnorm_backward(grad_out, cache),
        lambda: [torch.randn(7, 4, dtype=x.dtype)],
        lambda grad_out: oracle_gradients(x, gamma, beta, grad_out),
        "the gradients of one cache, once its output has been written over",
    )


def test_gradients_may_be_written_over(impl):
    *inputs, grad_out = batch(7, 4)
    _, cache = impl.batchnorm_forward(*inputs)
    for gradient in impl.batchnorm_backward(grad_out, cache):
        gradient.fill_(torch.nan)
    actual = impl.batchnorm_backward(grad_out, cache)
    behaviour = "the gradients, once earlier ones have been written over"
    assert_all_match(actual, oracle_gradients(*inputs, grad_out), behaviour)


def test_each_argument_in_any_layout(impl):
    inputs = batch(7, 4)
    expected = oracle_of_both(*inputs)
    assert_any_layout(partial(both, impl), inputs, expected, "the output and the gradients")


def test_expanded_arguments(impl):
    inputs = batch(7, 4)
    for place, argument in enumerate(inputs):
        for axis in range(argument.ndim):
            expanded = argument.narrow(axis, 0, 1).expand(argument.shape)
            mixed = [*inputs[:place], expanded, *inputs[place + 1 :]]
            behaviour = f"with argument {place + 1} expanded along axis {axis}"
            with unchanged(expanded=expanded):
                actual = both(impl, *mixed, EPS)
            assert_all_match(actual, oracle_of_both(*mixed, EPS), behaviour)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_mode(impl, dtype):
    inputs = batch(7, 4, dtype)
    call, expected = partial(both, impl, eps=EPS), oracle_of_both(*inputs, EPS)
    behaviour = f"the output and the gradients in {dtype}"
    assert_any_mode(call, inputs, expected, behaviour, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("shape", [(3, 2100), (66000, 2)])
def test_many_examples_and_many_features(impl, shape):
    inputs = batch(*shape)
    behaviour = f"the output and the gradients for x of shape {shape}"
    assert_all_match(both(impl, *inputs), oracle_of_both(*inputs), behaviour)


def test_one_tensor_for_several_arguments(impl):
    x, gamma, _, _ = batch(7, 4)
    with unchanged(x=x, gamma=gamma):
        actual = both(impl, x, gamma, gamma, x)
    expected = oracle_of_both(x, gamma, gamma, x)
    assert_all_match(actual, expected, "with gamma as beta and x as the upstream gradient")


def test_zeros(impl):
    inputs = batch(7, 4)
    for tensor in inputs:
        tensor[..., 1] = 0.0
    for number, name in ((1, "gamma"), (3, "the upstream gradient")):
        inputs[number].zero_()
        actual, expected = both(impl, *inputs), oracle_of_both(*inputs)
        assert_all_match(actual, expected, f"where one feature is zero, and {name} everywhere")


def test_float64_keeps_its_digits(impl):
    inputs = batch(33, 7)
    for eps in (1, EPS):
        actual, expected = both(impl, *inputs, eps), oracle_of_both(*inputs, eps)
        behaviour = f"results in float64 with eps={eps}"
        assert_all_match(actual, expected, behaviour, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(torch.float32, -40), (torch.float32, 38), (torch.float64, -48), (torch.float64, 300)],
)
def test_small_and_large_numbers(impl, dtype, exponent):
    x, *others = batch(6, 4, dtype)
    scale = 2.0**exponent
    out, dx, dgamma, dbeta = both(impl, scale * x, *others, scale**2 * EPS)
    actual, expected = (out, dx * scale, dgamma, dbeta), oracle_of_both(x, *others, EPS)
    behaviour = f"the output and the gradients of x times 2 to the {exponent} in {dtype}"
    assert_all_match(actual, expected, behaviour, rtol=1e-5, atol=5e-5)
