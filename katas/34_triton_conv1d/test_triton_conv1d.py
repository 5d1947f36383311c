import contextlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dojo.kernels import DEVICE, guarded, room, run, speed, tf32_as_on_a_gpu
from dojo.testing import (
    CONVOLUTION,
    PRODUCTS,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    layouts,
    refuses,
)

HALF, SINGLE = torch.float16, torch.float32

# (dtype, x, weight, stride, padding, dilation). Axes of a case differ in size, and so do its
# options, so that a swapped one cannot hide; where an option is at its default, so are others.
CASES = [
    pytest.param(SINGLE, (2, 3, 11), (5, 3, 4), 1, 0, 1, id="plain"),
    pytest.param(HALF, (2, 5, 37), (7, 5, 4), 3, 6, 8, id="all-three"),
    pytest.param(SINGLE, (4, 2, 33), (3, 2, 5), 6, 1, 7, id="all-three-again"),
    pytest.param(HALF, (1, 1, 1), (1, 1, 1), 1, 0, 1, id="one-of-everything"),
    pytest.param(SINGLE, (5, 3, 1), (2, 3, 4), 1, 10, 6, id="input-of-one"),
    pytest.param(HALF, (3, 2, 41), (4, 2, 5), 7, 6, 1, id="gaps-between-windows"),
    pytest.param(SINGLE, (3, 4, 13), (2, 4, 5), 7, 0, 3, id="one-window"),
    pytest.param(HALF, (23, 2, 5), (3, 2, 4), 1, 0, 1, id="many-short-signals"),
    pytest.param(SINGLE, (2, 1, 40), (3, 1, 17), 5, 4, 1, id="long-kernel"),
    # All blocks are full; and just over a power of two, of positions, of filters and of channels.
    pytest.param(SINGLE, (1, 16, 64), (32, 16, 1), 1, 0, 1, id="powers-of-two"),
    pytest.param(HALF, (2, 1, 74), (3, 1, 4), 1, 5, 6, id="positions-past-128"),
    pytest.param(SINGLE, (1, 2, 8), (131, 2, 3), 1, 5, 6, id="filters-past-128"),
    pytest.param(HALF, (1, 67, 19), (3, 67, 2), 1, 4, 6, id="channels-past-64"),
    # Several tiles: of positions and of filters, and of positions alone.
    pytest.param(SINGLE, (2, 1, 67), (200, 1, 3), 1, 5, 6, id="positions-and-filters"),
    pytest.param(HALF, (2, 1, 150), (3, 1, 1), 1, 4, 6, id="many-positions"),
    pytest.param(HALF, (1, 1, 2043), (2, 1, 1), 1, 7, 6, id="positions-past-2048"),
    pytest.param(SINGLE, (1, 1, 145), (2, 1, 137), 1, 0, 1, id="taps-past-128"),
    pytest.param(SINGLE, (2, 521, 3), (1, 521, 1), 1, 0, 1, id="channels-past-512"),
    pytest.param(HALF, (2, 3, 7), (4, 3, 2), 19, 23, 11, id="options-past-the-length"),
]
# A float32 sum of 200 products that comes to about one is off by less than 5e-6, in any order.
# A float16 result is rounded to steps of 1e-3 of its size at most: two of them, and near zero what
# tensor cores leave, which cut off float32 sums where others round them.
TOLERANCES = {
    SINGLE: {"rtol": 1e-5, "atol": 1e-5},
    HALF: {"rtol": 2e-3, "atol": 5e-5},
}
DTYPES = list(TOLERANCES)
BANNED = (*CONVOLUTION, *PRODUCTS)


