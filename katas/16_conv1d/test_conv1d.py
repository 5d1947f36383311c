import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from dojo.testing import (
    CONVOLUTION,
    assert_all_match,
    assert_any_layout,
    assert_any_mode,
    assert_gradients_reach,
    assert_matches,
    assert_repeatable,
    forbid,
    gradients,
    layouts,
    refuses,
    unchanged,
)

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


def steps(function, *args):
    """How many instructions of Python a call runs, wherever they stand."""
    count = 0

    def watch(frame, event, arg):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return watch

    function(*args)  # what only a first call does
    before = sys.gettrace()
    sys.settrace(watch)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return count


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


def test_output_length_of_a_very_long_input(impl):
    for length in (2**24 + 1, 2**31 + 2):
        actual = impl.output_length(length, 1, 2, 1, 1)
        expected = (length + 1) // 2 + 1  # starts at 0, 2, ..., the last of length + 2 elements
        assert actual == expected, f"output_length({length}, 1, 2, 1, 1) is {actual}: {expected}"


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
        with forbid(*CONVOLUTION):
            actual = impl.conv1d(x, weight, bias, 1, "same", dilation)
        expected = F.conv1d(x, weight, bias, 1, "same", dilation)
        case = f"kernel {kernel} and dilation {dilation}"
        assert_matches(actual, expected, f'conv1d with padding "same", {case}')


@pytest.mark.parametrize("stride", [0, 2, 17])
def test_same_refuses_a_stride(impl, stride):
    with refuses(f'padding "same" with stride {stride}', rf"(?i)\bstrid|\b{stride}\b"):
        impl.conv1d(signal(2, 3, 11), signal(5, 3, 4), stride=stride, padding="same")


# From scratch: everything at once


@pytest.mark.parametrize(("x_shape", "weight_shape", "stride", "padding", "dilation"), CASES)
def test_conv1d_matches_torch(impl, x_shape, weight_shape, stride, padding, dilation):
    x, weight, bias = signal(*x_shape), signal(*weight_shape), signal(weight_shape[0])
    with unchanged(x=x, weight=weight, bias=bias), forbid(*CONVOLUTION):
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


def test_same_refuses_a_stride_under_a_kernel_of_one(impl):
    # No zero is needed here, and yet the output would be shorter than the input.
    with refuses('padding "same" with stride 2, kernel 1', r"(?i)\bstrid|\b2\b"):
        impl.conv1d(signal(2, 3, 11), signal(5, 3, 1), stride=2, padding="same")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("stride", value) for value in (1, 2, 4, 11)),
        *(("padding", value) for value in (0, 1, 3, "same")),
        *(("dilation", value) for value in (1, 2, 3)),
    ],
)
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_one_option_at_a_time(impl, kernel, option, value, bias):
    x, weight = signal(2, 3, 11), signal(5, 3, kernel)
    offsets = signal(5) if bias else None
    actual = impl.conv1d(x, weight, offsets, **{option: value})
    expected = F.conv1d(x, weight, offsets, **{option: value})
    what = f"conv1d with a kernel of {kernel}, {option}={value}, a bias: {bias}"
    assert_matches(actual, expected, what)


# (x, weight): each has an axis that is longer than those elsewhere by far.
LARGE = [
    pytest.param((1, 2, 70_001), (3, 2, 4), id="long"),
    pytest.param((2, 1100, 13), (3, 1100, 4), id="channels"),
    pytest.param((2, 3, 13), (1100, 3, 4), id="filters"),
    pytest.param((1100, 3, 13), (2, 3, 4), id="batch"),
    pytest.param((2, 3, 701), (4, 3, 300), id="kernel"),
]


@pytest.mark.parametrize(("x_shape", "weight_shape"), LARGE)
def test_large_axes(impl, x_shape, weight_shape):
    x, weight, bias = signal(*x_shape), signal(*weight_shape), signal(weight_shape[0])
    expected = F.conv1d(x, weight, bias, 1, 1)
    case = text(x_shape, weight_shape, 1, 1, 1)
    assert_matches(impl.conv1d(x, weight, bias, 1, 1), expected, f"conv1d of {case}")
    grad_out = torch.randn_like(expected)
    check_backward(impl, grad_out, x, weight, (1, 1, 1), case)


