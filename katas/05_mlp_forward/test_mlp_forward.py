from itertools import pairwise

import pytest
import torch
from torch import nn

from dojo.testing import (
    LINEAR,
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

BOTH = ["mlp_functional", "mlp"]
# No two widths are equal, and none is the size of a leading axis. First the widths, input to
# output, then the leading axes.
CASES = [
    ((5, 7, 3), (4,)),
    ((5, 7, 3), ()),
    ((5, 7, 3), (1,)),
    ((6, 9, 8, 3), (2, 4)),
    ((4, 1, 6), (5,)),
    ((1, 8, 5, 7, 2), (3, 1, 4)),
    ((7, 3), (4,)),
    ((7, 1), (2, 4)),
    ((5, 7, 3), (0,)),
]
# Where every size is the same, wrong axes raise no error: they show in the numbers alone.
SQUARES = [((4, 4), (4,)), ((4, 4, 4), (4,)), ((3, 3, 3, 3), (3, 3)), ((5, 5, 5, 5, 5), (2, 5))]


def network(widths, dtype=torch.float32):
    """Parameters of a size that keeps activations near one, biases as large as the products."""
    # Numbers with all the digits of float64, rounded to the dtype.
    shapes = [(out, in_) for in_, out in pairwise(widths)]
    weights = [torch.randn(shape, dtype=torch.float64) / shape[1] ** 0.5 for shape in shapes]
    biases = [torch.randn(out, dtype=torch.float64) for out in widths[1:]]
    return [weight.to(dtype) for weight in weights], [bias.to(dtype) for bias in biases]


def oracle(x, weights, biases):
    """Torch's own layers with these parameters, differentiable."""
    layers = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        # As attributes and not as parameters, so that autograd reaches the originals.
        del layer.weight, layer.bias
        layer.weight, layer.bias = weight, bias
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])(x)


def diagonal(*factors):
    return torch.diag(torch.tensor(factors))


def check(impl, name, widths, lead):
    weights, biases = network(widths)
    x = torch.randn(*lead, widths[0])
    expected = oracle(x, weights, biases)
    actual = getattr(impl, name)(x, weights, biases)
    assert_matches(actual, expected, f"{name} of widths {widths} for x of shape {tuple(x.shape)}")


@pytest.mark.parametrize(("widths", "lead"), CASES)
def test_functional_matches_torch(impl, widths, lead):
    check(impl, "mlp_functional", widths, lead)


@pytest.mark.parametrize(("widths", "lead"), CASES)
def test_mlp_matches_torch(impl, widths, lead):
    check(impl, "mlp", widths, lead)


@pytest.mark.parametrize(("widths", "lead"), SQUARES)
@pytest.mark.parametrize("name", BOTH)
def test_square_layers_match_torch(impl, name, widths, lead):
    check(impl, name, widths, lead)


@pytest.mark.parametrize("name", BOTH)
def test_one_output_sees_one_row_of_the_weight(impl, name):
    weight = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    actual = getattr(impl, name)(x, [weight], [torch.zeros(3)])
    assert_matches(
        actual, expected, f"{name} of (1, 0) and (0, 1), weight {weight.tolist()}, no bias"
    )


@pytest.mark.parametrize("name", BOTH)
def test_a_square_weight_is_not_symmetric(impl, name):
    weight = torch.tensor([[1.0, 2.0], [30.0, 40.0]])
    actual = getattr(impl, name)(torch.tensor([[1.0, 0.0]]), [weight], [torch.zeros(2)])
    expected = torch.tensor([[1.0, 30.0]])
    assert_matches(actual, expected, f"{name} of (1, 0), weight {weight.tolist()}, no bias")


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("lead", [(3,), (5,), (2, 3)])
def test_bias_belongs_to_the_features(impl, name, lead):
    # With a zero weight every row of the output is the bias, also where rows are as many as it.
    bias = torch.tensor([1.0, 2.0, 4.0])
    actual = getattr(impl, name)(torch.randn(*lead, 6), [torch.zeros(3, 6)], [bias])
    assert_matches(actual, bias.expand(*lead, 3), f"{name} with a zero weight, leading axes {lead}")


