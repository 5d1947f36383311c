from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dojo.kernels import DEVICE, run, speed
from dojo.testing import (
    NORMALISATION,
    PRODUCTS,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    forbid_autograd,
    gradients,
    layouts,
)

# No two axes of a shape are equal, so that a swapped axis cannot hide. Widths are one, powers of
# two and what lies beside them; 70 narrow rows are more than a tile of them, 9 and 5 less. 1,025
# features are one block and 130 more than a block of those that are summed down the rows. float16
# takes every other shape.
SHAPES = [(7,), (1,), (70, 3), (9, 1), (4, 17), (5, 16), (2, 1025), (3, 2, 4, 7)]
GRADIENT_SHAPES = [(70, 3), (1,), (3, 130), (9, 1), (3, 2, 4, 7), (5, 16)]
# Results are a few roundings away from exact where numbers are about ten. Those in float16 are
# rounded once more, by one unit in the last place (2 to the -10th) at most; two are allowed.
TOLERANCES = {
    torch.float32: {"rtol": 2e-5, "atol": 5e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-4},
}
DTYPES = list(TOLERANCES)
BANNED = (*NORMALISATION, *PRODUCTS, "normalize", "mean", "var", "std", "sqrt", "rsqrt")
# Large enough to count beside variances of about one to ten, and far from its square root.
EPS = 0.3
# So small beside those variances that a float32 result shows nothing of it.
TINY = 1e-12
NAMES = ("dx", "dweight", "dbias")


def rows(*shape, dtype=torch.float32):
    """Return x, weight, bias and an upstream gradient; rows differ in level and spread."""
    *leading, d = shape
    uniform = torch.rand(2, *leading, 1)
    sign = torch.randint(0, 2, (*leading, 1)) * 2 - 1
    x = sign * (2 + 3 * uniform[0]) + (1 + 2 * uniform[1]) * torch.randn(shape)
    weight = (1.5 + torch.rand(d)) * (-1.0) ** torch.arange(d)
    tensors = x, weight, 1 + torch.rand(d), torch.randn(shape)
    return tuple(tensor.to(DEVICE, dtype) for tensor in tensors)


def some(shapes, dtype):
    return shapes[:: 1 if dtype == torch.float32 else 2]


def output(x, weight, bias, eps=1e-5):
    """Return PyTorch's output, worked out in float64 and rounded once."""
    x64, weight64, bias64 = x.double(), weight.double(), bias.double()
    return F.layer_norm(x64, weight.shape, weight64, bias64, eps).to(x.dtype)


def exact_gradients(grad_out, x, weight, eps=1e-5):
    """Return autograd's gradients for x, weight and bias, in float64."""
    bias = torch.zeros_like(weight)
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    return gradients(
        F.layer_norm(leaves[0], weight.shape, *leaves[1:], eps), leaves, grad_out.double()
    )


def assert_gradients(actual, grad_out, x, weight, eps, behaviour, names=NAMES):
    """Compare those of the three gradients that are named with autograd's."""
    expected = dict(zip(NAMES, exact_gradients(grad_out, x, weight, eps), strict=True))
    actual = dict(zip(NAMES, actual, strict=True))
    for name in names:
        tolerance = TOLERANCES[x.dtype]
        assert_matches(
            actual[name], expected[name].to(x.dtype), f"{name} of {behaviour}", **tolerance
        )


# The output.


@pytest.mark.parametrize("dtype", DTYPES)
def test_layernorm_matches_torch(impl, dtype):
    for shape in some(SHAPES, dtype):
        x, weight, bias, _ = rows(*shape, dtype=dtype)
        with forbid(*BANNED), forbid_autograd():
            actual = run(impl.layernorm, x, weight, bias, EPS)
        behaviour = f"layernorm of x of shape {shape} in {dtype}"
        assert_matches(actual, output(x, weight, bias, EPS), behaviour, **TOLERANCES[dtype])


