import math

import pytest
import torch
import torch.nn.functional as F

from dojo.testing import (
    SILU,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    layouts,
    unchanged,
)

# No two axes of a shape are equal; a number alone and a tensor without any come last.
SHAPES = [(3, 5), (1, 6), (6, 1), (4, 3, 5), (9,), (), (0, 3)]
SHAPE = (3, 5)
# Where a tensor of that shape may lie: the shape of a larger one, and the part of it.
VIEWS = [
    ("rows 2 to 4 of a taller tensor", (7, 5), lambda base: base[2:5]),
    ("every other row of a taller tensor", (7, 5), lambda base: base[1::2]),
    ("every other column of a wider tensor", (3, 11), lambda base: base[:, 1::2]),
    ("a window on a larger tensor", (6, 9), lambda base: base[2:5, 3:8]),
    ("a transposed tensor", (5, 3), lambda base: base.T),
    ("one slice of the last axis", (3, 5, 4), lambda base: base[..., 2]),
]
LO, HI = -0.75, 1.5
WRITERS = ["silu", "copy_into", "clamp_add"]
# Room for four roundings, as in x / (1 + exp(-x)), each to a float16 or bfloat16.
DTYPES = [
    (torch.float64, 1e-12, 1e-12),
    (torch.float32, 1e-5, 1e-5),
    (torch.float16, 4e-3, 1e-3),
    (torch.bfloat16, 3e-2, 1e-2),
]
# Neither is a number that a function here returns by chance.
POISON, NEIGHBOUR = torch.nan, 777.0


def numbers(*shape, dtype=torch.float32):
    """Numbers on both sides of 0 and of both bounds."""
    return (2 * torch.randn(shape, dtype=torch.float64)).to(dtype)


def poisoned(x):
    """A contiguous place for a result of the shape and dtype of `x`."""
    return torch.full(x.shape, POISON, dtype=x.dtype)


def write(impl, name, x, y, out):
    """Call a function that writes into `out`; only clamp_add looks at `y`."""
    args = (x, y, LO, HI, out) if name == "clamp_add" else (x, out)
    getattr(impl, name)(*args)