# Each differs from the first in one thing: x, weight, stride, padding and dilation, dtype. The
# second has the padded length of the first, and another border.
NEIGHBOURS = [
    ((2, 3, 11), (5, 3, 4), 1, 3, 1, torch.float64),
    ((2, 3, 15), (5, 3, 4), 1, 1, 1, torch.float64),
    ((2, 3, 23), (5, 3, 4), 1, 3, 1, torch.float64),
    ((4, 3, 11), (5, 3, 4), 1, 3, 1, torch.float64),
    ((2, 3, 11), (6, 3, 4), 1, 3, 1, torch.float64),
    ((2, 3, 11), (5, 3, 2), 1, 3, 1, torch.float64),
    ((2, 3, 11), (5, 3, 4), 2, 3, 1, torch.float64),
    ((2, 3, 11), (5, 3, 4), 1, 1, 1, torch.float64),
    ((2, 3, 11), (5, 3, 4), 1, 3, 2, torch.float64),
    ((2, 3, 11), (5, 3, 4), 1, 3, 1, torch.float32),
]


def test_no_call_sees_the_one_before(impl):
    for case in NEIGHBOURS:
        for x_shape, weight_shape, *options, dtype in (NEIGHBOURS[0], case):
            x, weight = signal(*x_shape, dtype=dtype), signal(*weight_shape, dtype=dtype)
            bias = signal(weight_shape[0], dtype=dtype)
            expected = F.conv1d(x, weight, bias, *options)
            what = (
                f"after calls of other sizes and options, {text(x_shape, weight_shape, *options)}"
            )
            actual = impl.conv1d(x, weight, bias, *options)
            assert_matches(actual, expected, f"conv1d {what}", atol=1e-4)
            grad_out = torch.randn_like(expected)
            actual = impl.conv1d_backward(grad_out, x, weight, *options)
            expected = backward(grad_out, x, weight, *options)
            assert_all_match(actual, expected, f"conv1d_backward {what}", atol=1e-4)


# Autograd through the two convolutions


@pytest.mark.parametrize("options", [(1, 0, 1), (2, 3, 2), (1, "same", 2)])
@pytest.mark.parametrize("name", ["conv1d_functional", "conv1d"])
def test_autograd_reaches_whoever_asks(impl, name, options):
    function = getattr(impl, name)
    names = ("x", "weight", "bias")
    for asking in [names, *((one,) for one in names), ("x", "bias")]:
        inputs = dict(zip(names, (signal(4, 3, 11), signal(5, 3, 4), signal(5)), strict=True))
        assert_gradients_reach(
            lambda *tensors: function(*tensors, *options),
            lambda *tensors: F.conv1d(*tensors, *options),
            inputs,
            asking,
            name,
        )


@pytest.mark.parametrize("name", ["conv1d_functional", "conv1d"])
def test_autograd_where_an_input_is_all_zeros(impl, name):
    names = ("x", "weight", "bias")
    for zeros in names:
        inputs = dict(zip(names, (signal(4, 3, 11), signal(5, 3, 4), signal(5)), strict=True))
        inputs[zeros].zero_()
        behaviour = f"{name} where {zeros} is all zeros"
        assert_gradients_reach(getattr(impl, name), F.conv1d, inputs, names, behaviour)


def test_autograd_without_a_bias(impl):
    x, weight = signal(4, 3, 11).requires_grad_(), signal(5, 3, 4).requires_grad_()
    expected = torch.autograd.grad(F.conv1d(x, weight).sum(), (x, weight))
    actual = gradients(impl.conv1d(x, weight).sum(), [x, weight], torch.tensor(1.0))
    assert_all_match(actual, expected, "gradients of the sum of conv1d without options")


