from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dojo.testing import (
    NORMALISATION,
    assert_all_match,
    assert_any_layout,
    assert_any_mode,
    assert_gradients_reach,
    assert_matches,
    assert_repeatable,
    forbid,
    forbid_autograd,
    gradients,
    refuses,
    told_apart,
    unchanged,
)

# Numbers are judged here, not PyTorch's warnings about them, which would come first.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
APPROXIMATIONS = ("none", "tanh")
# No two axes of a shape are equal, so that a swapped axis cannot hide.
SHAPES = [(6, 4), (4, 6), (1, 5), (9, 1), (5, 2), (2, 3, 5), (5, 3, 1), (3, 2, 4, 7), (7,), (1,)]
# The leading axes of x, and D, H and O.
BLOCKS = [
    ((6,), 4, 5, 3),
    ((2, 3), 5, 7, 4),
    ((), 4, 6, 5),
    ((7,), 1, 3, 2),
    ((3,), 2, 1, 4),
    ((4,), 5, 3, 1),
    ((1,), 3, 5, 2),
    ((3, 1, 4), 2, 6, 5),
]
SLOPES = ("silu_backward", "sigmoid_backward", "linear_backward", "rms_norm_backward")
# Large enough to count beside mean squares of about one to twenty, and far from its square root.
EPS = 0.3
# So small beside them that a float32 result shows nothing of it.
TINY = 1e-12


def rows(*shape, dtype=torch.float32, weight_dtype=None):
    """Return x, weight and an upstream gradient; rows differ in level and spread."""
    *leading, d = shape
    spread = 1 + 2 * torch.rand(*leading, 1)
    level = 2 * torch.randn(*leading, 1)
    x = level + spread * torch.randn(shape)
    weight = (1.5 + torch.rand(d)) * (-1.0) ** torch.arange(d)
    return x.to(dtype), weight.to(weight_dtype or dtype), torch.randn(shape).to(dtype)


def block(leading, d, h, o, dtype=torch.float64):
    """Return x, w_gate, w_up, w_down and an upstream gradient."""
    shapes = ((*leading, d), (h, d), (h, d), (o, h), (*leading, o))
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


def exact_rmsnorm(x, weight, eps=1e-6):
    """Return PyTorch's output in float64."""
    return F.rms_norm(x.double(), weight.shape, weight.double(), float(eps))


def exact_gradients(grad_out, x, weight, eps=1e-6):
    """Return autograd's gradients for x and weight in float64."""
    leaves = [t.detach().double().requires_grad_() for t in (x, weight)]
    return gradients(exact_rmsnorm(*leaves, eps), leaves, grad_out.double())


def oracle_rmsnorm(x, weight, eps=1e-6):
    return exact_rmsnorm(x, weight, eps).to(x.dtype)


def oracle_rmsnorm_backward(grad_out, x, weight, eps=1e-6):
    dx, dweight = exact_gradients(grad_out, x, weight, eps)
    return dx.to(x.dtype), dweight.to(weight.dtype)


def oracle_gelu(x, approximate="none"):
    return F.gelu(x.double(), approximate=approximate).to(x.dtype)


def oracle_swiglu(x, w_gate, w_up, w_down):
    """Return the formula's value in float64, from other operators than most would use."""
    x, w_gate, w_up, w_down = (t.double() for t in (x, w_gate, w_up, w_down))
    gate = torch.einsum("...d,hd->...h", x, w_gate)
    up = torch.einsum("...d,hd->...h", x, w_up)
    return torch.einsum("...h,oh->...o", F.silu(gate) * up, w_down)


def oracle_swiglu_backward(grad_out, x, w_gate, w_up, w_down):
    leaves = [t.detach().double().requires_grad_() for t in (x, w_gate, w_up, w_down)]
    parts = gradients(oracle_swiglu(*leaves), leaves, grad_out.double())
    return tuple(part.to(x.dtype) for part in parts)


ORACLES = {
    "rmsnorm": oracle_rmsnorm,
    "rmsnorm_backward": oracle_rmsnorm_backward,
    "gelu": oracle_gelu,
    "swiglu": oracle_swiglu,
    "swiglu_backward": oracle_swiglu_backward,
}


