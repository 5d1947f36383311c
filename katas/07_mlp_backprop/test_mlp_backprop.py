import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dojo.testing import assert_matches, layouts, unchanged

NAMES = ["W1", "b1", "W2", "b2"]
# N, D, H, C. No two are equal, so that a swapped axis cannot hide; then each of them is one.
SIZES = [(6, 5, 7, 3), (3, 7, 4, 6), (1, 4, 6, 3), (5, 1, 4, 3), (6, 3, 1, 4), (4, 3, 5, 1)]


def problem(n=6, d=5, h=7, c=3, dtype=np.float64):
    """Parameters, inputs and classes; pre-activations of about two, so that tanh is bent."""
    params = {
        "W1": 2 * np.random.randn(d, h) / np.sqrt(d),
        "b1": np.random.randn(h),
        "W2": 2 * np.random.randn(h, c) / np.sqrt(h),
        "b2": np.random.randn(c),
    }
    params = {name: value.astype(dtype) for name, value in params.items()}
    return params, np.random.randn(n, d).astype(dtype), np.random.randint(c, size=n)


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def tensors(arrays):
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def views(of, arrays):
    """Return tensors that share the arrays' memory, for `unchanged`."""
    return {f"{of}[{name}]": torch.from_numpy(value) for name, value in arrays.items()}


def dtype_of(dtype):
    return torch.from_numpy(np.empty(0, dtype)).dtype


def with_autograd(params, x, y):
    """Return torch's loss and its gradients, in float64."""
    leaves = {name: tensor(value).requires_grad_() for name, value in params.items()}
    hidden = torch.tanh(tensor(x) @ leaves["W1"] + leaves["b1"])
    loss = F.cross_entropy(hidden @ leaves["W2"] + leaves["b2"], torch.tensor(y).long())
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, grads, strict=True))


def passes(impl, params, x, y):
    """Return the loss and the gradients of the implementation under test."""
    loss, cache = impl.forward(params, x, y)
    return loss, impl.backward(params, cache)


def assert_number(actual, expected, behaviour, **tolerance):
    """Compare a loss, which may be a float, a NumPy scalar or a 0-d array."""
    assert np.ndim(actual) == 0, f"{behaviour}: the loss has shape {np.shape(actual)}, not ()"
    assert_matches(tensor(float(actual)), tensor(float(expected)), behaviour, **tolerance)


def assert_array(actual, expected, behaviour, **tolerance):
    """Compare an array, of gradients or parameters, with a tensor."""
    if not isinstance(actual, np.ndarray):
        pytest.fail(f"{behaviour}: got {type(actual).__name__}, not an array", pytrace=False)
    assert_matches(torch.from_numpy(actual.copy()), expected, behaviour, **tolerance)


def assert_named(actual, expected, behaviour, names=NAMES, **tolerance):
    """Compare the arrays of a dict with tensors, after their names."""
    assert set(actual) == set(NAMES), f"{behaviour}: the names are {[*actual]}, not {NAMES}"
    for name in names:
        assert_array(actual[name], expected[name], f"{behaviour}, {name}", **tolerance)


# The loss.


@pytest.mark.parametrize("sizes", SIZES)
def test_loss_matches_torch(impl, sizes):
    params, x, y = problem(*sizes)
    loss, _ = impl.forward(params, x, y)
    expected, _ = with_autograd(params, x, y)
    assert_number(loss, expected, "the loss for N, D, H, C = {}, {}, {}, {}".format(*sizes))


def test_loss_by_hand(impl):
    # tanh(log 2) = 0.6, so the logits are (log 3, 0) and (-log 3, 0): each class has 3/4 or 1/4.
    params = {
        "W1": np.array([[np.log(2.0)]]),
        "b1": np.array([0.0]),
        "W2": np.array([[np.log(3.0) / 0.6, 0.0]]),
        "b2": np.array([0.0, 0.0]),
    }
    loss, _ = impl.forward(params, np.array([[1.0], [-1.0], [1.0]]), np.array([0, 1, 1]))
    expected = -(2 * np.log(3 / 4) + np.log(1 / 4)) / 3
    assert_number(loss, expected, "the loss of probabilities 3/4, 3/4 and 1/4")


