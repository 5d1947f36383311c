import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from dojo.testing import assert_matches, forbid, gradients, layouts, unchanged

# What torch says of the copy that an odd number of zeros needs.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

# (x, weight, stride, padding, dilation). Axes of a case differ in size, and so do its options,
# so that a swapped one cannot hide; where an option is at its default, the others are at theirs.
CASES = [
    pytest.param((2, 3, 11), (5, 3, 4), 1, 0, 1, id="plain"),
    pytest.param((2, 3, 11), (5, 3, 4), 1, 2, 1, id="padding"),
    pytest.param((2, 3, 12), (5, 3, 4), 3, 0, 1, id="stride"),
    pytest.param((2, 3, 11), (5, 3, 4), 1, 0, 2, id="dilation"),
    pytest.param((4, 5, 17), (2, 5, 3), 2, 1, 3, id="all-three"),
    pytest.param((3, 2, 23), (4, 2, 5), 3, 4, 2, id="all-three-again"),
    pytest.param((3, 2, 7), (4, 2, 2), 1, 5, 3, id="padding-wider-than-kernel"),
    pytest.param((2, 5, 16), (4, 5, 3), 6, 0, 1, id="gaps-between-windows"),
    pytest.param((2, 3, 9), (4, 3, 1), 2, 3, 1, id="kernel-of-one"),
    pytest.param((3, 4, 7), (2, 4, 3), 2, 0, 3, id="one-window"),
    pytest.param((1, 1, 6), (1, 1, 3), 2, 1, 1, id="one-of-everything"),
    pytest.param((4, 3, 1), (2, 3, 2), 1, 3, 2, id="input-of-one"),
]
CONVOLUTIONS = [
    *(f"conv{d}d" for d in (1, 2, 3)),
    *(f"conv_transpose{d}d" for d in (1, 2, 3)),
    *(f"conv{d}d_{of}" for d in (1, 2, 3) for of in ("input", "weight")),
    *("conv_tbc", "convolution", "_convolution", "convolution_overrideable"),
    *("convolution_backward", "mkldnn_convolution", "slow_conv3d", "thnn_conv2d"),
]