def test_autograd_of_two_calls_at_once(impl):
    shapes = ((4, 3, 11), (5, 3, 4), (5,)) * 2
    leaves = [signal(*shape).requires_grad_() for shape in shapes]
    grad_outs = signal(4, 5, 12), signal(4, 5, 12)

    def both(convolve):
        outs = convolve(*leaves[:3], 1, 2), convolve(*leaves[3:], 1, 2)
        return sum((out * grad_out).sum() for out, grad_out in zip(outs, grad_outs, strict=True))

    expected = torch.autograd.grad(both(F.conv1d), leaves)
    actual = torch.autograd.grad(both(impl.conv1d), leaves)
    assert_all_match(actual, expected, "gradients of two calls of conv1d, taken at once")


# Promises of every function


def backward(grad_out, x, weight, stride, padding, dilation):
    """What conv1d_backward should return, by autograd."""
    leaves = [x.detach(), weight.detach(), x.new_zeros(weight.shape[0])]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    with torch.enable_grad():
        return gradients(F.conv1d(*leaves, stride, padding, dilation), leaves, grad_out)


# A function, how many outputs it gives under its options, its options, and an oracle.
FUNCTIONS = [
    *((name, length, options, F.conv1d)
      for name in ("conv1d_functional", "conv1d")
      for length, options in ((10, (1, 0, 1)), (7, (2, 2, 2)), (11, (1, "same", 1)))),
    ("conv1d_backward", 10, (1, 0, 1), backward),
    ("conv1d_backward", 7, (2, 2, 2), backward),
]  # fmt: skip
each_function = pytest.mark.parametrize(("name", "length", "options", "oracle"), FUNCTIONS)


def inputs_of(name, length, options, dtype=torch.float64):
    x, weight = signal(4, 3, 11, dtype=dtype), signal(5, 3, 2, dtype=dtype)
    if name == "conv1d_backward":
        return signal(4, 5, length, dtype=dtype), x, weight, *options
    return x, weight, signal(5, dtype=dtype), *options


@each_function
def test_a_call_leaves_nothing_behind(impl, name, length, options, oracle):
    def inputs():
        return inputs_of(name, length, options)

    assert_repeatable(getattr(impl, name), inputs, oracle, f"{name} with {options}")


@pytest.mark.parametrize("name", ["conv1d_functional", "conv1d"])
def test_a_call_without_a_bias_leaves_nothing_behind(impl, name):
    def inputs():
        return signal(4, 3, 11), signal(5, 3, 2)

    assert_repeatable(getattr(impl, name), inputs, F.conv1d, f"{name} without a bias")


@each_function
def test_layout_of_every_argument(impl, name, length, options, oracle):
    inputs = inputs_of(name, length, options)
    assert_any_layout(getattr(impl, name), inputs, oracle(*inputs), f"{name} with {options}")


@each_function
def test_modes_of_torch(impl, name, length, options, oracle):
    for dtype in (torch.float64, torch.float32):
        inputs = inputs_of(name, length, options, dtype)
        expected = oracle(*inputs)
        behaviour = f"{name} of {dtype} with {options}"
        assert_any_mode(getattr(impl, name), inputs, expected, behaviour, atol=1e-4)


def test_a_signal_that_is_its_own_filter(impl):
    x = signal(4, 3, 7)
    assert_matches(impl.conv1d(x, x), F.conv1d(x, x), "conv1d of x with x as the weight")
    grad_out = signal(4, 4, 1)
    actual = impl.conv1d_backward(grad_out, x, x, 1, 0, 1)
    expected = backward(grad_out, x, x, 1, 0, 1)
    assert_all_match(actual, expected, "conv1d_backward of x with x as the weight")


@pytest.mark.parametrize("name", ["conv1d_functional", "conv1d"])
def test_a_transpose_that_starts_at_the_same_address(impl, name):
    x, weight, function = signal(4, 4, 9), signal(4, 4, 3), getattr(impl, name)
    for one, other in ((x, weight), (x.transpose(0, 1), weight), (x, weight.transpose(0, 1))):
        behaviour = f"{name} of the same memory, transposed"
        assert_matches(function(one, other), F.conv1d(one, other), behaviour)


# 6,000 products, and for the weight as many: each of a float16 has 11 bits. A solution that rounds
# once for each tap is off by less than half of what is allowed here, and one that rounds at each
# channel by more than twice as much.
MANY = [(torch.float16, 0.01), (torch.bfloat16, 0.08)]


