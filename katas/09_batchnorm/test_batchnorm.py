import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dojo.testing import (
    NORMALISATION,
    HandDown,
    assert_all_match,
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    forbid,
    gradients,
    layouts,
    refuses,
    unchanged,
)

# No two axes of a shape are equal, so that a swapped axis cannot hide.
FLAT = [(6, 4), (4, 6), (2, 5), (9, 1), (33, 7)]
SEQUENCES = [(5, 3, 8), (3, 8, 5), (1, 4, 6), (4, 1, 7), (3, 2, 1)]
# Large enough to count beside variances of about one to ten, and far from its square root.
EPS = 0.3
# So small beside those variances that a float64 result shows nothing of it.
TINY = 1e-12
MOMENTUM = 0.2
STATISTICS = ("running_mean", "running_var")


def batch(*shape, dtype=torch.float64):
    """Return an x whose channels differ in level and spread."""
    c = (shape[1],) + (1,) * (len(shape) - 2)
    spread = 1 + 2 * torch.rand(c, dtype=dtype)
    return 3 * torch.randn(c, dtype=dtype) + spread * torch.randn(shape, dtype=dtype)


def channel_tensors(c, dtype=torch.float64):
    """Return running_mean, running_var, weight and bias as a trained layer might have them."""
    weight = (1.5 + torch.rand(c, dtype=dtype)) * (-1.0) ** torch.arange(c)
    running_mean, running_var = torch.randn(c, dtype=dtype), 2 + 3 * torch.rand(c, dtype=dtype)
    return running_mean, running_var, weight, 1 + torch.rand(c, dtype=dtype)


def layers(impl, c, eps=EPS, momentum=MOMENTUM, dtype=torch.float64):
    """Return their layer and torch's with the same values, as if trained; both in training mode."""
    ours = impl.BatchNorm1d(c, eps=eps, momentum=momentum)
    theirs = nn.BatchNorm1d(c, eps=eps, momentum=momentum)
    names = (*STATISTICS, "weight", "bias")
    for layer in (ours, theirs):
        layer.to(dtype)
        for name in STATISTICS:
            # Whether `to` reaches these has tests of its own, and should fail no others.
            if getattr(layer, name).dtype != dtype:
                setattr(layer, name, getattr(layer, name).to(dtype))
    with torch.no_grad():
        for name, value in zip(names, channel_tensors(c, dtype), strict=True):
            getattr(ours, name).copy_(value)
            getattr(theirs, name).copy_(value)
    return ours, theirs


# The functional version.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (5, 3, 8)])
def test_functional_matches_torch(impl, shape, training):
    x, state = batch(*shape), channel_tensors(shape[1])
    expected = F.batch_norm(x, *(t.clone() for t in state), training, MOMENTUM, EPS)
    _, _, weight, bias = state
    with unchanged(x=x, weight=weight, bias=bias):
        actual = impl.batchnorm_functional(x, *state, training, MOMENTUM, EPS)
    mode = "training" if training else "evaluation"
    assert_matches(actual, expected, f"batchnorm_functional in {mode}, x of shape {shape}")


@pytest.mark.parametrize("training", [True, False])
def test_functional_updates_running_statistics_in_training_alone(impl, training):
    x, (mean, var, weight, bias) = batch(6, 4), channel_tensors(4)
    wanted = {"running_mean": mean.clone(), "running_var": var.clone()}
    F.batch_norm(x, *wanted.values(), weight, bias, training, MOMENTUM, EPS)
    impl.batchnorm_functional(x, mean, var, weight, bias, training, MOMENTUM, EPS)
    for name, actual in zip(wanted, (mean, var), strict=True):
        behaviour = f"{name} after batchnorm_functional with training={training}"
        assert_matches(actual, wanted[name], behaviour)