@pytest.mark.parametrize("name", BOTH)
def test_output_may_be_negative(impl, name):
    x = torch.tensor([[1.0, 3.0], [2.0, 0.5]])
    expected = torch.tensor([[-1.0, -9.0], [-2.0, -1.5]])
    actual = getattr(impl, name)(x, [diagonal(-1.0, -3.0)], [torch.zeros(2)])
    assert_matches(actual, expected, f"{name} of one layer whose output is negative")
    hidden = [diagonal(1.0, 1.0), diagonal(-1.0, -3.0)]
    actual = getattr(impl, name)(x, hidden, [torch.zeros(2)] * 2)
    assert_matches(actual, expected, f"{name} of two layers whose output is negative")


@pytest.mark.parametrize("name", BOTH)
def test_relu_stands_between_the_layers(impl, name):
    # The first layer changes signs, and the second leaves all as it is: relu(-x).
    x = torch.tensor([[1.0, -3.0], [-2.0, 0.5]])
    expected = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    weights = [diagonal(-1.0, -1.0), diagonal(1.0, 1.0)]
    actual = getattr(impl, name)(x, weights, [torch.zeros(2)] * 2)
    assert_matches(actual, expected, f"{name} of layers that give relu(-x)")


@pytest.mark.parametrize("name", BOTH)
def test_every_hidden_layer_has_a_relu(impl, name):
    # Each layer changes signs: relu(-relu(-relu(-x))) is zero, and so is relu after any two.
    x = torch.tensor([[1.0, -3.0, 2.0]])
    weights = [diagonal(-1.0, -1.0, -1.0)] * 2 + [diagonal(1.0, 1.0, 1.0)]
    actual = getattr(impl, name)(x, weights, [torch.zeros(3)] * 3)
    assert_matches(actual, torch.zeros(1, 3), f"{name} of layers that give relu(-relu(-x))")


@pytest.mark.parametrize("name", BOTH)
def test_negative_inputs_count(impl, name):
    # The bias lifts all hidden units above zero, so ReLU changes nothing: x + 10 comes out.
    x = torch.tensor([[-1.0, -3.0], [-2.0, 0.5], [4.0, -5.0]])
    weights = [diagonal(1.0, 1.0), diagonal(1.0, 1.0)]
    actual = getattr(impl, name)(x, weights, [torch.full((2,), 10.0), torch.zeros(2)])
    assert_matches(actual, x + 10, f"{name} of layers that give relu(x + 10)")


def test_functional_relu_sees_the_bias(impl):
    # relu(x - 2), not relu(x) - 2.
    x = torch.tensor([[1.0, 3.0, -4.0]])
    eye = diagonal(1.0, 1.0, 1.0)
    biases = [torch.full((3,), -2.0), torch.zeros(3)]
    actual = impl.mlp_functional(x, [eye, eye], biases)
    expected = torch.tensor([[0.0, 1.0, 0.0]])
    assert_matches(actual, expected, "mlp_functional of layers that give relu(x - 2)")


@pytest.mark.parametrize("name", BOTH)
def test_every_layer_counts(impl, name):
    # Layers that scale by 2, 3, 5 and 7.
    x = torch.tensor([[1.0, 10.0], [4.0, 0.5], [2.0, 3.0]])
    weights = [diagonal(factor, factor) for factor in (2.0, 3.0, 5.0, 7.0)]
    actual = getattr(impl, name)(x, weights, [torch.zeros(2)] * 4)
    assert_matches(actual, 210 * x, f"{name} of layers that scale by 2, 3, 5 and 7")