def signal(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def text(x_shape, weight_shape, stride, padding, dilation):
    """The case in words."""
    return (
        f"x {tuple(x_shape)}, weight {tuple(weight_shape)}, "
        f"stride {stride}, padding {padding}, dilation {dilation}"
    )


def row(*values):
    """One signal of one channel, or one filter on it."""
    return torch.tensor([[values]], dtype=torch.float64)


def torch_calls(function, *args):
    """How many calls of torch functions and methods a call makes."""
    count = 0

    class Count(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal count
            count += 1
            return func(*args, **(kwargs or {}))

    with Count():
        function(*args)
    return count


# The functional version


@pytest.mark.parametrize(("x_shape", "weight_shape", "stride", "padding", "dilation"), CASES[:5])
def test_functional_matches_torch(impl, x_shape, weight_shape, stride, padding, dilation):
    x, weight, bias = signal(*x_shape), signal(*weight_shape), signal(weight_shape[0])
    with unchanged(x=x, weight=weight, bias=bias):
        actual = impl.conv1d_functional(x, weight, bias, stride, padding, dilation)
    expected = F.conv1d(x, weight, bias, stride, padding, dilation)
    case = text(x_shape, weight_shape, stride, padding, dilation)
    assert_matches(actual, expected, f"conv1d_functional of {case}")


def test_functional_defaults_and_keywords(impl):
    x, weight = signal(2, 3, 11), signal(5, 3, 4)
    expected = F.conv1d(x, weight)
    assert_matches(impl.conv1d_functional(x, weight), expected, "conv1d_functional by default")
    actual = impl.conv1d_functional(x=x, weight=weight, padding="same", dilation=2)
    expected = F.conv1d(x, weight, padding="same", dilation=2)
    assert_matches(actual, expected, 'conv1d_functional with padding "same"')


# The length of the output


def check_length(impl, length, kernel, stride, padding, dilation):
    last = length + 2 * padding - 1
    starts = range(0, last + 1, stride)
    expected = sum(start + dilation * (kernel - 1) <= last for start in starts)
    actual = impl.output_length(length, kernel, stride, padding, dilation)
    call = f"output_length({length}, {kernel=}, {stride=}, {padding=}, {dilation=})"
    assert actual == expected, f"{call} is {actual}; places where the kernel fits: {expected}"
    assert isinstance(actual, int), f"{call} is a {type(actual).__name__}, not an int"


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_output_length_counts_the_places(impl, stride):
    for length, kernel, padding in itertools.product(range(6, 15), [1, 2, 3, 6], [0, 1, 4]):
        check_length(impl, length, kernel, stride, padding, 1)


@pytest.mark.parametrize("dilation", [2, 3, 7])
def test_output_length_of_a_spread_kernel(impl, dilation):
    for kernel, stride, padding in itertools.product([1, 2, 4], [1, 3], [0, 2]):
        for length in range(dilation * (kernel - 1) + 1, 30, 4):
            check_length(impl, length, kernel, stride, padding, dilation)


def test_output_length_takes_keywords(impl):
    actual = impl.output_length(length=17, kernel=3, stride=2, padding=1, dilation=4)
    assert actual == 6, f"17 elements, 2 zeros: starts at 0, 2, ..., 10 are 6, not {actual}"


# From scratch: one behaviour at a time, by hand


def test_a_filter_keeps_its_direction(impl):
    # Each output is the next element minus this one.
    actual = impl.conv1d(row(1, 4, 9, 16), row(-1, 1))
    assert_matches(actual, row(3, 5, 7), "the kernel (-1, 1) on (1, 4, 9, 16)")


def test_padding_adds_zeros_on_both_sides(impl):
    actual = impl.conv1d(row(1, 2, 3), row(1), padding=2)
    assert_matches(actual, row(0, 0, 1, 2, 3, 0, 0), "(1, 2, 3) under the kernel (1), padding 2")


def test_stride_skips_positions(impl):
    actual = impl.conv1d(row(1, 2, 3, 4, 5, 6, 7, 8), row(1), stride=3)
    assert_matches(actual, row(1, 4, 7), "1, ..., 8 under the kernel (1), stride 3")


def test_dilation_spreads_the_taps(impl):
    actual = impl.conv1d(row(1, 2, 3, 4, 5, 6, 7, 8), row(1, 100), dilation=3)
    expected = row(401, 502, 603, 704, 805)
    assert_matches(actual, expected, "1, ..., 8 under the kernel (1, 100), dilation 3")


def test_bias_is_added_once(impl):
    bias = signal(5)
    actual = impl.conv1d(signal(2, 3, 11), torch.zeros(5, 3, 4, dtype=torch.float64), bias)
    expected = bias[:, None].expand(2, 5, 8)
    assert_matches(actual, expected, "under a weight of zeros, the output is the bias")


def test_channels_are_summed(impl):
    x = torch.tensor([[[1, 2], [30, 40], [500, 600]]], dtype=torch.float64)
    weight = torch.tensor([[[1], [1], [1]], [[0], [2], [0]]], dtype=torch.float64)
    expected = torch.tensor([[[531, 642], [60, 80]]], dtype=torch.float64)
    assert_matches(impl.conv1d(x, weight), expected, "three channels under kernels of one")


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_keeps_the_length(impl, dilation):
    for kernel in range(1, 6):
        out = impl.conv1d(signal(2, 3, 11), signal(4, 3, kernel), padding="same", dilation=dilation)
        assert out.shape == (2, 4, 11), (
            f'padding "same" with kernel {kernel} and dilation {dilation} turns (2, 3, 11) '
            f"under 4 filters into {tuple(out.shape)}"
        )


def test_same_puts_the_odd_zero_on_the_right(impl):
    # The kernel (1, 1) with one zero on the right: each element plus the next.
    actual = impl.conv1d(row(1, 2, 4, 8), row(1, 1), padding="same")
    assert_matches(actual, row(3, 6, 12, 8), '(1, 2, 4, 8) under (1, 1), padding "same"')


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_matches_torch(impl, dilation):
    for kernel in range(1, 6):
        x, weight, bias = signal(2, 3, 11), signal(4, 3, kernel), signal(4)
        with forbid(*CONVOLUTIONS):
            actual = impl.conv1d(x, weight, bias, 1, "same", dilation)
        expected = F.conv1d(x, weight, bias, 1, "same", dilation)
        case = f"kernel {kernel} and dilation {dilation}"
        assert_matches(actual, expected, f'conv1d with padding "same", {case}')


@pytest.mark.parametrize("stride", [0, 2, 17])
def test_same_refuses_a_stride(impl, stride):
    with pytest.raises(ValueError, match=rf"\b{stride}\b"):
        impl.conv1d(signal(2, 3, 11), signal(5, 3, 4), stride=stride, padding="same")


# From scratch: everything at once


@pytest.mark.parametrize(("x_shape", "weight_shape", "stride", "padding", "dilation"), CASES)
def test_conv1d_matches_torch(impl, x_shape, weight_shape, stride, padding, dilation):
    x, weight, bias = signal(*x_shape), signal(*weight_shape), signal(weight_shape[0])
    with unchanged(x=x, weight=weight, bias=bias), forbid(*CONVOLUTIONS):
        actual = impl.conv1d(x, weight, bias, stride, padding, dilation)
    expected = F.conv1d(x, weight, bias, stride, padding, dilation)
    case = text(x_shape, weight_shape, stride, padding, dilation)
    assert_matches(actual, expected, f"conv1d of {case}")


def test_conv1d_defaults_and_keywords(impl):
    x, weight, bias = signal(2, 3, 11), signal(5, 3, 4), signal(5)
    assert_matches(impl.conv1d(x, weight), F.conv1d(x, weight), "conv1d by default")
    actual = impl.conv1d(x=x, weight=weight, bias=bias, stride=3, padding=4, dilation=2)
    expected = F.conv1d(x, weight, bias, 3, 4, 2)
    assert_matches(actual, expected, "conv1d with stride=3, padding=4, dilation=2")


@pytest.mark.parametrize("padding", [0, 2, "same"])
def test_any_memory_layout(impl, padding):
    x, weight, bias = signal(4, 3, 11), signal(5, 3, 2), signal(5)
    expected = F.conv1d(x, weight, bias, padding=padding)
    for layout, same in layouts(x):
        actual = impl.conv1d(same, weight, bias, padding=padding)
        assert_matches(actual, expected, f"conv1d of an x that is {layout}")
    for layout, same in layouts(weight):
        actual = impl.conv1d(x, same, bias, padding=padding)
        assert_matches(actual, expected, f"conv1d with a weight that is {layout}")
    channel = x[:, :1].expand(4, 3, 11)
    expected = F.conv1d(channel, weight, bias, padding=padding)
    actual = impl.conv1d(channel, weight, bias, padding=padding)
    assert_matches(actual, expected, "conv1d of one channel expanded to three")


# Outputs and gradients here are about one, and reach four. A bfloat16 near four has steps of 0.016,
# and a solution may round once for each of 12 products (channels times kernel).
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 0.1)]