def expected_of(name, x, y):
    """What the function writes, of inputs cloned before the call."""
    exact, other = x.double(), y.double()
    if name == "silu":
        return F.silu(exact).to(x.dtype)
    if name == "copy_into":
        return x.clone()
    return (exact + other).clamp(LO, HI).to(x.dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_functional_matches_torch(impl, shape):
    x = numbers(*shape)
    before = x.clone()
    actual = impl.silu_functional(x)
    assert_matches(actual, F.silu(before), f"silu_functional of a {shape} tensor")


def test_functional_leaves_x_alone(impl):
    x = numbers(3, 5)
    with unchanged(x=x):
        result = impl.silu_functional(x)
        assert isinstance(result, torch.Tensor), "silu_functional returns a tensor"
        result.fill_(7.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_silu_matches_torch(impl, shape):
    x = numbers(*shape)
    expected, out = F.silu(x), poisoned(x)
    with forbid(*SILU):
        impl.silu(x, out)
    assert_matches(out, expected, f"out after silu of a {shape} tensor")


def test_silu_by_hand(impl):
    out = torch.full((5,), POISON)
    impl.silu(torch.tensor([-20.0, -1.0, 0.0, 1.0, 20.0]), out=out)
    expected = torch.tensor([-4.122e-8, -0.26894143, 0.0, 0.73105860, 20.0])
    assert_matches(out, expected, "out after silu of (-20, -1, 0, 1, 20)")


def test_silu_of_large_numbers(impl):
    x = torch.tensor([-1e4, -300.0, 300.0, 1e4])
    out = poisoned(x)
    impl.silu(x, out)
    expected = torch.tensor([0.0, 0.0, 300.0, 1e4])
    assert_matches(out, expected, "out after silu of (-10,000, -300, 300, 10,000)")


def test_silu_of_every_magnitude(impl):
    for dtype, rtol, atol in DTYPES:
        limits = torch.finfo(dtype)
        exponents = torch.arange(math.log2(limits.tiny), math.log2(limits.max) // 1)
        x = torch.cat([2.0 ** exponents.double(), -(2.0 ** exponents.double())]).to(dtype)
        out = poisoned(x)
        impl.silu(x, out)
        expected = F.silu(x.double()).to(dtype)
        assert_matches(out, expected, f"silu of powers of two in {dtype}", rtol=rtol, atol=atol)


def test_silu_leaves_x_alone(impl):
    x = numbers(3, 5)
    with unchanged(x=x):
        impl.silu(x, poisoned(x))


def test_silu_in_place(impl):
    x = numbers(3, 5)
    expected = F.silu(x)
    impl.silu(x, x)
    assert_matches(x, expected, "x after silu(x, x)")


@pytest.mark.parametrize("shape", SHAPES)
def test_copy_has_the_values(impl, shape):
    x = numbers(*shape)
    out = poisoned(x)
    with unchanged(x=x):
        impl.copy_into(x, out)
    assert_matches(out, x, f"out after copy_into of a {shape} tensor", rtol=0, atol=0)


def test_copy_shares_nothing_with_x(impl):
    x = numbers(3, 5)
    expected, out = x.clone(), poisoned(x)
    impl.copy_into(x, out=out)
    x.fill_(NEIGHBOUR)
    assert_matches(out, expected, "out of copy_into once x has been overwritten", rtol=0, atol=0)


def test_copy_takes_nan_and_infinities(impl):
    x = torch.tensor([1.5, torch.nan, torch.inf, -torch.inf, 0.0])
    out = torch.full((5,), 3.0)
    impl.copy_into(x, out)
    assert_matches(out, x, "out after copy_into of NaN and infinities")


def test_copy_keeps_the_sign_of_zero(impl):
    x = torch.tensor([-0.0, 0.0, -0.0, 0.0])
    out = torch.tensor([0.0, -0.0, -0.0, 0.0])
    impl.copy_into(x, out)
    signs = out.signbit().tolist()
    assert signs == x.signbit().tolist(), f"copy_into of -0.0, 0.0, -0.0, 0.0: negative is {signs}"


def test_copy_into_itself(impl):
    x = numbers(3, 5)
    with unchanged(x=x):
        impl.copy_into(x, x)


@pytest.mark.parametrize("shape", SHAPES)
def test_clamp_add_matches_torch(impl, shape):
    x, y = numbers(*shape), numbers(*shape)
    expected, out = torch.clamp(x + y, LO, HI), poisoned(x)
    impl.clamp_add(x, y, LO, HI, out)
    assert_matches(out, expected, f"out after clamp_add of {shape} tensors")


def test_clamp_add_by_hand(impl):
    x, y = torch.tensor([1.0, 4.0, -3.0, 4.0, 0.25]), torch.tensor([0.5, 3.0, -2.0, -3.5, 0.5])
    out = torch.full((5,), POISON)
    impl.clamp_add(x=x, y=y, lo=-1, hi=2, out=out)
    expected = torch.tensor([1.5, 2.0, -1.0, 0.5, 0.75])
    assert_matches(out, expected, "out after clamp_add with the bounds -1 and 2")


def test_clamp_add_keeps_to_its_bounds(impl):
    # Every sum is outside, so nothing else will do.
    x = torch.tensor([5.0, -5.0, 3.0, -3.0])
    out = poisoned(x)
    impl.clamp_add(x, 2 * x, LO, HI, out)
    expected = torch.tensor([HI, LO, HI, LO])
    assert_matches(out, expected, f"out after clamp_add of sums beyond {LO} and {HI}")


def test_clamp_add_leaves_sums_between_its_bounds(impl):
    x, y = numbers(3, 5), numbers(3, 5)
    expected, out = x + y, poisoned(x)
    impl.clamp_add(x, y, -100.0, 100.0, out)
    assert_matches(out, expected, "out after clamp_add with the bounds -100 and 100")


def test_clamp_add_at_both_ends_of_a_dtype(impl):
    for dtype, *_ in DTYPES:
        limits = torch.finfo(dtype)
        large, small = limits.max, limits.smallest_normal * limits.eps
        x = torch.tensor([0.875 * large, -0.875 * large, small, -3 * small, small], dtype=dtype)
        y = torch.tensor([-0.625 * large, 0.625 * large, small, small, -2 * small], dtype=dtype)
        expected, out = x + y, poisoned(x)
        impl.clamp_add(x, y, -large, large, out)
        what = f"clamp_add of the largest and the smallest numbers in {dtype}"
        assert_matches(out, expected, what, rtol=0, atol=0)


def test_clamp_add_leaves_x_and_y_alone(impl):
    x, y = numbers(3, 5), numbers(3, 5)
    with unchanged(x=x, y=y):
        impl.clamp_add(x, y, LO, HI, poisoned(x))


# Every sum lies within the bounds in the next four tests: only where things are read and written
# is at stake.


def test_clamp_add_into_x(impl):
    x, y = numbers(3, 5), numbers(3, 5)
    expected = x + y
    with unchanged(y=y):
        impl.clamp_add(x, y, -100.0, 100.0, x)
    assert_matches(x, expected, "x after clamp_add into x")


def test_clamp_add_into_y(impl):
    x, y = numbers(3, 5), numbers(3, 5)
    expected = x + y
    with unchanged(x=x):
        impl.clamp_add(x, y, -100.0, 100.0, y)
    assert_matches(y, expected, "y after clamp_add into y")


def test_clamp_add_of_one_tensor_twice(impl):
    x = numbers(3, 5)
    expected, out = 2 * x, poisoned(x)
    with unchanged(x=x):
        impl.clamp_add(x, x, -100.0, 100.0, out)
    assert_matches(out, expected, "out after clamp_add of x and x")


def test_clamp_add_of_one_tensor_into_itself(impl):
    x = numbers(3, 5)
    expected = 2 * x
    impl.clamp_add(x, x, -100.0, 100.0, x)
    assert_matches(x, expected, "x after clamp_add of x and x into x")


@pytest.mark.parametrize("name", WRITERS)
def test_none_is_returned(impl, name):
    x, y = numbers(3, 5), numbers(3, 5)
    args = (x, y, LO, HI) if name == "clamp_add" else (x,)
    result = getattr(impl, name)(*args, out=poisoned(x))
    assert result is None, f"{name} should return None and returns {type(result).__name__}"


@pytest.mark.parametrize("name", WRITERS)
def test_out_may_be_a_view(impl, name):
    for where, base_shape, part_of in VIEWS:
        x, y = numbers(*SHAPE), numbers(*SHAPE)
        wanted = expected_of(name, x, y)
        base = torch.full(base_shape, NEIGHBOUR)
        out = part_of(base)
        out.fill_(POISON)
        write(impl, name, x, y, out)
        assert_matches(part_of(base), wanted, f"what {name} writes into {where}")
        neighbours = torch.full(base_shape, NEIGHBOUR)
        part_of(neighbours).copy_(part_of(base))
        assert_matches(base, neighbours, f"the neighbours of out, {where}, after {name}")


@pytest.mark.parametrize("name", WRITERS)
def test_out_keeps_its_place_in_memory(impl, name):
    x, y = numbers(*SHAPE), numbers(*SHAPE)
    for where, base_shape, part_of in VIEWS:
        out = part_of(torch.full(base_shape, POISON))
        address, strides = out.data_ptr(), out.stride()
        write(impl, name, x, y, out)
        assert out.stride() == strides, (
            f"after {name} into {where}, out has the strides {out.stride()}, not {strides}"
        )
        assert out.data_ptr() == address, f"after {name} into {where}, out is elsewhere in memory"


@pytest.mark.parametrize("name", WRITERS)
def test_inputs_of_any_layout(impl, name):
    y = numbers(4, 3, 5)
    for layout, x in layouts(numbers(4, 3, 5)):
        wanted, out = expected_of(name, x, y), poisoned(y)
        with unchanged(x=x, y=y):
            write(impl, name, x, y, out)
        assert_matches(out, wanted, f"out after {name} of an x that is {layout}")
    for layout, strided in layouts(y):
        x, out = numbers(4, 3, 5), poisoned(y)
        wanted = expected_of(name, x, strided)
        write(impl, name, x, strided, out)
        assert_matches(out, wanted, f"out after {name} with a y that is {layout}")


@pytest.mark.parametrize("name", WRITERS)
def test_an_expanded_input(impl, name):
    x, y = numbers(5).expand(3, 5), numbers(3, 1).expand(3, 5)
    wanted, out = expected_of(name, x, y), torch.full((3, 5), POISON)
    with unchanged(x=x, y=y):
        write(impl, name, x, y, out)
    assert_matches(out, wanted, f"out after {name} of expanded tensors")


@pytest.mark.parametrize("name", WRITERS)
def test_a_view_may_be_written_in_place(impl, name):
    for where, base_shape, part_of in VIEWS:
        base = numbers(*base_shape)
        x, y = part_of(base), numbers(*SHAPE)
        expected = base.clone()
        part_of(expected).copy_(expected_of(name, x, y))
        write(impl, name, x, y, x)
        assert_matches(base, expected, f"the whole tensor after {name} in place, {where}")


@pytest.mark.parametrize("name", WRITERS)
def test_x_and_out_may_be_parts_of_one_tensor(impl, name):
    base, y = numbers(3, 10), numbers(3, 5)
    expected = base.clone()
    expected[:, 1::2] = expected_of(name, base[:, ::2], y)
    write(impl, name, base[:, ::2], y, base[:, 1::2])
    assert_matches(base, expected, f"even and odd columns after {name} of the even into the odd")


@pytest.mark.parametrize(("dtype", "rtol", "atol"), DTYPES)
@pytest.mark.parametrize("name", WRITERS)
def test_every_dtype(impl, name, dtype, rtol, atol):
    x, y = numbers(4, 3, 5, dtype=dtype), numbers(4, 3, 5, dtype=dtype)
    wanted = expected_of(name, x, y)
    out = poisoned(x)
    with unchanged(x=x, y=y):
        write(impl, name, x, y, out)
    assert_matches(out, wanted, f"out after {name} in {dtype}", rtol=rtol, atol=atol)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), DTYPES)
def test_functional_keeps_the_dtype(impl, dtype, rtol, atol):
    x = numbers(4, 3, 5, dtype=dtype)
    wanted = F.silu(x.double()).to(dtype)
    actual = impl.silu_functional(x)
    assert_matches(actual, wanted, f"silu_functional in {dtype}", rtol=rtol, atol=atol)


FUNCTIONS = [*WRITERS, "silu_functional"]


def result_of(impl, name, x, y):
    """Return what the function returns, or writes into a tensor of its own."""
    if name == "silu_functional":
        return impl.silu_functional(x)
    out = torch.full(x.shape, POISON, dtype=x.dtype)
    write(impl, name, x, y, out)
    return out


@pytest.mark.parametrize("name", FUNCTIONS)
def test_calls_in_any_layout_and_mode(impl, name):
    def inputs():
        return numbers(4, 3, 5), numbers(4, 3, 5)

    def expected(x, y):
        return expected_of("silu" if name == "silu_functional" else name, x, y)

    def call(x, y):
        return result_of(impl, name, x, y)

    assert_repeatable(call, inputs, expected, name)
    values = inputs()
    assert_any_layout(call, values, expected(*values), name)
    assert_any_mode(call, values, expected(*values), name)


@pytest.mark.parametrize("shape", [(3, 1500), (66000, 2), (2, 66000)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_large_tensors(impl, name, shape):
    x, y = numbers(*shape), numbers(*shape)
    expected = expected_of("silu" if name == "silu_functional" else name, x, y)
    assert_matches(result_of(impl, name, x, y), expected, f"{name} of shape {shape}")


@pytest.mark.parametrize(
    ("lo", "hi"),
    [(0, 1.5), (0.0, 1.5), (-0.75, 0), (-0.75, 0.0), (0, 0), (-2, -1), (1, 2), (0.5, 0.5)],
)
def test_bounds_of_any_sign(impl, lo, hi):
    x, y = numbers(33), numbers(33)
    out = poisoned(x)
    impl.clamp_add(x, y, lo, hi, out)
    expected = torch.maximum(torch.minimum(x + y, torch.tensor(float(hi))), torch.tensor(float(lo)))
    assert_matches(out, expected, f"out after clamp_add with the bounds {lo} and {hi}")


@pytest.mark.parametrize("dtype", [dtype for dtype, _, _ in DTYPES])
def test_the_edge_of_the_range(impl, dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, -largest, largest, 0.0], dtype=dtype)
    y = torch.tensor([largest, -largest, -largest, -0.0], dtype=dtype)
    for bound in (1.5, largest):
        out = poisoned(x)
        impl.clamp_add(x, y, -bound, bound, out)
        expected = torch.tensor([bound, -bound, 0.0, 0.0], dtype=dtype)
        behaviour = f"out after clamp_add of the largest {dtype}, bounds {bound:g} either way"
        assert_matches(out, expected, behaviour, rtol=0, atol=0)
    out = poisoned(x)
    impl.silu(x, out)
    expected = torch.tensor([largest, 0.0, largest, 0.0], dtype=dtype)
    assert_matches(out, expected, f"out after silu of the largest {dtype}", rtol=1e-2, atol=0)
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([largest, -largest, tiny, -tiny, 0.0, -0.0], dtype=dtype)
    out = poisoned(x)
    impl.copy_into(x, out)
    assert_matches(out, x, f"out after copy_into of the edges of {dtype}", rtol=0, atol=0)
    assert torch.equal(out.signbit(), x.signbit()), "copy_into loses the sign of a zero"


def test_silu_of_small_results(impl):
    x = torch.tensor([-60.0, -30.0, -20.0, -1e-20, 1e-20, 1e-10], dtype=torch.float32)
    for name in ("silu", "silu_functional"):
        actual, expected = result_of(impl, name, x, x), F.silu(x.double()).float()
        assert_matches(actual, expected, f"{name} of numbers with small results", rtol=1e-4, atol=0)
