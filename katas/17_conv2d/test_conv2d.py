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

NAMES = ["conv2d_functional", "conv2d"]

# No pair holds one value twice, and no two options have the same pair.
KERNELS = [(1, 1), (3, 2), (2, 5)]
GROUPS = [(1, 3, 5), (2, 3, 5), (3, 2, 5)]  # groups, channels in and out of each
STRIDES = [1, (2, 3)]
PADDINGS = [0, (4, 1)]
DILATIONS = [1, (3, 2)]


def arguments(images, kernels, dtype=torch.float64):
    """Return a random x, weight and bias: `images` is (N, C, H, W), `kernels` (O, C/g, KH, KW).

    Sums in float64 differ by about 1e-15 with the order of their terms, so any algorithm will do.
    """
    shapes = (images, kernels, kernels[:1])
    return tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)


def spelled(**options):
    """Write options as a call would have them."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


def check_shape(out, expected, behaviour):
    """Compare a result's shape alone, whatever its values."""
    actual = tuple(out.shape)
    assert actual == expected, f"{behaviour}: the shape is {actual}, not {expected}"


def check_grid(function, kernel, groups, group_in, group_out, banned=()):
    """Compare a function with torch's under each stride, padding and dilation."""
    for dilation, padding, stride in product(DILATIONS, PADDINGS, STRIDES):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        x, weight, bias = arguments(
            (4, groups * group_in, 11, 13), (groups * group_out, group_in, *kernel)
        )
        with unchanged(x=x, weight=weight, bias=bias), forbid(*banned):
            actual = function(x, weight, bias, **options)
        expected = F.conv2d(x, weight, bias, **options)
        size = "{} x {}".format(*kernel)
        assert_matches(actual, expected, f"a {size} convolution with {spelled(**options)}")


@pytest.mark.parametrize(("groups", "group_in", "group_out"), GROUPS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_functional_matches_torch(impl, kernel, groups, group_in, group_out):
    check_grid(impl.conv2d_functional, kernel, groups, group_in, group_out)


@pytest.mark.parametrize(("groups", "group_in", "group_out"), GROUPS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_conv2d_matches_torch(impl, kernel, groups, group_in, group_out):
    check_grid(impl.conv2d, kernel, groups, group_in, group_out, banned=CONVOLUTION)


@pytest.mark.parametrize("name", NAMES)
def test_defaults(impl, name):
    x, weight, _ = arguments((2, 3, 7, 10), (5, 3, 4, 2))
    actual = getattr(impl, name)(x, weight)
    assert_matches(actual, F.conv2d(x, weight), f"{name} without options")


@pytest.mark.parametrize("name", NAMES)
def test_arguments_by_position(impl, name):
    x, weight, bias = arguments((2, 6, 11, 13), (10, 3, 4, 2))
    options = ((3, 1), (1, 2), (2, 3), 2)
    actual = getattr(impl, name)(x, weight, bias, *options)
    assert_matches(actual, F.conv2d(x, weight, bias, *options), f"{name} with options by position")


@pytest.mark.parametrize("name", NAMES)
def test_arguments_by_name(impl, name):
    x, weight, bias = arguments((2, 6, 11, 13), (10, 3, 4, 2))
    options = {"groups": 2, "dilation": (2, 3), "padding": (1, 2), "stride": (3, 1)}
    actual = getattr(impl, name)(bias=bias, weight=weight, x=x, **options)
    assert_matches(actual, F.conv2d(x, weight, bias, **options), f"{name} with options by name")


@pytest.mark.parametrize(("option", "value"), [("stride", 3), ("padding", 2), ("dilation", 2)])
@pytest.mark.parametrize("name", NAMES)
def test_an_int_holds_for_both_axes(impl, name, option, value):
    x, weight, bias = arguments((2, 3, 7, 10), (5, 3, 4, 2))
    actual = getattr(impl, name)(x, weight, bias, **{option: value})
    expected = F.conv2d(x, weight, bias, **{option: value})
    assert_matches(actual, expected, f"{name} with {option}={value}")


def test_first_tap_meets_the_first_pixel(impl):
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 8.0, 7.0, 6.0]]]])
    weight = torch.tensor([[[[1.0, 10.0, 100.0], [0.0, 0.0, 1000.0]]]])
    # Top left: 1*1 + 10*2 + 100*3 + 1000*7.
    expected = torch.tensor([[[[7321.0, 8432.0], [7765.0, 6876.0]]]])
    assert_matches(impl.conv2d(x, weight), expected, "a 2 x 3 kernel on a 3 x 4 image, by hand")