@pytest.mark.parametrize(("dtype", "atol"), DTYPES)
@pytest.mark.parametrize("name", ["conv1d_functional", "conv1d"])
def test_dtype_is_kept(impl, name, dtype, atol):
    x, bias = signal(2, 3, 11, dtype=dtype), signal(5, dtype=dtype)
    weight = (signal(5, 3, 4) / 12**0.5).to(dtype)
    actual = getattr(impl, name)(x, weight, bias, stride=1, padding=2, dilation=3)
    expected = F.conv1d(x.double(), weight.double(), bias.double(), 1, 2, 3).to(dtype)
    assert_matches(actual, expected, f"{name} in {dtype}", rtol=0, atol=atol)


def test_no_python_loop_over_batch_or_positions(impl):
    # A loop over the batch or over positions makes a call of torch for each at least.
    calls = torch_calls(impl.conv1d, signal(300, 2, 500), signal(1, 2, 3), signal(1), 1, 1)
    assert calls < 200, f"conv1d makes {calls} calls of torch for N = 300, L = 500 and K = 3"


# The gradients: one behaviour at a time, by hand


def test_overlapping_windows_add_up_in_the_input_gradient(impl):
    # The middle element is met by three windows, its neighbours by two, the outer ones by one.
    dx, _, _ = impl.conv1d_backward(row(1, 1, 1), row(0, 0, 0, 0, 0), row(1, 1, 1), 1, 0, 1)
    assert_matches(dx, row(1, 2, 3, 2, 1), "dx under the kernel (1, 1, 1) for a gradient of ones")


def test_input_gradient_of_one_output_is_the_kernel(impl):
    x, weight = row(0, 0, 0, 0, 0), row(1, 10, 100)
    dx, _, _ = impl.conv1d_backward(row(0, 0, 1), x, weight, 1, 0, 1)
    assert_matches(dx, row(0, 0, 1, 10, 100), "dx of the last output under the kernel (1, 10, 100)")


def test_input_gradient_leaves_out_the_padding(impl):
    grad_out = row(10, 20, 30, 40, 50, 60, 70)
    dx, _, _ = impl.conv1d_backward(grad_out, row(0, 0, 0), row(1), 1, 2, 1)
    assert_matches(dx, row(30, 40, 50), "dx under the kernel (1) with padding 2")


def test_input_gradient_is_zero_where_no_window_reaches(impl):
    dx, _, _ = impl.conv1d_backward(row(5, 7), row(1, 2, 3, 4, 5, 6, 7), row(1, 2), 4, 0, 1)
    assert_matches(dx, row(5, 10, 0, 0, 7, 14, 0), "dx of 7 under the kernel (1, 2), stride 4")


def test_weight_gradient_sums_over_the_batch(impl):
    x, weight, grad_out = signal(3, 2, 9), signal(4, 2, 3), signal(3, 4, 7)
    _, once, _ = impl.conv1d_backward(grad_out, x, weight, 1, 0, 1)
    twice = impl.conv1d_backward(torch.cat([grad_out] * 2), torch.cat([x] * 2), weight, 1, 0, 1)
    assert_matches(twice[1], 2 * once, "dweight of a batch seen twice is twice that of the batch")


