from itertools import product

import pytest
import torch
import torch.nn.functional as F

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
    unchanged,
)

NAMES = ["conv3d_functional", "conv3d"]

# No triple holds one value twice, and no axis of the volume shares a size with another.
KERNELS = [(1, 1, 1), (3, 2, 1), (1, 3, 2), (2, 4, 3)]
STRIDES = [1, (2, 1, 3), (3, 2, 1)]
PADDINGS = [0, (2, 0, 1), (0, 1, 3)]


def arguments(volumes, kernels, dtype=torch.float64):
    """Return a random x, weight and bias: `volumes` is (N, C, D, H, W), `kernels` (O, C, KD, ...).

    Sums in float64 differ by about 1e-15 with the order of their terms, so any algorithm will do.
    """
    shapes = (volumes, kernels, kernels[:1])
    return tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)


def check_shape(out, expected, behaviour):
    """Compare a result's shape alone, whatever its values."""
    actual = tuple(out.shape)
    assert actual == expected, f"{behaviour}: the shape is {actual}, not {expected}"


def check_grid(function, kernel, banned=()):
    """Compare a function with torch's under each stride and padding."""
    for stride, padding in product(STRIDES, PADDINGS):
        x, weight, bias = arguments((2, 3, 5, 6, 7), (4, 3, *kernel))
        with unchanged(x=x, weight=weight, bias=bias), forbid(*banned):
            actual = function(x, weight, bias, stride=stride, padding=padding)
        expected = F.conv3d(x, weight, bias, stride=stride, padding=padding)
        size = "{} x {} x {}".format(*kernel)
        assert_matches(actual, expected, f"a {size} convolution with {stride=}, {padding=}")


@pytest.mark.parametrize("kernel", KERNELS)
def test_functional_matches_torch(impl, kernel):
    check_grid(impl.conv3d_functional, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_conv3d_matches_torch(impl, kernel):
    check_grid(impl.conv3d, kernel, banned=CONVOLUTION)


@pytest.mark.parametrize("name", NAMES)
def test_defaults(impl, name):
    x, weight, _ = arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3))
    actual = getattr(impl, name)(x, weight)
    assert_matches(actual, F.conv3d(x, weight), f"{name} without options")


@pytest.mark.parametrize("name", NAMES)
def test_arguments_by_position_and_by_name(impl, name):
    x, weight, bias = arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3))
    expected = F.conv3d(x, weight, bias, (2, 3, 1), (1, 0, 2))
    function = getattr(impl, name)
    by_position = function(x, weight, bias, (2, 3, 1), (1, 0, 2))
    assert_matches(by_position, expected, f"{name} with options by position")
    by_name = function(padding=(1, 0, 2), stride=(2, 3, 1), bias=bias, weight=weight, x=x)
    assert_matches(by_name, expected, f"{name} with options by name")


@pytest.mark.parametrize(("option", "value"), [("stride", 2), ("padding", 3)])
@pytest.mark.parametrize("name", NAMES)
def test_an_int_holds_for_all_axes(impl, name, option, value):
    x, weight, bias = arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3))
    actual = getattr(impl, name)(x, weight, bias, **{option: value})
    expected = F.conv3d(x, weight, bias, **{option: value})
    assert_matches(actual, expected, f"{name} with {option}={value}")


def test_a_kernel_of_one_copies_the_volume(impl):
    x = torch.randn(2, 1, 3, 4, 5)
    actual = impl.conv3d(x, torch.ones(1, 1, 1, 1, 1))
    assert_matches(actual, x, "the volume under a 1 x 1 x 1 kernel of one")


def test_first_tap_meets_the_first_voxel(impl):
    x = torch.randn(2, 1, 5, 6, 7)
    weight = torch.zeros(1, 1, 2, 3, 4)
    weight[0, 0, 0, 0, 0] = 1.0
    expected = x[:, :, :4, :4, :4]
    assert_matches(impl.conv3d(x, weight), expected, "the voxels that a kernel's first tap meets")