def arguments(name, leading=(5,), d=4, h=3, o=2):
    """Return the tensors that the function of that name takes."""
    if name.startswith("swiglu"):
        *tensors, grad_out = block(leading, d, h, o)
        return (grad_out, *tensors) if name == "swiglu_backward" else tuple(tensors)
    x, weight, grad_out = rows(*leading, d)
    return {"gelu": (x.double(),), "rmsnorm": (x, weight)}.get(name, (grad_out, x, weight))


def backward(impl, grad_out, x, weight, eps=EPS):
    """Return the norm's gradients; an input that is written over is named, not blamed on them."""
    with unchanged(grad_out=grad_out, x=x, weight=weight):
        return impl.rmsnorm_backward(grad_out, x, weight, eps)


def block_backward(impl, grad_out, x, w_gate, w_up, w_down):
    """Return the block's gradients, and look after its inputs."""
    with unchanged(grad_out=grad_out, x=x, w_gate=w_gate, w_up=w_up, w_down=w_down):
        return impl.swiglu_backward(grad_out, x, w_gate, w_up, w_down)


def assert_rounded(actual, exact, dtype, roundings, behaviour, slack=0.0):
    """Compare with a float64 value that may have been rounded to `dtype` so many times."""
    info = torch.finfo(dtype)
    assert_matches(actual, exact.to(dtype), behaviour, rtol=1.0, atol=1.0)  # shape and dtype
    allowed = roundings * (0.505 * info.eps * exact.abs() + info.smallest_normal * info.eps) + slack
    error = (actual.double() - exact).abs()
    wrong = ~(error <= allowed)
    if wrong.any():
        worst = (error / allowed).nan_to_num(nan=torch.inf).argmax()
        got, wanted = told_apart(
            actual.double().flatten()[worst].item(), exact.flatten()[worst].item()
        )
        pytest.fail(
            f"{behaviour}: {int(wrong.sum())} of {wrong.numel()} values are off by more than "
            f"{roundings} rounding(s) to {dtype}, such as {got} in place of {wanted}",
            pytrace=False,
        )


# RMSNorm.


def test_rmsnorm_matches_torch(impl):
    for shape in SHAPES:
        x, weight, _ = rows(*shape)
        with unchanged(x=x, weight=weight), forbid(*NORMALISATION):
            actual = impl.rmsnorm(x, weight, EPS)
        expected = oracle_rmsnorm(x, weight, EPS)
        assert_matches(actual, expected, f"rmsnorm of x of shape {shape}")


def test_the_level_of_a_row_stays(impl):
    # The root mean square of a row of sevens is seven.
    _, weight, _ = rows(4)
    actual = impl.rmsnorm(torch.full((3, 4), 7.0), weight, TINY)
    assert_matches(actual, weight.expand(3, 4), "rmsnorm of rows of sevens, without eps, is weight")


def test_rows_get_a_mean_square_of_one(impl):
    for d in (1, 3, 40):
        x, weight, _ = rows(5, d)
        out = impl.rmsnorm(x, torch.full_like(weight, -2.0), TINY)
        behaviour = f"the mean square of a row of {d} under a weight of -2, without eps"
        assert_matches((out**2).mean(1), torch.full((5,), 4.0), behaviour)


def test_size_of_x_cancels(impl):
    x, weight, _ = rows(6, 4)
    before = impl.rmsnorm(x, weight, EPS)
    after = impl.rmsnorm(8 * x, weight, 64 * EPS)
    assert_matches(after, before, "rmsnorm when x is 8 times and eps 64 times as large")


def test_rows_do_not_mix(impl):
    x, weight, grad_out = rows(3, 2, 4)
    together, alone = impl.rmsnorm(x, weight, EPS), impl.rmsnorm(x[1, 1], weight, EPS)
    assert_matches(together[1, 1], alone, "rmsnorm of a row beside others and alone")
    together, _ = backward(impl, grad_out, x, weight)
    alone, _ = backward(impl, grad_out[1, 1], x[1, 1], weight)
    assert_matches(together[1, 1], alone, "dx of a row beside others and alone")


def test_weight_is_a_factor(impl):
    x, weight, _ = rows(6, 4)
    before = impl.rmsnorm(x, weight, EPS)
    for factor in (2.0, -1.0, 0.0):
        behaviour = f"rmsnorm under a weight {factor:g} times as large"
        assert_matches(impl.rmsnorm(x, factor * weight, EPS), factor * before, behaviour)