def test_functional_takes_keywords_and_defaults(impl):
    x, (mean, var, weight, bias) = 2e-3 * batch(6, 4), channel_tensors(4)
    mean_too, var_too = mean.clone(), var.clone()
    actual = impl.batchnorm_functional(
        x=x, running_mean=mean, running_var=var, weight=weight, bias=bias, training=True
    )
    expected = F.batch_norm(x, mean_too, var_too, weight, bias, True)
    assert_matches(actual, expected, "batchnorm_functional of small variances, without eps")
    assert_matches(mean, mean_too, "running_mean after batchnorm_functional without momentum")


# The layer in training: its output.


@pytest.mark.parametrize("shape", FLAT)
def test_training_output_matches_torch(impl, shape):
    x = batch(*shape)
    ours, theirs = layers(impl, shape[1])
    with unchanged(x=x), forbid(*NORMALISATION):
        actual = ours(x)
    assert_matches(actual, theirs(x), f"the output in training for x of shape {shape}")


@pytest.mark.parametrize("shape", SEQUENCES)
def test_training_output_of_sequences_matches_torch(impl, shape):
    x = batch(*shape)
    ours, theirs = layers(impl, shape[1])
    with unchanged(x=x), forbid(*NORMALISATION):
        actual = ours(x)
    assert_matches(actual, theirs(x), f"the output in training for x of shape {shape}")


@pytest.mark.parametrize("n", [3, 5, 40])
def test_channels_get_mean_zero_and_variance_one(impl, n):
    out = impl.BatchNorm1d(4, eps=1e-8)(batch(n, 4, dtype=torch.float32))
    behaviour = f"in a new layer, the mean of {n} outputs of a channel"
    assert_matches(out.mean(0), torch.zeros(4), behaviour, atol=1e-4)
    behaviour = f"in a new layer, the biased variance of {n} outputs of a channel"
    assert_matches(((out - out.mean(0)) ** 2).mean(0), torch.ones(4), behaviour, atol=1e-4)


def test_channels_of_sequences_do_not_mix(impl):
    x = batch(5, 3, 8)
    ours, _ = layers(impl, 3)
    before = ours(x)
    x[:, 1] = 10 * x[:, 1] - 7
    after = ours(x)
    others = [0, 2]
    behaviour = "channels 0 and 2 when channel 1 of a (5, 3, 8) batch changes"
    assert_matches(after[:, others], before[:, others], behaviour)


@pytest.mark.parametrize("eps", [1e-3, EPS, 5.0])
def test_eps_counts_beside_the_variance(impl, eps):
    x = batch(6, 4)
    ours, theirs = layers(impl, 4, eps=eps)
    for mode in ("evaluation", "training"):
        ours.train(mode == "training"), theirs.train(mode == "training")
        assert_matches(ours(x), theirs(x), f"the output in {mode} with eps={eps}")


def test_constant_channel(impl):
    x = batch(6, 4)
    x[:, 2] = 1.5
    ours, _ = layers(impl, 4)
    expected = ours.bias.detach()[2].expand(6)
    assert_matches(ours(x)[:, 2], expected, "the output of a constant channel is its bias")


def test_channels_far_from_zero(impl):
    level = torch.tensor([3e3, -2e3, 4e3, -3e3, 2e3])
    x = level + torch.randn(33, 5)
    ours, theirs = layers(impl, 5, dtype=torch.float32, eps=1e-5)
    actual = ours(x)
    expected = theirs.double()(x.double()).float()
    # A float32 sum of 33 such numbers is exact to about 0.01, and weight is at most 2.5.
    # Squares of them are exact to about 0.5, beside a variance of one.
    assert_matches(actual, expected, "channels near 3,000 in training", rtol=0, atol=3e-2)
    expected = theirs.running_var.float()
    assert_matches(ours.running_var, expected, "running_var near 3,000", rtol=0, atol=3e-2)


# The layer in training: its running statistics.


@pytest.mark.parametrize("momentum", [0.2, 0.9, 0.0, 1.0])
def test_running_mean_after_one_step(impl, momentum):
    x = batch(6, 4)
    ours, _ = layers(impl, 4, momentum=momentum)
    expected = (1 - momentum) * ours.running_mean + momentum * x.mean(0)
    ours(x)
    assert_matches(ours.running_mean, expected, f"running_mean, momentum={momentum}, one step")