def check_taps(impl, kernel, what):
    """Let each tap in turn be the only one that counts; it picks a shifted copy of the volume."""
    x = torch.randn(2, 1, 5, 6, 7)
    sizes = [size - taps + 1 for size, taps in zip(x.shape[2:], kernel, strict=True)]
    for tap in product(*map(range, kernel)):
        weight = torch.zeros(1, 1, *kernel)
        weight[(0, 0, *tap)] = 1.0
        d, h, w = (slice(start, start + size) for start, size in zip(tap, sizes, strict=True))
        behaviour = f"the {what} that tap {tap} of a {kernel} kernel meets"
        assert_matches(impl.conv3d(x, weight), x[:, :, d, h, w], behaviour)


def test_taps_over_rows_and_columns(impl):
    check_taps(impl, (1, 3, 2), "rows and columns")


def test_taps_over_slices_and_rows(impl):
    check_taps(impl, (3, 2, 1), "slices and rows")


def test_input_channels_add_up(impl):
    x, weight, _ = arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3))
    one_by_one = [impl.conv3d(x[:, c : c + 1], weight[:, c : c + 1]) for c in range(3)]
    expected = torch.stack(one_by_one).sum(0)
    behaviour = "a convolution beside the sum of those of single channels"
    assert_matches(impl.conv3d(x, weight), expected, behaviour)


def test_padding_is_zero(impl):
    x = 1 + torch.rand(2, 1, 3, 4, 5)
    expected = torch.zeros(2, 1, 5, 6, 7)
    expected[:, :, 1:-1, 1:-1, 1:-1] = x
    actual = impl.conv3d(x, torch.ones(1, 1, 1, 1, 1), padding=1)
    assert_matches(actual, expected, "the volume within a border one voxel wide")


@pytest.mark.parametrize("padding", [(2, 0, 1), (0, 1, 3)])
def test_padding_triple_is_depth_height_width(impl, padding):
    out = impl.conv3d(torch.randn(2, 1, 3, 4, 5), torch.ones(1, 1, 1, 1, 1), padding=padding)
    sizes = [size + 2 * more for size, more in zip((3, 4, 5), padding, strict=True)]
    check_shape(out, (2, 1, *sizes), f"a 1 x 1 x 1 kernel on a 3 x 4 x 5 volume with {padding=}")


def check_stride(impl, stride):
    x = torch.randn(2, 1, 5, 6, 7)
    actual = impl.conv3d(x, torch.ones(1, 1, 1, 1, 1), stride=stride)
    d, h, w = stride
    expected = x[:, :, ::d, ::h, ::w]
    check_shape(actual, tuple(expected.shape), f"a 1 x 1 x 1 kernel with {stride=}")
    assert_matches(actual, expected, f"the voxels that a 1 x 1 x 1 kernel meets with {stride=}")


def test_stride_over_the_depth(impl):
    check_stride(impl, (2, 1, 1))


def test_stride_over_the_height(impl):
    check_stride(impl, (1, 3, 1))


def test_stride_over_the_width(impl):
    check_stride(impl, (1, 1, 3))


def test_windows_that_do_not_fit_are_left_out(impl):
    x, weight, _ = arguments((2, 3, 8, 11, 14), (4, 3, 2, 2, 2))
    out = impl.conv3d(x, weight, stride=4)
    check_shape(out, (2, 4, 2, 3, 4), "a 2 x 2 x 2 kernel on an 8 x 11 x 14 volume with stride=4")


def test_bias_belongs_to_the_output_channel(impl):
    _, weight, bias = arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3))
    actual = impl.conv3d(torch.zeros(2, 3, 5, 6, 7, dtype=torch.float64), weight, bias)
    expected = bias.view(1, 4, 1, 1, 1).expand(2, 4, 4, 6, 5)
    assert_matches(actual, expected, "the convolution of a volume of zeros, which is the bias")