@pytest.mark.parametrize(("n", "width"), [(1, 4096), (2, 4097), (1, 10_000)])
def test_layernorm_of_wide_rows(impl, n, width):
    x, weight, bias, _ = rows(n, width)
    actual = run(impl.layernorm, x, weight, bias, EPS)
    behaviour = f"layernorm of x of shape {(n, width)}"
    assert_matches(actual, output(x, weight, bias, EPS), behaviour, **TOLERANCES[x.dtype])


@pytest.mark.parametrize("width", [3, 100])
def test_rows_get_mean_zero(impl, width):
    x, weight, bias, _ = rows(5, width)
    out = run(impl.layernorm, x, torch.ones_like(weight), torch.zeros_like(bias), TINY)
    behaviour = f"with weight 1 and bias 0, the mean of a row of {width}"
    assert_matches(out.mean(1), torch.zeros(5, device=DEVICE), behaviour, atol=1e-4)


@pytest.mark.parametrize("width", [3, 100])
def test_rows_get_variance_one(impl, width):
    x, weight, bias, _ = rows(5, width)
    out = run(impl.layernorm, x, torch.ones_like(weight), torch.zeros_like(bias), TINY)
    variance = ((out - out.mean(1, keepdim=True)) ** 2).mean(1)
    behaviour = f"with weight 1 and bias 0, the biased variance of a row of {width}"
    assert_matches(variance, torch.ones(5, device=DEVICE), behaviour, atol=1e-4)


def test_worked_example(impl):
    # Mean 3, variance 4, and sqrt(4 + 5) = 3: x_hat is -2/3 and 2/3.
    x = torch.tensor([1.0, 5.0], device=DEVICE)
    weight = torch.tensor([9.0, 3.0], device=DEVICE)
    bias = torch.tensor([10.0, 20.0], device=DEVICE)
    out = run(impl.layernorm, x, weight, bias, 5.0)
    assert_matches(out, torch.tensor([4.0, 22.0]), "layernorm of 1 and 5")
    grad_out = torch.tensor([1.0, 0.0], device=DEVICE)
    dx, dweight, dbias = run(impl.layernorm_backward, grad_out, x, weight, 5.0)
    assert_matches(dweight, torch.tensor([-2 / 3, 0.0]), "dweight of 1 and 5")
    assert_matches(dbias, torch.tensor([1.0, 0.0]), "dbias of 1 and 5")
    # 9 less their mean 4.5 is 4.5; 2/3 * 3 = 2 lies along x_hat; (4.5 - 2) / 3 is left.
    assert_matches(dx, torch.tensor([5 / 6, -5 / 6]), "dx of 1 and 5")


def test_eps_counts_beside_the_variance(impl):
    eps = 5.0
    x, weight, bias, grad_out = rows(6, 5)
    actual = run(impl.layernorm, x, weight, bias, eps=eps)
    assert_matches(actual, output(x, weight, bias, eps), f"layernorm with eps={eps}")
    actual = run(impl.layernorm_backward, grad_out, x, weight, eps=eps)
    assert_gradients(actual, grad_out, x, weight, eps, f"rows of 5 with eps={eps}")


def test_eps_defaults_to_1e_minus_5(impl):
    x, weight, bias, grad_out = rows(6, 5)
    x = x * 2e-3  # variances of about 1e-5 too
    actual = run(impl.layernorm, x=x, weight=weight, bias=bias)
    expected = output(x, weight, bias)
    # The levels are small as well, and a float32 holds them to 1e-10: the root divides by 3e-3.
    assert_matches(actual, expected, "layernorm of rows with a small variance, without eps")
    dx, _, _ = run(impl.layernorm_backward, grad_out=grad_out, x=x, weight=weight)
    expected, _, _ = exact_gradients(grad_out, x, weight)
    behaviour = "dx of rows with a small variance, without eps"
    assert_matches(dx, expected.float(), behaviour, rtol=1e-5, atol=1e-2)