def test_input_channels_add_up(impl):
    x, weight, _ = arguments((2, 3, 7, 10), (5, 3, 4, 2))
    actual = impl.conv2d(x, weight)
    one_by_one = [impl.conv2d(x[:, c : c + 1], weight[:, c : c + 1]) for c in range(3)]
    expected = torch.stack(one_by_one).sum(0)
    assert_matches(actual, expected, "a convolution beside the sum of those of single channels")


def test_groups_see_their_own_channels(impl):
    groups, group_in, group_out = 3, 2, 4
    x, weight, _ = arguments((2, 6, 5, 7), (12, 2, 1, 1))
    actual = impl.conv2d(x, weight, groups=groups)
    for g in range(groups):
        inputs = slice(g * group_in, (g + 1) * group_in)
        outputs = slice(g * group_out, (g + 1) * group_out)
        # A 1 x 1 kernel is a matrix that every pixel is multiplied by.
        expected = (weight[outputs, :, 0, 0] @ x[:, inputs].flatten(2)).view(2, group_out, 5, 7)
        which = f"output channels {outputs.start} to {outputs.stop - 1} of a 1 x 1 convolution"
        assert_matches(
            actual[:, outputs],
            expected,
            f"{which} in 3 groups, which see input channels {inputs.start} to {inputs.stop - 1}",
        )


@pytest.mark.parametrize("group_out", [1, 3])
def test_one_channel_a_group(impl, group_out):
    x, weight, bias = arguments((2, 4, 7, 10), (4 * group_out, 1, 3, 2))
    actual = impl.conv2d(x, weight, bias, groups=4)
    expected = F.conv2d(x, weight, bias, groups=4)
    assert_matches(actual, expected, f"4 groups of one input channel, {group_out} out of each")


def test_padding_is_zero(impl):
    x = 1 + torch.rand(2, 1, 3, 5)
    weight = torch.ones(1, 1, 1, 1)
    expected = torch.zeros(2, 1, 5, 7)
    expected[:, :, 1:-1, 1:-1] = x
    actual = impl.conv2d(x, weight, padding=1)
    assert_matches(actual, expected, "the image within a border one pixel wide")


@pytest.mark.parametrize("padding", [(2, 1), (0, 3)])
def test_padding_pair_is_height_then_width(impl, padding):
    x, weight, _ = arguments((2, 1, 3, 5), (1, 1, 1, 1))
    out = impl.conv2d(x, weight, padding=padding)
    expected = (2, 1, 3 + 2 * padding[0], 5 + 2 * padding[1])
    check_shape(out, expected, f"a 1 x 1 kernel on a 3 x 5 image with {padding=}")


@pytest.mark.parametrize("stride", [(2, 1), (1, 3), (3, 2)])
def test_stride_pair_is_height_then_width(impl, stride):
    x = torch.randn(2, 1, 7, 13)
    actual = impl.conv2d(x, torch.ones(1, 1, 1, 1), stride=stride)
    expected = x[:, :, :: stride[0], :: stride[1]]
    assert_matches(actual, expected, f"the pixels that a 1 x 1 kernel meets with stride={stride}")


def test_windows_that_do_not_fit_are_left_out(impl):
    x, weight, _ = arguments((2, 3, 8, 15), (5, 3, 3, 2))
    out = impl.conv2d(x, weight, stride=4)
    # Rows 0 and 4 begin a window of three rows, columns 0, 4, 8 and 12 one of two.
    check_shape(out, (2, 5, 2, 4), "a 3 x 2 kernel on an 8 x 15 image with stride=4")