@pytest.mark.parametrize("name", BOTH)
def test_lists_are_left_alone(impl, name):
    straight, shifts = network((5, 7, 3))
    for rows_first in (True, False):
        weights = [w if rows_first else w.T.contiguous().T for w in straight]
        biases = [*shifts]
        kept = [*weights], [*biases]
        getattr(impl, name)(torch.randn(4, 5), weights, biases)
        for what, now, before in zip(("weights", "biases"), (weights, biases), kept, strict=True):
            assert len(now) == len(before), (
                f"{name} changes the list of {what}: it had {len(before)}, it has {len(now)}"
            )
            same = all(a is b for a, b in zip(now, before, strict=True))
            assert same, f"{name} puts other tensors into the list of {what}"


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("widths", [(6, 9, 8, 3), (7, 3)])
def test_parameters_are_left_alone(impl, name, widths):
    weights, biases = network(widths)
    named = {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    named |= {f"biases[{i}]": bias for i, bias in enumerate(biases)}
    with unchanged(**named):
        # Lists of its own: what becomes of them is another test's business.
        getattr(impl, name)(torch.randn(4, widths[0]), [*weights], [*biases])


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("widths", [(5, 7, 3), (7, 3)])
def test_x_is_left_alone(impl, name, widths):
    weights, biases = network(widths)
    x = torch.randn(4, widths[0])
    with unchanged(x=x):
        getattr(impl, name)(x, weights, biases)


def test_mlp_is_from_scratch(impl):
    weights, biases = network((6, 9, 8, 3))
    with forbid(*LINEAR):
        impl.mlp(torch.randn(2, 4, 6), weights, biases)
    with forbid(*LINEAR):
        impl.mlp(torch.randn(6), weights[:1], biases[:1])


@pytest.mark.parametrize("name", BOTH)
def test_any_memory_layout(impl, name):
    weights, biases = network((5, 7, 3))
    for layout, x in layouts(torch.randn(2, 4, 5)):
        expected = oracle(x, weights, biases)
        actual = getattr(impl, name)(x, weights, biases)
        assert_matches(actual, expected, f"{name} of an x that is {layout}")
    x = torch.randn(4, 5)
    expected = oracle(x, weights, biases)
    for layout, weight in layouts(weights[0]):
        actual = getattr(impl, name)(x, [weight, weights[1]], biases)
        assert_matches(actual, expected, f"{name} with a weight that is {layout}")


# Three layers' rounding, of numbers up to about five.
DTYPES = [
    (torch.float64, 1e-12, 1e-12),
    (torch.float16, 1e-2, 1e-2),
    (torch.bfloat16, 5e-2, 1e-1),
]


@pytest.mark.parametrize(("dtype", "rtol", "atol"), DTYPES)
@pytest.mark.parametrize("name", BOTH)
def test_dtype_is_kept(impl, name, dtype, rtol, atol):
    weights, biases = network((6, 9, 8, 3), dtype)
    x = torch.randn(2, 4, 6, dtype=torch.float64).to(dtype)
    exact = oracle(x.double(), [w.double() for w in weights], [b.double() for b in biases])
    actual = getattr(impl, name)(x, weights, biases)
    assert_matches(actual, exact.to(dtype), f"{name} in {dtype}", rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", BOTH)
def test_autograd_reaches_every_parameter(impl, name):
    weights, biases = network((6, 9, 8, 3), torch.float64)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x, *weights, *biases)]
    grad_out = torch.randn(2, 4, 3, dtype=torch.float64)
    actual = gradients(getattr(impl, name)(x, [*weights], [*biases]), inputs, grad_out)
    expected = gradients(oracle(x, weights, biases), inputs, grad_out)
    names = ["x", *(f"weights[{i}]" for i in range(3)), *(f"biases[{i}]" for i in range(3))]
    for which, got, wanted in zip(names, actual, expected, strict=True):
        assert_matches(got, wanted, f"the gradient through {name} for {which}")


@pytest.mark.parametrize("name", BOTH)
def test_arguments_by_keyword(impl, name):
    weights, biases = network((5, 7, 3))
    x = torch.randn(4, 5)
    expected = oracle(x, weights, biases)
    actual = getattr(impl, name)(x=x, weights=weights, biases=biases)
    assert_matches(actual, expected, f"{name} with its arguments by keyword")


def flat(function):
    """The function of x, weights and biases one after another."""

    def call(x, *parameters):
        n = len(parameters) // 2
        return function(x, [*parameters[:n]], [*parameters[n:]])

    return call


def arguments(widths, *lead):
    weights, biases = network(widths)
    return torch.randn(*lead, widths[0]), *weights, *biases