def test_constant_rows(impl):
    x, weight, bias, grad_out = rows(5, 6)
    x[1], x[3] = 2.0, 0.0
    out = run(impl.layernorm, x, weight, bias)
    assert_matches(out[1], bias, "the output for a row of twos is bias")
    assert_matches(out[3], bias, "the output for a row of zeros is bias")
    g = weight.double() * grad_out.double()
    expected = ((g - g.mean(1, keepdim=True)) / 1e-5**0.5).float()
    dx, _, _ = run(impl.layernorm_backward, grad_out, x, weight)
    # A gradient of about one, exact to 1e-7, is divided by 3e-3.
    assert_matches(dx[1], expected[1], "dx of a row of twos, without eps", rtol=1e-5, atol=1e-3)
    assert_matches(dx[3], expected[3], "dx of a row of zeros, without eps", rtol=1e-5, atol=1e-3)


def test_rows_of_1000_equal_features(impl):
    # Sums of so many such numbers are exact in any order, and those of their squares are not. A
    # mean that is one unit off is 3e-5 away from 300, beside a root of eps of 3e-3.
    for dtype in DTYPES:
        x, weight, bias, grad_out = rows(3, 1000, dtype=dtype)
        x[:] = torch.tensor([[0.5], [100.125], [-300.25]])
        actual = run(impl.layernorm, x, weight, bias)
        behaviour = f"the output for rows of 1,000 equal features in {dtype} is bias"
        assert_matches(actual, bias.expand(3, 1000), behaviour, rtol=0, atol=5e-2)
        actual = run(impl.layernorm_backward, grad_out, x, weight)
        expected = [g.to(dtype) for g in exact_gradients(grad_out, x, weight)]
        behaviour = f"rows of 1,000 equal features in {dtype}"
        # A gradient of up to about ten is divided by 3e-3.
        assert_matches(actual[0], expected[0], f"dx of {behaviour}", rtol=2e-3, atol=1.0)
        assert_matches(actual[1], expected[1], f"dweight of {behaviour}", rtol=0, atol=1e-1)


def test_eps_of_any_size(impl):
    x, weight, bias, grad_out = rows(4, 3)
    x[1] = 0.5
    for eps in (1, 1e-30, 1e4):
        actual = run(impl.layernorm, x, weight, bias, eps)
        assert_matches(actual, output(x, weight, bias, eps), f"layernorm with eps={eps}", atol=5e-5)
        dx, _, _ = run(impl.layernorm_backward, grad_out, x, weight, eps)
        expected = exact_gradients(grad_out, x, weight, eps)[0].float()
        others = [0, 2, 3]
        tolerance = TOLERANCES[x.dtype]
        assert_matches(dx[others], expected[others], f"dx with eps={eps}", **tolerance)
        what = f"dx of a row of equal features with eps={eps}"
        assert_matches(dx[1], expected[1], what, rtol=1e-5, atol=1e-5 / eps**0.5)


def test_small_eps_counts_beside_a_small_variance(impl):
    x, weight, bias, _ = rows(4, 3)
    x, eps = x * 1e-10, 1e-20
    actual = run(impl.layernorm, x, weight, bias, eps)
    expected = output(x, weight, bias, eps)
    assert_matches(actual, expected, f"layernorm of features near 1e-10 with eps={eps}", atol=5e-5)
    # In float16 it would be zero.
    x, weight, bias, _ = rows(4, 3, dtype=torch.float16)
    x[:] = 0.5
    actual = run(impl.layernorm, x, weight, bias, eps)
    what = f"the output for rows of equal float16 features with eps={eps} is bias"
    assert_matches(actual, bias.expand(4, 3), what)


def test_rows_far_from_zero(impl):
    _, weight, bias, grad_out = rows(5, 33)
    level = torch.tensor([3e3, -2e3, 4e3, -3e3, 2e3], device=DEVICE)
    x = level[:, None] + torch.randn(5, 33, device=DEVICE)
    # A float32 sum of 33 such numbers is exact to about 0.1, the mean to 0.003, and weight is
    # at most 2.5. Squares of them are exact to about 0.5, beside a variance of one.
    out = run(impl.layernorm, x, weight, bias)
    expected = output(x, weight, bias)
    assert_matches(out, expected, "layernorm of rows near 3,000", rtol=0, atol=3e-2)
    dx, _, _ = run(impl.layernorm_backward, grad_out, x, weight)
    expected, _, _ = exact_gradients(grad_out, x, weight)
    assert_matches(dx, expected.float(), "dx of rows near 3,000", rtol=0, atol=5e-2)