@pytest.mark.parametrize(("dilation", "size"), [(2, (7, 11)), (3, (5, 10))])
def test_output_size_under_dilation(impl, dilation, size):
    x, weight, _ = arguments((2, 3, 11, 13), (5, 3, 3, 2))
    out = impl.conv2d(x, weight, dilation=dilation)
    check_shape(out, (2, 5, *size), f"a 3 x 2 kernel on an 11 x 13 image with {dilation=}")


@pytest.mark.parametrize(("dilation", "size"), [((2, 3), (7, 10)), ((2, 5), (7, 8))])
def test_output_size_under_a_pair_of_dilations(impl, dilation, size):
    x, weight, _ = arguments((2, 3, 11, 13), (5, 3, 3, 2))
    out = impl.conv2d(x, weight, dilation=dilation)
    check_shape(out, (2, 5, *size), f"a 3 x 2 kernel on an 11 x 13 image with {dilation=}")


@pytest.mark.parametrize("dilation", [(2, 3), (4, 1)])
def test_last_tap_under_dilation(impl, dilation):
    x = torch.randn(2, 1, 11, 13)
    weight = torch.zeros(1, 1, 3, 2)
    weight[..., -1, -1] = 1.0
    actual = impl.conv2d(x, weight, dilation=dilation)
    expected = x[:, :, 2 * dilation[0] :, dilation[1] :]
    assert_matches(
        actual, expected, f"the pixels that the last tap of a 3 x 2 kernel meets, {dilation=}"
    )


def test_bias_belongs_to_the_output_channel(impl):
    _, weight, bias = arguments((2, 6, 5, 7), (4, 3, 3, 2))
    actual = impl.conv2d(torch.zeros(2, 6, 5, 7, dtype=torch.float64), weight, bias, groups=2)
    expected = bias.view(1, 4, 1, 1).expand(2, 4, 3, 6)
    assert_matches(actual, expected, "the convolution of a black image, which is the bias")


SIZES = [
    ("one image", (1, 3, 7, 10), (5, 3, 4, 2), {"stride": 2}),
    ("an image one pixel wide", (2, 3, 7, 1), (5, 3, 4, 1), {"padding": (2, 0)}),
    ("a kernel wider than the image", (2, 3, 7, 2), (5, 3, 4, 5), {"padding": (0, 2)}),
    ("a kernel as large as the image", (2, 3, 4, 7), (5, 3, 4, 7), {"stride": (3, 2)}),
    ("strides beyond the kernel", (2, 3, 11, 17), (5, 3, 2, 3), {"stride": (4, 5)}),
    ("padding beyond the kernel", (2, 3, 4, 5), (5, 3, 1, 2), {"padding": (2, 3)}),
    ("strides beyond the image", (2, 3, 4, 5), (7, 3, 2, 1), {"stride": (8, 9)}),
]


@pytest.mark.parametrize(("what", "images", "kernels", "options"), SIZES, ids=[s[0] for s in SIZES])
def test_sizes_at_the_limit(impl, what, images, kernels, options):
    x, weight, bias = arguments(images, kernels)
    actual = impl.conv2d(x, weight, bias, **options)
    assert_matches(actual, F.conv2d(x, weight, bias, **options), f"{what}, {spelled(**options)}")


@pytest.mark.parametrize("padding", [0, (1, 2)])
def test_any_memory_layout_of_the_images(impl, padding):
    x, weight, bias = arguments((2, 6, 7, 10), (4, 3, 3, 2))
    arranged = [*layouts(x), ("channels-last", x.to(memory_format=torch.channels_last))]
    arranged.append(("expanded", x[:1].expand(3, -1, -1, -1)))
    for layout, images in arranged:
        actual = impl.conv2d(images, weight, bias, padding=padding, groups=2)
        expected = F.conv2d(images.contiguous(), weight, bias, padding=padding, groups=2)
        assert_matches(actual, expected, f"images that are {layout} in memory, {padding=}")