def test_rows_of_zeros(impl):
    x, weight, grad_out = rows(5, 4)
    x[2] = 0.0
    for eps in (1e-6, 0.25, 1):
        out = impl.rmsnorm(x, weight, eps)
        assert_matches(out[2], x[2], f"rmsnorm of a row of zeros, eps={eps}")
        dx, _ = backward(impl, grad_out, x, weight, eps)
        expected = grad_out[2] * weight / eps**0.5
        assert_matches(dx[2], expected, f"dx of a row of zeros, eps={eps}", rtol=1e-5)


def test_eps_counts_beside_the_mean_square(impl):
    x, weight, grad_out = rows(6, 4)
    for size, eps in ((1.0, 1e-3), (1.0, 5.0), (1.0, 2), (1e-3, 0), (1e-3, 0.0), (1e-7, 1e-14)):
        small, what = size * x, f"of x of size {size:g} with eps={eps}"
        actual = impl.rmsnorm(small, weight, eps=eps)
        assert_matches(actual, oracle_rmsnorm(small, weight, eps), f"rmsnorm {what}", rtol=1e-5)
        actual = impl.rmsnorm_backward(size * grad_out, small, weight, eps=eps)
        expected = oracle_rmsnorm_backward(size * grad_out, small, weight, eps)
        tolerance = {"rtol": 1e-5, "atol": 3e-5}
        assert_all_match(actual, expected, f"the gradients {what}", **tolerance)


def test_eps_defaults_to_1e_minus_6(impl):
    x, weight, grad_out = rows(6, 4)
    x = 5e-4 * x  # mean squares of about 1e-6 too
    actual = impl.rmsnorm(x=x, weight=weight)
    assert_matches(actual, oracle_rmsnorm(x, weight), "rmsnorm with the default eps")
    actual = impl.rmsnorm_backward(grad_out=1e-3 * grad_out, x=x, weight=weight)
    expected = oracle_rmsnorm_backward(1e-3 * grad_out, x, weight)
    assert_all_match(actual, expected, "the gradients with the default eps", rtol=1e-5)


def test_rmsnorm_by_hand(impl):
    # The mean square is 27, and 27 + 9 the square of 6.
    x = torch.tensor([1.0, -7.0, 5.0, 33**0.5])
    weight = torch.tensor([6.0, 3.0, -12.0, 0.0])
    actual = impl.rmsnorm(x, weight, 9)
    expected = torch.tensor([1.0, -3.5, -10.0, 0.0])
    assert_matches(actual, expected, "rmsnorm of (1, -7, 5, sqrt(33)), eps=9")
    grad_out = torch.tensor([2.0, 0.0, 0.0, 6.0])
    dx, dweight = impl.rmsnorm_backward(grad_out, x, weight, 9)
    assert_matches(dweight, grad_out * x / 6, "dweight for (1, -7, 5, sqrt(33)), eps=9")
    # (12, 0, 0, 0) less x_hat times their mean product, which is 2 / 4; all of it over 6.
    expected = (torch.tensor([12.0, 0.0, 0.0, 0.0]) - x / 6 / 2) / 6
    assert_matches(dx, expected, "dx for (1, -7, 5, sqrt(33)), eps=9")


# Its gradients.


def test_dx_matches_autograd(impl):
    for shape in SHAPES:
        x, weight, grad_out = rows(*shape)
        with forbid(*NORMALISATION, *SLOPES), forbid_autograd():
            dx, _ = backward(impl, grad_out, x, weight)
        expected, _ = oracle_rmsnorm_backward(grad_out, x, weight, EPS)
        assert_matches(dx, expected, f"dx for x of shape {shape}")


def test_dweight_matches_autograd(impl):
    for shape in SHAPES:
        x, weight, grad_out = rows(*shape)
        _, dweight = backward(impl, grad_out, x, weight)
        _, expected = oracle_rmsnorm_backward(grad_out, x, weight, EPS)
        assert_matches(dweight, expected, f"dweight for x of shape {shape}")


def test_dx_is_orthogonal_to_x(impl):
    x, weight, grad_out = rows(6, 4)
    dx, _ = backward(impl, grad_out, x, weight, TINY)
    behaviour = "a rescaled row changes no output, so without eps the sum of dx * x is zero"
    assert_matches((dx * x).sum(1), torch.zeros(6), behaviour, atol=1e-4)