# At a momentum of 0.5 what is kept and what is taken in weigh the same.


@pytest.mark.parametrize("n", [2, 3, 7])
def test_running_var_takes_in_the_unbiased_variance(impl, n):
    x = batch(n, 4)
    ours, _ = layers(impl, 4, momentum=0.5)
    unbiased = ((x - x.mean(0)) ** 2).sum(0) / (n - 1)
    expected = (ours.running_var + unbiased) / 2
    ours(x)
    assert_matches(ours.running_var, expected, f"running_var after {n} examples, momentum=0.5")


@pytest.mark.parametrize("shape", [(3, 2, 5), (1, 4, 3), (2, 3, 1)])
def test_running_var_counts_every_position(impl, shape):
    x = batch(*shape)
    ours, _ = layers(impl, shape[1], momentum=0.5)
    values = torch.stack([x[:, c].flatten() for c in range(shape[1])], dim=1)
    unbiased = ((values - values.mean(0)) ** 2).sum(0) / (len(values) - 1)
    expected = (ours.running_var + unbiased) / 2
    ours(x)
    assert_matches(ours.running_var, expected, f"running_var after x of {shape}, momentum=0.5")


@pytest.mark.parametrize("shape", [(6, 4), (5, 3, 8)])
@pytest.mark.parametrize("name", STATISTICS)
def test_running_statistics_match_torch_over_several_steps(impl, name, shape):
    ours, theirs = layers(impl, shape[1])
    for step in range(1, 5):
        x = batch(*shape)
        ours(x), theirs(x)
        behaviour = f"{name} after batch {step} of shape {shape}, momentum={MOMENTUM}"
        assert_matches(getattr(ours, name), getattr(theirs, name), behaviour)


def test_batches_are_counted_in_training_alone(impl):
    layer = impl.BatchNorm1d(3)
    for shape in ((6, 3), (4, 3, 5), (2, 3)):
        layer(torch.randn(shape))
    layer.eval()(torch.randn(6, 3))
    layer.train()(torch.randn(6, 3))
    behaviour = "num_batches_tracked after 3 batches in training, 1 in evaluation, 1 in training"
    assert_matches(layer.num_batches_tracked, torch.tensor(4), behaviour)


def test_running_statistics_do_not_depend_on_parameters(impl):
    x = batch(6, 4)
    ours, _ = layers(impl, 4)
    other = copy.deepcopy(ours)
    with torch.no_grad():
        other.weight.mul_(-3)
        other.bias.add_(5)
    ours(x), other(x)
    for name in STATISTICS:
        behaviour = f"{name} under another weight and bias"
        assert_matches(getattr(other, name), getattr(ours, name), behaviour)


def test_running_statistics_have_no_history(impl):
    ours, _ = layers(impl, 4)
    for step in (1, 2):
        ours(batch(6, 4).requires_grad_())
        for name in STATISTICS:
            statistic = getattr(ours, name)
            assert not statistic.requires_grad, (
                f"after batch {step} {name} holds on to the graph of the batches before: "
                f"its grad_fn is {statistic.grad_fn}"
            )


# The layer in evaluation.


@pytest.mark.parametrize("shape", [*FLAT, *SEQUENCES, (1, 4), (1, 3, 1)])
def test_eval_output_matches_torch(impl, shape):
    x = batch(*shape)
    ours, theirs = layers(impl, shape[1])
    ours.eval(), theirs.eval()
    with unchanged(x=x), forbid(*NORMALISATION):
        actual = ours(x)
    assert_matches(actual, theirs(x), f"the output in evaluation for x of shape {shape}")


@pytest.mark.parametrize("shape", [(6, 4), (5, 3, 8)])
def test_eval_does_not_mix_examples(impl, shape):
    x = batch(*shape)
    ours, _ = layers(impl, shape[1])
    ours.eval()
    behaviour = "in evaluation, the output of one example by itself and among others"
    assert_matches(ours(x[:1]), ours(x)[:1], behaviour)