def saturated(levels, c, dtype=np.float64):
    """A network whose logits for x = ±1 are ±levels, and whose gradients are not all zero."""
    params, _, _ = problem(1, 1, 1, c, dtype)
    params["W1"][:] = 6
    params["W2"][:] = levels
    return params


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sign", [1, -1])
def test_large_logits(impl, sign, dtype):
    params = saturated([10_000, 10_001, 9_999.5, 9_000], 4, dtype)
    x, y = np.full((1, 1), sign, dtype), np.array([2])
    loss, cache = impl.forward(params, x, y)
    expected_loss, expected = with_autograd(params, x, y)
    # A float32 near 10,000 has steps of 0.001, and the logits cannot be more exact than that.
    rtol, atol = (1e-7, 1e-7) if dtype is np.float64 else (1e-5, 5e-3)
    about = f"with logits near {sign * 10_000:,} in {np.dtype(dtype)}"
    assert_number(loss, expected_loss, f"the loss {about}", rtol=rtol, atol=atol)
    grads = impl.backward(params, cache)
    expected = {name: value.to(dtype_of(dtype)) for name, value in expected.items()}
    assert_named(grads, expected, f"gradients {about}", ["W2", "b2"], atol=atol)


def test_examples_at_different_levels(impl):
    # Rows at +5,000 and at -5,000: exp of one row's logits is zero next to the other's.
    params = saturated([5_000, 5_001, 4_998.5], 3)
    x = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    y = np.array([0, 1, 2, 2])
    loss, cache = impl.forward(params, x, y)
    expected_loss, expected = with_autograd(params, x, y)
    assert_number(loss, expected_loss, "the loss of examples with logits near 5,000 and -5,000")
    grads = impl.backward(params, cache)
    assert_array(grads["W2"], expected["W2"], "W2 for logits near 5,000 and -5,000")


@pytest.mark.parametrize("gap", [200, 3_000])
def test_loss_of_confidently_wrong_predictions(impl, gap):
    params = saturated([gap, 0, gap / 2], 3)
    params["b2"][:] = 0
    x, y = np.array([[1.0], [1.0]]), np.array([1, 0])
    loss, _ = impl.forward(params, x, y)
    expected, _ = with_autograd(params, x, y)
    assert_number(loss, expected, f"the loss with a class {gap} below the best logit")


# The gradients.


@pytest.mark.parametrize("sizes", SIZES)
def test_output_layer_gradients_match_autograd(impl, sizes):
    params, x, y = problem(*sizes)
    _, grads = passes(impl, params, x, y)
    _, expected = with_autograd(params, x, y)
    about = "gradients for N, D, H, C = {}, {}, {}, {}".format(*sizes)
    assert_named(grads, expected, about, ["W2", "b2"])


@pytest.mark.parametrize("sizes", SIZES)
def test_hidden_layer_gradients_match_autograd(impl, sizes):
    params, x, y = problem(*sizes)
    _, grads = passes(impl, params, x, y)
    _, expected = with_autograd(params, x, y)
    about = "gradients for N, D, H, C = {}, {}, {}, {}".format(*sizes)
    assert_named(grads, expected, about, ["W1", "b1"])


def test_gradients_match_central_differences(impl):
    params, x, y = problem(n=5, d=4, h=3, c=2)
    _, grads = passes(impl, params, x, y)
    # The error is about step² for the curve and 1e-16 / step for rounding: both near 1e-10.
    step = 1e-5
    slopes = {name: np.empty_like(value) for name, value in params.items()}
    for name, value in params.items():
        for index in np.ndindex(value.shape):
            nudged = [{key: array.copy() for key, array in params.items()} for _ in range(2)]
            nudged[0][name][index] += step
            nudged[1][name][index] -= step
            up, down = (impl.forward(p, x, y)[0] for p in nudged)
            slopes[name][index] = (float(up) - float(down)) / (2 * step)
    assert_named(grads, tensors(slopes), "the gradient and the slope of the loss itself", atol=1e-7)


def test_gradients_have_the_shapes_of_the_parameters(impl):
    params, x, y = problem()
    _, grads = passes(impl, params, x, y)
    shapes = {name: np.shape(grads[name]) for name in NAMES}
    expected = {name: params[name].shape for name in NAMES}
    assert shapes == expected, f"gradients have shapes {shapes}, their parameters {expected}"