def test_any_memory_layout_of_the_parameters(impl):
    x, weight, bias = arguments((2, 6, 7, 10), (4, 3, 3, 2))
    expected = F.conv2d(x, weight, bias, groups=2)
    arranged = [*layouts(weight), ("channels-last", weight.to(memory_format=torch.channels_last))]
    for layout, kernels in arranged:
        actual = impl.conv2d(x, kernels, bias, groups=2)
        assert_matches(actual, expected, f"a weight that is {layout} in memory")
    for layout, offsets in layouts(bias):
        actual = impl.conv2d(x, weight, offsets, groups=2)
        assert_matches(actual, expected, f"a bias that is {layout} in memory")


# Sums of 18 products of order one. In float32 another algorithm may lose a digit or two; in
# bfloat16 (steps of 2^-8) each of the partial sums, up to about 10, may be rounded.
DTYPES = [(torch.float32, 1e-4), (torch.bfloat16, 0.3)]


@pytest.mark.parametrize(("dtype", "atol"), DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_kept(impl, name, dtype, atol):
    x, weight, bias = arguments((2, 6, 7, 10), (4, 3, 3, 2), dtype)
    actual = getattr(impl, name)(x, weight, bias, padding=(1, 2), groups=2)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=(1, 2), groups=2)
    assert_matches(actual, exact.to(dtype), f"{name} in {dtype}", rtol=0, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_input(impl, name):
    inputs = [t.requires_grad_() for t in arguments((2, 6, 7, 10), (4, 3, 3, 2))]
    options = {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 3), "groups": 2}
    out = getattr(impl, name)(*inputs, **options)
    reference = F.conv2d(*inputs, **options)
    grad_out = torch.randn_like(reference)
    assert_matches(out, reference, f"{name} of tensors that require gradients")
    actual = gradients(out, inputs, grad_out)
    expected = gradients(reference, inputs, grad_out)
    for argument, got, wanted in zip(("x", "weight", "bias"), actual, expected, strict=True):
        assert_matches(got, wanted, f"{name}: the gradient for {argument}")