def test_eval_twice_gives_the_same(impl):
    x = batch(6, 4)
    ours, _ = layers(impl, 4)
    ours(x)
    ours.eval()
    with unchanged(**dict(ours.named_parameters()), **dict(ours.named_buffers())):
        first = ours(x)
        ours(batch(9, 4))
        second = ours(x)
    assert_matches(second, first, "the second output for one batch in evaluation", rtol=0, atol=0)


def test_modes_are_those_of_train_and_eval(impl):
    x = batch(6, 4)
    ours, theirs = layers(impl, 4)
    net = nn.Sequential(ours)
    net.eval(), theirs.eval()
    assert_matches(net(x), theirs(x), "the output after eval() of a model around the layer")
    net.train(), theirs.train()
    assert_matches(net(x), theirs(x), "the output after train() of a model around the layer")
    with torch.no_grad():
        assert_matches(ours(x), theirs(x), "the output in training under no_grad")
    behaviour = "num_batches_tracked after two batches in training, one of them under no_grad"
    assert_matches(ours.num_batches_tracked, torch.tensor(2), behaviour)


# Gradients.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (2, 5), (5, 3, 8), (1, 4, 6)])
def test_gradients_match_torch(impl, shape, training):
    grad_out = torch.randn(shape, dtype=torch.float64)
    x = batch(*shape).requires_grad_()
    x_too = x.detach().clone().requires_grad_()
    ours, theirs = layers(impl, shape[1])
    ours.train(training), theirs.train(training)
    actual = gradients(ours(x), [x, ours.weight, ours.bias], grad_out)
    expected = gradients(theirs(x_too), [x_too, theirs.weight, theirs.bias], grad_out)
    mode = "training" if training else "evaluation"
    for name, got, wanted in zip(("x", "weight", "bias"), actual, expected, strict=True):
        assert_matches(got, wanted, f"the gradient for {name} in {mode}, x of shape {shape}")


def test_steps_leave_nothing_to_later_backward_passes(impl):
    layer, _ = layers(impl, 4)
    grad_out = torch.randn(6, 4).double()
    for step, training in enumerate((True, True, False, True, False), start=1):
        layer.train(training)
        loss = (layer(batch(6, 4).requires_grad_()) * grad_out).sum()
        try:
            loss.backward()
        except RuntimeError as error:
            # `backward` frees the graph of its step.
            mode = "training" if training else "evaluation"
            pytest.fail(
                f"the backward pass of step {step}, in {mode}, reaches into an earlier step: "
                f"{str(error).split('.')[0]}",
                pytrace=False,
            )


# The layer as a module.


def test_state_dict_has_the_keys_of_torch(impl):
    keys = set(impl.BatchNorm1d(4).state_dict())
    expected = set(nn.BatchNorm1d(4).state_dict())
    assert keys == expected, (
        f"the state dict lacks {sorted(expected - keys)} and has {sorted(keys - expected)} besides"
    )


@pytest.mark.parametrize("name", ["weight", "bias", *STATISTICS, "num_batches_tracked"])
def test_new_layer_is_that_of_torch(impl, name):
    expected = getattr(nn.BatchNorm1d(4), name)
    assert_matches(getattr(impl.BatchNorm1d(4), name), expected, f"{name} of a new layer")


def test_optimisers_see_weight_and_bias_alone(impl):
    named = {name for name, p in impl.BatchNorm1d(4).named_parameters() if p.requires_grad}
    assert named == {"weight", "bias"}, f"the parameters are {sorted(named)}"


def test_buffers_are_those_of_torch(impl):
    named = {name for name, _ in impl.BatchNorm1d(4).named_buffers()}
    expected = {name for name, _ in nn.BatchNorm1d(4).named_buffers()}
    assert named == expected, f"the buffers are {sorted(named)}, not {sorted(expected)}"