@pytest.mark.parametrize("widths", [(5, 7, 6, 3), (7, 3)])
@pytest.mark.parametrize("name", BOTH)
def test_repeatable(impl, name, widths):
    call = flat(getattr(impl, name))
    assert_repeatable(call, lambda: arguments(widths, 4), flat(oracle), name)


@pytest.mark.parametrize("name", BOTH)
def test_parameters_changed_in_place(impl, name):
    # The lists stay too, unlike in the test above.
    weights, biases = network((5, 7, 3))
    x = torch.randn(4, 5)
    getattr(impl, name)(x, weights, biases)
    for i in range(2):
        weights[i].mul_(-1.5)
        actual = getattr(impl, name)(x, weights, biases)
        what = f"{name} after weights[{i}] has changed in place"
        assert_matches(actual, oracle(x, weights, biases), what)
        biases[i].add_(1)
        actual = getattr(impl, name)(x, weights, biases)
        what = f"{name} after biases[{i}] has changed in place"
        assert_matches(actual, oracle(x, weights, biases), what)
        weights[i] = torch.randn_like(weights[i])
        actual = getattr(impl, name)(x, weights, biases)
        what = f"{name} after weights[{i}] has been replaced in the list"
        assert_matches(actual, oracle(x, weights, biases), what)


@pytest.mark.parametrize("name", BOTH)
def test_any_layout_of_each_tensor(impl, name):
    # Of a square weight, a wrong axis raises no error.
    for widths in ((5, 7, 6, 3), (4, 4, 4)):
        inputs = arguments(widths, 2, 4)
        assert_any_layout(flat(getattr(impl, name)), inputs, flat(oracle)(*inputs), name)


@pytest.mark.parametrize("name", BOTH)
def test_any_mode(impl, name):
    inputs = arguments((5, 7, 6, 3), 2, 4)
    assert_any_mode(flat(getattr(impl, name)), inputs, flat(oracle)(*inputs), name)


