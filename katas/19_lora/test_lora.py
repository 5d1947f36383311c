import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    gradients,
    layouts,
    refuses,
    unchanged,
)

# in, out, r, alpha: all different, and alpha / r is neither one nor a whole number.
IN, OUT, R, ALPHA = 5, 4, 3, 7
SIZES = [
    (IN, OUT, R, ALPHA),
    (3, 8, 2, 1),
    (6, 1, 4, 9),
    (1, 6, 2, 5),
    (7, 3, 1, 0.5),
    (2, 3, 8, 12),
]
# Ten times what rounding in float32 adds up to on values of about ten. Real faults are far larger.
ATOL = 1e-4
# Rounding of bfloat16 at each of some five steps, on values of about one; in float64, that of a
# scale kept in float32.
DTYPES = [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 6e-2)]


def adapted(
    impl, in_features=IN, out_features=OUT, r=R, alpha=ALPHA, dropout=0.0, bias=True, dtype=None
):
    """An unmerged layer in eval mode whose adapter is far from zero."""
    base = nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    layer = impl.LoRALinear(base, r, alpha, dropout=dropout).eval()
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_().div_(2)
    return layer


def weight_of(layer):
    return layer.base.weight.detach().clone()


def expected_output(layer, x, scale):
    """The formula of the brief, in float64 and without dropout."""
    weight, a, b = (t.detach().double() for t in (layer.base.weight, layer.lora_A, layer.lora_B))
    out = x.double() @ weight.T + scale * (x.double() @ a.T) @ b.T
    bias = layer.base.bias
    return (out if bias is None else out + bias.detach().double()).to(x.dtype)


def base_output(layer, x):
    """What the base's weight and bias give, as they stand now."""
    return nn.functional.linear(x, layer.base.weight, layer.base.bias).detach()


# The output


@pytest.mark.parametrize("sizes", SIZES)
def test_forward_adds_the_scaled_update(impl, sizes):
    in_features, _, r, alpha = sizes
    layer = adapted(impl, *sizes)
    x = torch.randn(11, in_features)
    expected = expected_output(layer, x, alpha / r)
    assert_matches(layer(x), expected, f"the output for r = {r} and alpha = {alpha}", atol=ATOL)


@pytest.mark.parametrize(("r", "alpha"), [(2, 8), (4, 1)])
def test_forward_by_hand(impl, r, alpha):
    # All ones: A x is 3 in each of r places, B sums them to 3 r, and alpha / r leaves 3 alpha.
    layer = impl.LoRALinear(nn.Linear(3, 5, bias=False), r, alpha)
    with torch.no_grad():
        layer.base.weight.zero_()
        layer.lora_A.fill_(1)
        layer.lora_B.fill_(1)
    expected = torch.full((1, 5), 3.0 * alpha)
    assert_matches(layer(torch.ones(1, 3)), expected, f"ones alone, r = {r}, alpha = {alpha}")


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,)])
def test_any_leading_dimensions(impl, leading):
    layer = adapted(impl)
    x = torch.randn(*leading, IN)
    expected = expected_output(layer, x, ALPHA / R)
    assert_matches(
        layer(x), expected, f"the output for an input of shape {tuple(x.shape)}", atol=ATOL
    )


def test_any_memory_layout(impl):
    layer = adapted(impl)
    for layout, x in layouts(torch.randn(2, 6, IN)):
        expected = expected_output(layer, x, ALPHA / R)
        assert_matches(layer(x), expected, f"the output for an input that is {layout}", atol=ATOL)
    row = torch.randn(IN).expand(6, IN)
    expected = expected_output(layer, row, ALPHA / R)
    assert_matches(layer(row), expected, "the output for an input that is expanded", atol=ATOL)


def test_base_without_a_bias(impl):
    layer = adapted(impl, bias=False)
    x = torch.randn(6, IN)
    expected = expected_output(layer, x, ALPHA / R)
    assert_matches(layer(x), expected, "the output over a base without a bias", atol=ATOL)
    layer.merge()
    assert_matches(layer(x), expected, "the merged output over a base without a bias", atol=ATOL)