# One option after another, and shapes for which a solution may take a short cut


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("stride", value) for value in (1, 2, 4, (1, 1), (1, 3), (3, 1), (2, 2))),
        *(("padding", value) for value in (0, 1, (0, 0), (0, 2), (3, 0), (2, 2))),
        *(("dilation", value) for value in (1, 2, (1, 1), (1, 3), (2, 1), (2, 2))),
        *(("groups", value) for value in (1, 2, 3, 6)),
    ],
)
def test_one_option_at_a_time(impl, option, value, bias):
    x, weight, offsets = arguments(
        (2, 6, 9, 11), (12, 6 if option != "groups" else 6 // value, 4, 3)
    )
    offsets = offsets if bias else None
    actual = impl.conv2d(x, weight, offsets, **{option: value})
    expected = F.conv2d(x, weight, offsets, **{option: value})
    assert_matches(actual, expected, f"conv2d with {option}={value}, a bias: {bias}")


SHORT_CUTS = [
    ("a filter a channel", (2, 5, 7, 10), (5, 1, 3, 2), 5),
    ("two filters a channel", (2, 5, 7, 11), (10, 1, 3, 2), 5),
    ("a filter a group", (2, 8, 7, 10), (4, 2, 3, 5), 4),
    ("one channel", (2, 1, 7, 10), (5, 1, 3, 4), 1),
    ("one filter", (2, 3, 7, 10), (1, 3, 5, 4), 1),
    ("a kernel of one", (2, 3, 7, 10), (5, 3, 1, 1), 1),
    ("patches", (2, 3, 8, 10), (5, 3, 2, 4), 1),
    ("square images and kernels", (2, 3, 9, 9), (5, 3, 4, 4), 1),
    ("the whole image", (2, 3, 4, 5), (7, 3, 4, 5), 1),
    ("as many of everything", (3, 3, 3, 3), (3, 3, 3, 3), 1),
]


@pytest.mark.parametrize(
    ("what", "images", "kernels", "groups"), SHORT_CUTS, ids=[case[0] for case in SHORT_CUTS]
)
def test_shapes_that_invite_a_short_cut(impl, what, images, kernels, groups):
    rows, columns = kernels[2:]
    for stride in (1, (rows, columns), (columns, rows)):
        for padding in (0, (rows, columns)):
            x, weight, bias = arguments(images, kernels)
            options = {"stride": stride, "padding": padding, "groups": groups}
            for dilation in (1, (1, 2)) if padding else (1,):
                options["dilation"] = dilation
                actual = impl.conv2d(x, weight, bias, **options)
                expected = F.conv2d(x, weight, bias, **options)
                assert_matches(actual, expected, f"{what}, {spelled(**options)}")


# Each has an axis that is longer than those elsewhere by far.
LARGE = [
    pytest.param((1, 1, 2, 66_001), (3, 1, 1, 4), 1, id="width"),
    pytest.param((1, 1, 66_001, 2), (3, 1, 4, 1), 1, id="height"),
    pytest.param((1, 1, 301, 260), (2, 1, 3, 1), 1, id="pixels"),
    pytest.param((2, 1100, 5, 7), (3, 1100, 2, 4), 1, id="channels"),
    pytest.param((2, 3, 5, 7), (1100, 3, 2, 4), 1, id="filters"),
    pytest.param((2, 300, 5, 7), (600, 1, 2, 4), 300, id="groups"),
    pytest.param((300, 2, 3, 5), (1, 2, 2, 4), 1, id="batch"),
    pytest.param((2, 1, 30, 40), (3, 1, 24, 33), 1, id="kernel"),
]


@pytest.mark.parametrize(("images", "kernels", "groups"), LARGE)
def test_large_axes(impl, images, kernels, groups):
    x, weight, bias = arguments(images, kernels)
    actual = impl.conv2d(x, weight, bias, padding=(0, 1), groups=groups)
    expected = F.conv2d(x, weight, bias, padding=(0, 1), groups=groups)
    behaviour = f"{images} images under {kernels} kernels in {groups} groups"
    assert_matches(actual, expected, behaviour)


# Each differs from the first in one thing. The second has the first's padded size and another
# border, the third its number of padded pixels.
NEIGHBOURS = [
    ((2, 6, 7, 10), (4, 3, 3, 2), (1, 1, (2, 1)), {}),
    ((2, 6, 9, 8), (4, 3, 3, 2), (1, 1, (1, 2)), {}),
    ((2, 6, 8, 9), (4, 3, 3, 2), (1, 1, (2, 1)), {}),
    ((2, 6, 7, 12), (4, 3, 3, 2), (1, 1, (2, 1)), {}),
    ((2, 6, 10, 7), (4, 3, 3, 2), (1, 1, (2, 1)), {}),
    ((2, 6, 3, 4), (4, 3, 3, 2), (1, 1, (2, 1)), {}),
    ((5, 6, 7, 10), (4, 3, 3, 2), (1, 1, (2, 1)), {}),
    ((2, 6, 7, 10), (8, 3, 3, 2), (1, 1, (2, 1)), {}),
    ((2, 6, 7, 10), (4, 3, 2, 3), (1, 1, (2, 1)), {}),
    ((2, 6, 7, 10), (4, 3, 3, 2), (2, 1, (2, 1)), {}),
    ((2, 6, 7, 10), (4, 3, 3, 2), ((1, 2), 1, (2, 1)), {}),
    ((2, 6, 7, 10), (4, 3, 3, 2), (1, 2, (2, 1)), {}),
    ((2, 6, 7, 10), (4, 3, 3, 2), (1, (1, 3), (2, 1)), {}),
    ((2, 6, 7, 10), (4, 3, 3, 2), (1, 1, (1, 2)), {}),
    ((2, 6, 7, 10), (4, 6, 3, 2), (1, 1, (2, 1)), {"groups": 1}),
    ((2, 6, 7, 10), (4, 3, 3, 2), (1, 1, (2, 1)), {"dtype": torch.float32}),
]


def test_no_call_sees_the_one_before(impl):
    for case in NEIGHBOURS:
        for images, kernels, (stride, dilation, padding), more in (NEIGHBOURS[0], case):
            x, weight, bias = arguments(images, kernels, more.get("dtype", torch.float64))
            options = {"stride": stride, "padding": padding, "dilation": dilation}
            options["groups"] = more.get("groups", 2)
            actual = impl.conv2d(x, weight, bias, **options)
            expected = F.conv2d(x, weight, bias, **options)
            case_text = f"{images} images under {kernels} kernels, {spelled(**options)}"
            behaviour = f"after calls of other sizes and options, {case_text}"
            assert_matches(actual, expected, behaviour, atol=1e-4)


# Gradients

GRADIENTS = [
    ((2, 6, 7, 10), (4, 6, 3, 2), (1, 0, 1, 1)),
    ((2, 6, 7, 10), (4, 3, 3, 2), ((1, 2), (2, 1), (2, 3), 2)),
    ((2, 6, 7, 10), (12, 1, 3, 2), ((3, 1), 1, 1, 6)),
    ((2, 3, 7, 10), (4, 3, 1, 1), (1, 0, 1, 1)),
]


@pytest.mark.parametrize(("images", "kernels", "options"), GRADIENTS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_whoever_asks(impl, name, images, kernels, options):
    function = getattr(impl, name)
    names = ("x", "weight", "bias")
    for asking in [names, *((one,) for one in names), ("x", "bias")]:
        inputs = dict(zip(names, arguments(images, kernels), strict=True))
        assert_gradients_reach(
            lambda *tensors: function(*tensors, *options),
            lambda *tensors: F.conv2d(*tensors, *options),
            inputs,
            asking,
            name,
        )


@pytest.mark.parametrize("name", NAMES)
def test_gradients_where_an_input_is_all_zeros(impl, name):
    names = ("x", "weight", "bias")
    for zeros in names:
        inputs = dict(zip(names, arguments((2, 3, 7, 10), (5, 3, 4, 2)), strict=True))
        inputs[zeros].zero_()
        behaviour = f"{name} where {zeros} is all zeros"
        assert_gradients_reach(getattr(impl, name), F.conv2d, inputs, names, behaviour)


@pytest.mark.parametrize(("images", "kernels", "options"), GRADIENTS)
def test_gradients_without_a_bias(impl, images, kernels, options):
    x, weight = (tensor.requires_grad_() for tensor in arguments(images, kernels)[:2])
    expected = torch.autograd.grad(F.conv2d(x, weight, None, *options).sum(), (x, weight))
    actual = gradients(impl.conv2d(x, weight, None, *options).sum(), [x, weight], torch.tensor(1.0))
    assert_all_match(actual, expected, f"gradients of the sum of conv2d without bias, {options}")


@pytest.mark.parametrize(("images", "kernels", "options"), GRADIENTS)
def test_gradients_in_any_memory_layout(impl, images, kernels, options):
    inputs = arguments(images, kernels)
    grad_out = torch.randn_like(F.conv2d(*inputs, *options))

    def through(convolve):
        def taken(*inputs):
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            return gradients(convolve(*leaves, *options), leaves, grad_out)

        return taken

    expected = through(F.conv2d)(*inputs)
    assert_any_layout(through(impl.conv2d), inputs, expected, f"gradients of conv2d, {options}")


@pytest.mark.parametrize(("images", "kernels", "options"), GRADIENTS)
def test_gradients_of_two_calls_at_once(impl, images, kernels, options):
    leaves = [*arguments(images, kernels), *arguments(images, kernels)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    outs = [F.conv2d(*leaves[:3], *options), F.conv2d(*leaves[3:], *options)]
    grad_out = torch.randn_like(torch.stack(outs))
    expected = gradients(torch.stack(outs), leaves, grad_out)
    outs = [impl.conv2d(*leaves[:3], *options), impl.conv2d(*leaves[3:], *options)]
    actual = gradients(torch.stack(outs), leaves, grad_out)
    assert_all_match(actual, expected, f"gradients of two calls of conv2d at once, {options}")


# Promises of every function


@pytest.mark.parametrize(("images", "kernels", "options"), GRADIENTS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_leaves_nothing_behind(impl, name, biased, images, kernels, options):
    def inputs():
        x, weight, bias = arguments(images, kernels)
        return x, weight, bias if biased else None, *options

    assert_repeatable(getattr(impl, name), inputs, F.conv2d, f"{name} with {options}")


@pytest.mark.parametrize(("images", "kernels", "options"), GRADIENTS)
@pytest.mark.parametrize("name", NAMES)
def test_layout_of_every_argument(impl, name, images, kernels, options):
    inputs = *arguments(images, kernels), *options
    assert_any_layout(getattr(impl, name), inputs, F.conv2d(*inputs), f"{name} with {options}")


@pytest.mark.parametrize(("images", "kernels", "options"), GRADIENTS)
@pytest.mark.parametrize("name", NAMES)
def test_modes_of_torch(impl, name, images, kernels, options):
    for dtype in (torch.float64, torch.float32):
        inputs = *arguments(images, kernels, dtype), *options
        behaviour = f"{name} of {dtype} with {options}"
        assert_any_mode(getattr(impl, name), inputs, F.conv2d(*inputs), behaviour, atol=1e-4)


def test_images_that_are_their_own_kernels(impl):
    x, _, _ = arguments((2, 3, 5, 7), (4, 3, 1, 1))
    expected = F.conv2d(x, x, padding=(1, 2))
    assert_matches(impl.conv2d(x, x, padding=(1, 2)), expected, "conv2d of x with x as the weight")


@pytest.mark.parametrize("name", NAMES)
def test_a_transpose_that_starts_at_the_same_address(impl, name):
    x, weight, _ = arguments((4, 4, 5, 7), (4, 4, 2, 3))
    function = getattr(impl, name)
    for one, other in ((x, weight), (x.transpose(0, 1), weight), (x, weight.transpose(0, 1))):
        behaviour = f"{name} of the same memory, transposed"
        assert_matches(function(one, other), F.conv2d(one, other), behaviour)


# 9,000 products, each about one before they are scaled. A solution that rounds once for each tap is
# off by less than half of what is allowed here, one that rounds at each channel by far more.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_sums_of_many_channels_in_few_bits(impl, dtype, atol):
    x, weight, bias = arguments((2, 1500, 5, 4), (7, 1500, 2, 3))
    x, weight, bias = x.to(dtype), (weight / 9000**0.5).to(dtype), bias.to(dtype)
    expected = F.conv2d(x.double(), weight.double(), bias.double()).to(dtype)
    behaviour = f"conv2d of 1,500 channels in {dtype}"
    assert_matches(impl.conv2d(x, weight, bias), expected, behaviour, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "large"), [(torch.bfloat16, 1e18), (torch.float64, 1e150)])
@pytest.mark.parametrize("name", NAMES)
def test_range_of_the_dtype(impl, name, dtype, large):
    x, weight, _ = arguments((2, 3, 7, 10), (4, 3, 3, 2))
    x, weight = (x * large).to(dtype), (weight * large).to(dtype)
    expected = F.conv2d(x.double(), weight.double())
    scale = expected.abs().max()
    actual = getattr(impl, name)(x, weight)
    assert actual.dtype == dtype, f"{name} of {dtype} gives {actual.dtype}"
    behaviour = f"{name} of {dtype} values about {large:g}, as parts of the largest result"
    rounding = 0.1 if dtype == torch.bfloat16 else 1e-7
    assert_matches(actual.double() / scale, expected / scale, behaviour, rtol=0, atol=rounding)