def test_dx_grows_with_weight(impl):
    x, weight, grad_out = rows(6, 4)
    before, _ = backward(impl, grad_out, x, weight)
    for factor in (2.0, -3.0, 0.0):
        after, _ = backward(impl, grad_out, x, weight * factor)
        assert_matches(after, before * factor, f"dx when weight is {factor:g} times as large")


def test_dweight_of_larger_rows(impl):
    x, weight, grad_out = rows(6, 4)
    _, before = backward(impl, grad_out, x, weight)
    _, after = backward(impl, grad_out, 8 * x, weight, 64 * EPS)
    assert_matches(after, before, "dweight when x is 8 times and eps 64 times as large")
    _, after = backward(impl, grad_out, x, 2 * weight - 1)
    assert_matches(after, before, "dweight under another weight")


# Its dtypes.


def weight_dtypes(dtype):
    """Return the dtypes that weight may have beside an x of this one."""
    return (dtype,) if dtype == torch.float32 else (dtype, torch.float32)


def test_dtypes_of_the_results(impl):
    for dtype in DTYPES:
        for other in weight_dtypes(dtype):
            x, weight, grad_out = rows(5, 4, dtype=dtype, weight_dtype=other)
            what = f"for x of {dtype} and weight of {other}"
            # Within 2 %: digits are the next test's.
            tolerance = {"rtol": 2e-2, "atol": 2e-2}
            expected = oracle_rmsnorm(x, weight, EPS)
            assert_matches(impl.rmsnorm(x, weight, EPS), expected, f"rmsnorm {what}", **tolerance)
            actual = backward(impl, grad_out, x, weight)
            expected = oracle_rmsnorm_backward(grad_out, x, weight, EPS)
            assert_all_match(actual, expected, f"the gradients {what}", **tolerance)


def test_roundings_of_half_precision(impl):
    for dtype in HALVES:
        for other in weight_dtypes(dtype):
            x, weight, grad_out = rows(500, 7, dtype=dtype, weight_dtype=other)
            what = f"for x of {dtype} and weight of {other}"
            exact = exact_rmsnorm(x, weight, EPS)
            out = impl.rmsnorm(x, weight, EPS)
            assert_rounded(out, exact, dtype, 2, f"rmsnorm {what}", slack=1e-5)
            dx, dweight = backward(impl, grad_out, x, weight)
            exact_dx, exact_dweight = exact_gradients(grad_out, x, weight, EPS)
            assert_rounded(dx, exact_dx, dtype, 1, f"dx {what}", slack=1e-5)
            assert_rounded(dweight, exact_dweight, other, 1, f"dweight {what}", slack=2e-4)


def test_statistics_are_float32(impl):
    # The roundings of many features average out in most rows, those of a row's statistics do not.
    for dtype in HALVES:
        for outlier in (0.0, 100.0):
            x, _, _ = rows(60, 1000, dtype=dtype)
            if outlier:  # its square is nearly all of the sum, and may be infinite in float16
                x[:, 0] = outlier * (1 + 4 * torch.rand(60))
            out = impl.rmsnorm(x, torch.ones(1000, dtype=dtype), EPS).double()[:, 1:]
            exact = exact_rmsnorm(x, torch.ones(1000), EPS)[:, 1:]
            error = ((out * exact).sum(1) / (exact * exact).sum(1) - 1).abs().median()
            allowed = 0.03 * torch.finfo(dtype).eps
            assert error <= allowed, (
                f"rows of 1,000 in {dtype}{', with one large number each,' if outlier else ''} "
                f"are off by a factor of 1 ± {error:.1e} as a whole, more than {allowed:.1e}"
            )


def test_x_of_every_size(impl):
    # Zero, or from 1e-7 to 1e5: float16 goes to 65,504, and is subnormal below 6e-5.
    for dtype in DTYPES:
        for size in (1.2e-7, 1e-3, 9e4 if dtype != torch.float16 else 6.5e4):
            signs = torch.tensor([[1.0, -1, 1, 1, 0], [1, 1, -1, 1, -1], [0, 1, 0, 0, 0]])
            x = (size * signs).to(dtype)
            _, weight, grad_out = rows(3, 5, dtype=dtype)
            what = f"{dtype} of size {size:g}"
            for eps in (0, 1e-14, 1e-6):
                exact = exact_rmsnorm(x, weight, eps)
                out = impl.rmsnorm(x, weight, eps)
                assert_rounded(out, exact, dtype, 2, f"rmsnorm of {what}, eps={eps}", 1e-5)
                # So that dx is no larger than about one.
                grads = (grad_out * min(1.0, size) / 8).to(dtype)
                _, dweight = impl.rmsnorm_backward(grads, x, weight, eps)
                _, exact = exact_gradients(grads, x, weight, eps)
                assert_rounded(dweight, exact, dtype, 1, f"dweight of {what}, eps={eps}", 1e-5)
                if dtype == torch.float16 and size < 1e-6:
                    continue  # where gradients of that size have no digits
                dx, _ = impl.rmsnorm_backward(grads, x, weight, eps)
                exact, _ = exact_gradients(grads, x, weight, eps)
                assert_rounded(dx, exact, dtype, 1, f"dx of {what}, eps={eps}", 1e-5)


