from functools import partial

import pytest
import torch
from torch import nn

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    gradients,
    unchanged,
)

SIZES = {"in_dim": 5, "hidden": 7, "out_dim": 3}
DEPTHS = [1, 2, 4]
P = 0.3
EXAMPLES = 11

# Four blocks of float32 sums whose order may differ: outputs of about ten are right to 1e-5 or so.
check = partial(assert_matches, rtol=1e-4, atol=1e-4)


def shapes(depth):
    """Every name of the state with its shape, as the brief lists them."""
    found = {"head.weight": (3, 7), "head.bias": (3,)}
    for i in range(depth):
        found[f"layers.{i}.weight"] = (7, 7 if i else 5)
        found[f"norms.{i}.num_batches_tracked"] = ()
        for name in ("weight", "bias", "running_mean", "running_var"):
            found[f"norms.{i}.{name}"] = (7,)
        found[f"layers.{i}.bias"] = (7,)
    return found


def make(impl, depth=2, p=P):
    return impl.Net(**SIZES, depth=depth, p=p)


def random_state(depth):
    """A state in which no scale is one, no offset zero, and no two blocks are alike."""
    state = {name: torch.randn(shape) for name, shape in shapes(depth).items()}
    for name in state:
        if name.endswith("running_var") or ("norms" in name and name.endswith(".weight")):
            state[name] = 0.5 + torch.rand(7)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(6)
    return state