SIZES = [
    ("one volume", (1, 3, 5, 6, 7), (4, 3, 2, 1, 3), {"stride": 2}),
    ("a volume one voxel wide", (2, 3, 5, 6, 1), (4, 3, 2, 3, 1), {"padding": (2, 0, 0)}),
    ("a kernel wider than the volume", (2, 3, 5, 6, 2), (4, 3, 2, 1, 4), {"padding": (0, 1, 3)}),
    ("a kernel as large as the volume", (2, 3, 4, 5, 6), (7, 3, 4, 5, 6), {"stride": (3, 2, 1)}),
    ("strides beyond the kernel", (2, 3, 7, 8, 9), (4, 3, 1, 2, 3), {"stride": (3, 4, 5)}),
    ("strides beyond the volume", (2, 3, 4, 5, 6), (7, 3, 2, 1, 3), {"stride": (8, 9, 7)}),
]


@pytest.mark.parametrize(
    ("what", "volumes", "kernels", "options"), SIZES, ids=[size[0] for size in SIZES]
)
def test_sizes_at_the_limit(impl, what, volumes, kernels, options):
    x, weight, bias = arguments(volumes, kernels)
    actual = impl.conv3d(x, weight, bias, **options)
    assert_matches(actual, F.conv3d(x, weight, bias, **options), f"{what}, {options}")


@pytest.mark.parametrize("padding", [0, (1, 0, 2)])
def test_any_memory_layout(impl, padding):
    x, weight, bias = arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3))
    arranged = [*layouts(x), ("channels-last", x.to(memory_format=torch.channels_last_3d))]
    arranged.append(("expanded", x[:1].expand(4, -1, -1, -1, -1)))
    for layout, volumes in arranged:
        actual = impl.conv3d(volumes, weight, bias, padding=padding)
        expected = F.conv3d(volumes.contiguous(), weight, bias, padding=padding)
        assert_matches(actual, expected, f"volumes that are {layout} in memory, {padding=}")
    expected = F.conv3d(x, weight, bias)
    for layout, kernels in layouts(weight):
        actual = impl.conv3d(x, kernels, bias)
        assert_matches(actual, expected, f"a weight that is {layout} in memory")


# Sums of 18 products of order one. In float32 another algorithm may lose a digit or two; in
# bfloat16 (steps of 2^-8) each of the partial sums, up to about 15, may be rounded.
DTYPES = [(torch.float32, 1e-4), (torch.bfloat16, 0.4)]


@pytest.mark.parametrize(("dtype", "atol"), DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_kept(impl, name, dtype, atol):
    x, weight, bias = arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3), dtype)
    actual = getattr(impl, name)(x, weight, bias, padding=(1, 0, 2))
    exact = F.conv3d(x.double(), weight.double(), bias.double(), padding=(1, 0, 2))
    assert_matches(actual, exact.to(dtype), f"{name} in {dtype}", rtol=0, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_input(impl, name):
    inputs = [t.requires_grad_() for t in arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3))]
    options = {"stride": (1, 2, 3), "padding": (2, 0, 1)}
    out = getattr(impl, name)(*inputs, **options)
    reference = F.conv3d(*inputs, **options)
    assert_matches(out, reference, f"{name} of tensors that require gradients")
    grad_out = torch.randn_like(reference)
    actual = gradients(out, inputs, grad_out)
    expected = gradients(reference, inputs, grad_out)
    for argument, got, wanted in zip(("x", "weight", "bias"), actual, expected, strict=True):
        assert_matches(got, wanted, f"{name}: the gradient for {argument}")


# One option after another, and shapes for which a solution may take a short cut


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("stride", value) for value in (1, 2, 9, (1, 1, 1), (1, 1, 3), (1, 3, 1), (2, 1, 1))),
        *(("padding", value) for value in (0, 1, (0, 0, 0), (0, 0, 2), (0, 3, 0), (1, 0, 0))),
    ],
)
def test_one_option_at_a_time(impl, option, value, bias):
    x, weight, offsets = arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3))
    offsets = offsets if bias else None
    actual = impl.conv3d(x, weight, offsets, **{option: value})
    expected = F.conv3d(x, weight, offsets, **{option: value})
    assert_matches(actual, expected, f"conv3d with {option}={value}, a bias: {bias}")