def trained(layer):
    """Return the layer after three batches, with other parameters than a new one's."""
    for shape in ((6, 4), (3, 4, 5), (2, 4)):
        layer(batch(*shape, dtype=torch.float32))
    with torch.no_grad():
        layer.weight.uniform_(1.5, 2.5)
        layer.bias.uniform_(1, 2)
    return layer.eval()


def test_torch_loads_our_state_dict(impl):
    ours, theirs = trained(impl.BatchNorm1d(4)), nn.BatchNorm1d(4).eval()
    theirs.load_state_dict(ours.state_dict())
    x = batch(6, 4, dtype=torch.float32)
    assert_matches(theirs(x), ours(x), "torch's layer with our state dict", atol=1e-4)
    for name, value in theirs.state_dict().items():
        assert_matches(getattr(ours, name), value, f"{name} as torch's layer loads it")


def test_our_layer_loads_the_state_dict_of_torch(impl):
    ours, theirs = impl.BatchNorm1d(4).eval(), trained(nn.BatchNorm1d(4))
    ours.load_state_dict(theirs.state_dict())
    x = batch(6, 4, dtype=torch.float32)
    assert_matches(ours(x), theirs(x), "our layer with torch's state dict", atol=1e-4)
    for name, value in theirs.state_dict().items():
        assert_matches(getattr(ours, name), value, f"{name} as our layer loads it")


def test_loaded_statistics_of_any_memory_layout_are_updated(impl):
    ours, theirs = layers(impl, 4)
    state = copy.deepcopy(theirs.state_dict())
    for name in STATISTICS:
        state[name] = state[name].repeat_interleave(2)[::2]
    ours.load_state_dict(state, assign=True)
    x = batch(6, 4)
    ours(x), theirs(x)
    for name in STATISTICS:
        behaviour = f"{name} after a batch, once loaded as every other element of a wider tensor"
        assert_matches(getattr(ours, name), getattr(theirs, name), behaviour)


@pytest.mark.parametrize("way", ["double()", "to(dtype)"])
def test_running_statistics_move_with_the_layer(impl, way):
    layer = impl.BatchNorm1d(4)
    layer = layer.double() if way == "double()" else layer.to(torch.float64)
    for name, value in nn.BatchNorm1d(4).double().state_dict().items():
        assert_matches(getattr(layer, name), value, f"{name} after {way}")
    out = layer(batch(6, 4))
    assert out.dtype == torch.float64, f"after {way} float64 gives {out.dtype}"
    assert layer.float()(torch.randn(6, 4)).dtype == torch.float32, f"{way}, then float()"


def test_dtype_is_kept(impl):
    for shape in ((6, 4), (5, 4, 3)):
        layer = impl.BatchNorm1d(4)
        for mode in (layer.train(), layer.eval()):
            out = mode(torch.randn(shape))
            assert out.dtype == torch.float32, f"float32 of shape {shape} gives {out.dtype}"


def test_eps_and_momentum_have_their_defaults_and_places(impl):
    x = 2e-3 * batch(6, 4, dtype=torch.float32)  # variances of about 1e-5 too
    ours, theirs = impl.BatchNorm1d(4), nn.BatchNorm1d(4)
    assert_matches(ours(x), theirs(x), "the output for small variances, without eps", atol=1e-4)
    x = batch(6, 4, dtype=torch.float32)
    ours(x), theirs(x)
    behaviour = "running_mean without momentum"
    assert_matches(ours.running_mean, theirs.running_mean, behaviour)
    ours, theirs = impl.BatchNorm1d(4, 0.3, 0.7), nn.BatchNorm1d(4, 0.3, 0.7)
    assert_matches(ours(x), theirs(x), "the output of BatchNorm1d(4, 0.3, 0.7)", atol=1e-4)
    behaviour = "running_mean of BatchNorm1d(4, 0.3, 0.7)"
    assert_matches(ours.running_mean, theirs.running_mean, behaviour)


