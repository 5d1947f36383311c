from itertools import product

import pytest
import torch
import torch.nn.functional as F

from dojo.testing import assert_matches, forbid, gradients, layouts, unchanged

NAMES = ["conv3d_functional", "conv3d"]
CONVOLUTIONS = [
    *(f"conv{n}d" for n in (1, 2, 3)),
    *(f"conv_transpose{n}d" for n in (1, 2, 3)),
    "conv_tbc",
    "convolution",
    "_convolution",
    "mkldnn_convolution",
    "slow_conv3d",
]

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
    check_grid(impl.conv3d, kernel, banned=CONVOLUTIONS)


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