def test_float16_near_its_end(impl):
    # The sum of two such features is beyond float16, and so is the square of a deviation.
    _, weight, bias, grad_out = rows(4, 9, dtype=torch.float16)
    x = (4e4 + 5e3 * torch.randn(4, 9, device=DEVICE)).half()
    actual = run(impl.layernorm, x, weight, bias)
    behaviour = "layernorm of float16 features near 40,000"
    tolerance = {"rtol": 2e-3, "atol": 5e-4}  # the mean is exact to 0.01, a spread is 5,000
    assert_matches(actual, output(x, weight, bias), behaviour, **tolerance)
    _, dweight, _ = run(impl.layernorm_backward, grad_out, x, weight)
    _, expected, _ = exact_gradients(grad_out, x, weight)
    behaviour = "dweight of float16 features near 40,000"
    assert_matches(dweight, expected.half(), behaviour, **tolerance)


def test_rows_do_not_mix(impl):
    x, weight, bias, grad_out = rows(5, 7)
    expected = output(x, weight, bias, EPS)
    expected_dx, _, expected_dbias = (g.float() for g in exact_gradients(grad_out, x, weight, EPS))
    x[1, 2], x[3, 6] = torch.nan, torch.inf
    others = [0, 2, 4]
    out = run(impl.layernorm, x, weight, bias, EPS)
    behaviour = "the output of rows beside one with NaN and one with an infinity"
    assert_matches(out[others], expected[others], behaviour)
    dx, _, dbias = run(impl.layernorm_backward, grad_out, x, weight, EPS)
    behaviour = behaviour.replace("the output", "dx")
    assert_matches(dx[others], expected_dx[others], behaviour)
    assert_matches(dbias, expected_dbias, "dbias beside a row with NaN and one with an infinity")


# The gradients.


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_match_autograd(impl, dtype):
    for shape in some(GRADIENT_SHAPES, dtype):
        x, weight, _, grad_out = rows(*shape, dtype=dtype)
        with forbid(*BANNED), forbid_autograd():
            actual = run(impl.layernorm_backward, grad_out, x, weight, EPS)
        assert_gradients(actual, grad_out, x, weight, EPS, f"x of shape {shape} in {dtype}")


def test_gradients_of_wide_rows(impl):
    x, weight, _, grad_out = rows(2, 4100)
    actual = run(impl.layernorm_backward, grad_out, x, weight, EPS)
    assert_gradients(actual, grad_out, x, weight, EPS, "2 rows of 4,100 features")


def test_gradients_of_many_rows(impl):
    x, weight, _, grad_out = rows(530, 65)
    dx, dweight, dbias = run(impl.layernorm_backward, grad_out, x, weight, EPS)
    expected = [g.float() for g in exact_gradients(grad_out, x, weight, EPS)]
    assert_matches(dx, expected[0], "dx of 530 rows", atol=5e-5)
    # Partial sums of 530 numbers of about one reach 50, where a float32 is exact to 4e-6.
    assert_matches(dweight, expected[1], "dweight of 530 rows", rtol=0, atol=5e-4)
    assert_matches(dbias, expected[2], "dbias of 530 rows", rtol=0, atol=5e-4)