@pytest.mark.parametrize("shape", [(6, 4), (5, 3, 8)])
@pytest.mark.parametrize("training", [True, False])
def test_any_memory_layout(impl, shape, training):
    values = batch(*shape)
    one_example = values[:1].expand(values.shape)
    for layout, x in [*layouts(values), ("one example, expanded", one_example)]:
        ours, theirs = layers(impl, shape[1])
        actual, expected = ours.train(training)(x), theirs.train(training)(x)
        assert_matches(actual, expected, f"the output for an x that is {layout}")


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1)])
def test_one_value_per_channel_cannot_be_trained_on(impl, shape):
    ours, _ = layers(impl, 4)
    mean, var = ours.running_mean.clone(), ours.running_var.clone()
    shown = ", ".join(map(str, shape))
    with refuses(f"training on a batch of shape {shape}", shown):
        ours(batch(*shape))
    assert_matches(ours.running_mean, mean, "running_mean after a batch that was refused")
    assert_matches(ours.running_var, var, "running_var after a batch that was refused")


def test_worked_example(impl):
    # Mean 3 and variance 4, unbiased 8; sqrt(4 + 5) = 3.
    layer = impl.BatchNorm1d(1, eps=5.0, momentum=3 / 7)
    out = layer(torch.tensor([[1.0], [5.0]]))
    assert_matches(out, torch.tensor([[-2 / 3], [2 / 3]]), "training on 1 and 5")
    assert_matches(layer.running_mean, torch.tensor([9 / 7]), "running_mean after 1 and 5")
    # 4/7 of 1 and 3/7 of 8.
    assert_matches(layer.running_var, torch.tensor([4.0]), "running_var after 1 and 5")
    out = layer.eval()(torch.tensor([[9 / 7 + 6]]))
    assert_matches(out, torch.tensor([[2.0]]), "in evaluation, 6 above the running mean")


# What must hold in both modes.


def functional(impl, training, x, mean, var, weight, bias):
    """Return what batchnorm_functional does, on copies of the statistics that it may change."""
    mean, var = mean.clone(), var.clone()
    return impl.batchnorm_functional(x, mean, var, weight, bias, training, MOMENTUM, EPS)


def exact_functional(training, x, mean, var, weight, bias):
    """Return the batch norm written out here."""
    if training:
        mean, var = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
    return weight * (x - mean) / (var + EPS) ** 0.5 + bias


@pytest.mark.parametrize("training", [True, False])
def test_functional_calls_in_any_layout_and_mode(impl, training):
    def inputs():
        return [batch(6, 4), *channel_tensors(4)]

    call, expected = (partial(f, training) for f in (partial(functional, impl), exact_functional))
    behaviour = f"batchnorm_functional with training={training}"
    assert_repeatable(call, inputs, expected, behaviour)
    values = inputs()
    assert_any_mode(call, values, expected(*values), behaviour)
    assert_any_layout(call, values, expected(*values), behaviour)
    # The running statistics themselves, which `call` copies.
    for place in (0, 1):
        for layout, statistic in layouts(values[1 + place]):
            statistics = [t.clone() for t in values[1:3]]
            wanted = [t.clone() for t in values[1:3]]
            statistics[place] = statistic
            impl.batchnorm_functional(values[0], *statistics, *values[3:], training, MOMENTUM, EPS)
            F.batch_norm(values[0], *wanted, *values[3:], training, MOMENTUM, EPS)
            what = f"{STATISTICS[place]} that is {layout}, after {behaviour}"
            assert_matches(statistic, wanted[place], what)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (5, 3, 8)])
def test_calls_do_not_disturb_each_other(impl, shape, training):
    ours, theirs = layers(impl, shape[1])
    ours.train(training), theirs.train(training)
    behaviour = f"the output of a layer with training={training}"
    assert_repeatable(ours, lambda: [batch(*shape)], theirs, behaviour)