SHORT_CUTS = [
    ("one channel", (2, 1, 5, 6, 7), (4, 1, 2, 3, 1)),
    ("one filter", (2, 3, 5, 6, 7), (1, 3, 2, 1, 4)),
    ("a kernel of one", (2, 3, 5, 6, 7), (4, 3, 1, 1, 1)),
    ("patches", (2, 3, 4, 6, 8), (5, 3, 2, 3, 4)),
    ("cubes", (2, 3, 7, 7, 7), (4, 3, 3, 3, 3)),
    ("the whole volume", (2, 3, 4, 5, 6), (7, 3, 4, 5, 6)),
    ("as many of everything", (3, 3, 3, 3, 3), (3, 3, 3, 3, 3)),
]


@pytest.mark.parametrize(
    ("what", "volumes", "kernels"), SHORT_CUTS, ids=[case[0] for case in SHORT_CUTS]
)
def test_shapes_that_invite_a_short_cut(impl, what, volumes, kernels):
    for stride, padding in product((1, kernels[2:], (3, 1, 2)), (0, kernels[2:], (0, 2, 1))):
        x, weight, bias = arguments(volumes, kernels)
        actual = impl.conv3d(x, weight, bias, stride, padding)
        expected = F.conv3d(x, weight, bias, stride, padding)
        assert_matches(actual, expected, f"{what}, {stride=}, {padding=}")


# Each has an axis that is longer than those elsewhere by far.
LARGE = [
    pytest.param((1, 1, 601, 2, 3), (3, 1, 4, 1, 2), id="depth"),
    pytest.param((1, 1, 2, 3001, 3), (3, 1, 1, 4, 2), id="height"),
    pytest.param((1, 1, 2, 3, 3001), (3, 1, 1, 2, 4), id="width"),
    pytest.param((1, 1, 40, 41, 42), (2, 1, 2, 1, 3), id="voxels"),
    pytest.param((2, 1100, 4, 3, 5), (3, 1100, 2, 1, 3), id="channels"),
    pytest.param((2, 3, 4, 3, 5), (1100, 3, 2, 1, 3), id="filters"),
    pytest.param((300, 2, 4, 3, 5), (1, 2, 2, 1, 3), id="batch"),
    pytest.param((2, 1, 9, 10, 11), (3, 1, 6, 7, 8), id="kernel"),
]


@pytest.mark.parametrize(("volumes", "kernels"), LARGE)
def test_large_axes(impl, volumes, kernels):
    x, weight, bias = arguments(volumes, kernels)
    actual = impl.conv3d(x, weight, bias, padding=(0, 1, 0))
    expected = F.conv3d(x, weight, bias, padding=(0, 1, 0))
    assert_matches(actual, expected, f"{volumes} volumes under {kernels} kernels")