# GELU.


def test_gelu_matches_torch(impl):
    for shape in [*SHAPES, (), (0,), (3, 0)]:
        x = 3 * torch.randn(shape, dtype=torch.float64)
        for approximate in APPROXIMATIONS:
            with unchanged(x=x), forbid("gelu", "gelu_"):
                actual = impl.gelu(x, approximate)
            expected, what = oracle_gelu(x, approximate), f"gelu of shape {shape}, {approximate!r}"
            assert_matches(actual, expected, what, rtol=1e-12, atol=1e-13)


def test_gelu_is_exact_by_default(impl):
    x = torch.linspace(-5, 5, 101)
    assert_matches(impl.gelu(x=x), oracle_gelu(x), "gelu without a word on how")
    actual = impl.gelu(x, approximate="none")
    assert_matches(actual, oracle_gelu(x), "gelu with approximate='none'")


def test_gelu_by_hand(impl):
    # Tables of the normal distribution: below -2, -1, 0, 1 and 2.
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    mass = torch.tensor([0.02275013, 0.15865525, 0.5, 0.84134475, 0.97724987])
    assert_matches(impl.gelu(x), x * mass, "gelu of (-2, -1, 0, 1, 2)")
    # 0.79788456 * 1.044715 is 0.83356197, its hyperbolic tangent 0.68238.
    actual = impl.gelu(torch.tensor([1.0, -1.0]), "tanh")
    expected = torch.tensor([0.8411920, -0.1588080])
    assert_matches(actual, expected, "gelu of (1, -1) by tanh")


def test_gelu_of_large_numbers(impl):
    for dtype in DTYPES:
        largest = torch.finfo(dtype).max / 2
        x = torch.tensor([100.0, -100.0, 3e4, -3e4, largest, -largest], dtype=dtype)
        expected = x.clamp(min=0)
        for approximate in APPROXIMATIONS:
            what = f"gelu of large numbers in {dtype}, {approximate!r}"
            actual = impl.gelu(x, approximate)
            assert_matches(actual, expected, what, rtol=1e-6)


def test_gelu_of_every_half(impl):
    for dtype in HALVES:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        x = every[every.abs() <= torch.finfo(dtype).max / 2]
        for approximate in APPROXIMATIONS:
            actual = impl.gelu(x, approximate)
            exact = F.gelu(x.double(), approximate=approximate)
            slack = 5e-7 * x.double().abs()
            what = f"gelu of every {dtype}, {approximate!r}"
            assert_rounded(actual, exact, dtype, 1, what, slack)


def test_gelu_in_float32(impl):
    x = torch.cat([torch.linspace(-8, 8, 1601), torch.tensor([1e-20, -1e-20, 1e-5, -1e-5])])
    for approximate in APPROXIMATIONS:
        exact = F.gelu(x.double(), approximate=approximate)
        actual = impl.gelu(x, approximate)
        slack = 5e-7 * x.double().abs()
        assert_rounded(actual, exact, torch.float32, 1, f"gelu in float32, {approximate!r}", slack)


def test_gelu_refuses_other_approximations(impl):
    for approximate in ("erf", "Tanh", "sigmoid", None, False):
        with refuses(f"approximate={approximate!r} in gelu", str(approximate)):
            impl.gelu(torch.ones(3), approximate)


# SwiGLU.


def test_swiglu_matches_its_formula(impl):
    for sizes in BLOCKS:
        *tensors, _ = block(*sizes)
        names = ("x", "w_gate", "w_up", "w_down")
        with unchanged(**dict(zip(names, tensors, strict=True))):
            actual = impl.swiglu(*tensors)
        what = f"swiglu with leading axes, D, H and O of {sizes}"
        assert_matches(actual, oracle_swiglu(*tensors), what, rtol=1e-10, atol=1e-10)