@pytest.mark.parametrize(("dtype", "atol"), DTYPES)
def test_dtype_is_kept(impl, dtype, atol):
    layer = adapted(impl, dtype=dtype)
    with torch.no_grad():
        layer.lora_B.div_(8)
    x = torch.randn(6, IN, dtype=dtype)
    expected = expected_output(layer, x, ALPHA / R)
    tolerance = {"rtol": 2e-2 * (atol > 1e-2), "atol": atol}
    assert_matches(layer(x), expected, f"the output in {dtype}", **tolerance)
    layer.merge()
    assert_matches(layer(x), expected, f"the merged output in {dtype}", **tolerance)


# How it starts


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_new_layer_gives_the_bases_output(impl, mode):
    layer = impl.LoRALinear(nn.Linear(IN, OUT), r=R, alpha=ALPHA, dropout=0.25)
    getattr(layer, mode)()
    x = torch.randn(11, IN)
    assert_matches(layer(x), base_output(layer, x), f"the output of a new layer in {mode} mode")


def test_lora_A_starts_at_random(impl):
    in_features = 400
    layer = impl.LoRALinear(nn.Linear(in_features, OUT), 16, 8)
    assert tuple(layer.lora_A.shape) == (16, in_features), (
        f"lora_A has the shape {tuple(layer.lora_A.shape)}, not (r, in) = {(16, in_features)}"
    )
    # Any flavour of Kaiming: the spread is 0.58 / sqrt(in) for a = sqrt(5), 1.41 for a = 0.
    spread = layer.lora_A.std().item() * math.sqrt(in_features)
    assert 0.4 < spread < 2, (
        f"a new lora_A should spread by about 1/sqrt(in); it does by {spread:.3g}/sqrt(in)"
    )
    again = impl.LoRALinear(nn.Linear(in_features, OUT), 16, 8)
    assert not torch.equal(layer.lora_A, again.lora_A), "two new layers have the same lora_A"
    for which, vectors in (("rows", layer.lora_A), ("columns", layer.lora_A.T)):
        assert len(vectors.unique(dim=0)) == len(vectors), f"a new lora_A has {which} that repeat"