def test_weight_gradient_of_one_output_is_its_window(impl):
    x = row(1, 2, 3, 4, 5, 6, 7, 8, 9)
    _, dweight, _ = impl.conv1d_backward(row(0, 1, 0), x, row(0, 0, 0), 1, 0, 3)
    assert_matches(dweight, row(2, 5, 8), "dweight of output 1, counted from 0, dilation 3")


def test_bias_gradient_sums_batch_and_positions(impl):
    x, weight, grad_out = signal(3, 2, 9), signal(4, 2, 3), signal(3, 4, 7)
    _, _, dbias = impl.conv1d_backward(grad_out, x, weight, 1, 0, 1)
    assert_matches(dbias, grad_out.sum((0, 2)), "dbias")


# The gradients: everything at once


def check_backward(impl, grad_out, x, weight, options, behaviour):
    """Compare with autograd, all three gradients by name."""
    with unchanged(grad_out=grad_out, x=x, weight=weight), forbid(*CONVOLUTIONS):
        actual = impl.conv1d_backward(grad_out, x, weight, *options)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, x.new_zeros(len(weight)))]
    expected = gradients(F.conv1d(*leaves, *options), leaves, grad_out)
    assert len(actual) == 3, f"conv1d_backward returns {len(actual)} values, not three"
    for name, ours, theirs in zip(("dx", "dweight", "dbias"), actual, expected, strict=True):
        assert_matches(ours, theirs, f"{name} of {behaviour}")


@pytest.mark.parametrize(("x_shape", "weight_shape", "stride", "padding", "dilation"), CASES)
def test_backward_matches_autograd(impl, x_shape, weight_shape, stride, padding, dilation):
    x, weight, options = signal(*x_shape), signal(*weight_shape), (stride, padding, dilation)
    grad_out = torch.randn_like(F.conv1d(x, weight, None, *options))
    case = text(x_shape, weight_shape, *options)
    check_backward(impl, grad_out, x, weight, options, case)


@pytest.mark.parametrize("padding", [0, 2])
def test_backward_takes_any_memory_layout(impl, padding):
    x, weight = signal(4, 3, 11), signal(5, 3, 2)
    grad_out = signal(4, 5, 10 + 2 * padding)
    options = (1, padding, 1)
    for layout, same in layouts(grad_out):
        check_backward(impl, same, x, weight, options, f"an upstream gradient that is {layout}")
    for layout, same in layouts(x):
        check_backward(impl, grad_out, same, weight, options, f"an x that is {layout}")
    for layout, same in layouts(weight):
        check_backward(impl, grad_out, x, same, options, f"a weight that is {layout}")
    ones = torch.ones((), dtype=torch.float64).expand_as(grad_out)
    check_backward(impl, ones, x, weight, options, "an upstream gradient expanded from one value")


@pytest.mark.parametrize(("dtype", "atol"), DTYPES)
def test_backward_keeps_the_dtype(impl, dtype, atol):
    x = signal(2, 3, 11, dtype=dtype)
    weight = (signal(5, 3, 4) / 20**0.5).to(dtype)
    # 24 values of a channel are summed, over the batch and over positions.
    grad_out = (signal(2, 5, 12) / 24**0.5).to(dtype)
    actual = impl.conv1d_backward(grad_out, x, weight, 1, 2, 1)
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, x.new_zeros(5))]
    expected = gradients(F.conv1d(*exact, 1, 2, 1), exact, grad_out.double())
    for name, ours, theirs in zip(("dx", "dweight", "dbias"), actual, expected, strict=True):
        assert_matches(ours, theirs.to(dtype), f"{name} in {dtype}", rtol=0, atol=atol)


def test_backward_takes_keywords(impl):
    x, weight = signal(2, 3, 16), signal(5, 3, 3)
    grad_out = torch.randn_like(F.conv1d(x, weight, None, 2, 1, 3))
    actual = impl.conv1d_backward(
        grad_out=grad_out, x=x, weight=weight, stride=2, padding=1, dilation=3
    )
    positional = impl.conv1d_backward(grad_out, x, weight, 2, 1, 3)
    for name, one, other in zip(("dx", "dweight", "dbias"), actual, positional, strict=True):
        assert_matches(one, other, f"{name} with arguments by keyword")


def test_backward_has_no_python_loop_over_batch_or_positions(impl):
    x, weight, grad_out = signal(300, 2, 500), signal(1, 2, 3), signal(300, 1, 500)
    calls = torch_calls(impl.conv1d_backward, grad_out, x, weight, 1, 1, 1)
    assert calls < 200, f"conv1d_backward makes {calls} calls of torch for N = 300, L = 500, K = 3"