def test_hidden_weights_of_one_example(impl):
    params, x, y = problem(n=1)
    _, grads = passes(impl, params, x, y)
    _, expected = with_autograd(params, x, y)
    assert_array(grads["W1"], expected["W1"], "the gradient of W1 for a batch of one")


def test_repeating_the_batch_changes_nothing(impl):
    params, x, y = problem()
    loss, cache = impl.forward(params, x, y)
    thrice_loss, thrice = impl.forward(params, np.tile(x, (3, 1)), np.tile(y, 3))
    assert_number(thrice_loss, loss, "the loss of a batch that holds each example three times")
    once = tensors(impl.backward(params, cache))
    grads = impl.backward(params, thrice)
    assert_named(grads, once, "the gradients of a batch that holds each example three times")


def test_saturated_hidden_units_pass_no_gradient(impl):
    params, x, y = problem(h=4)
    params["W1"][:, 1:3] = 0
    params["b1"][1:3] = [20, -20]
    _, grads = passes(impl, params, x, y)
    behaviour = "the gradient of W1 for hidden units at tanh(±20), where tanh is flat"
    assert_array(grads["W1"][:, 1:3], torch.zeros(5, 2).double(), behaviour)


def test_unit_without_outgoing_weights_gets_no_gradient(impl):
    params, x, y = problem()
    params["W2"][2] = 0
    _, grads = passes(impl, params, x, y)
    behaviour = "the gradient of W1 for a hidden unit that no logit depends on"
    assert_array(grads["W1"][:, 2], torch.zeros(5).double(), behaviour)


def test_gradient_of_a_constant_feature_is_that_of_the_bias(impl):
    params, x, y = problem()
    x[:, 3] = 1
    _, grads = passes(impl, params, x, y)
    expected = torch.from_numpy(grads["W1"][3].copy())
    behaviour = "b1 acts like the weights of a feature that is always 1, so its gradient"
    assert_array(grads["b1"], expected, behaviour)


def test_gradient_of_a_constant_hidden_unit_is_that_of_the_bias(impl):
    params, x, y = problem()
    params["W1"][:, 4], params["b1"][4] = 0, 20  # a unit at tanh(20), which is 1 in float64
    _, grads = passes(impl, params, x, y)
    expected = torch.from_numpy(grads["W2"][4].copy())
    behaviour = "b2 acts like the weights of a hidden unit that is always 1, so its gradient"
    assert_array(grads["b2"], expected, behaviour)