def test_swiglu_by_hand(impl):
    # Gates of ln 3 and 0, where the sigmoid is 3/4 and 1/2; ups of 4 and 7.
    ln3 = 1.0986122886681098
    x = torch.tensor([1.0, 2.0]).double()
    w_gate = torch.tensor([[ln3, 0.0], [2.0, -1.0]]).double()
    w_up = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    w_down = torch.tensor([[2.0, 5.0]]).double()
    actual = impl.swiglu(x=x, w_gate=w_gate, w_up=w_up, w_down=w_down)
    assert_matches(actual, torch.tensor([6 * ln3]).double(), "swiglu of gates ln 3 and 0")
    parts = impl.swiglu_backward(
        grad_out=torch.tensor([1.0]).double(), x=x, w_gate=w_gate, w_up=w_up, w_down=w_down
    )
    # The slopes of silu there are 3/4 + 3/16 ln 3 and 1/2.
    dgate = torch.tensor([2 * 4 * (0.75 + 3 / 16 * ln3), 5 * 7 * 0.5]).double()
    dup = torch.tensor([2 * 0.75 * ln3, 0.0]).double()
    expected = (
        dgate @ w_gate + dup @ w_up,
        dgate[:, None] * x,
        dup[:, None] * x,
        torch.tensor([[3 * ln3, 0.0]]).double(),
    )
    assert_all_match(parts, expected, "the gradients of gates ln 3 and 0")


def test_swiglu_is_linear_in_up_alone(impl):
    x, w_gate, w_up, w_down, _ = block((6,), 4, 5, 3)
    before = impl.swiglu(x, w_gate, w_up, w_down)
    for factor in (2.0, -3.0, 0.0):
        after = impl.swiglu(x, w_gate, factor * w_up, w_down)
        assert_matches(after, factor * before, f"swiglu with {factor:g} times w_up")


def test_swiglu_of_large_gates(impl):
    # Up to tens of thousands: silu is the gate itself, or zero.
    x = torch.tensor([[1.0], [-1.0]])
    for dtype in (torch.float32, torch.float64):
        for size in (30.0, 100.0, 800.0, 5e4):
            w_gate = torch.tensor([[size], [-size], [0.5]], dtype=dtype)
            w_up = torch.tensor([[0.5], [0.25], [-2.0]], dtype=dtype)
            w_down = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, -1.0]], dtype=dtype)
            inputs = (x.to(dtype), w_gate, w_up, w_down)
            what = f"with gates of {size:g} in {dtype}"
            expected = oracle_swiglu(*inputs).to(dtype)
            assert_matches(impl.swiglu(*inputs), expected, f"swiglu {what}")
            grad_out = torch.tensor([[1.0, -0.5], [0.25, 2.0]], dtype=dtype)
            expected = oracle_swiglu_backward(grad_out, *inputs)
            actual = block_backward(impl, grad_out, *inputs)
            assert_all_match(actual, expected, f"the gradients {what}")


def assert_block_gradient(impl, part, name):
    for sizes in BLOCKS:
        *tensors, grad_out = block(*sizes)
        with forbid(*SLOPES), forbid_autograd():
            actual = block_backward(impl, grad_out, *tensors)
        assert isinstance(actual, tuple), f"swiglu_backward returns a {type(actual).__name__}"
        assert len(actual) == 4, f"swiglu_backward returns {len(actual)} gradients, not 4"
        expected = oracle_swiglu_backward(grad_out, *tensors)
        what = f"{name} with leading axes, D, H and O of {sizes}"
        assert_matches(actual[part], expected[part], what, rtol=1e-9, atol=1e-9)


def test_dx_of_the_block_matches_autograd(impl):
    assert_block_gradient(impl, 0, "dx")


def test_dw_gate_matches_autograd(impl):
    assert_block_gradient(impl, 1, "dw_gate")


def test_dw_up_matches_autograd(impl):
    assert_block_gradient(impl, 2, "dw_up")


def test_dw_down_matches_autograd(impl):
    assert_block_gradient(impl, 3, "dw_down")