@pytest.mark.parametrize("training", [True, False])
def test_no_mode_changes_x(impl, training):
    x = batch(6, 4)
    ours, theirs = layers(impl, 4)
    ours.train(training), theirs.train(training)
    with unchanged(x=x):
        assert_any_mode(ours, [x], theirs(x), f"the output of a layer with training={training}")
    assert not ours.running_mean.requires_grad


def test_two_layers_share_nothing(impl):
    one, other = impl.BatchNorm1d(4), impl.BatchNorm1d(4)
    with torch.no_grad():
        one.weight.fill_(2.0)
        one.bias.fill_(3.0)
    one(batch(6, 4, dtype=torch.float32))
    for name, value in nn.BatchNorm1d(4).state_dict().items():
        assert_matches(other.state_dict()[name], value, f"{name} of a layer beside a trained one")


@pytest.mark.parametrize("grad", [True, False])
def test_changes_count_in_evaluation(impl, grad):
    def check(what):
        with torch.set_grad_enabled(grad):
            assert_matches(ours(x), theirs(x), f"the output in evaluation, {grad=}, {what}")

    x = batch(6, 4)
    ours, theirs = layers(impl, 4)
    ours.eval(), theirs.eval()
    check("at first")
    for name in ("weight", "bias", *STATISTICS):
        for layer in (ours, theirs):
            with torch.no_grad():
                getattr(layer, name).mul_(1.5).add_(0.25)
        check(f"once {name} has been changed in place")
    for assign in (False, True):
        _, other = layers(impl, 4)
        for layer in (ours, theirs):
            layer.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
        check(f"once another state has been loaded, {assign=}")
    for layer in (ours, theirs):
        layer.train()(x)
        layer.eval()
    check("after a batch in training")


def test_batches_are_counted_from_the_loaded_number_on(impl):
    ours, _ = layers(impl, 4)
    ours(batch(6, 4))
    ours.load_state_dict({**ours.state_dict(), "num_batches_tracked": torch.tensor(2**24)})
    ours(batch(6, 4))
    behaviour = "num_batches_tracked after one batch, once 16,777,216 has been loaded"
    assert_matches(ours.num_batches_tracked, torch.tensor(2**24 + 1), behaviour)
    ours.num_batches_tracked.fill_(7)
    ours(batch(6, 4))
    behaviour = "num_batches_tracked after one batch, once it has been set to 7 in place"
    assert_matches(ours.num_batches_tracked, torch.tensor(8), behaviour)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_eps_counts_beside_tiny_variances(impl, dtype, training):
    scale = 2e-15
    eps = scale**2 * EPS  # 1.2e-30
    x, mean, var, *others = batch(6, 4), *channel_tensors(4)
    expected = exact_functional(training, x, mean, var, *others).to(dtype)
    x, *state = (t.to(dtype) for t in (scale * x, scale * mean, scale**2 * var, *others))
    ours, _ = layers(impl, 4, eps=eps, dtype=dtype)
    with torch.no_grad():
        for name, value in zip((*STATISTICS, "weight", "bias"), state, strict=True):
            getattr(ours, name).copy_(value)
    behaviour = f"beside variances of 1e-30 and an eps of {eps:g} in {dtype}, {training=}"
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert_matches(ours.train(training)(x), expected, f"the output {behaviour}", **close)
    actual = impl.batchnorm_functional(x, *state, training, MOMENTUM, eps)
    assert_matches(actual, expected, f"batchnorm_functional {behaviour}", **close)


@pytest.mark.parametrize("shape", [(66000, 2), (3, 2100), (1, 2, 66000), (1500, 2, 3)])
def test_large_batches(impl, shape):
    x = batch(*shape)
    ours, theirs = layers(impl, shape[1])
    assert_matches(ours(x), theirs(x), f"the output in training for x of shape {shape}")
    for name in STATISTICS:
        wanted = getattr(theirs, name)
        assert_matches(getattr(ours, name), wanted, f"{name} after x of shape {shape}")
    actual, expected = ours.eval()(x), theirs.eval()(x)
    assert_matches(actual, expected, f"the output in evaluation for x of shape {shape}")