def oracle(state, depth, p=P):
    """The same net out of PyTorch's own modules, in the order of the brief."""
    blocks = []
    for i in range(depth):
        blocks += [nn.Linear(7 if i else 5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(p)]
    net = nn.Sequential(*blocks, nn.Linear(7, 3))
    names = {"head": 4 * depth}
    for i in range(depth):
        names |= {f"layers.{i}": 4 * i, f"norms.{i}": 4 * i + 1}
    renamed = {}
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        renamed[f"{names[owner]}.{kind}"] = tensor.clone()
    net.load_state_dict(renamed)
    return net, {name: f"{names[name.rpartition('.')[0]]}.{name.split('.')[-1]}" for name in state}


def copies(state):
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_and_shapes_of_the_state(impl, depth):
    net = make(impl, depth)
    state = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    wanted = shapes(depth)
    assert state.keys() == wanted.keys(), (
        f"the state of a new net lacks {sorted(wanted.keys() - state.keys())[:4]}, "
        f"and has too many: {sorted(state.keys() - wanted.keys())[:4]}"
    )
    assert state == wanted
    trained = {name for name, _ in net.named_parameters()}
    assert trained == {name for name in wanted if name.endswith(("weight", "bias"))}


@pytest.mark.parametrize("depth", DEPTHS)
def test_sizes_that_agree(impl, depth):
    net = impl.Net(4, 4, 4, depth, P)
    layers = [name for name in net.state_dict() if name.endswith("weight") and "norm" not in name]
    expected = [*(f"layers.{i}.weight" for i in range(depth)), "head.weight"]
    assert sorted(layers) == sorted(expected), f"Net(4, 4, 4, {depth}, {P}) has {layers}"


def test_two_nets_share_nothing(impl):
    one, other = make(impl), make(impl)
    before = [parameter.clone() for parameter in other.parameters()]
    with torch.no_grad():
        for module in one.modules():
            for parameter in module.parameters(recurse=False):
                parameter.add_(1.0)
    for (name, parameter), old in zip(other.named_parameters(), before, strict=True):
        assert_matches(parameter, old, f"{name} of one net after a change of another net")
    # The buffers too: their values agree at first, whether they are shared or not.
    held = {tensor.data_ptr() for tensor in one.state_dict().values()}
    for name, tensor in other.state_dict().items():
        assert tensor.data_ptr() not in held, f"{name} is one tensor in two nets"


@pytest.mark.parametrize("depth", [2, 4])
def test_blocks_share_nothing(impl, depth):
    net = make(impl, depth)
    pointers = {}
    for name, tensor in net.state_dict().items():
        owner = pointers.setdefault(tensor.data_ptr(), name)
        assert owner == name, f"{name} and {owner} are one tensor"


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_copy_by_state_dict_is_the_same_net(impl, depth):
    one, other = make(impl, depth), make(impl, depth)
    x = torch.randn(EXAMPLES, 5)
    one(x)
    other.load_state_dict(one.state_dict())
    one.eval()
    other.eval()
    check(other(x), one(x), "a net with the state of another, in eval mode")


@pytest.mark.parametrize("depth", DEPTHS)
def test_eval_mode_of_the_module(impl, depth):
    state = random_state(depth)
    net = make(impl, depth)
    net.load_state_dict(copies(state), strict=False)
    net.eval()
    x = torch.randn(EXAMPLES, 5)
    with unchanged(x=x):
        out = net(x)
    check(net(x), out, "a second call in eval mode")
    alone = torch.cat([net(x[i : i + 1]) for i in range(EXAMPLES)])
    check(alone, out, "examples one at a time beside a batch, in eval mode")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("depth", DEPTHS)
def test_module_matches_torch(impl, depth, training):
    state = random_state(depth)
    net = make(impl, depth)
    net.load_state_dict(copies(state))
    net.train(training)
    expected, names = oracle(state, depth)
    expected.train(training)
    mode = "training" if training else "eval"
    for step in range(3):
        x = torch.randn(EXAMPLES, 5)
        torch.manual_seed(step)
        actual = net(x)
        torch.manual_seed(step)
        check(actual, expected(x), f"call {step + 1} of the module in {mode} mode")
    for name, tensor in net.state_dict().items():
        check(tensor, expected.state_dict()[names[name]], f"{name} after 3 calls")


def test_gradients_reach_every_parameter(impl):
    net = make(impl)
    net(torch.randn(EXAMPLES, 5)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
    assert len(list(net.parameters())) == 10, "two blocks and a head have ten parameters"


def test_all_moves_with_the_net(impl):
    net = make(impl).double()
    out = net(torch.randn(EXAMPLES, 5, dtype=torch.float64))
    assert out.dtype == torch.float64
    kept = {n: t.dtype for n, t in net.state_dict().items() if "num_batches" not in n}
    assert set(kept.values()) == {torch.float64}, f"not all of the net moved: {kept}"


@pytest.mark.parametrize("depth", DEPTHS)
def test_functional_eval_equals_the_module(impl, depth):
    state = random_state(depth)
    expected, _ = oracle(state, depth)
    expected.eval()
    x = torch.randn(EXAMPLES, 5)
    with unchanged(x=x):
        actual = impl.functional_forward(state, x, training=False, p=P)
    check(actual, expected(x), "functional_forward in eval mode")


def test_functional_eval_twice(impl):
    state = random_state(2)
    x = torch.randn(EXAMPLES, 5)
    first = impl.functional_forward(copies(state), x, False, P)
    second = impl.functional_forward(copies(state), x, False, P)
    check(second, first, "functional_forward of the same state and input, a second time")
    without = impl.functional_forward(copies(state), x, False, 0.0)
    check(first, without, "functional_forward in eval mode with p, beside that without")


def test_functional_eval_changes_nothing(impl):
    state = random_state(2)
    before = copies(state)
    impl.functional_forward(state, torch.randn(EXAMPLES, 5), False, P)
    for name, tensor in before.items():
        assert_matches(state[name], tensor, f"{name} after functional_forward in eval mode")


@pytest.mark.parametrize("depth", DEPTHS)
def test_functional_training_equals_the_module(impl, depth):
    state = random_state(depth)
    expected, _ = oracle(state, depth)
    x = torch.randn(EXAMPLES, 5)
    with unchanged(x=x):
        torch.manual_seed(1)
        actual = impl.functional_forward(state, x, training=True, p=P)
    torch.manual_seed(1)
    check(actual, expected(x), "functional_forward in training mode, same seed")


@pytest.mark.parametrize("depth", DEPTHS)
def test_functional_training_updates_the_statistics(impl, depth):
    state = random_state(depth)
    expected, names = oracle(state, depth, p=0.0)
    pointers = {name: tensor.data_ptr() for name, tensor in state.items()}
    for _ in range(3):
        x = torch.randn(EXAMPLES, 5)
        impl.functional_forward(state, x, training=True, p=0.0)
        expected(x)
    for name, tensor in state.items():
        wanted = expected.state_dict()[names[name]]
        check(tensor, wanted, f"{name} after 3 steps of training")
        assert tensor.data_ptr() == pointers[name], f"{name} was replaced, not updated in place"


def test_the_two_agree_over_training_and_eval(impl):
    net = make(impl)
    state = copies(net.state_dict())
    for step in range(3):
        x = torch.randn(EXAMPLES, 5)
        torch.manual_seed(step)
        from_net = net.train()(x)
        torch.manual_seed(step)
        from_state = impl.functional_forward(state, x, True, P)
        check(from_state, from_net, f"the two in training mode, step {step + 1}")
        actual = impl.functional_forward(state, x, False, P)
        check(actual, net.eval()(x), f"the two in eval mode after step {step + 1}")


@pytest.mark.parametrize("p", [0.0, P])
def test_functional_gradients_reach_the_state(impl, p):
    state = random_state(2)
    expected, names = oracle(state, 2, p)
    wanted = dict(expected.named_parameters())
    learnt = [name for name in state if names[name] in wanted]
    for name in learnt:
        state[name].requires_grad_()
    x, grad_out = torch.randn(EXAMPLES, 5), torch.randn(EXAMPLES, 3)
    torch.manual_seed(1)
    out = impl.functional_forward(state, x, True, p)
    actual = gradients(out, [state[name] for name in learnt], grad_out)
    torch.manual_seed(1)
    right = gradients(expected(x), [wanted[names[name]] for name in learnt], grad_out)
    for name, got, exact in zip(learnt, actual, right, strict=True):
        check(got, exact, f"the gradient for {name}, dropout {p}")


# What must hold of the module and of the function, in both modes.


def pair(impl, kind, training, depth=2, p=0.0):
    """Return a call of x by `kind`, its state, and torch's net of the same state with its names."""
    state = random_state(depth)
    expected, names = oracle(state, depth, p)
    expected.train(training)
    if kind == "functional_forward":
        return (
            partial(impl.functional_forward, state, training=training, p=p),
            state,
            expected,
            names,
        )
    net = make(impl, depth, p)
    net.load_state_dict(state)
    live = dict(net.named_parameters()) | dict(net.named_buffers())
    return net.train(training), live, expected, names


def batches():
    return [torch.randn(EXAMPLES, 5)]


KINDS = pytest.mark.parametrize("kind", ["Net", "functional_forward"])
MODES = pytest.mark.parametrize("training", [True, False])


@KINDS
@MODES
def test_calls_in_any_layout_and_mode(impl, kind, training):
    call, _, expected, _ = pair(impl, kind, training)
    behaviour = f"{kind} with training={training}"
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    assert_repeatable(call, batches, expected, behaviour, **tolerance)
    x = batches()
    assert_any_layout(call, x, expected(*x), behaviour, **tolerance)
    with unchanged(x=x[0]):
        assert_any_mode(call, x, expected(*x), behaviour, **tolerance)


@KINDS
@MODES
def test_gradients_in_both_modes(impl, kind, training):
    call, state, expected, names = pair(impl, kind, training)
    x, grad_out = torch.randn(EXAMPLES, 5).requires_grad_(), torch.randn(EXAMPLES, 3)
    learnt = [name for name in state if names[name] in dict(expected.named_parameters())]
    for name in learnt:
        state[name].requires_grad_()
    for step in (1, 2):
        try:
            actual = gradients(call(x), [x, *(state[name] for name in learnt)], grad_out)
        except RuntimeError as error:
            pytest.fail(f"{kind} with training={training} gives no gradients: {error}", False)
        wanted = [dict(expected.named_parameters())[names[name]] for name in learnt]
        right = gradients(expected(x), [x, *wanted], grad_out)
        for name, got, exact in zip(["x", *learnt], actual, right, strict=True):
            behaviour = f"the gradient for {name} of {kind}, training={training}, step {step}"
            check(got, exact, behaviour)
    for name, tensor in state.items():
        asks = tensor.requires_grad
        assert asks == (name in learnt), f"{name} holds on to the graph of earlier calls"


@KINDS
@MODES
@pytest.mark.parametrize("grad", [True, False])
def test_changes_count_from_the_next_call_on(impl, kind, training, grad):
    call, state, expected, names = pair(impl, kind, training)
    x = torch.randn(EXAMPLES, 5)
    with torch.set_grad_enabled(grad):
        call(x), expected(x)
    theirs = dict(expected.named_parameters()) | dict(expected.named_buffers())
    for name in state:
        if name.endswith("num_batches_tracked"):
            continue
        with torch.no_grad():
            state[name].mul_(1.25).add_(0.125)
            theirs[names[name]].mul_(1.25).add_(0.125)
        with torch.set_grad_enabled(grad):
            behaviour = f"{kind} once {name} has been changed in place, {training=}, {grad=}"
            check(call(x), expected(x), behaviour)


@pytest.mark.parametrize("grad", [True, False])
def test_a_loaded_state_counts_in_eval_mode(impl, grad):
    net = make(impl).eval()
    x = torch.randn(EXAMPLES, 5)
    for assign in (False, True):
        state = random_state(2)
        with torch.set_grad_enabled(grad):
            net(x)
            net.load_state_dict(copies(state), assign=assign)
            expected = oracle(state, 2)[0].eval()
            check(net(x), expected(x), f"a net in eval mode with a state loaded, {assign=}")


@KINDS
@MODES
def test_eleven_blocks(impl, kind, training):
    call, _, expected, _ = pair(impl, kind, training, depth=11)
    x = torch.randn(EXAMPLES, 5)
    # Eleven batch norms may each make a difference in rounding several times as large.
    assert_matches(call(x), expected(x), f"{kind} of 11 blocks", rtol=1e-2, atol=1e-2)


@KINDS
@MODES
@pytest.mark.parametrize("p", [0, 0.9, 1])
def test_dropout_is_that_of_torch(impl, kind, training, p):
    call, _, expected, _ = pair(impl, kind, training, p=p)
    x = torch.randn(EXAMPLES, 5)
    torch.manual_seed(3)
    actual = call(x)
    torch.manual_seed(3)
    check(actual, expected(x), f"{kind} with p={p} and training={training}, same seed")


@MODES
def test_order_of_the_state_does_not_matter(impl, training):
    state = random_state(4)
    expected, _ = oracle(state, 4, 0.0)
    x = torch.randn(EXAMPLES, 5)
    backwards = dict(reversed(state.items()))
    actual = impl.functional_forward(backwards, x, training, 0.0)
    check(actual, expected.train(training)(x), "functional_forward of a state in reverse order")


def test_functional_training_on_the_state_of_a_net(impl):
    one, other = make(impl, p=0.0), make(impl, p=0.0)
    other.load_state_dict(one.state_dict())
    x = torch.randn(EXAMPLES, 5)
    impl.functional_forward(one.state_dict(), x, True, 0.0)
    other(x)
    for name, tensor in one.state_dict().items():
        behaviour = f"{name} of a net after functional_forward of its state dict"
        check(tensor, other.state_dict()[name], behaviour)


@MODES
def test_functional_keeps_float64(impl, training):
    state = random_state(2)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor.double() + 1e-9
    expected, _ = oracle(state, 2, 0.0)
    expected.double()
    for name, tensor in state.items():
        owner, _, kind = name.rpartition(".")
        i = 8 if owner == "head" else 4 * int(owner[-1]) + owner.startswith("norms")
        with torch.no_grad():
            getattr(expected[i], kind).copy_(tensor)
    x = torch.randn(EXAMPLES, 5, dtype=torch.float64)
    actual = impl.functional_forward(state, x, training, 0.0)
    exact = {"rtol": 1e-10, "atol": 1e-10}
    wanted = expected.train(training)(x)
    assert_matches(actual, wanted, "functional_forward in float64", **exact)
    got, wanted = state["norms.0.running_var"], expected[1].running_var
    assert_matches(got, wanted, "running_var in float64", **exact)