def test_closed_gates_pass_the_slope_of_one_half(impl):
    # Where the gate is zero, silu is zero and its slope 1/2, and nothing reaches w_up and w_down.
    x, w_gate, w_up, w_down, grad_out = block((6,), 4, 5, 3)
    w_gate = torch.zeros_like(w_gate)
    dx, dw_gate, dw_up, dw_down = block_backward(impl, grad_out, x, w_gate, w_up, w_down)
    assert_matches(dx, torch.zeros_like(x), "dx where every gate is zero")
    assert_matches(dw_up, torch.zeros_like(w_up), "dw_up where every gate is zero")
    assert_matches(dw_down, torch.zeros_like(w_down), "dw_down where every gate is zero")
    expected = torch.einsum("no,oh,nh,nd->hd", grad_out, w_down, x @ w_up.T, x) / 2
    assert_matches(dw_gate, expected, "dw_gate where every gate is zero")


def test_up_and_down_pull_equally(impl):
    # The output doubles with w_up, and with w_down: so <w, dw> is <out, grad_out> for both.
    x, w_gate, w_up, w_down, grad_out = block((6,), 4, 5, 3)
    _, _, dw_up, dw_down = block_backward(impl, grad_out, x, w_gate, w_up, w_down)
    expected = (oracle_swiglu(x, w_gate, w_up, w_down) * grad_out).sum()
    for name, weight, gradient in (("up", w_up, dw_up), ("down", w_down, dw_down)):
        behaviour = f"the sum of w_{name} * dw_{name}, which is that of the output * its gradient"
        assert_matches((weight * gradient).sum(), expected, behaviour)


def test_swiglu_in_float32(impl):
    *tensors, grad_out = block((2, 3), 5, 7, 4, torch.float32)
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    expected = oracle_swiglu(*tensors).float()
    assert_matches(impl.swiglu(*tensors), expected, "swiglu in float32", **tolerance)
    actual = impl.swiglu_backward(grad_out, *tensors)
    expected = oracle_swiglu_backward(grad_out, *tensors)
    assert_all_match(actual, expected, "the gradients of swiglu in float32", **tolerance)


# What must hold of every function.


def calls(impl):
    """Yield each function with its name, the oracle, and a word on its keyword."""
    for name, oracle in ORACLES.items():
        yield name, getattr(impl, name), oracle
    yield "gelu", partial(impl.gelu, approximate="tanh"), partial(oracle_gelu, approximate="tanh")


def test_calls_do_not_disturb_each_other(impl):
    for leading in ((5,), ()):
        for name, call, oracle in calls(impl):
            inputs = partial(arguments, name, leading)
            assert_repeatable(call, inputs, oracle, f"{name} with leading axes {leading}")


def test_each_argument_in_any_layout(impl):
    for leading in ((5,), (2, 3)):
        for name, call, oracle in calls(impl):
            inputs = arguments(name, leading, d=4, h=6, o=7)
            assert_any_layout(call, inputs, oracle(*inputs), name)


def test_expanded_arguments(impl):
    for name, call, oracle in calls(impl):
        inputs = arguments(name, (2, 5))
        for place, argument in enumerate(inputs):
            for axis in range(argument.ndim):
                expanded = argument.narrow(axis, 0, 1).expand(argument.shape)
                mixed = [*inputs[:place], expanded, *inputs[place + 1 :]]
                behaviour = f"{name} with argument {place + 1} expanded along axis {axis}"
                with unchanged(expanded=expanded):
                    actual = call(*mixed)
                assert_all_match(actual, oracle(*mixed), behaviour, rtol=1e-5)


def test_any_mode(impl):
    for name, call, oracle in calls(impl):
        inputs = arguments(name)
        assert_any_mode(call, inputs, oracle(*inputs), name)
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)):
        x, weight, grad_out = rows(5, 4, dtype=dtype, weight_dtype=torch.float32)
        for name, inputs in (("rmsnorm", (x, weight)), ("rmsnorm_backward", (grad_out, x, weight))):
            eps = 3.3  # 3.3008 in float16
            expected = ORACLES[name](*inputs, eps)
            call, what = partial(getattr(impl, name), eps=eps), f"{name} of {dtype}"
            assert_any_mode(call, inputs, expected, what, rtol=rtol)