@pytest.mark.parametrize("training", [True, False])
def test_float64_keeps_its_digits(impl, training):
    # Thirds and four examples, so that neither a value nor 4/3 is exact in fewer digits.
    x = torch.tensor([[1.0, 7.0], [2.0, -4.0], [5.0, 10.0], [11.0, 4.0]]).double() / 3
    ours = impl.BatchNorm1d(2, eps=1, momentum=0.3).double().train(training)
    theirs = nn.BatchNorm1d(2, eps=1, momentum=0.3).double().train(training)
    for layer in (ours, theirs):
        for name in STATISTICS:
            getattr(layer, name).add_(1 / 7)
    exact = {"rtol": 1e-14, "atol": 1e-14}
    assert_matches(ours(x), theirs(x), "the output in float64", **exact)
    for name in STATISTICS:
        behaviour = f"{name} in float64 with training={training}"
        assert_matches(getattr(ours, name), getattr(theirs, name), behaviour, **exact)
    state = [t.clone() for t in (theirs.running_mean, theirs.running_var, *channel_tensors(2)[2:])]
    wanted = [t.clone() for t in state]
    actual = impl.batchnorm_functional(x, *state, training, 0.3, 1)
    expected = F.batch_norm(x, *wanted, training, 0.3, 1)
    assert_matches(actual, expected, f"batchnorm_functional in float64, {training=}", **exact)
    for name, ours, theirs in zip(STATISTICS, state, wanted, strict=False):
        behaviour = f"{name} in float64 after batchnorm_functional, {training=}"
        assert_matches(ours, theirs, behaviour, **exact)


@pytest.mark.parametrize("momentum", [0, 1])
def test_running_statistics_at_the_ends_of_momentum(impl, momentum):
    x = batch(6, 4)
    ours, theirs = layers(impl, 4, momentum=momentum)
    ours(x), theirs(x)
    for name in STATISTICS:
        behaviour = f"{name} at a momentum of {momentum}"
        assert_matches(getattr(ours, name), getattr(theirs, name), behaviour)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("asking", ["x", "weight", "bias", "weight and bias"])
def test_gradients_where_not_all_ask(impl, asking, training):
    x = batch(6, 4)
    ours, theirs = layers(impl, 4)
    grad_out = torch.randn(6, 4, dtype=torch.float64)
    parts = []
    for layer in (ours, theirs):
        layer.train(training).requires_grad_(False)
        tensors = {"x": x, "weight": layer.weight, "bias": layer.bias}
        leaves = [tensors[name].requires_grad_() for name in asking.split(" and ")]
        parts.append(gradients(layer(x), leaves, grad_out))
    behaviour = f"the gradients for {asking}, which alone ask for one, {training=}"
    assert_all_match(*parts, behaviour)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (5, 3, 8)])
def test_the_upstream_gradient_is_left_alone(impl, shape, training):
    x, grad_out = batch(*shape).requires_grad_(), torch.randn(shape, dtype=torch.float64)
    ours, _ = layers(impl, shape[1])
    with unchanged(grad_out=grad_out):
        HandDown.apply(ours.train(training)(x), grad_out).backward()


def test_two_outputs_before_one_backward_pass(impl):
    x, other = batch(6, 4).requires_grad_(), batch(9, 4).requires_grad_()
    ours, theirs = layers(impl, 4)
    both = []
    for layer in (ours, theirs):
        loss = (layer(x) ** 2).sum() - (layer(other) ** 3).sum()
        loss = loss + layer(x.detach() * 2).sum()
        both.append(torch.autograd.grad(loss, [x, other, layer.weight, layer.bias]))
    assert_all_match(*both, "the gradients of three outputs at once, in training")


def test_functional_cannot_train_on_one_value_per_channel(impl):
    mean, var, weight, bias = channel_tensors(4)
    with unchanged(running_mean=mean, running_var=var), refuses("training on shape (1, 4)", "1, 4"):
        impl.batchnorm_functional(batch(1, 4), mean, var, weight, bias, True)