# Data types, layouts, and what is left unchanged.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gradients_keep_the_dtype(impl, dtype):
    params, x, y = problem(dtype=dtype)
    loss, cache = impl.forward(params, x, y)
    grads = impl.backward(params, cache)
    for name in NAMES:
        assert grads[name].dtype == dtype, (
            f"the gradient of {name} is {grads[name].dtype}, its parameter {np.dtype(dtype)}"
        )
    # The same numbers in float64; sums of a dozen terms of about one, each rounded to 6e-8.
    exact = {name: value.astype(np.float64) for name, value in params.items()}
    exact_loss, exact_cache = impl.forward(exact, x.astype(np.float64), y)
    assert_number(loss, exact_loss, f"the loss in {np.dtype(dtype)}", rtol=1e-5, atol=1e-6)
    expected = tensors(impl.backward(exact, exact_cache))
    expected = {name: value.to(dtype_of(dtype)) for name, value in expected.items()}
    behaviour = f"gradients in {np.dtype(dtype)}, beside those in float64"
    assert_named(grads, expected, behaviour, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_classes_of_any_integer_dtype(impl, dtype):
    params, x, y = problem()
    expected_loss, expected = passes(impl, params, x, y)
    loss, grads = passes(impl, params, x, y.astype(dtype))
    about = f"for classes in {np.dtype(dtype)}, beside int64,"
    assert_number(loss, expected_loss, f"the loss {about}")
    assert_named(grads, tensors(expected), f"gradients {about}")


def test_any_memory_layout(impl):
    params, x, y = problem()
    expected_loss, expected = passes(impl, params, x, y)
    y = np.repeat(y, 2)[::2]
    for layout, inputs in layouts(torch.from_numpy(x)):
        for _, w1 in layouts(torch.from_numpy(params["W1"])):
            for _, w2 in layouts(torch.from_numpy(params["W2"])):
                strided = params | {"W1": w1.numpy(), "W2": w2.numpy()}
                loss, grads = passes(impl, strided, inputs.numpy(), y)
                about = f"for inputs that are {layout}, beside contiguous,"
                assert_number(loss, expected_loss, f"the loss {about}")
                assert_named(grads, tensors(expected), f"gradients {about}")


def test_arguments_by_name(impl):
    params, x, y = problem()
    expected_loss, expected = passes(impl, params, x, y)
    loss, cache = impl.forward(params=params, x=x, y=y)
    assert_number(loss, expected_loss, "forward(params=..., x=..., y=...)")
    grads = impl.backward(params=params, cache=cache)
    assert_named(grads, tensors(expected), "backward(params=..., cache=...)")
    stepped = impl.sgd_step(params=params, grads=grads, lr=0.3)
    wanted = tensors(impl.sgd_step(params, grads, 0.3))
    assert_named(stepped, wanted, "sgd_step(params=..., grads=..., lr=...)")


def test_passes_leave_their_arguments(impl):
    params, x, y = problem()
    with unchanged(x=torch.from_numpy(x), y=torch.from_numpy(y), **views("params", params)):
        _, cache = impl.forward(params, x, y)
        impl.backward(params, cache)
    assert [*params] == NAMES, f"params holds {[*params]} after forward and backward"


def test_backward_twice_gives_the_same(impl):
    params, x, y = problem()
    _, cache = impl.forward(params, x, y)
    first = {name: tensor(value) for name, value in impl.backward(params, cache).items()}
    second = impl.backward(params, cache)
    assert_named(second, first, "the gradients of a second backward on one cache")


def test_each_cache_stands_for_itself(impl):
    params, x, y = problem()
    alone = tensors(passes(impl, params, x, y)[1])
    _, cache = impl.forward(params, x, y)
    impl.forward(*problem(n=4))
    grads = impl.backward(params, cache)
    assert_named(grads, alone, "the gradients of a cache, another forward having come between")


# The step.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_step(impl, dtype):
    params, grads = problem(dtype=dtype)[0], problem(dtype=dtype)[0]
    # 0.25 is exact in binary, so that the product is too.
    expected = {
        name: torch.from_numpy(params[name]) - 0.25 * torch.from_numpy(grads[name])
        for name in NAMES
    }
    stepped = impl.sgd_step(params, grads, 0.25)
    assert_named(stepped, expected, f"parameters after a step in {np.dtype(dtype)}")


def test_step_leaves_the_old_parameters(impl):
    params, grads = problem()[0], problem()[0]
    old = tensors(params)
    with unchanged(**views("params", params), **views("grads", grads)):
        stepped = impl.sgd_step(params, grads, 0.3)
    assert stepped is not params, "sgd_step returns the dict that it was given, not a new one"
    # And no new array in the old dict.
    assert_named(params, old, "the parameters from before the step", rtol=0, atol=0)


def test_backward_after_a_step_sees_the_old_weights(impl):
    params, x, y = problem()
    kept = {name: value.copy() for name, value in params.items()}
    expected = tensors(passes(impl, kept, x, y)[1])
    _, cache = impl.forward(params, x, y)
    impl.sgd_step(params, problem()[0], 0.3)
    grads = impl.backward(params, cache)
    assert_named(grads, expected, "the gradients at the old parameters, after a step")


def test_training_matches_torch(impl):
    params, _, _ = problem()
    expected = {name: tensor(value) for name, value in params.items()}
    for n in (6, 4, 1, 8):  # a batch of another size is what every epoch ends on
        _, x, y = problem(n=n)
        # What torch.optim.SGD does, whose first step imports half of torch.
        wanted, slopes = with_autograd({name: p.numpy() for name, p in expected.items()}, x, y)
        expected = {name: p - 0.7 * slopes[name] for name, p in expected.items()}
        loss, cache = impl.forward(params, x, y)
        assert_number(loss, wanted, f"the loss in training, with a batch of {n}")
        params = impl.sgd_step(params, impl.backward(params, cache), 0.7)
        assert_named(params, expected, f"parameters in training, after a batch of {n}")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "lr", [np.float64(0.25), np.float32(0.25), np.int64(2), 3, 0, 0.0, -0.5, 1.0]
)
def test_step_of_any_learning_rate(impl, dtype, lr):
    params, grads = problem(dtype=dtype)[0], problem(dtype=dtype)[0]
    stepped = impl.sgd_step(params, grads, lr)
    expected = {name: tensor(params[name]) - float(lr) * tensor(grads[name]) for name in NAMES}
    expected = {name: value.to(dtype_of(dtype)) for name, value in expected.items()}
    what = f"parameters after a step in {np.dtype(dtype)} with lr {type(lr).__name__}({lr})"
    assert_named(stepped, expected, what)
    for name in NAMES:
        shared = any(np.shares_memory(stepped[name], old[name]) for old in (params, grads))
        assert not shared, f"{what} lie in the memory of the arguments: {name}"