def test_lora_B_starts_at_zero(impl):
    layer = impl.LoRALinear(nn.Linear(IN, OUT), R, ALPHA)
    assert_matches(layer.lora_B, torch.zeros(OUT, R), "a new lora_B", rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_adapter_has_the_dtype_of_the_base(impl, dtype):
    layer = impl.LoRALinear(nn.Linear(IN, OUT, dtype=dtype), R, ALPHA)
    for name in ("lora_A", "lora_B"):
        found = getattr(layer, name).dtype
        assert found == dtype, f"{name} is {found} over a base in {dtype}"


def test_the_adapter_is_on_the_device_of_the_base(impl):
    layer = impl.LoRALinear(nn.Linear(IN, OUT, device="meta"), R, ALPHA)
    for name in ("lora_A", "lora_B"):
        found = getattr(layer, name).device.type
        assert found == "meta", f"{name} is on {found} over a base on meta"


@pytest.mark.parametrize("r", [0, -2])
def test_rank_below_one_is_refused(impl, r):
    with refuses(f"the rank r = {r}", rf"(?<![\d-]){r}\b"):
        impl.LoRALinear(nn.Linear(IN, OUT), r=r, alpha=ALPHA)


# What trains


@pytest.mark.parametrize("bias", [True, False])
def test_only_the_adapter_trains(impl, bias):
    layer = impl.LoRALinear(nn.Linear(IN, OUT, bias=bias), R, ALPHA)
    trained = sorted(name for name, p in layer.named_parameters() if p.requires_grad)
    assert trained == ["lora_A", "lora_B"], f"these parameters require gradients: {trained}"


def test_a_new_layer_has_a_gradient_to_follow(impl):
    layer = impl.LoRALinear(nn.Linear(IN, OUT), R, ALPHA).train()
    (gradient,) = gradients(layer(torch.randn(11, IN)), [layer.lora_B], torch.randn(11, OUT))
    assert gradient.abs().max() > 0, "the first gradient of lora_B is zero: training cannot start"


def test_gradients_match_autograd(impl):
    layer = adapted(impl, dtype=torch.float64)
    x = torch.randn(2, 6, IN, dtype=torch.float64, requires_grad=True)
    leaves = [t.detach().clone().requires_grad_() for t in (x, layer.lora_A, layer.lora_B)]
    by_formula = base_output(layer, x) - x.detach() @ layer.base.weight.T
    by_formula = by_formula + leaves[0] @ layer.base.weight.detach().T
    by_formula = by_formula + ALPHA / R * leaves[0] @ leaves[1].T @ leaves[2].T
    for layout, grad_out in layouts(torch.randn(2, 6, OUT, dtype=torch.float64)):
        actual = gradients(layer(x), [x, layer.lora_A, layer.lora_B], grad_out)
        expected = gradients(by_formula, leaves, grad_out)
        for name, got, wanted in zip(("x", "lora_A", "lora_B"), actual, expected, strict=True):
            assert_matches(got, wanted, f"the gradient of {name}, upstream {layout}", atol=ATOL)


def test_gradient_reaches_the_input_through_the_base(impl):
    layer = adapted(impl)
    with torch.no_grad():
        layer.lora_B.zero_()
    x = torch.randn(6, IN, requires_grad=True)
    grad_out = torch.randn(6, OUT)
    (actual,) = gradients(layer(x), [x], grad_out)
    expected = grad_out @ layer.base.weight.detach()
    assert_matches(actual, expected, "the gradient of x while the update is zero")


def test_training_moves_the_adapter_alone(impl):
    layer = impl.LoRALinear(nn.Linear(IN, OUT), R, ALPHA, dropout=0.25).train()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for _ in range(2):  # the first step leaves lora_A where it is, since lora_B is zero
        trained = [p for p in layer.parameters() if p.requires_grad]
        steps = gradients(layer(torch.randn(11, IN)), trained, torch.randn(11, OUT))
        with torch.no_grad():
            for parameter, step in zip(trained, steps, strict=True):
                parameter.sub_(step, alpha=0.1)
    moved = sorted(n for n, p in layer.named_parameters() if not torch.equal(p, before[n]))
    assert moved == ["lora_A", "lora_B"], f"two steps of training moved {moved}"


# Dropout


def test_dropout_leaves_the_base_path_alone(impl):
    layer = adapted(impl, dropout=0.25).train()
    with torch.no_grad():
        layer.lora_B.zero_()
    x = torch.randn(11, IN)
    assert_matches(
        layer(x), base_output(layer, x), "the training output of a layer with B = 0", atol=ATOL
    )


def test_dropout_falls_on_the_input_of_the_update(impl):
    # Each row has one entry that is not zero: its update is lost, or whole and 1 / (1 - p) large.
    layer = adapted(impl, dropout=0.25)
    x = torch.zeros(200, IN)
    x[:, 2] = 1
    whole = (layer(x) - base_output(layer, x))[0]
    update = layer.train()(x) - base_output(layer, x)
    lost = torch.isclose(update, torch.zeros(()), rtol=0, atol=ATOL).all(1)
    expected = torch.where(lost[:, None], 0.0, whole / 0.75)
    assert_matches(update, expected, "the update in training with p = 0.25", atol=ATOL)
    share = lost.double().mean().item()
    # 0.25, give or take six standard deviations of 200 draws.
    assert 0.06 < share < 0.44, f"with p = 0.25, {share:.2f} of the inputs are dropped"


def test_dropout_is_off_in_eval(impl):
    layer = adapted(impl, dropout=0.25)
    without = adapted(impl)
    without.load_state_dict(layer.state_dict())
    x = torch.randn(11, IN)
    expected = without(x).detach()
    assert_matches(
        layer(x), expected, "the eval output with dropout, beside one without", atol=ATOL
    )


def test_dropout_of_everything(impl):
    layer = adapted(impl, dropout=1.0).train()
    x = torch.randn(11, IN, requires_grad=True)
    out = layer(x)
    assert_matches(out, base_output(layer, x), "the training output with p = 1", atol=ATOL)
    grad_out = torch.randn(11, OUT)
    leaves = [x, layer.lora_A, layer.lora_B]
    expected = grad_out @ weight_of(layer), torch.zeros(R, IN), torch.zeros(OUT, R)
    for name, ours, theirs in zip(("x", "lora_A", "lora_B"), gradients(out, leaves, grad_out),
                                  expected, strict=True):  # fmt: skip
        assert_matches(ours, theirs, f"the gradient of {name} with p = 1", atol=ATOL)


def test_dropout_does_not_depend_on_autograd(impl):
    layer = adapted(impl, dropout=1.0).train()
    x = torch.randn(11, IN)
    with torch.no_grad():
        actual = layer(x)
    expected = base_output(layer, x)
    assert_matches(actual, expected, "the training output under no_grad with p = 1", atol=ATOL)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_input_is_left_as_it_was(impl, mode):
    layer = getattr(adapted(impl, dropout=0.25), mode)()
    x = torch.randn(11, IN)
    with unchanged(x=x):
        layer(x)
        layer.merge()
        layer(x)


# Merging


@pytest.mark.parametrize("sizes", SIZES)
def test_merge_and_unmerge_move_the_weight_by_the_update(impl, sizes):
    _, _, r, alpha = sizes
    layer = adapted(impl, *sizes)
    before = weight_of(layer)
    after = before + alpha / r * (layer.lora_B @ layer.lora_A).detach()
    layer.merge()
    assert_matches(
        layer.base.weight, after, f"the merged weight, r = {r}, alpha = {alpha}", atol=ATOL
    )
    layer.unmerge()
    assert_matches(layer.base.weight, before, "the weight after merge() and unmerge()", atol=ATOL)


def test_a_weight_that_is_transposed_in_memory_is_merged(impl):
    base = nn.Linear(IN, OUT)
    base.weight = nn.Parameter(base.weight.detach().T.contiguous().T)
    layer = impl.LoRALinear(base, R, ALPHA)
    with torch.no_grad():
        layer.lora_B.normal_()
    before = weight_of(layer)
    after = before + ALPHA / R * (layer.lora_B @ layer.lora_A).detach()
    layer.merge()
    assert_matches(layer.base.weight, after, "a merged weight, transposed in memory", atol=ATOL)
    layer.unmerge()
    behaviour = "a weight that is transposed in memory, after merge() and unmerge()"
    assert_matches(layer.base.weight, before, behaviour, atol=ATOL)


# In bfloat16, rounding W + BA and its parts is off by some 2 ** -9 of values of about one.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_unmerge_restores_the_base(impl, dtype, atol):
    layer = adapted(impl, dtype=dtype)
    with torch.no_grad():
        layer.lora_B.div_(8)
    before = weight_of(layer)
    layer.merge()
    layer.unmerge()
    after = layer.base.weight
    assert_matches(after, before, f"merged and unmerged in {dtype}", rtol=0, atol=atol)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_output_is_the_same_before_and_after_merge(impl, sizes):
    layer = adapted(impl, *sizes, dropout=0.25)
    x = torch.randn(11, sizes[0])
    before = layer(x).detach()
    layer.merge()
    assert_matches(layer(x), before, "the output after merge()", atol=ATOL)
    layer.unmerge()
    assert_matches(layer(x), before, "the output after unmerge()", atol=ATOL)


def test_the_merged_output_is_that_of_the_base_alone(impl):
    layer = adapted(impl)
    layer.merge()
    x = torch.randn(11, IN)
    assert_matches(
        layer(x), base_output(layer, x), "the merged output, beside the base's", atol=ATOL
    )


def test_training_mode_while_merged(impl):
    layer = adapted(impl, dropout=0.25)
    layer.merge()
    x, weight = torch.randn(11, IN), weight_of(layer)
    before = layer(x).detach()
    for mode in ("train", "eval"):
        actual = getattr(layer, mode)()(x)
        assert_matches(actual, before, f"the merged output after {mode}()", atol=ATOL)
        assert layer.merged, f"{mode}() unmerges a merged layer"
        assert_matches(layer.base.weight, weight, f"the merged weight after {mode}()", atol=0)
    layer.unmerge()
    weight = weight_of(layer)
    for mode in ("train", "eval"):
        getattr(layer, mode)()
        assert not layer.merged, f"{mode}() merges an unmerged layer"
        assert_matches(layer.base.weight, weight, f"the unmerged weight after {mode}()", atol=0)


def test_each_layer_is_merged_by_itself(impl):
    layer, other = adapted(impl), adapted(impl)
    x = torch.randn(11, IN)
    expected = other(x).detach()
    layer.merge()
    assert not other.merged, "merging one layer says that another is merged"
    assert_matches(other(x), expected, "the output once another layer is merged", atol=ATOL)
    twin = copy.deepcopy(layer)
    assert twin.merged, "a copy of a merged layer is not merged"
    before = layer(x).detach()
    twin.unmerge()
    assert layer.merged, "unmerging a copy says that the layer is unmerged"
    assert_matches(layer(x), before, "the output once a copy was unmerged", atol=ATOL)
    with torch.no_grad():
        twin.lora_B.zero_()
        twin.base.weight.zero_()
    assert_matches(layer(x), before, "the output once a copy's weights were changed", atol=ATOL)
    layer.unmerge()
    assert_matches(layer(x), before, "the output once a copy was changed, unmerged", atol=ATOL)
    zero = torch.zeros(11, OUT) + twin.base.bias.detach()
    assert_matches(twin(x), zero, "the output of a copy whose weights are zero", atol=ATOL)


def test_unmerge_restores_a_weight_that_was_changed_before(impl):
    layer = adapted(impl)
    with torch.no_grad():
        layer.base.weight.mul_(-2)
    before = weight_of(layer)
    layer.merge()
    layer.unmerge()
    behaviour = "the weight, changed after the layer was made, then merged and unmerged"
    assert_matches(layer.base.weight, before, behaviour, atol=ATOL)


def test_merging_twice_is_merging_once(impl):
    layer = adapted(impl)
    layer.merge()
    once = weight_of(layer)
    layer.merge()
    assert_matches(layer.base.weight, once, "the weight after a second merge()", atol=ATOL)


def test_unmerging_an_unmerged_layer_does_nothing(impl):
    layer = adapted(impl)
    before = weight_of(layer)
    layer.unmerge()
    assert_matches(
        layer.base.weight, before, "the weight after unmerge() without merge()", atol=ATOL
    )
    layer.merge()
    layer.unmerge()
    once = weight_of(layer)
    layer.unmerge()
    assert_matches(layer.base.weight, once, "the weight after a second unmerge()", atol=ATOL)


def test_merged_says_where_the_update_is(impl):
    layer = adapted(impl)
    said = [layer.merged]
    for act in (layer.merge, layer.merge, layer.unmerge, layer.unmerge, layer.merge):
        act()
        said.append(layer.merged)
    expected = [False, True, True, False, False, True]
    assert said == expected, (
        f"`merged` when new, then after merge, merge, unmerge, unmerge, merge: {said}"
    )


def test_merging_again_takes_the_adapter_as_it_is_then(impl):
    layer = adapted(impl)
    layer.merge()
    layer.unmerge()
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_()
    x = torch.randn(11, IN)
    before = layer(x).detach()
    layer.merge()
    assert_matches(layer(x), before, "the output, merged again after more training", atol=ATOL)


def test_merging_leaves_the_base_frozen(impl):
    layer = adapted(impl)
    for act in (layer.merge, layer.unmerge):
        act()
        trained = sorted(name for name, p in layer.named_parameters() if p.requires_grad)
        assert trained == ["lora_A", "lora_B"], (
            f"after {act.__name__}() these parameters require gradients: {trained}"
        )


def test_merging_leaves_the_adapter_as_it_was(impl):
    layer = adapted(impl)
    with unchanged(lora_A=layer.lora_A, lora_B=layer.lora_B):
        layer.merge()
        layer.unmerge()


# The adapter's state


@pytest.mark.parametrize("merged", [False, True])
def test_lora_state_dict_holds_the_adapter(impl, merged):
    layer = adapted(impl)
    a, b = layer.lora_A.detach().clone(), layer.lora_B.detach().clone()
    if merged:
        layer.merge()
    state = layer.lora_state_dict()
    assert sorted(state) == ["lora_A", "lora_B"], f"the adapter's keys are {sorted(state)}"
    assert_matches(state["lora_A"], a, "lora_A in the adapter's state", rtol=0, atol=0)
    assert_matches(state["lora_B"], b, "lora_B in the adapter's state", rtol=0, atol=0)


def test_an_adapter_can_be_loaded_into_another_layer(impl):
    source = adapted(impl)
    base = nn.Linear(IN, OUT)
    base.load_state_dict(source.base.state_dict())
    target = impl.LoRALinear(base, R, ALPHA).eval()
    keys = target.load_state_dict(source.lora_state_dict(), strict=False)
    assert not keys.unexpected_keys, f"keys that the layer does not know: {keys.unexpected_keys}"
    x = torch.randn(11, IN)
    expected = source(x).detach()
    assert_matches(
        target(x), expected, "the output of a layer that was given the adapter", atol=ATOL
    )


def test_state_dict_of_a_merged_layer_holds_the_merged_weight(impl):
    layer = adapted(impl)
    plain = nn.Linear(IN, OUT)
    x = torch.randn(11, IN)
    expected = layer(x).detach()
    layer.merge()
    plain.load_state_dict(layer.base.state_dict())
    assert_matches(plain(x), expected, "a plain nn.Linear with the merged weights", atol=ATOL)


# Whatever came before, and in any mode


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("merged", [False, True])
def test_nothing_stays_from_an_earlier_call(impl, merged, mode):
    layer = getattr(adapted(impl), mode)()
    weight, bias = weight_of(layer).double(), layer.base.bias.detach().double()
    weight += ALPHA / R * (layer.lora_B.double() @ layer.lora_A.double()).detach()
    if merged:
        layer.merge()

    def expected(x):
        return (x.double() @ weight.T + bias).float()

    what = f"the output, merged={merged}, in {mode} mode"
    assert_repeatable(layer, lambda: [torch.randn(2, 6, IN)], expected, what, atol=ATOL)
    x = torch.randn(2, 6, IN)
    assert_any_mode(layer, [x], expected(x), what, atol=ATOL)
    assert_any_layout(layer, [x], expected(x), what, atol=ATOL)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("grad", [True, False])
def test_a_call_uses_the_parameters_as_they_are(impl, grad, mode):
    layer, other = (getattr(adapted(impl), mode)() for _ in range(2))

    def check(what):
        x = torch.randn(11, IN)
        expected = expected_output(layer, x, ALPHA / R)
        with torch.set_grad_enabled(grad):
            actual = layer(x)
        assert_matches(actual, expected, f"the output {what}, in {mode} mode", atol=ATOL)

    check("of a first call")
    other(torch.randn(11, IN))
    check("after another layer was called")
    for name, parameter in layer.named_parameters():
        with torch.no_grad():
            parameter.mul_(-1.5)
        check(f"after {name} was changed in place")
    layer.load_state_dict(other.lora_state_dict(), strict=False)
    check("after it was given another's adapter")
    layer.load_state_dict(other.state_dict())
    check("after load_state_dict")
    layer.merge()
    layer.unmerge()
    layer.load_state_dict(adapted(impl).lora_state_dict(), strict=False)
    check("after merge, unmerge and another's adapter")
    before = layer(torch.ones(IN)).detach()
    layer.merge()
    assert_matches(layer(torch.ones(IN)), before, "the output, merged after all that", atol=ATOL)


@pytest.mark.parametrize("alpha", [0, 0.0, 1, -3, -0.5, 1000, np.float64(0.7), np.int64(-4)])
def test_any_alpha(impl, alpha):
    layer = adapted(impl, alpha=alpha, dtype=torch.float64)
    x = torch.randn(11, IN, dtype=torch.float64)
    before = weight_of(layer)
    expected = expected_output(layer, x, alpha / R)
    assert_matches(layer(x), expected, f"the output for alpha = {alpha}")
    layer.merge()
    assert_matches(layer(x), expected, f"the merged output for alpha = {alpha}")
    layer.unmerge()
    behaviour = f"the weight after merge() and unmerge() for alpha = {alpha}"
    assert_matches(layer.base.weight, before, behaviour)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("merged", [False, True])
def test_gradient_of_the_input_in_either_mode(impl, merged, mode):
    layer = getattr(adapted(impl, dtype=torch.float64), mode)()
    weight = weight_of(layer) + ALPHA / R * (layer.lora_B @ layer.lora_A).detach()
    if merged:
        layer.merge()
    x = torch.randn(6, IN, dtype=torch.float64, requires_grad=True)
    grad_out = torch.randn(6, OUT, dtype=torch.float64)
    out = layer(x)
    assert out.requires_grad, f"no gradient reaches x, merged={merged}, in {mode} mode"
    (actual,) = gradients(out, [x], grad_out)
    behaviour = f"the gradient of x, merged={merged}, in {mode} mode"
    assert_matches(actual, grad_out @ weight, behaviour, atol=1e-6)


def test_gradients_while_dropout_acts(impl):
    # One entry of each row is not zero, so that its update says whether it was dropped.
    layer = adapted(impl, dropout=0.25, bias=False, dtype=torch.float64).train()
    x = torch.zeros(200, IN, dtype=torch.float64)
    x[:, 2] = 1
    x.requires_grad_()
    grad_out = torch.randn(200, OUT, dtype=torch.float64)
    leaves = [x, layer.lora_A, layer.lora_B]
    out = layer(x)
    dx, da, db = gradients(out, leaves, grad_out)
    lost = torch.isclose(out, base_output(layer, x)).all(1)
    kept = torch.where(lost, 0.0, 1 / 0.75)[:, None]
    a, b = layer.lora_A.detach(), layer.lora_B.detach()
    whole = weight_of(layer) + kept[:, :, None] * ALPHA / R * (b @ a)
    expected = (grad_out[:, None] @ whole)[:, 0, 2]
    assert_matches(dx[:, 2], expected, "the gradient of x while dropout acts", atol=1e-6)
    dropped = x.detach() * kept
    expected = ALPHA / R * b.T @ grad_out.T @ dropped
    assert_matches(da, expected, "the gradient of lora_A while dropout acts", atol=1e-6)
    expected = ALPHA / R * grad_out.T @ dropped @ a.T
    assert_matches(db, expected, "the gradient of lora_B while dropout acts", atol=1e-6)


def test_a_layer_that_is_moved_to_another_dtype(impl):
    layer = adapted(impl)
    layer(torch.randn(2, IN))
    layer.double()
    x = torch.randn(11, IN, dtype=torch.float64)
    expected = expected_output(layer, x, ALPHA / R)
    assert_matches(layer(x), expected, "the output after double()", atol=1e-6)
    layer.merge()
    assert_matches(layer(x), expected, "the merged output after double()", atol=1e-6)


def test_base_is_the_layer_that_was_given(impl):
    base = nn.Linear(IN, OUT)
    layer = impl.LoRALinear(base, R, ALPHA)
    assert layer.base is base, "`base` is another layer than the one that was given"


def test_many_rows_and_features(impl):
    layer = adapted(impl, 300, 130, 70, 7, dtype=torch.float64)
    x = torch.randn(1500, 300, dtype=torch.float64)
    expected = expected_output(layer, x, 0.1)
    assert_matches(layer(x), expected, "the output for 300 features and 1500 rows", atol=1e-6)
    layer.merge()
    assert_matches(layer(x), expected, "the merged output for 300 features", atol=1e-6)
