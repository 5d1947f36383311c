from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dojo.kernels import DEVICE, guarded, need_gpu_memory, room, run, speed
from dojo.testing import (
    SILU,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    layouts,
)

# What the brief allows: 1e-5 in float32 work, and for float16 one unit in the last place of
# ordinary numbers and of the smallest ones, as float32 may end on either side of a tie.
TOLERANCES = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-30},
    torch.float16: {"rtol": 1e-3, "atol": 6e-8},
}
DTYPES = list(TOLERANCES)
# No two axes of a shape are equal; a number alone comes last.
SHAPES = [(3, 5), (1, 6), (6, 1), (4, 3, 5), (2, 5, 3, 7), (9,), (1,), ()]
# One, blocks of any usual size, and one more; blocks of any usual size end inside the last.
LENGTHS = [
    (1, torch.float16),
    (4096, torch.float32),
    (4097, torch.float16),
    (20_001, torch.float32),
]
# Neither axis is a multiple of a usual tile's, and either may be the long one.
MATRICES = [(65, 129), (130, 3)]


def numbers(*shape, dtype=torch.float32):
    """Numbers of both signs, a few of them large."""
    return (3 * torch.randn(shape, dtype=torch.float64)).to(dtype)


def exact(x):
    """Return torch's own result, worked out in float64 and rounded once."""
    return F.silu(x.double()).to(x.dtype)


def assert_silu(actual, x, behaviour):
    """Compare with torch's operator in float64."""
    assert_matches(actual, exact(x), behaviour, **TOLERANCES[x.dtype])


def check_into(impl, x, out, behaviour):
    """Let `silu_into` write into a poisoned, guarded tensor of the strides of `out`."""
    with guarded() as memory:
        target = memory.poisoned(out)
        result = impl.silu_into(memory.place(x), target)
    assert result is None, f"silu_into should return None and returns {type(result).__name__}"
    assert_silu(target, x, f"out after silu_into, {behaviour}")


def scattered(x):
    """Return the same values with strides that fit no tensor of fewer axes.

    They are every other row, column and so on of a larger tensor, first and last axis exchanged.
    """
    larger = torch.zeros([2 * size + 1 for size in x.transpose(0, -1).shape], dtype=x.dtype)
    return larger.transpose(0, -1)[(slice(1, None, 2),) * x.ndim].copy_(x)


def strided(x):
    """Return the same values in every layout there is here but a contiguous one, by name."""
    return [*list(layouts(x))[1:], ("scattered", scattered(x))]


def on_device(*shape, dtype=torch.float32):
    """Positional arguments of `silu`."""
    return [numbers(*shape, dtype=dtype).to(DEVICE)]


def into(impl):
    """Return `silu_into` as a function that returns what it has written."""

    def call(x):
        out = torch.full(x.shape, torch.nan, dtype=x.dtype, device=x.device)
        impl.silu_into(x, out)
        return out

    return call