@pytest.mark.parametrize("layers", [(0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("name", BOTH)
def test_layers_may_share_tensors(impl, name, layers):
    square, biases = network((4, 4, 4))
    x = torch.randn(5, 4, requires_grad=True)
    tensors = [tensor.requires_grad_() for tensor in (square[0], biases[0])]
    shared, shifts = [square[i] for i in layers], [biases[i] for i in layers]
    which = f"{name} of layers that share tensors, numbers {layers}"
    actual, expected = getattr(impl, name)(x, shared, shifts), oracle(x, shared, shifts)
    assert_matches(actual, expected, which)
    # Weights alone, then biases alone.
    own = [torch.randn(4) for _ in layers]
    actual = getattr(impl, name)(x, shared, own)
    assert_matches(actual, oracle(x, shared, own), f"{which}, weights alone")
    own = [torch.randn(4, 4) for _ in layers]
    actual = getattr(impl, name)(x, own, shifts)
    assert_matches(actual, oracle(x, own, shifts), f"{which}, biases alone")
    grad_out = torch.randn(5, 4)
    got = gradients(getattr(impl, name)(x, shared, shifts), [x, *tensors], grad_out)
    wanted = gradients(expected, [x, *tensors], grad_out)
    for what, one, other in zip(("x", "the weight", "the bias"), got, wanted, strict=True):
        assert_matches(one, other, f"the gradient through {which}, for {what}", atol=1e-4)


@pytest.mark.parametrize(
    ("widths", "rows"), [((3, 1500, 2), 5), ((1500, 4, 3), 5), ((3, 4, 2), 5000)]
)
@pytest.mark.parametrize("name", BOTH)
def test_large_sizes(impl, name, widths, rows):
    inputs = arguments(widths, rows)
    exact = flat(oracle)(*(tensor.double() for tensor in inputs)).float()
    actual = flat(getattr(impl, name))(*inputs)
    assert_matches(actual, exact, f"{name} of widths {widths}, {rows} rows", rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BOTH)
def test_long_sums_in_half_precision(impl, name, dtype):
    # One by one: from 2,048 on float16 has no odd number, from 256 on bfloat16 has none.
    x = torch.ones(2, 4096, dtype=dtype)
    weights = [torch.ones(3, 4096), torch.full((1, 3), 0.25)]
    weights = [weight.to(dtype) for weight in weights]
    biases = [torch.zeros(3, dtype=dtype), torch.zeros(1, dtype=dtype)]
    # Three roundings, of half a step each, and room for as many again.
    rtol = 3 * torch.finfo(dtype).eps
    # 0.9 is for sums of parts: 16 such are 14.4, and 64 are 57.6, between the steps of the sum.
    for number in (1.0, 0.9):
        weights[0].fill_(number)
        actual = getattr(impl, name)(x, weights, biases)
        expected = torch.full((2, 1), 3072.0 * float(weights[0][0, 0])).to(dtype)
        what = f"{name} of sums of 4,096 times {number} in {dtype}"
        assert_matches(actual, expected, what, rtol=rtol)


@pytest.mark.parametrize("name", BOTH)
def test_large_numbers_in_float16(impl, name):
    x = torch.tensor([[3e4, 3e4], [-3e4, 1e-3]], dtype=torch.float16)
    weights = [torch.eye(2).half(), torch.tensor([[1.0, 1.0], [1.0, -1.0]]).half()]
    biases = [torch.zeros(2).half(), torch.tensor([0.0, 1.0]).half()]
    expected = oracle(x.double(), [w.double() for w in weights], [b.double() for b in biases])
    actual = getattr(impl, name)(x, weights, biases)
    assert_matches(actual, expected.half(), f"{name} of numbers near 60,000 in float16", rtol=1e-2)


@pytest.mark.parametrize("widths", [(5, 7, 3), (7, 3)])
@pytest.mark.parametrize("lead", [(), (0,), (2, 0), (0, 4)])
@pytest.mark.parametrize("name", BOTH)
def test_empty_or_missing_leading_axes(impl, name, lead, widths):
    inputs = arguments(widths, *lead)
    actual = flat(getattr(impl, name))(*inputs)
    what = f"{name} of widths {widths} for x of shape {tuple(inputs[0].shape)}"
    assert_matches(actual, flat(oracle)(*inputs), what)


@pytest.mark.parametrize("name", BOTH)
def test_the_range_of_the_dtype(impl, name):
    # Sums, differences and single numbers, up to a quarter of the largest number.
    signs = torch.tensor([[1.0, 1.0, -1.0], [0.0, -1.0, 0.5]])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for size in (torch.finfo(dtype).max / 4, torch.finfo(dtype).max ** 0.5):
            x = (size * torch.tensor([[1.0, 0.5, -1.0], [-1.0, 0.25, 0.125]]).double()).to(dtype)
            weights = [signs.to(dtype), torch.tensor([[1.0, -0.5]]).to(dtype)]
            biases = [(size * torch.tensor([0.5, -0.25]).double()).to(dtype)]
            biases.append(torch.tensor([1.0]).to(dtype))
            # In units of the size, whose largest sum is then three.
            units = [(t.double() / size) for t in (x, *biases)]
            exact = oracle(units[0], [w.double() for w in weights], units[1:]) * size
            actual = getattr(impl, name)(x, weights, biases)
            what = f"{name} of numbers near {size:.3g} in {dtype}"
            rtol = 4 * torch.finfo(dtype).eps
            assert_matches(actual, exact.to(dtype), what, rtol=rtol)


@pytest.mark.parametrize("name", BOTH)
def test_gradients_for_one_tensor_alone(impl, name):
    function, expected = flat(getattr(impl, name)), flat(oracle)
    for widths in ((5, 7, 3), (7, 3)):
        tensors = arguments(widths, 2)
        n = len(widths) - 1
        names = ["x", *(f"weights[{i}]" for i in range(n)), *(f"biases[{i}]" for i in range(n))]
        for which in names:
            # Biases of zero, which a solution might leave out, have a gradient too.
            inputs = {
                key: tensor.detach().clone() * (key != "biases[0]")
                for key, tensor in zip(names, tensors, strict=True)
            }
            what = f"{name} of widths {widths}"
            assert_gradients_reach(function, expected, inputs, [which], what)