def signals(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def filters(*shape, dtype=torch.float32):
    """Return a weight under which outputs are about one."""
    return (torch.randn(shape, device=DEVICE) / (shape[1] * shape[2]) ** 0.5).to(dtype)


def tensor(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def row(*values):
    """One signal of one channel, or one filter for it."""
    return tensor([[values]])


def exact(x, weight, *options):
    """Return the result in float64, by an algorithm of the CPU that does not spread NaN."""
    return F.conv1d(x.double().cpu(), weight.double().cpu(), None, *options).to(x.dtype)


def check(impl, x, weight, options, behaviour):
    """Compare with torch's operator in float64."""
    with forbid(*BANNED):
        actual = run(impl.conv1d, x, weight, *options)
    assert_matches(actual, exact(x, weight, *options), behaviour, **TOLERANCES[x.dtype])


def text(x, weight, options):
    """The case in words."""
    stride, padding, dilation = options
    return (
        f"conv1d of x {tuple(x.shape)}, weight {tuple(weight.shape)}, "
        f"stride {stride}, padding {padding}, dilation {dilation}, {x.dtype}"
    )


# One behaviour at a time, by hand


def test_every_position_counts(impl):
    actual = run(impl.conv1d, row(1, 2, 3, 4, 5, 6, 7), row(10))
    assert_matches(actual, row(10, 20, 30, 40, 50, 60, 70), "1, ..., 7 under the kernel (10)")


def test_padding_adds_zeros_on_both_sides(impl):
    x = tensor([[[1, 2, 3], [10, 20, 30]], [[4, 5, 6], [40, 50, 60]]])
    actual = run(impl.conv1d, x, tensor([[[1], [1]]]), 1, 4)
    expected = [[[*[0] * 4, 11, 22, 33, *[0] * 4]], [[*[0] * 4, 44, 55, 66, *[0] * 4]]]
    assert_matches(actual, tensor(expected), "two channels added up, with padding 4")


def test_stride_skips_positions(impl):
    actual = run(impl.conv1d, row(1, 2, 3, 4, 5, 6, 7, 8), row(1), 3)
    assert_matches(actual, row(1, 4, 7), "1, ..., 8 under the kernel (1), stride 3")


def test_stride_counts_from_the_first_zero(impl):
    actual = run(impl.conv1d, row(1, 2, 3, 4, 5, 6, 7), row(1), 3, 2)
    expected = row(0, 2, 5, 0)
    assert_matches(actual, expected, "1, ..., 7 under the kernel (1), stride 3, padding 2")


def test_dilation_spreads_the_taps(impl):
    actual = run(impl.conv1d, row(1, 2, 3, 4, 5, 6, 7, 8), row(1, 100), 1, 0, 3)
    expected = row(401, 502, 603, 704, 805)
    assert_matches(actual, expected, "1, ..., 8 under the kernel (1, 100), dilation 3")


def test_an_impulse_reads_out_the_weight(impl):
    # In signal n, channel n alone is one, at position 2 of 5; tap k meets it in output 2 - k.
    weight = filters(2, 4, 3)
    x = torch.zeros(4, 4, 5, device=DEVICE)
    x[range(4), range(4), 2] = 1
    expected = weight.transpose(0, 1).flip(2)
    behaviour = "an impulse in channel n of signal n under a weight (2, 4, 3): channel n, flipped"
    assert_matches(run(impl.conv1d, x, weight), expected, behaviour)


def test_signals_of_a_batch_are_apart(impl):
    for n, length in [(37, 3), (3, 30)]:
        x, weight = signals(n, 1, length), filters(4, 1, 2)
        check(impl, x, weight, (1, 0, 1), f"a batch of {n} signals of {length} positions")


@pytest.mark.parametrize(
    ("stride", "length", "kernel", "padding", "dilation"),
    [
        (1, 17, 1, 4, 7),
        # What is left over behind the last place: none, one less than a stride, and less.
        (3, 12, 3, 0, 1),
        (3, 13, 4, 1, 2),
        (5, 13, 4, 1, 2),
    ],
)
def test_there_is_an_output_for_every_place_of_the_kernel(
    impl, stride, length, kernel, padding, dilation
):
    last = length + 2 * padding - 1
    starts = range(0, last + 1, stride)
    places = sum(start + dilation * (kernel - 1) <= last for start in starts)
    x, weight = signals(2, 1, length), filters(6, 1, kernel)
    actual = tuple(run(impl.conv1d, x, weight, stride, padding, dilation).shape)
    assert actual == (2, 6, places), (
        f"{text(x, weight, (stride, padding, dilation))}: the shape is {actual}; "
        f"the kernel fits at {places} places"
    )


# Everything at once


@pytest.mark.parametrize(
    ("dtype", "x_shape", "weight_shape", "stride", "padding", "dilation"), CASES
)
def test_matches_torch(impl, dtype, x_shape, weight_shape, stride, padding, dilation):
    x, weight = signals(*x_shape, dtype=dtype), filters(*weight_shape, dtype=dtype)
    options = (stride, padding, dilation)
    check(impl, x, weight, options, text(x, weight, options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_torch_on_random_sizes(impl, dtype):
    for _ in range(3):
        # All different; the length is one for which the kernel fits.
        n, c, o, k, *options = (1 + torch.randperm(7)).tolist()
        _, padding, dilation = options
        length = max(1, dilation * (k - 1) + 1 - 2 * padding) + int(torch.randint(20, ()))
        x, weight = signals(n, c, length, dtype=dtype), filters(o, c, k, dtype=dtype)
        check(impl, x, weight, options, text(x, weight, options))


def test_defaults_and_keywords(impl):
    x, weight = signals(2, 3, 17), filters(5, 3, 4)
    actual = run(impl.conv1d, x=x, weight=weight)
    assert_matches(actual, exact(x, weight), "conv1d by default")
    actual = run(impl.conv1d, x=x, weight=weight, dilation=2, padding=6, stride=7)
    expected = exact(x, weight, 7, 6, 2)
    assert_matches(actual, expected, "conv1d with stride=7, padding=6, dilation=2")


def test_x_in_any_memory_layout(impl):
    x, weight = signals(3, 5, 23), filters(1, 5, 2)
    options = (7, 6, 8)
    expected = exact(x, weight, *options)
    wide = torch.full((3, 11, 23), torch.nan, device=DEVICE)
    wide[:, 1::2] = x
    for layout, same in [
        *list(layouts(x))[1:],
        ("channels last", x.transpose(1, 2).contiguous().transpose(1, 2)),
        ("every other channel of a wider one", wide[:, 1::2]),
    ]:
        actual = run(impl.conv1d, same, weight, *options)
        behaviour = f"conv1d of a (3, 5, 23) x that is {layout}"
        assert_matches(actual, expected, behaviour, **TOLERANCES[SINGLE])


def test_expanded_x(impl):
    x, weight = signals(3, 5, 23, dtype=HALF), filters(1, 5, 2, dtype=HALF)
    for layout, same in [
        ("one channel expanded to five", x[:, 1:2].expand(3, 5, 23)),
        ("one signal expanded to three", x[1:2].expand(3, 5, 23)),
        ("one position expanded to 23", x[:, :, :1].expand(3, 5, 23)),
    ]:
        check(impl, same, weight, (7, 6, 8), f"conv1d of an x that is {layout}, {HALF}")


def test_weight_in_any_memory_layout(impl):
    x, weight = signals(1, 5, 23), filters(3, 5, 2)
    expected = exact(x, weight, 6, 7, 8)
    for layout, same in list(layouts(weight))[1:]:
        actual = run(impl.conv1d, x, same, 6, 7, 8)
        behaviour = f"conv1d with a (3, 5, 2) weight that is {layout}"
        assert_matches(actual, expected, behaviour, **TOLERANCES[SINGLE])
    x, weight = x.half(), weight.half()
    for layout, same in [
        ("one filter expanded to three", weight[:1].expand(3, 5, 2)),
        ("one tap expanded to two", weight[:, :, :1].expand(3, 5, 2)),
    ]:
        check(impl, x, same, (6, 7, 8), f"conv1d with a weight that is {layout}, {HALF}")


# Edges


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_batch_gives_an_empty_output(impl, dtype):
    x, weight = signals(0, 3, 17, dtype=dtype), filters(5, 3, 4, dtype=dtype)
    check(impl, x, weight, (2, 1, 6), "conv1d of an empty batch (0, 3, 17)")


@pytest.mark.parametrize(("n", "stride"), [(2, 1), (2, 40), (0, 3)])
def test_a_kernel_that_does_not_fit_is_refused(impl, n, stride):
    # It spans 31 positions of an input that is 27 long, or 29 or 31 with its padding.
    for padding in (0, 1):
        what = f"a kernel of 11, dilation 3, on a length of 27, padding {padding}"
        with refuses(what, r"\b(27\b.*\b11|11\b.*\b27)\b"):
            run(impl.conv1d, signals(n, 5, 27), filters(4, 5, 11), stride, padding, 3)
    x, weight = signals(n, 5, 27), filters(4, 5, 11)
    check(impl, x, weight, (stride, 2, 3), "a kernel that just fits into the padded input")


def test_float_sums_hold_small_terms_beside_large(impl):
    # In float16, 2048 + 1 is 2048, and 300 times 300 is infinite.
    weight = torch.zeros(1, 131, 1, dtype=HALF, device=DEVICE)
    weight[0, 0], weight[0, 1], weight[0, -1] = 2048, 1, -2048
    x = torch.ones(1, 131, 5, dtype=HALF, device=DEVICE)
    behaviour = "the float16 sum of 2048, 1, ... and -2048 over 131 channels"
    assert_matches(run(impl.conv1d, x, weight), torch.ones_like(x[:, :1]), behaviour)

    weight = tensor([[[2048, 1, 1, -2048]]], HALF)
    actual = run(impl.conv1d, x[:, :1], weight)
    expected = torch.full_like(actual, 2)
    assert_matches(actual, expected, "the float16 sum of 2048, 1, 1 and -2048 over four taps")

    x = torch.full_like(x[:, :1], 300)
    actual = run(impl.conv1d, x, tensor([[[300, 1, -300]]], HALF))
    expected = torch.full_like(actual, 300)
    assert_matches(actual, expected, "the float16 sum of 90,000, 300 and -90,000 over taps")


def test_float16_results_beyond_its_range_are_infinite(impl):
    x, weight = tensor([[[300, -300, 3]]], torch.float16), tensor([[[250]]], torch.float16)
    expected = tensor([[[torch.inf, -torch.inf, 750]]], torch.float16)
    assert_matches(run(impl.conv1d, x, weight), expected, "75,000, -75,000 and 750 in float16")


def test_nan_stays_within_its_windows(impl):
    x, weight = signals(3, 5, 29), filters(2, 5, 4)
    x[1, 0, 0] = x[1, 4, 28] = x[0, 2, 13] = torch.nan
    x[2, 3, 20] = torch.inf
    options = (3, 6, 2)
    check(impl, x, weight, options, f"{text(x, weight, options)}, NaN and inf in x")
    x, weight = signals(2, 5, 29, dtype=HALF), filters(3, 5, 4, dtype=HALF)
    weight[1, 4, 3] = torch.nan
    check(impl, x, weight, (3, 0, 2), f"{text(x, weight, (3, 0, 2))}, NaN in filter 1")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_call_is_like_the_first(impl, dtype):
    tolerance, options = TOLERANCES[dtype], (1, 2, 6)

    def inputs():
        return signals(2, 3, 19, dtype=dtype), filters(5, 3, 4, dtype=dtype), *options

    with guarded():
        x, weight, *_ = inputs()
        assert_repeatable(impl.conv1d, inputs, exact, f"conv1d of {dtype}", **tolerance)
        what = text(x, weight, options)
        expected = exact(x, weight, *options)
        assert_any_mode(impl.conv1d, [x, weight, *options], expected, what, **tolerance)
        shorter = signals(3, 3, 17, dtype=dtype)
        actual = impl.conv1d(shorter, weight, *options)
        what = f"{text(shorter, weight, options)}, after others"
        assert_matches(actual, exact(shorter, weight, *options), what, **tolerance)


def test_any_layout_where_axes_have_one_element(impl):
    for x_shape, weight_shape in [((3, 1, 5), (1, 1, 2)), ((1, 4, 1), (3, 4, 1))]:
        x, weight = signals(*x_shape).cpu(), filters(*weight_shape).cpu()
        options = (2, 1, 1)
        what, expected = text(x, weight, options), exact(x, weight, *options)
        call = partial(run, impl.conv1d)
        tolerance = TOLERANCES[SINGLE]
        assert_any_layout(call, [x, weight, *options], expected, what, **tolerance)


def test_x_may_be_the_weight(impl):
    x = signals(2, 3, 5)
    with guarded() as memory:
        placed = memory.place(x)
        actual = impl.conv1d(placed, placed, 2, 3)
    assert_matches(actual, exact(x, x, 2, 3), "conv1d(x, x, 2, 3) of a (2, 3, 5) x")


def test_float32_products_are_not_rounded_to_tf32(impl):
    # One tap of one channel, so that the result is that channel, or the weight's.
    weight = torch.zeros(3, 20, 2, device=DEVICE)
    weight[[0, 1, 2], [4, 0, 19], [0, 1, 0]] = 1
    x = signals(2, 20, 31)
    with contextlib.nullcontext() if DEVICE == "cuda" else tf32_as_on_a_gpu():
        for one, other in [(x, weight), (weight, x[:, :, :2])]:
            actual = run(impl.conv1d, one, other)
            what = "float32 products with ones"
            assert_matches(actual, exact(one, other), what, rtol=1e-6, atol=0)


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter does")
def test_there_are_programs_for_every_output(impl):
    for n, o, length in [(70_000, 1, 16), (1, 70_000, 16), (1, 1, 2**20 + 30)]:
        # One number in a larger tensor: what a wrong kernel reads beyond it does no harm.
        one = torch.empty(2**16)[:1].view(1, 1, 1)
        x, weight = one.expand(n, 1, length), one.expand(o, 1, 1)
        needed = n * o * length
        most = room(partial(impl.conv1d, x, weight), needed)
        assert most >= needed, (
            f"{text(x, weight, (1, 0, 1))}: the result has {needed:,} elements; "
            f"the programs that are launched can write {most:,} at most"
        )


# On a GPU alone


@pytest.mark.gpu
def test_float32_products_keep_their_precision(impl):
    # TF32 keeps 10 bits of a factor: it is off by 3e-4 here, and float32 by 2e-6.
    x, weight = signals(3, 192, 500), filters(96, 192, 5)
    expected = exact(x, weight, 1, 2, 4)
    actual = run(impl.conv1d, x, weight, 1, 2, 4)
    behaviour = "float32 sums of 960 products"
    assert_matches(actual, expected, behaviour, rtol=1e-5, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tiles(impl, dtype):
    x, weight = signals(5, 200, 3001, dtype=dtype), filters(300, 200, 7, dtype=dtype)
    options = (2, 9, 3)
    expected = exact(x, weight, *options)
    for layout, same in layouts(x):
        actual = run(impl.conv1d, same.to(DEVICE), weight, *options)
        behaviour = f"{text(x, weight, options)}, an x that is {layout}"
        # Sums of 1,400 products.
        rtol, atol = (2e-3, 3e-4) if dtype == torch.float16 else (1e-5, 3e-5)
        assert_matches(actual, expected, behaviour, rtol=rtol, atol=atol)


@pytest.mark.gpu
def test_speed_beside_cudnn(impl):
    # cuDNN has kernels tuned for the card, and lays x out anew for them where that pays. A tiled
    # kernel that reads x as it lies is held up by loads of two bytes, so no more than this is
    # asked for. A kernel without tensor cores, or with a program an output, stays well below it.
    x = signals(32, 256, 4096, dtype=torch.float16)
    weight = filters(256, 256, 5, dtype=torch.float16)
    ratio = speed(lambda: impl.conv1d(x, weight, 1, 2), lambda: F.conv1d(x, weight, None, 1, 2))
    assert ratio >= 0.3, (
        f"conv1d of x (32, 256, 4096) under a weight (256, 256, 5) in float16 is "
        f"{ratio:.2f} times as fast as F.conv1d; 0.3 is asked for"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(6, 64, 7_000_000), (1, 65, 33_600_000)])
def test_input_past_2_to_the_31_elements(impl, shape):
    # The input is the end of a larger tensor, whose zeros an offset that wrapped around would read.
    n, c, length = shape
    x = torch.zeros(2**31 + n * c * length, dtype=torch.float16, device=DEVICE)
    x = x[2**31 :].view(shape)
    ends = [x[:1, :, :1000], x[-1:, :, -1000:]]
    for end in ends:
        end.copy_(torch.randn(end.shape))
    weight = filters(3, c, 2, dtype=torch.float16)
    out = impl.conv1d(x, weight)
    assert out.shape == (n, 3, length - 1), f"x {shape}: the shape is {tuple(out.shape)}"
    for name, actual, end in [
        ("first", out[:1, :, :999], ends[0]),
        ("last", out[-1:, :, -999:], ends[1]),
    ]:
        behaviour = f"the {name} outputs for an x {shape} of {n * c * length:,} elements"
        assert_matches(actual, exact(end, weight), behaviour, rtol=2e-3, atol=5e-5)


@pytest.mark.gpu
def test_output_past_2_to_the_31_elements(impl):
    x, weight = (
        signals(6, 1, 7_000_000, dtype=torch.float16),
        filters(65, 1, 2, dtype=torch.float16),
    )
    out = impl.conv1d(x, weight)
    assert out.shape == (6, 65, 6_999_999), f"the shape is {tuple(out.shape)}"
    for n, o in [(0, 0), (3, 31), (5, 64)]:
        behaviour = f"filter {o} on signal {n} of an output of {out.numel():,} elements"
        expected = exact(x[n : n + 1], weight[o : o + 1])
        assert_matches(out[n : n + 1, o : o + 1], expected, behaviour, rtol=2e-3, atol=5e-5)