def test_one_tensor_for_several_arguments(impl):
    x, _, _ = rows(7)
    with unchanged(x=x):
        actual = impl.rmsnorm(x, x, EPS)
        assert_matches(actual, oracle_rmsnorm(x, x, EPS), "rmsnorm of one tensor twice")
        actual = impl.rmsnorm_backward(x, x, x, EPS)
    expected = oracle_rmsnorm_backward(x, x, x, EPS)
    assert_all_match(actual, expected, "rmsnorm_backward of one tensor three times")
    square, _, _, _, _ = block((4,), 4, 4, 4)
    with unchanged(square=square):
        actual = impl.swiglu(square, square, square, square)
        expected = oracle_swiglu(square, square, square, square)
        assert_matches(actual, expected, "swiglu of one tensor four times")
        actual = impl.swiglu_backward(square, square, square, square, square)
    expected = oracle_swiglu_backward(square, square, square, square, square)
    assert_all_match(actual, expected, "swiglu_backward of one tensor five times")


def test_many_rows_and_many_features(impl):
    for leading, d in (((3,), 1500), ((66000,), 2), ((2,), 66000)):
        for name, oracle in ORACLES.items():
            call, inputs = (
                getattr(impl, name),
                arguments(name, leading, d, *((3, 5) if d < 10 else (2, 3))),
            )
            # Sums of so many float32 numbers.
            atol = 5e-2 if name == "rmsnorm_backward" else 1e-4
            actual, what = call(*inputs), f"{name} with leading axes {leading} and D={d}"
            assert_all_match(actual, oracle(*inputs), what, rtol=1e-4, atol=atol)


def test_many_hidden_units(impl):
    *tensors, grad_out = block((3,), 2, 3000, 4)
    expected = oracle_swiglu(*tensors)
    assert_matches(impl.swiglu(*tensors), expected, "swiglu with H=3000")
    *tensors, grad_out = block((3,), 2, 4, 3000)
    expected = oracle_swiglu_backward(grad_out, *tensors)
    actual = impl.swiglu_backward(grad_out, *tensors)
    assert_all_match(actual, expected, "swiglu_backward with O=3000")


# Through autograd.


def test_autograd_through_rmsnorm(impl):
    def oracle(x, weight):
        return F.rms_norm(x.double(), (5,), weight.double(), EPS).float()

    for asking in (["x"], ["weight"], ["x", "weight"]):
        x, weight, _ = rows(2, 3, 5)
        call, inputs = partial(impl.rmsnorm, eps=EPS), {"x": x, "weight": weight}
        assert_gradients_reach(call, oracle, inputs, asking, "rmsnorm")


def test_autograd_through_rmsnorm_in_half_precision(impl):
    for dtype in HALVES:
        x, weight, grad_out = rows(3, 5, dtype=dtype, weight_dtype=torch.float32)
        x.requires_grad_(), weight.requires_grad_()
        actual = gradients(impl.rmsnorm(x, weight, EPS), (x, weight), grad_out)
        expected = oracle_rmsnorm_backward(grad_out, x, weight, EPS)
        what = f"autograd through rmsnorm of {dtype}"
        assert_all_match(actual, expected, what, rtol=5e-2, atol=5e-2)


def test_autograd_through_gelu(impl):
    for approximate in APPROXIMATIONS:
        for x in (2 * torch.randn(5, 4, dtype=torch.float64), torch.zeros(1, 3).double()):
            call = partial(impl.gelu, approximate=approximate)
            oracle = partial(F.gelu, approximate=approximate)
            assert_gradients_reach(call, oracle, {"x": x}, ["x"], f"gelu, {approximate!r}")
        for dtype in HALVES:
            x = (2 * torch.randn(20)).to(dtype).requires_grad_()
            wide, grad_out = x.detach().double().requires_grad_(), torch.randn(20).to(dtype)
            (actual,) = gradients(impl.gelu(x, approximate), [x], grad_out)
            (exact,) = gradients(F.gelu(wide, approximate=approximate), [wide], grad_out.double())
            what = f"autograd through gelu of {dtype}, {approximate!r}"
            assert_matches(actual, exact.to(dtype), what, rtol=2e-2, atol=2e-2)


def test_autograd_through_swiglu(impl):
    names = ("x", "w_gate", "w_up", "w_down")
    for asking in ([name] for name in names):
        inputs = dict(zip(names, arguments("swiglu", (2, 3)), strict=True))
        assert_gradients_reach(impl.swiglu, oracle_swiglu, inputs, asking, "swiglu")
    inputs = dict(zip(names, arguments("swiglu"), strict=True))
    assert_gradients_reach(impl.swiglu, oracle_swiglu, inputs, list(names), "swiglu")