def test_step_keeps_the_digits_of_the_learning_rate(impl):
    params, grads = problem()[0], problem()[0]
    for lr in (0.1, 1 / 3, -1e-3, np.float64(0.7)):
        expected = {name: tensor(params[name]) - lr * tensor(grads[name]) for name in NAMES}
        stepped = impl.sgd_step(params, grads, lr)
        what = f"parameters in float64 after a step with lr {float(lr):g}"
        assert_named(stepped, expected, what, rtol=1e-13, atol=1e-13)


def test_step_of_any_memory_layout(impl):
    params, grads = problem()[0], problem()[0]
    expected = {name: tensor(params[name]) - 0.3 * tensor(grads[name]) for name in NAMES}
    for which in NAMES:
        for layout, one in layouts(tensor(params[which])):
            for other_layout, other in layouts(tensor(grads[which])):
                mixed = params | {which: one.numpy()}, grads | {which: other.numpy()}
                what = f"a step, {which} {layout} and its gradient {other_layout}"
                assert_named(impl.sgd_step(*mixed, 0.3), expected, what)


def test_sizes_of_one(impl):
    for number in range(16):
        # N, D, H, C: each of the sizes in turn is one or not.
        sizes = [1 if number >> axis & 1 else axis + 2 for axis in range(4)]
        params, x, y = problem(*sizes)
        loss, grads = passes(impl, params, x, y)
        expected_loss, expected = with_autograd(params, x, y)
        about = "for N, D, H, C = {}, {}, {}, {}".format(*sizes)
        assert_number(loss, expected_loss, f"the loss {about}")
        assert_named(grads, expected, f"gradients {about}")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_inputs_of_tanh_of_any_size(impl, dtype):
    params, x, y = problem(dtype=dtype)
    # Hidden units far out on either side, and some near zero.
    params["b1"][:5] = [400, -400, 30_000, -30_000, 95]
    loss, grads = passes(impl, params, x, y)
    expected_loss, expected = with_autograd(params, x, y)
    expected = {name: value.to(dtype_of(dtype)) for name, value in expected.items()}
    about = f"for inputs of tanh up to ±30,000 in {np.dtype(dtype)}"
    assert_number(loss, expected_loss, f"the loss {about}", rtol=1e-5)
    assert_named(grads, expected, f"gradients {about}", rtol=1e-4, atol=1e-5)


def test_step_goes_by_name(impl):
    params, grads = problem(n=4, d=3, h=3, c=3)[0], problem(n=4, d=3, h=3, c=3)[0]
    expected = {name: tensor(params[name]) - 0.3 * tensor(grads[name]) for name in NAMES}
    mixed = {name: grads[name] for name in ("b2", "W2", "b1", "W1")}
    assert_named(impl.sgd_step(params, mixed, 0.3), expected, "a step, the gradients in any order")
    turned = {name: params[name] for name in reversed(NAMES)}
    assert_named(impl.sgd_step(turned, grads, 0.3), expected, "a step, the parameters in any order")