def check_room(call, x, name):
    """Fail if there are fewer programs than the elements of `x` need."""
    most = room(call, x.numel())
    assert most >= x.numel(), (
        f"{name} of shape {tuple(x.shape)} writes {x.numel():,} elements: "
        f"the programs that are launched can write {most:,} at most"
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_matches_torch(impl, dtype):
    for shape in SHAPES[DTYPES.index(dtype) :: 2]:
        x = numbers(*shape, dtype=dtype)
        with forbid(*SILU, "sigmoid", "exp"):
            actual = run(impl.silu, x)
        assert_silu(actual, x, f"silu of a {shape} tensor, {dtype}")


def test_silu_by_hand(impl):
    x = torch.tensor([-20.0, -1.0, 0.0, 1.0, 20.0])
    expected = torch.tensor([-4.1223072e-8, -0.26894142, 0.0, 0.73105858, 20.0])
    actual = run(impl.silu, x=x)
    assert_matches(actual, expected, "silu of (-20, -1, 0, 1, 20)", **TOLERANCES[x.dtype])


@pytest.mark.parametrize("length", [5, 4095])
def test_nothing_behind_the_last_element_is_written(impl, length):
    x = numbers(length)
    check_into(impl, x, torch.empty(length), f"{length} numbers")


@pytest.mark.parametrize(("length", "dtype"), LENGTHS)
def test_tensors_of_any_length(impl, length, dtype):
    x = numbers(length, dtype=dtype)
    assert_silu(run(impl.silu, x), x, f"silu of {length} numbers, {dtype}")


@pytest.mark.parametrize("shape", MATRICES)
def test_strided_matrices_of_any_size(impl, shape):
    rows, columns = shape
    x = numbers(rows, columns + 4)[:, 3:-1]
    assert_silu(run(impl.silu, x), x, f"silu of {shape}, columns of a wider matrix")
    check_into(impl, x, torch.empty(columns, rows).T, f"{shape}, x strided and out transposed")


def test_x_of_any_layout(impl):
    x = numbers(7, 5)
    call, tolerance = partial(run, impl.silu), TOLERANCES[x.dtype]
    assert_any_layout(call, [x], exact(x), "silu of a (7, 5) tensor", **tolerance)
    for layout, x in strided(numbers(7, 5)):
        check_into(impl, x, torch.empty(7, 5), f"a (7, 5) x that is {layout}")
    for layout, x in strided(numbers(4, 3, 5)):
        assert_silu(run(impl.silu, x), x, f"silu of a (4, 3, 5) tensor that is {layout}")
    for layout, x in strided(numbers(2, 5, 3, 7)):
        check_into(impl, x, torch.empty(2, 5, 3, 7), f"a (2, 5, 3, 7) x that is {layout}")


def test_x_of_rows_far_apart(impl):
    x = numbers(9, 40)[:, :5]
    assert_silu(run(impl.silu, x), x, "silu of the first 5 columns of 40")


def test_expanded_x(impl):
    column = numbers(3, 5)[:, 2:3]
    for x in [numbers(5).expand(3, 5), column.expand(3, 5), numbers(1).expand(7)]:
        shape = tuple(x.shape)
        assert_silu(run(impl.silu, x), x, f"silu of {shape} numbers, strides {x.stride()}")
        check_into(impl, x, torch.empty(shape), f"{shape} numbers, strides {x.stride()}")


def test_rows_as_far_apart_in_out_as_in_x(impl):
    wide, out = numbers(3, 10), torch.empty(3, 10)
    check_into(impl, wide[:, ::2], out[:, :5], "x every other column and out the first half")
    check_into(impl, wide[:, :5], out[:, ::2], "x the first half and out every other column")


def test_interleaved_rows(impl):
    windows = numbers(30).as_strided((3, 5), (5, 2))
    check_into(impl, windows, torch.empty(3, 10)[:, :5], "x of windows that overlap")
    x = numbers(60).as_strided((5, 2, 4), (8, 3, 2))
    check_into(impl, x, x, f"x and out with strides {x.stride()}")


def test_axes_of_one_with_any_stride(impl):
    x = numbers(30).as_strided((2, 1, 3, 1, 5), (15, 7, 5, 9, 1))
    assert_silu(run(impl.silu, x), x, f"silu of a {tuple(x.shape)} tensor, strides {x.stride()}")
    check_into(impl, x, torch.empty(x.shape), f"a {tuple(x.shape)} x, strides {x.stride()}")


def test_out_is_a_strided_matrix(impl):
    x = numbers(7, 5)
    places = {
        "transposed": torch.empty(5, 7).T,
        "every other row of a taller matrix": torch.empty(14, 5)[::2],
        "every other column of a wider matrix": torch.empty(7, 11)[:, 1::2],
        "a window on a larger matrix": torch.empty(10, 12)[2:9, 4:9],
        "one slice of a last axis": torch.empty(7, 5, 4)[..., 2],
    }
    for i, (where, out) in enumerate(places.items()):
        dtype = DTYPES[i % 2]
        check_into(impl, x.to(dtype), out.to(dtype), f"{dtype} out that is {where}")
    check_into(impl, numbers(9), torch.empty(9, 4)[:, 1], "out that is a column")


def test_out_of_more_axes(impl):
    x = numbers(4, 3, 5)
    for layout, out in strided(x):
        check_into(impl, x, out, f"a (4, 3, 5) out that is {layout}")
    x = scattered(numbers(2, 5, 3, 7))
    for layout, out in strided(x):
        check_into(impl, x, out, f"x scattered, a (2, 5, 3, 7) out that is {layout}")


def test_out_may_be_x(impl):
    for shape in [(9,), (4, 3, 5)]:
        for layout, x in [*layouts(numbers(*shape)), ("scattered", scattered(numbers(*shape)))]:
            with guarded() as memory:
                target = memory.place(x, "x, which is out", written=True)
                impl.silu_into(x=target, out=target)
            assert_silu(target, x, f"x after silu_into(x, x), {shape} and {layout}")


def test_x_and_out_may_be_parts_of_one_tensor(impl):
    both = numbers(6, 10)
    with guarded() as memory:
        target = memory.place(both, "the tensor that holds x and out", written=True)
        impl.silu_into(target[:, ::2], target[:, 1::2])
    assert_silu(target[:, 1::2], both[:, ::2], "odd columns after silu_into of the even columns")
    assert_matches(target[:, ::2], both[:, ::2], "even columns after that", rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_numbers(impl, dtype):
    most = torch.finfo(dtype).max
    x = torch.tensor([-6e4, -1e3, -120.0, -88.0, 88.0, 120.0, 1e3, 6e4, most, -most], dtype=dtype)
    assert_silu(run(impl.silu, x), x, f"silu of numbers as large as {dtype} holds")


def test_float16_of_very_negative_numbers(impl):
    # The sigmoid of these is one of the smallest float16 numbers, or none; their SiLU is not.
    x = torch.arange(-18, -9, 1 / 64, dtype=torch.float16)
    assert_silu(run(impl.silu, x), x, "silu of float16 numbers from -18 to -9")


def test_float16_is_rounded_once(impl):
    # Half a unit in the last place, and what float32 may be off by.
    x = torch.arange(-18, 18, 1 / 64, dtype=torch.float16)
    for name, actual in [("silu", run(impl.silu, x)), ("silu_into", into(impl)(x.to(DEVICE)))]:
        what = f"{name} of float16 numbers from -18 to 18, beside the exact numbers"
        rtol, atol = 2**-11 + 1e-5, 2**-25
        assert_matches(actual.double(), F.silu(x.double()), what, rtol=rtol, atol=atol)


def test_calls_do_not_disturb_each_other(impl):
    for shape, dtype in [((4, 5), torch.float32), ((), torch.float16)]:
        tolerance = TOLERANCES[dtype]
        for name, call in [("silu", impl.silu), ("silu_into", into(impl))]:
            what = f"{name} of a {shape} tensor, {dtype}"
            inputs = partial(on_device, *shape, dtype=dtype)
            with guarded():
                assert_repeatable(call, inputs, exact, what, **tolerance)
                (x,) = inputs()
                assert_any_mode(call, [x], exact(x), what, **tolerance)


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter does")
def test_there_are_programs_for_every_element(impl):
    # More than 65,535 programs of 1,024 elements would write, and as many of 64 rows.
    x = torch.empty(2**26 + 2**16, dtype=torch.float16)[: 2**26 + 30]
    check_room(partial(impl.silu, x), x, "silu")
    check_room(partial(impl.silu_into, x, x), x, "silu_into")
    x = torch.empty(2**22 + 2**16, 4, dtype=torch.float16)[: 2**22 + 30, :3]
    check_room(partial(impl.silu, x), x, "silu of columns of a wider matrix,")


def test_empty_tensors(impl):
    for shape in [(0,), (0, 3), (3, 0), (2, 0, 4), (2, 0, 3, 0, 5)]:
        x = torch.empty(shape)
        assert_silu(run(impl.silu, x), x, f"silu of an empty {shape} tensor")
        check_into(impl, x, torch.empty_like(x), f"an empty {shape} tensor")


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(impl):
    need_gpu_memory(10)
    # An offset that wraps at 2**31 reaches back into `memory`, and harms nothing else.
    memory = torch.zeros(2**32 + 5000, dtype=torch.float16, device=DEVICE)
    x = memory[2**31 :]
    last = numbers(10_000, dtype=torch.float16)
    x[-10_000:] = last
    impl.silu_into(x, x)
    assert_silu(x[-10_000:], last, "the last 10,000 of 2**31 + 5,000 numbers after silu_into")


@pytest.mark.gpu
def test_rows_2_to_the_30_elements_apart(impl):
    need_gpu_memory(10)
    memory = torch.zeros(2**32 + 5000, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((3, 5), (2**30 + 1, 1), 2**31)
    values = numbers(3, 5, dtype=torch.float16)
    x.copy_(values)
    impl.silu_into(x, x)
    assert_silu(x, values, "x after silu_into of three rows that lie 2**30 elements apart")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_speed(impl, dtype):
    x = numbers(2**26, dtype=dtype).to(DEVICE)
    compiled = torch.compile(lambda x: x * torch.sigmoid(x))
    ratio = speed(lambda: impl.silu(x), lambda: F.silu(x), lambda: compiled(x))
    assert ratio >= 1 / 1.5, (
        f"silu of 2**26 numbers, {dtype}, should take at most 1.5 times as long as torch's; "
        f"it takes {1 / ratio:.1f} times as long"
    )