def test_dx_leaves_mean_and_size_of_a_row_alone(impl):
    # Neither changes the output, so no dx may push along either.
    x, weight, _, grad_out = rows(4, 7)
    dx, _, _ = run(impl.layernorm_backward, grad_out, x, weight, TINY)
    zeros = torch.zeros(4, device=DEVICE)
    behaviour = "a shift of a whole row changes no output, so its dx sums to zero"
    assert_matches(dx.sum(1), zeros, behaviour, atol=1e-4)
    centred = x - x.mean(1, keepdim=True)
    x_hat = centred / (centred**2).mean(1, keepdim=True) ** 0.5
    behaviour = "without eps a rescaled row changes no output, so the sum of dx * x_hat is zero"
    assert_matches((dx * x_hat).sum(1), zeros, behaviour, atol=1e-4)


def test_sums_down_float16_columns_are_kept_in_float32(impl):
    # Half of the rows hold gradients of up to 16,384 that cancel in pairs, far apart and in any
    # order; the others hold integers from -8 to 8. Every sum of them is exact in float32, while
    # a float16 near 10,000 counts in steps of 8.
    pairs, width = 11, 100
    x, weight, _, _ = rows(pairs, width, dtype=torch.float16)
    large = 4096 * torch.randint(1, 5, (pairs, 1)) * (torch.randint(0, 2, (pairs, width)) * 2 - 1)
    small = torch.randint(-8, 9, (pairs, width))
    order = torch.randperm(3 * pairs)
    x = torch.cat([x, x, x.flip(0)])[order.to(DEVICE)]
    grad_out = torch.cat([large, -large, small])[order].to(DEVICE, torch.float16)
    _, dweight, dbias = run(impl.layernorm_backward, grad_out, x, weight, EPS)
    _, expected_dweight, _ = exact_gradients(grad_out, x, weight, EPS)
    behaviour = f"{3 * pairs} rows of float16 with large gradients that cancel"
    assert_matches(dbias, small.sum(0).half(), f"dbias of {behaviour}", rtol=0, atol=0)
    # x_hat has all digits, so sums that pass 100,000 are exact to 0.01, a hundred times over.
    behaviour = f"dweight of {behaviour}"
    assert_matches(dweight, expected_dweight.half(), behaviour, rtol=2e-3, atol=0.5)


# The inputs.


def all_layouts(x):
    """Return what layouts x may have, and others that repeat its first row or first element.

    That x is contiguous is for the other tests.
    """
    every_other_row = torch.full((2 * x.shape[0], *x.shape[1:]), torch.nan).to(x)[::2]
    every_other_row.copy_(x)
    first_row = x[(slice(0, 1),) * (x.ndim - 1)]
    return [
        *((layout, strided.to(x)) for layout, strided in layouts(x) if layout != "contiguous"),
        ("every other row of a longer tensor", every_other_row),
        ("expanded from one row", first_row.expand(x.shape)),
        ("expanded from one element", first_row[..., :1].expand(x.shape)),
    ]


@pytest.mark.parametrize("shape", [(4, 7), (3, 2, 5)])
def test_layernorm_takes_any_memory_layout(impl, shape):
    x, weight, bias, _ = rows(*shape)
    for layout, strided in all_layouts(x):
        actual = run(impl.layernorm, strided, weight, bias, EPS)
        expected = output(strided, weight, bias, EPS)
        behaviour = f"layernorm of an x of shape {shape} that is {layout}"
        assert_matches(actual, expected, behaviour, **TOLERANCES[x.dtype])
    (layout, strided), (_, other) = (list(layouts(t))[-1] for t in (weight, bias))
    actual = run(impl.layernorm, x, strided, other, EPS)
    expected = output(x, weight, bias, EPS)
    behaviour = f"layernorm with weight and bias that are {layout}"
    assert_matches(actual, expected, behaviour, **TOLERANCES[x.dtype])


def test_backward_takes_any_layout_of_x(impl):
    x, weight, _, grad_out = rows(3, 2, 5)
    for layout, strided in all_layouts(x):
        actual = run(impl.layernorm_backward, grad_out, strided, weight, EPS)
        assert_gradients(actual, grad_out, strided, weight, EPS, f"an x that is {layout}")
    layout, strided = list(layouts(weight))[-1]
    actual = run(impl.layernorm_backward, grad_out, x, strided, EPS)
    assert_gradients(actual, grad_out, x, weight, EPS, f"a weight that is {layout}")