def test_passes_go_by_name(impl):
    params, x, y = problem(n=4, d=3, h=3, c=3)
    loss, grads = passes(impl, {name: params[name] for name in reversed(NAMES)}, x, y)
    expected_loss, expected = with_autograd(params, x, y)
    assert_number(loss, expected_loss, "the loss, the parameters in any order")
    assert_named(grads, expected, "gradients, the parameters in any order")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_caches_of_one_shape(impl, dtype):
    # Both forward passes first: what one keeps, the other must not overwrite.
    problems = [problem(dtype=dtype) for _ in range(3)]
    caches = [impl.forward(*each)[1] for each in problems]
    for number in (1, 0, 2, 0):
        params, x, y = problems[number]
        _, expected = with_autograd(params, x, y)
        expected = {name: value.to(dtype_of(dtype)) for name, value in expected.items()}
        what = f"the gradients of cache {number + 1} of three that have the same shapes"
        assert_named(impl.backward(params, caches[number]), expected, what, rtol=1e-4, atol=1e-5)


def test_one_network_and_two_batches(impl):
    params, x, y = problem()
    _, other, classes = problem()
    batches = [(x, y), (other, y), (x, classes)]
    caches = [impl.forward(params, *batch)[1] for batch in batches]
    for batch, cache in zip(batches, caches, strict=True):
        _, expected = with_autograd(params, *batch)
        grads = impl.backward(params, cache)
        assert_named(grads, expected, "the gradients of one of three batches of one network")


def test_gradients_are_arrays_of_their_own(impl):
    params, x, y = problem()
    _, cache = impl.forward(params, x, y)
    first = impl.backward(params, cache)
    kept = tensors(first)
    second = impl.backward(params, cache)
    for name in NAMES:
        second[name] *= -7
    assert_named(first, kept, "gradients once those of a second backward have changed in place")
    for name in NAMES:
        first[name][...] = 7
    third = impl.backward(params, cache)
    assert_named(third, kept, "gradients of a cache once earlier ones have changed in place")


def test_arrays_changed_in_place_between_passes(impl):
    params, x, y = problem()
    passes(impl, params, x, y)
    for what, array in (("x", x), *params.items()):
        array *= -0.7
        array += 0.3
        loss, grads = passes(impl, params, x, y)
        expected_loss, expected = with_autograd(params, x, y)
        assert_number(loss, expected_loss, f"the loss after {what} has changed in place")
        assert_named(grads, expected, f"gradients after {what} has changed in place")
    y[:] = (y + 1) % 3
    loss, grads = passes(impl, params, x, y)
    expected_loss, expected = with_autograd(params, x, y)
    assert_number(loss, expected_loss, "the loss after y has changed in place")
    assert_named(grads, expected, "gradients after y has changed in place")


@pytest.mark.parametrize("sizes", [(5000, 3, 4, 2), (3, 1500, 4, 2), (3, 2, 4, 1500)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_sizes(impl, sizes, dtype):
    params, x, y = problem(*sizes, dtype=dtype)
    loss, grads = passes(impl, params, x, y)
    expected_loss, expected = with_autograd(params, x, y)
    expected = {name: value.to(dtype_of(dtype)) for name, value in expected.items()}
    about = "for N, D, H, C = {}, {}, {}, {} in {}".format(*sizes, np.dtype(dtype))
    assert_number(loss, expected_loss, f"the loss {about}", rtol=1e-5)
    assert_named(grads, expected, f"gradients {about}", rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint64])
def test_classes_beyond_bytes(impl, dtype):
    params, x, _ = problem(n=3, d=2, h=4, c=127)
    y = np.array([126, 0, 100], dtype)
    loss, grads = passes(impl, params, x, y)
    expected_loss, expected = with_autograd(params, x, y.astype(np.int64))
    assert_number(loss, expected_loss, f"the loss of 127 classes in {np.dtype(dtype)}")
    assert_named(grads, expected, f"gradients of 127 classes in {np.dtype(dtype)}")


def test_a_single_class(impl):
    params, x, y = problem(c=1)
    loss, grads = passes(impl, params, x, y)
    assert_number(loss, 0.0, "the loss where there is a single class")
    zeros = {name: torch.zeros(params[name].shape, dtype=torch.float64) for name in NAMES}
    assert_named(grads, zeros, "gradients where there is a single class")