@pytest.mark.parametrize(("dtype", "atol"), MANY)
def test_sums_of_many_channels_in_few_bits(impl, dtype, atol):
    x, weight = signal(2, 1500, 13, dtype=dtype), (signal(5, 1500, 4) / 6000**0.5).to(dtype)
    expected = F.conv1d(x.double(), weight.double()).to(dtype)
    behaviour = f"conv1d of 1,500 channels in {dtype}"
    assert_matches(impl.conv1d(x, weight), expected, behaviour, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), MANY)
def test_gradients_of_many_filters_in_few_bits(impl, dtype, atol):
    x, weight = signal(2, 3, 13, dtype=dtype), (signal(1500, 3, 4) / 6000**0.5).to(dtype)
    grad_out = signal(2, 1500, 10, dtype=dtype)
    dx, _, _ = impl.conv1d_backward(grad_out, x, weight, 1, 0, 1)
    expected, _, _ = backward(grad_out.double(), x.double(), weight.double(), 1, 0, 1)
    behaviour = f"dx of 1,500 filters in {dtype}"
    assert_matches(dx, expected.to(dtype), behaviour, rtol=0, atol=atol)


# Sums of thousands of positive terms, so small that a sum in few bits stands still at last.
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_gradients_of_many_positions_in_few_bits(impl, dtype, rtol):
    for n, length in ((2, 8003), (1000, 11)):
        shapes = (n, 5, length - 3), (n, 3, length), (5, 3, 4)
        inputs = [(0.2 + 0.2 * torch.rand(shape)).to(dtype) for shape in shapes]
        _, *actual = impl.conv1d_backward(*inputs, 1, 0, 1)
        _, *expected = backward(*(tensor.double() for tensor in inputs), 1, 0, 1)
        for what, ours, theirs in zip(("dweight", "dbias"), actual, expected, strict=True):
            behaviour = f"{what} in {dtype} for {n} signals of {length}"
            assert_matches(ours, theirs.to(dtype), behaviour, rtol=rtol)


@pytest.mark.parametrize(("dtype", "large"), [(torch.bfloat16, 1e18), (torch.float64, 1e150)])
@pytest.mark.parametrize("name", ["conv1d_functional", "conv1d", "conv1d_backward"])
def test_range_of_the_dtype(impl, name, dtype, large):
    oracle = backward if name == "conv1d_backward" else F.conv1d
    inputs = [
        (argument * large).to(dtype) if isinstance(argument, torch.Tensor) else argument
        for argument in inputs_of(name, 10, (1, 0, 1))
    ]
    exact = [x.double() if isinstance(x, torch.Tensor) else x for x in inputs]
    actual, expected = getattr(impl, name)(*inputs), oracle(*exact)
    if name != "conv1d_backward":
        actual, expected = (actual,), (expected,)
    rounding = 0.1 if dtype == torch.bfloat16 else 1e-7
    for number, (ours, theirs) in enumerate(zip(actual, expected, strict=True), 1):
        scale = theirs.abs().max()
        what = f"{name} of {dtype} values about {large:g}, part {number}, as parts of its maximum"
        assert_matches(ours.double() / scale, theirs / scale, what, rtol=0, atol=rounding)


@pytest.mark.parametrize("name", ["conv1d", "conv1d_backward"])
def test_no_loop_that_grows_with_the_input(impl, name):
    counts = []
    for n, length in ((4, 40), (60, 40), (4, 160)):
        x, weight, grad_out = signal(n, 2, length), signal(5, 2, 3), signal(n, 5, length)
        inputs = (x, weight, signal(5)) if name == "conv1d" else (grad_out, x, weight)
        counts.append(steps(getattr(impl, name), *inputs, 1, 1, 1))
    # A loop takes five instructions a turn at the very least.
    behaviour = f"{name}: Python runs {counts} instructions for N = 4, L = 40; N = 60; L = 160"
    assert max(counts) < counts[0] + 100, behaviour


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
    with unchanged(grad_out=grad_out, x=x, weight=weight), forbid(*CONVOLUTION):
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