def test_backward_takes_any_layout_of_the_upstream_gradient(impl):
    x, weight, _, grad_out = rows(4, 7)
    for layout, strided in all_layouts(grad_out):
        actual = run(impl.layernorm_backward, strided, x, weight, EPS)
        behaviour = f"an upstream gradient of shape (4, 7) that is {layout}"
        assert_gradients(actual, strided, x, weight, EPS, behaviour)


# What must hold of every function.


def forward_case(dtype=torch.float32):
    return rows(5, 3, dtype=dtype)[:3]


def backward_case(dtype=torch.float32):
    x, weight, _, grad_out = rows(5, 3, dtype=dtype)
    return grad_out, x, weight


def rounded_gradients(grad_out, x, weight, eps=1e-5):
    return tuple(g.to(x.dtype) for g in exact_gradients(grad_out, x, weight, eps))


def test_nothing_stays_from_an_earlier_call(impl):
    tolerance = TOLERANCES[torch.float32]
    call, expected = partial(impl.layernorm, eps=EPS), partial(output, eps=EPS)
    assert_repeatable(call, forward_case, expected, "layernorm", **tolerance)

    # One part after another: dweight and dbias may be halves of one tensor.
    for part, name in enumerate(NAMES):
        assert_repeatable(
            lambda *inputs, part=part: impl.layernorm_backward(*inputs, EPS)[part],
            backward_case,
            lambda *inputs, part=part: rounded_gradients(*inputs, EPS)[part],
            f"{name} of layernorm_backward",
            **tolerance,
        )


def test_under_any_mode(impl):
    for dtype in DTYPES:
        inputs, tolerance = forward_case(dtype), TOLERANCES[dtype]
        call, expected = partial(impl.layernorm, eps=EPS), output(*inputs, EPS)
        assert_any_mode(call, inputs, expected, f"layernorm in {dtype}", **tolerance)
        inputs = backward_case(dtype)
        call, expected = partial(impl.layernorm_backward, eps=EPS), rounded_gradients(*inputs, EPS)
        assert_any_mode(call, inputs, expected, f"layernorm_backward in {dtype}", **tolerance)


def test_each_argument_in_any_layout(impl):
    # `run` brings tensors of any layout to the device.
    tolerance = TOLERANCES[torch.float32]
    inputs = [tensor.cpu() for tensor in forward_case()]
    call, expected = partial(run, impl.layernorm, eps=EPS), output(*inputs, EPS)
    assert_any_layout(call, inputs, expected, "layernorm", **tolerance)
    inputs = [tensor.cpu() for tensor in backward_case()]
    call, expected = partial(run, impl.layernorm_backward, eps=EPS), rounded_gradients(*inputs, EPS)
    assert_any_layout(call, inputs, expected, "layernorm_backward", **tolerance)
    expanded = inputs[2][:1].expand(3)
    actual = run(impl.layernorm_backward, *inputs[:2], expanded, EPS)
    assert_gradients(actual, *inputs[:2], expanded, EPS, "a weight expanded from one element")


def test_one_tensor_for_several_arguments(impl):
    x, weight, _, _ = rows(3, 4)
    placed = run(impl.layernorm, x, weight, weight, EPS)
    behaviour = "layernorm with one tensor for weight and bias"
    assert_matches(placed, output(x, weight, weight, EPS), behaviour, **TOLERANCES[x.dtype])
    actual = impl.layernorm_backward(x, x, weight, EPS)
    assert_gradients(actual, x, x, weight, EPS, "one tensor for grad_out and x")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 3), (4, 0), (0,)])