# Each differs from the first in one thing: volumes, kernels, stride, padding or dtype. The second
# has the first's padded size and another border, the third its number of padded voxels.
NEIGHBOURS = [
    ((2, 3, 5, 6, 7), (4, 3, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((2, 3, 7, 4, 9), (4, 3, 2, 1, 3), 1, (1, 1, 0), torch.float64),
    ((2, 3, 2, 9, 7), (4, 3, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((2, 3, 9, 6, 7), (4, 3, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((2, 3, 5, 9, 7), (4, 3, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((2, 3, 5, 6, 9), (4, 3, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((2, 3, 7, 6, 5), (4, 3, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((2, 3, 5, 3, 4), (4, 3, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((4, 3, 5, 6, 7), (4, 3, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((2, 1, 5, 6, 7), (4, 1, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((2, 3, 5, 6, 7), (6, 3, 2, 1, 3), 1, (2, 0, 1), torch.float64),
    ((2, 3, 5, 6, 7), (4, 3, 3, 1, 2), 1, (2, 0, 1), torch.float64),
    ((2, 3, 5, 6, 7), (4, 3, 2, 1, 3), 2, (2, 0, 1), torch.float64),
    ((2, 3, 5, 6, 7), (4, 3, 2, 1, 3), (1, 2, 3), (2, 0, 1), torch.float64),
    ((2, 3, 5, 6, 7), (4, 3, 2, 1, 3), 1, (1, 0, 2), torch.float64),
    ((2, 3, 5, 6, 7), (4, 3, 2, 1, 3), 1, (2, 0, 1), torch.float32),
]


def test_no_call_sees_the_one_before(impl):
    for case in NEIGHBOURS:
        for volumes, kernels, stride, padding, dtype in (NEIGHBOURS[0], case):
            x, weight, bias = arguments(volumes, kernels, dtype)
            actual = impl.conv3d(x, weight, bias, stride, padding)
            expected = F.conv3d(x, weight, bias, stride, padding)
            what = f"{volumes} volumes under {kernels} kernels, {stride=}, {padding=}"
            behaviour = f"after calls of other sizes and options, {what}"
            assert_matches(actual, expected, behaviour, atol=1e-4)


# Gradients

GRADIENTS = [
    ((2, 3, 5, 6, 7), (4, 3, 2, 1, 3), (1, 0)),
    ((2, 3, 5, 6, 7), (4, 3, 2, 1, 3), ((1, 2, 3), (2, 0, 1))),
    ((2, 3, 5, 6, 7), (4, 3, 1, 1, 1), (1, 0)),
]


@pytest.mark.parametrize(("volumes", "kernels", "options"), GRADIENTS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_whoever_asks(impl, name, volumes, kernels, options):
    function = getattr(impl, name)
    names = ("x", "weight", "bias")
    for asking in [names, *((one,) for one in names), ("x", "bias")]:
        inputs = dict(zip(names, arguments(volumes, kernels), strict=True))
        assert_gradients_reach(
            lambda *tensors: function(*tensors, *options),
            lambda *tensors: F.conv3d(*tensors, *options),
            inputs,
            asking,
            name,
        )


@pytest.mark.parametrize("name", NAMES)
def test_gradients_where_an_input_is_all_zeros(impl, name):
    names = ("x", "weight", "bias")
    for zeros in names:
        inputs = dict(zip(names, arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3)), strict=True))
        inputs[zeros].zero_()
        behaviour = f"{name} where {zeros} is all zeros"
        assert_gradients_reach(getattr(impl, name), F.conv3d, inputs, names, behaviour)


@pytest.mark.parametrize(("volumes", "kernels", "options"), GRADIENTS)
def test_gradients_without_a_bias(impl, volumes, kernels, options):
    x, weight = (tensor.requires_grad_() for tensor in arguments(volumes, kernels)[:2])
    expected = torch.autograd.grad(F.conv3d(x, weight, None, *options).sum(), (x, weight))
    actual = gradients(impl.conv3d(x, weight, None, *options).sum(), [x, weight], torch.tensor(1.0))
    assert_all_match(actual, expected, f"gradients of the sum of conv3d without bias, {options}")


@pytest.mark.parametrize(("volumes", "kernels", "options"), GRADIENTS)
def test_gradients_in_any_memory_layout(impl, volumes, kernels, options):
    inputs = arguments(volumes, kernels)
    grad_out = torch.randn_like(F.conv3d(*inputs, *options))

    def through(convolve):
        def taken(*inputs):
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            return gradients(convolve(*leaves, *options), leaves, grad_out)

        return taken

    expected = through(F.conv3d)(*inputs)
    assert_any_layout(through(impl.conv3d), inputs, expected, f"gradients of conv3d, {options}")


@pytest.mark.parametrize(("volumes", "kernels", "options"), GRADIENTS)
def test_gradients_of_two_calls_at_once(impl, volumes, kernels, options):
    leaves = [*arguments(volumes, kernels), *arguments(volumes, kernels)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    outs = [F.conv3d(*leaves[:3], *options), F.conv3d(*leaves[3:], *options)]
    grad_out = torch.randn_like(torch.stack(outs))
    expected = gradients(torch.stack(outs), leaves, grad_out)
    outs = [impl.conv3d(*leaves[:3], *options), impl.conv3d(*leaves[3:], *options)]
    actual = gradients(torch.stack(outs), leaves, grad_out)
    assert_all_match(actual, expected, f"gradients of two calls of conv3d at once, {options}")


# Promises of every function


@pytest.mark.parametrize(("volumes", "kernels", "options"), GRADIENTS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_leaves_nothing_behind(impl, name, biased, volumes, kernels, options):
    def inputs():
        x, weight, bias = arguments(volumes, kernels)
        return x, weight, bias if biased else None, *options

    assert_repeatable(getattr(impl, name), inputs, F.conv3d, f"{name} with {options}")


@pytest.mark.parametrize(("volumes", "kernels", "options"), GRADIENTS)
@pytest.mark.parametrize("name", NAMES)
def test_layout_of_every_argument(impl, name, volumes, kernels, options):
    inputs = *arguments(volumes, kernels), *options
    assert_any_layout(getattr(impl, name), inputs, F.conv3d(*inputs), f"{name} with {options}")


@pytest.mark.parametrize(("volumes", "kernels", "options"), GRADIENTS)
@pytest.mark.parametrize("name", NAMES)
def test_modes_of_torch(impl, name, volumes, kernels, options):
    for dtype in (torch.float64, torch.float32):
        inputs = *arguments(volumes, kernels, dtype), *options
        behaviour = f"{name} of {dtype} with {options}"
        assert_any_mode(getattr(impl, name), inputs, F.conv3d(*inputs), behaviour, atol=1e-4)


def test_volumes_that_are_their_own_kernels(impl):
    x, _, _ = arguments((2, 3, 4, 5, 7), (4, 3, 1, 1, 1))
    expected = F.conv3d(x, x, padding=(1, 0, 2))
    assert_matches(
        impl.conv3d(x, x, padding=(1, 0, 2)), expected, "conv3d of x with x as the weight"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_transpose_that_starts_at_the_same_address(impl, name):
    x, weight, _ = arguments((4, 4, 3, 5, 6), (4, 4, 2, 1, 3))
    function = getattr(impl, name)
    for one, other in ((x, weight), (x.transpose(0, 1), weight), (x, weight.transpose(0, 1))):
        behaviour = f"{name} of the same memory, transposed"
        assert_matches(function(one, other), F.conv3d(one, other), behaviour)


# 9,000 products, each about one before they are scaled. A solution that rounds once for each tap is
# off by less than half of what is allowed here, one that rounds at each channel by far more.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_sums_of_many_channels_in_few_bits(impl, dtype, atol):
    x, weight, bias = arguments((2, 1500, 3, 5, 4), (7, 1500, 2, 1, 3))
    x, weight, bias = x.to(dtype), (weight / 9000**0.5).to(dtype), bias.to(dtype)
    expected = F.conv3d(x.double(), weight.double(), bias.double()).to(dtype)
    behaviour = f"conv3d of 1,500 channels in {dtype}"
    assert_matches(impl.conv3d(x, weight, bias), expected, behaviour, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "large"), [(torch.bfloat16, 1e18), (torch.float64, 1e150)])
@pytest.mark.parametrize("name", NAMES)
def test_range_of_the_dtype(impl, name, dtype, large):
    x, weight, _ = arguments((2, 3, 5, 6, 7), (4, 3, 2, 1, 3))
    x, weight = (x * large).to(dtype), (weight * large).to(dtype)
    expected = F.conv3d(x.double(), weight.double())
    scale = expected.abs().max()
    actual = getattr(impl, name)(x, weight)
    assert actual.dtype == dtype, f"{name} of {dtype} gives {actual.dtype}"
    behaviour = f"{name} of {dtype} values about {large:g}, as parts of the largest result"
    rounding = 0.1 if dtype == torch.bfloat16 else 1e-7
    assert_matches(actual.double() / scale, expected / scale, behaviour, rtol=0, atol=rounding)