def test_empty_inputs(impl, shape, dtype):
    x, weight, bias, grad_out = rows(*shape, dtype=dtype)
    behaviour = f"x of shape {shape}"
    actual = run(impl.layernorm, x, weight, bias)
    assert_matches(actual, torch.empty_like(x), f"layernorm of {behaviour}")
    dx, dweight, dbias = run(impl.layernorm_backward, grad_out, x, weight)
    assert_matches(dx, torch.empty_like(x), f"dx of {behaviour}")
    assert_matches(dweight, torch.zeros_like(weight), f"dweight of {behaviour} is zeros")
    assert_matches(dbias, torch.zeros_like(weight), f"dbias of {behaviour} is zeros")


# On a GPU alone.


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(16_389, 777), (2_000, 4_096)])
def test_sums_down_many_rows_lose_nothing(impl, shape):
    # Programs that add to the same numbers at the same time may lose what one of them added.
    x, weight, _, grad_out = rows(*shape)
    _, dweight, dbias = (g.float() for g in exact_gradients(grad_out, x, weight, EPS))
    for attempt in range(1, 21):
        _, *actual = impl.layernorm_backward(grad_out, x, weight, EPS)
        behaviour = f"of x of shape {shape}, call {attempt} of 20"
        # Sums of 16,389 numbers reach 500, where a float32 is exact to 3e-5; a term is about one.
        assert_matches(actual[0], dweight, f"dweight {behaviour}", rtol=0, atol=1e-2)
        assert_matches(actual[1], dbias, f"dbias {behaviour}", rtol=0, atol=1e-2)


@pytest.mark.gpu
def test_more_than_two_to_the_31st_elements(impl):
    # 524,400 rows of 4,099: the last 500 rows lie past element 2 to the 31st.
    shape = (524_400, 4_099)
    x, grad_out = (torch.randn(shape, dtype=torch.float16, device=DEVICE) for _ in range(2))
    _, weight, bias, _ = rows(shape[1], dtype=torch.float16)
    tolerance = TOLERANCES[torch.float16]
    ends = torch.tensor([*range(3), *range(-3, 0)], device=DEVICE)
    out = impl.layernorm(x, weight, bias)
    expected = output(x[ends], weight, bias)
    behaviour = f"layernorm of the first and last rows of {shape}"
    assert_matches(out[ends], expected, behaviour, **tolerance)
    del out
    dx, _, dbias = impl.layernorm_backward(grad_out, x, weight)
    expected, _, _ = exact_gradients(grad_out[ends], x[ends], weight)
    behaviour = f"dx of the first and last rows of {shape}"
    assert_matches(dx[ends], expected.half(), behaviour, **tolerance)
    del dx
    expected = grad_out.sum(0, dtype=torch.float64).half()
    # Sums of half a million numbers reach 3,000, where a float32 is exact to 2e-4.
    assert_matches(dbias, expected, f"dbias of x of shape {shape}", rtol=2e-3, atol=5e-2)


@pytest.mark.gpu
def test_layernorm_is_fast(impl):
    x, weight, bias, _ = rows(8192, 4096, dtype=torch.float16)

    def eager():
        return F.layer_norm(x, weight.shape, weight, bias)

    ratio = speed(lambda: impl.layernorm(x, weight, bias), eager, torch.compile(eager))
    assert ratio >= 0.7, (
        f"layernorm of 8,192 x 4,096 float16 should be at least 0.7 times as fast as PyTorch's; "
        f"it is {ratio:.2f} times"
    )


@pytest.mark.gpu
def test_backward_is_fast(impl):
    x, weight, bias, grad_out = rows(8192, 4096, dtype=torch.float16)
    shape = list(weight.shape)

    def eager():
        _, mean, inv_std = torch.ops.aten.native_layer_norm(x, shape, weight, bias, 1e-5)
        backward = torch.ops.aten.native_layer_norm_backward
        return backward(grad_out, x, shape, mean, inv_std, weight, bias, [True] * 3)

    ours = lambda: impl.layernorm_backward(grad_out, x, weight)  # noqa: E731
    ratio = speed(ours, eager, torch.compile(eager))
    assert ratio >= 0.5, (
        f"layernorm_backward of 8,192 x 4,096 float16 should be at least half as fast as PyTorch's "
        f"operators; it is {ratio:.2f} times as fast"
    )
