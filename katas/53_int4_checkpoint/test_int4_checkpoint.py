import contextlib
import copy
import math
import os
import random
import tempfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    layouts,
    read_with_draws,
    refuses,
    unchanged,
)

LINES = 13  # of a run
TINY = Fraction(1, 2**14)
EXACT = {"rtol": 0, "atol": 0}


class Unclear(Exception):
    """A value that the brief lets go either way."""


def power_of_two(scale):
    return math.frexp(float(scale))[0] == 0.5


def rounded_down(step):
    """The largest float16 not above a fraction, and at least 2^-14; Unclear close to another."""
    found = []
    for value in (step * (1 - Fraction(1, 10**6)), step, step * (1 + Fraction(1, 10**6))):
        half = np.float16(float(value))
        if Fraction(float(half)) > value:
            half = np.nextafter(half, np.float16(0))
        found.append(max(Fraction(float(half)), TINY))
    # A step that is a float16 itself is exact; only a sum that is rounded could fall below it.
    if found[0] != found[2] and found[1] != step:
        raise Unclear
    return found[1]


def rounded(value, exact, halves_up=False):
    """Round a fraction to an integer; Unclear near a half that is none."""
    off = abs(value - math.floor(value) - Fraction(1, 2))
    if (off != 0 or not exact) and off < Fraction(1, 10**4):
        raise Unclear
    return math.floor(value + Fraction(1, 2)) if halves_up else round(value)


def plain_quantize(w, group_size):
    """What the brief says, in exact fractions: codes, scales and zero points."""
    codes, scales, zeros = [], [], []
    for row in w.double().tolist():
        weights = [Fraction(weight) for weight in row]
        groups = [weights[i : i + group_size] for i in range(0, len(weights), group_size)]
        codes.append([])
        scales.append([])
        zeros.append([])
        for group in groups:
            low, high = min(0, *group), max(0, *group)
            scale = rounded_down((high - low) / 15)
            exact = power_of_two(scale)
            zero = rounded(-low / scale, exact, halves_up=True)
            scales[-1].append(float(scale))
            zeros[-1].append(zero)
            for weight in group:
                codes[-1].append(min(15, max(0, rounded(weight / scale + zero, exact))))
    return (
        torch.tensor(codes, dtype=torch.uint8),
        torch.tensor(scales, dtype=torch.float16),
        torch.tensor(zeros, dtype=torch.uint8),
    )


def plain_pack(values):
    rows = []
    for row in values.tolist():
        pairs = zip(row[0::2], [*row[1::2], 0], strict=False)
        rows.append([low + 16 * high for low, high in pairs])
    return torch.tensor(rows, dtype=torch.uint8)


def plain_unpack(packed, columns):
    rows = [[half for byte in row for half in (byte % 16, byte // 16)] for row in packed.tolist()]
    return torch.tensor([row[:columns] for row in rows], dtype=torch.uint8)


def plain_dequantize(codes, scales, zeros, group_size):
    rows = [
        [
            (int(code) - int(zeros[n, k // group_size])) * float(scales[n, k // group_size])
            for k, code in enumerate(row)
        ]
        for n, row in enumerate(codes.tolist())
    ]
    return torch.tensor(rows, dtype=torch.float32)


def weight_in(layer, columns, group_size):
    """The weight of a packed layer, by the brief, from its state dict."""
    state = layer.state_dict()
    codes = plain_unpack(state["packed"], columns)
    kept = plain_unpack(state["zeros"], math.ceil(columns / group_size))
    return plain_dequantize(codes, state["scales"], (kept.int() + 1) % 16, group_size)


def clear_weights(rows, columns, group_size, dtype=torch.float32, shift=0.3):
    """Random weights that leave nothing open, and what they are quantised to."""
    while True:
        w = (torch.randn(rows, columns) + shift).to(dtype)
        with contextlib.suppress(Unclear):
            return w, plain_quantize(w, group_size)


def assert_quantized(actual, expected, behaviour):
    assert isinstance(actual, tuple | list), f"{behaviour}: got {type(actual).__name__}"
    assert len(actual) == 3, f"{behaviour}: got {len(actual)} tensors, not three"
    for name, one, wanted in zip(("codes", "scales", "zeros"), actual, expected, strict=True):
        assert_matches(one, wanted, f"{behaviour}: {name}", **EXACT)
        assert not one.requires_grad, f"{behaviour}: {name} hang on a graph"


class Net(nn.Module):
    """Linear layers at several depths, a tied head, several dtypes, and a shared layer."""

    def __init__(self, width=10, hidden=7):
        super().__init__()
        self.embed = nn.Embedding(13, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in range(2)
        )
        self.gain = nn.Parameter(torch.rand(width).bfloat16())
        self.register_buffer("seen", torch.tensor([3, 2**40]))
        self.shared = self.layers[0][0]
        self.subnet = nn.Linear(width, width)
        self.head = nn.Linear(width, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
        x = x + self.subnet(x)
        return self.head(x * self.gain.to(x.dtype))


def read(path):
    return torch.load(path, weights_only=True)


def same_tensors(one, other):
    """The names under which two dicts differ, in bits too."""
    names = sorted(set(one) ^ set(other))
    for name in set(one) & set(other):
        a, b = one[name], other[name]
        if a.dtype != b.dtype or a.shape != b.shape or bits(a) != bits(b):
            names.append(name)
    return sorted(names)


def bits(x):
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist()


# Symptoms


@pytest.fixture(scope="module")
def log(impl):
    """The log of one whole run."""
    return [dict(line) for line in impl.run()]


@pytest.mark.symptom
def test_the_served_model_is_as_good_as_the_trained_one(log):
    # Of 50 seeds: 28.6 to 31.9, 6.5 to 9.0; int4 0.994 to 1.014 times as much.
    off = []
    first, last = (float(log[n]["perplexity"]) for n in (0, -1))
    if not (25 < first < 36 and 5.5 < last < 10):
        off.append(f"training goes from perplexity {first:.1f} to {last:.1f}, not from 30 to 7.5")
    pairs = [(float(line["perplexity"]), float(line["int4_perplexity"])) for line in log]
    worse = [
        f"{four:.4g} for {full:.4g} in line {n}"
        for n, (full, four) in enumerate(pairs)
        if not abs(four / full - 1) < 0.03
    ]
    if worse:
        off.append(f"four bits give another perplexity: {worse[-1]}")
    if sum(abs(four / full - 1) < 1e-6 for full, four in pairs) > LINES // 2:
        off.append("four bits cost nothing at all: both perplexities are the same")
    assert not off, "this run is not healthy: " + "; ".join(off)


@pytest.mark.symptom
def test_no_weight_is_off_by_more_than_half_a_step(log):
    # Of 50 seeds: 0.4987 to 0.5128; 0.156 to 0.166 at first, then 0.237 to 0.256.
    off = []
    for name, low, high in (("max_error", 0.48, 0.52), ("mean_error", 0.23, 0.27)):
        for n, line in enumerate(log):
            value = float(line[name])
            least, most = (0.145, 0.18) if name == "mean_error" and n == 0 else (low, high)
            if not least < value < most:
                off.append(f"{name} is {value:.3f} steps in line {n}, not {least} to {most}")
                break
    assert not off, "the weights are not those that were trained: " + "; ".join(off)


@pytest.mark.symptom
def test_a_file_has_the_size_of_four_bits(log):
    sizes = sorted({float(line["bytes"]) for line in log})
    assert sizes == [5180.0], f"files of the served model have {sizes} bytes, not 5180"


@pytest.mark.symptom
def test_quantizing_twice_changes_nothing(impl):
    linear = nn.Linear(320, 400)
    once = impl.Int4Linear(linear, 8)
    with torch.no_grad():
        linear.weight.copy_(once.weight)
    twice = impl.Int4Linear(linear, 8)
    changed = int((once.weight != twice.weight).sum())
    assert not changed, (
        f"{changed} of {320 * 400} weights change when what was dequantised is quantised again"
    )
    names = same_tensors(once.state_dict(), twice.state_dict())
    assert not names, f"quantised again, {', '.join(names)} have other bits"


@pytest.mark.symptom
def test_a_packed_product_is_that_of_its_weights(impl):
    for rows, columns, size in ((9, 12, 4), (7, 11, 8), (5, 6, 16)):
        layer = impl.Int4Linear(nn.Linear(columns, rows), size)
        x = torch.randn(6, columns)
        wanted = x.double() @ weight_in(layer, columns, size).double().T + layer.bias.double()
        error = (layer(x).double() - wanted).abs().max().item()
        assert error < 1e-4, (
            f"a layer {columns} to {rows} in groups of {size} is off by {error:.3g} from the "
            "product by the weights that its buffers stand for"
        )


@pytest.mark.symptom
def test_a_model_comes_back_from_its_file(impl, tmp_path):
    model = impl.quantize_model(Net(), 4)
    other = impl.quantize_model(Net(), 4)
    ids = torch.randint(13, (5, 3))
    other(ids)
    renames = {"": "net.", "layers.1.": "net.layers.0.", "layers.0.": "net.layers.1."}
    back = {"net.layers.1.": "layers.0.", "net.layers.0.": "layers.1.", "net.": ""}
    impl.save(model, tmp_path / "one.pt", renames)
    impl.load(other, tmp_path / "one.pt", back)
    error = (other(ids) - model(ids)).abs().max().item()
    assert error < 1e-5, f"the model that was read answers otherwise than the written one: {error}"
    impl.save(other, tmp_path / "two.pt", renames)
    names = same_tensors(read(tmp_path / "one.pt"), read(tmp_path / "two.pt"))
    assert not names, f"saved, loaded and saved again, these are not the same: {', '.join(names)}"


@pytest.mark.symptom
def test_a_file_that_does_not_fit_is_refused(impl, tmp_path):
    model = impl.quantize_model(Net(), 4)
    path = tmp_path / "file.pt"
    impl.save(model, path, {})
    tensors = read(path)
    lacking = ["gain", "layers.1.2.bias", "seen"]
    for name in lacking:
        tensors[f"old.{name}"] = tensors.pop(name)
    old = [name for name in tensors if name.startswith("old.")]
    for left_over, what in ((old, "has them with old. before"), ([], "has nothing in their place")):
        torch.save({n: x for n, x in tensors.items() if n not in old or left_over}, path)
        try:
            impl.load(model, path, {})
        except impl.CheckpointError as error:
            said = f"missing: {list(error.missing)}, left over: {list(error.left_over)}"
        else:
            said = "it fits"
        assert said == f"missing: {lacking}, left over: {left_over}", (
            f"a file lacks {', '.join(lacking)}, and {what}; loading says: {said}"
        )


@pytest.mark.symptom
def test_a_tied_head_stays_tied(impl, tmp_path):
    model = impl.quantize_model(Net(), 4)
    assert model.head.weight is model.embed.weight, "the head of the copy is not tied any more"
    impl.save(model, tmp_path / "file.pt", {})
    twice = [name for name in read(tmp_path / "file.pt") if name.startswith("head")]
    assert not twice, f"the file has the embedding twice, as {twice[0]} too"
    other = impl.quantize_model(Net(), 4)
    impl.load(other, tmp_path / "file.pt", {})
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(torch.tensor([[1, 2, 3]])).square().sum().backward()
    optimizer.step()
    apart = (other.head.weight - other.embed.weight).abs().max().item()
    assert apart == 0, f"after one step the loaded head and its embedding are {apart:.3g} apart"


# Checks: quantisation


@pytest.mark.parametrize(
    ("rows", "columns", "group_size"),
    [(5, 24, 8), (4, 21, 8), (7, 10, 3), (3, 9, 1), (6, 5, 64), (1, 17, 4), (9, 1, 2), (2, 16, 16)],
)
def test_quantize_is_that_of_the_brief(impl, rows, columns, group_size):
    for shift in (0.0, 0.6, -1.2):
        w, wanted = clear_weights(rows, columns, group_size, shift=shift)
        with unchanged(w=w):
            actual = impl.quantize(w, group_size)
        assert_quantized(actual, wanted, f"weights {rows} by {columns} in groups of {group_size}")


@pytest.mark.parametrize(
    "group",
    [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [-0.0, -0.0, 0.0, -0.0, -0.0],
        [2.5, 2.5, 2.5, 2.5, 2.5],
        [-0.75, -0.75, -0.75, -0.75, -0.75],
        [1.0, 2.0, 1.25, 1.5, 1.75],
        [-2.0, -1.0, -1.125, -1.9, -1.4],
        [0.01, -0.02, 300.0, 0.015, -0.003],
        [0.01, -0.02, -300.0, 0.015, -0.003],
        [1e-7, -3e-8, 5e-8, 0.0, 1e-9],
        [3e-5, -2e-5, 1e-4, 4e-4, -4e-4],
        [1e-30, -1e-38, 1e-42, 0.0, -1e-45],
        [480000.0, -500000.0, 3.0, 1e5, -1e5],
        [982560.0, 1.0, 2.0, 5e5, 65504.0],
        [15.0, 0.5, 1.5, 2.5, 14.5],
        [-15.0, -0.5, -1.5, -2.5, -14.5],
        [-2.5, 12.5, 0.5, 1.0, -1.5],
        [-1.5, 13.5, 0.5, 1.0, -0.5],
        [-3.5, 11.5, 1.0, 2.5, 3.5],
    ],
    ids=str,
)
def test_groups_of_all_kinds(impl, group):
    # Between two plain groups, and with a short one behind.
    plain = [-7.0, 8.0, 1.0, 2.0, 3.0]
    w = torch.tensor([[*plain, *group, *plain, *group[:2]], [*group, *plain, *plain, 1.0, -2.0]])
    wanted = plain_quantize(w, 5)
    actual = impl.quantize(w, 5)
    assert_quantized(actual, wanted, f"a group of {group}")
    again = impl.dequantize(*actual, 5)
    assert_quantized(impl.quantize(again, 5), actual, f"a group of {group}, quantised twice")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_weights_of_any_dtype(impl, dtype):
    w, wanted = clear_weights(6, 22, 8, dtype)
    with unchanged(w=w):
        assert_quantized(impl.quantize(w, 8), wanted, f"{dtype} weights")
    # At the edge of float16, where a difference of two weights is out of its range.
    w = torch.tensor([[65504.0, -65504.0, 30000.0, 1.0], [60000.0, 60000.0, -1.0, -60000.0]])
    w = w.to(dtype)
    assert_quantized(impl.quantize(w, 3), plain_quantize(w, 3), f"large {dtype} weights")


def test_errors_are_within_half_a_step(impl):
    for shift in (0.0, 1.5):
        w = torch.randn(60, 75) + shift
        codes, scales, zeros = impl.quantize(w, 8)
        back = plain_dequantize(codes, scales, zeros, 8).double()
        columns = torch.arange(75) // 8
        scale, zero = scales.double()[:, columns], zeros.double()[:, columns]
        inside = (w >= -zero * scale) & (w <= (15 - zero) * scale)
        error = (back - w.double()).abs() / scale
        worst = error[inside].max().item()
        assert worst < 0.5001, f"a weight within its group's values is off by {worst:.4f} steps"
        assert error.max() < 0.52, f"a weight is off by {error.max().item():.4f} steps"


def test_dequantized_weights_are_quantized_to_the_same_bits(impl):
    for size, dtype in ((8, torch.float32), (3, torch.float32), (16, torch.bfloat16)):
        w = (torch.randn(500, 50) * torch.rand(500, 1) ** 4).to(dtype)
        once = impl.quantize(w, size)
        assert_quantized(
            impl.quantize(impl.dequantize(*once, size), size), once, f"{dtype}, groups of {size}"
        )


def test_what_cannot_be_quantized_is_refused(impl):
    for bad in (math.nan, math.inf, -math.inf, 983000.0, -983000.0, 3e38):
        for place in (0, 6):
            w = torch.randn(3, 7)
            w[1, place] = bad
            with refuses(f"a weight of {bad}"):
                impl.quantize(w, 4)
    with refuses("weights that are 990000 apart"):
        impl.quantize(torch.tensor([[1.0, 2.0, -490000.0, 500000.0]]), 4)
    for dtype in (torch.float16, torch.bfloat16):
        with refuses("NaN"):
            impl.quantize(torch.tensor([[1.0, math.nan]], dtype=dtype), 4)


def test_group_sizes_of_any_kind(impl):
    w, wanted = clear_weights(3, 10, 4)
    assert_quantized(impl.quantize(w, np.int64(4)), wanted, "a group size from NumPy")
    assert_matches(
        impl.dequantize(*wanted, np.int64(4)), plain_dequantize(*wanted, 4), "the same", **EXACT
    )
    w, wanted = clear_weights(3, 10, 10)
    assert_quantized(impl.quantize(w, 10**12), wanted, "groups far longer than a row")
    back = impl.dequantize(*wanted, 10**12)
    assert_matches(back, plain_dequantize(*wanted, 10**12), "groups far longer than a row", **EXACT)
    wanted = plain_quantize(w, 10)
    assert_quantized(impl.quantize(w=w, group_size=10), wanted, "arguments by keyword")


def test_a_weight_that_asks_for_a_gradient(impl):
    w, wanted = clear_weights(3, 10, 4)
    assert_quantized(impl.quantize(nn.Parameter(w), 4), wanted, "the weight of a layer")


def test_quantize_again_and_in_any_layout_and_mode(impl):
    def call(w):
        return tuple(impl.quantize(w, 4))

    def expected(w):
        return plain_quantize(w, 4)

    assert_repeatable(call, lambda: [clear_weights(5, 11, 4)[0]], expected, "quantize")
    w, wanted = clear_weights(5, 11, 4)
    assert_any_layout(call, [w], wanted, "quantize")
    assert_any_mode(call, [w], wanted, "quantize")


def some_codes(rows, columns, group_size):
    groups = math.ceil(columns / group_size)
    codes = torch.randint(16, (rows, columns), dtype=torch.uint8)
    scales = (torch.rand(rows, groups) + 0.01).half()
    return codes, scales, torch.randint(16, (rows, groups), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("rows", "columns", "group_size"),
    [(5, 24, 8), (4, 21, 8), (7, 10, 3), (3, 9, 1), (6, 5, 64), (1, 17, 4), (9, 1, 2), (8, 42, 8)],
)
def test_dequantize_is_exact(impl, rows, columns, group_size):
    parts = some_codes(rows, columns, group_size)
    with unchanged(**dict(zip(("codes", "scales", "zeros"), parts, strict=True))):
        actual = impl.dequantize(*parts, group_size)
    wanted = plain_dequantize(*parts, group_size)
    assert_matches(actual, wanted, f"weights of {rows} by {columns}, groups {group_size}", **EXACT)


def test_dequantize_of_every_code_and_zero_point(impl):
    codes = torch.arange(16, dtype=torch.uint8).repeat(16, 1)
    zeros = torch.arange(16, dtype=torch.uint8)[:, None]
    for scale in (1.0, 65504.0, 2.0**-14, 0.1):
        scales = torch.full((16, 1), scale, dtype=torch.float16)
        wanted = plain_dequantize(codes, scales, zeros, 16)
        actual = impl.dequantize(codes, scales, zeros, 16)
        assert_matches(actual, wanted, f"all codes by all zero points, scale {scale}", **EXACT)


def test_dequantize_again_and_in_any_layout_and_mode(impl):
    def call(codes, scales, zeros):
        return impl.dequantize(codes, scales, zeros, 4)

    def expected(codes, scales, zeros):
        return plain_dequantize(codes, scales, zeros, 4)

    assert_repeatable(call, lambda: some_codes(5, 11, 4), expected, "dequantize")
    parts = some_codes(5, 11, 4)
    assert_any_layout(call, parts, expected(*parts), "dequantize")
    assert_any_mode(call, parts, expected(*parts), "dequantize")


# Checks: packing


@pytest.mark.parametrize("columns", [1, 2, 3, 6, 9])
def test_two_values_a_byte(impl, columns):
    for rows in (1, 4):
        values = torch.randint(16, (rows, columns), dtype=torch.uint8)
        with unchanged(values=values):
            packed = impl.pack(values)
        assert_matches(packed, plain_pack(values), f"{columns} values a row, packed", **EXACT)
        with unchanged(packed=packed):
            assert_matches(impl.unpack(packed, columns), values, "pack and unpack", **EXACT)


def test_every_byte(impl):
    values = torch.tensor([[low, high] for high in range(16) for low in range(16)])
    values = values.to(torch.uint8)
    packed = torch.arange(256, dtype=torch.uint8)[:, None]
    assert_matches(impl.pack(values), packed, "all pairs of values, packed", **EXACT)
    assert_matches(impl.unpack(packed, 2), values, "all bytes, unpacked", **EXACT)
    wide = packed.reshape(1, -1)
    assert_matches(impl.unpack(wide, 512), plain_unpack(wide, 512), "256 bytes of a row", **EXACT)
    first = impl.unpack(wide, np.int64(511))
    assert_matches(first, plain_unpack(wide, 511), "all values but the last", **EXACT)


def test_packing_again_and_in_any_layout_and_mode(impl):
    for columns in (6, 7):

        def values(columns=columns):
            return [torch.randint(16, (5, columns), dtype=torch.uint8)]

        def unpack(packed, columns=columns):
            return impl.unpack(packed, columns)

        def plain(packed, columns=columns):
            return plain_unpack(packed, columns)

        def packed(values=values):
            return [plain_pack(*values())]

        for what, call, inputs, expected in (
            ("pack", impl.pack, values, plain_pack),
            ("unpack", unpack, packed, plain),
        ):
            assert_repeatable(call, inputs, expected, f"{what}, {columns} values")
            arguments = inputs()
            assert_any_layout(call, arguments, expected(*arguments), f"{what}, {columns} values")
            assert_any_mode(call, arguments, expected(*arguments), f"{what}, {columns} values")


# Checks: the layer


def a_linear(rows, columns, group_size, bias=True, dtype=torch.float32):
    linear = nn.Linear(columns, rows, bias=bias, dtype=dtype)
    w, parts = clear_weights(rows, columns, group_size, dtype)
    with torch.no_grad():
        linear.weight.copy_(w)
    return linear, parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_buffers_are_those_of_the_brief(impl, dtype):
    for rows, columns, size in ((5, 24, 8), (4, 21, 8), (6, 3, 1), (9, 4, 8)):
        linear, (codes, scales, zeros) = a_linear(rows, columns, size, dtype=dtype)
        before = copy.deepcopy(linear.state_dict())
        layer = impl.Int4Linear(linear, size)
        wanted = {
            "packed": plain_pack(codes),
            "scales": scales,
            "zeros": plain_pack((zeros.int() + 15) % 16),
            "bias": before["bias"],
        }
        state = layer.state_dict()
        assert set(state) == set(wanted), f"the state dict has {sorted(state)}"
        for name, value in wanted.items():
            assert_matches(state[name], value, f"{name} of {columns} to {rows}", **EXACT)
        parameters = [name for name, _ in layer.named_parameters()]
        assert parameters == ["bias"], f"the parameters are {parameters}, not the bias alone"
        what = f"the weight of {columns} to {rows} in groups of {size}"
        assert_matches(layer.weight, plain_dequantize(codes, scales, zeros, size), what, **EXACT)
        told = (layer.in_features, layer.out_features, layer.group_size)
        assert told == (columns, rows, size), f"in, out and group size are {told}"
        assert not same_tensors(before, linear.state_dict()), "the linear layer has changed"


def test_zero_points_of_groups_of_one_sign(impl):
    linear = nn.Linear(12, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.rand(4, 12) + 0.5)
        linear.weight[:, 4:8] *= -1
        linear.weight[0] = 0
    layer = impl.Int4Linear(linear, 4)
    # Zero points 0 or 15 and 0, kept as 15 or 14 and 15.
    kept = torch.tensor([[0xFF, 0x0F], [0xEF, 0x0F], [0xEF, 0x0F], [0xEF, 0x0F]]).to(torch.uint8)
    assert_matches(layer.state_dict()["zeros"], kept, "zero points less one", **EXACT)
    error = (layer.weight - linear.weight).abs().max().item()
    assert error < 0.06, f"weights of 0.5 to 1.5 and of one sign are off by {error:.3g}"


def test_the_bias_is_the_layers_own(impl):
    linear, _ = a_linear(5, 6, 4)
    linear.bias.requires_grad_(False)
    layer = impl.Int4Linear(linear, 4)
    assert isinstance(layer.bias, nn.Parameter), f"the bias is {type(layer.bias).__name__}"
    assert not layer.bias.requires_grad, "a frozen bias asks for a gradient"
    before = layer.bias.detach().clone()
    with torch.no_grad():
        linear.bias.add_(1)
        linear.weight.zero_()
    assert_matches(layer.bias.detach(), before, "the bias, once the linear layer's moved", **EXACT)
    linear, _ = a_linear(5, 6, 4, bias=False)
    layer = impl.Int4Linear(linear, 4)
    assert layer.bias is None, f"without a bias it is {type(layer.bias).__name__}"
    assert set(layer.state_dict()) == {"packed", "scales", "zeros"}, f"{set(layer.state_dict())}"
    linear, _ = a_linear(5, 6, 4)
    layer = impl.Int4Linear(linear, 4)
    assert layer.bias.requires_grad, "a trained bias asks for no gradient"
    for mode in (True, False):
        kept = impl.Int4Linear(linear.train(mode), 4)
        assert kept.training == mode, f"a layer with training={mode} becomes one without"
        assert linear.training == mode, "the mode of the linear layer has changed"


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 0.15}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_products_in_the_dtype_of_their_input(impl, dtype, bias):
    for own in (torch.float32, torch.bfloat16):
        linear, _ = a_linear(6, 11, 4, bias, own)
        layer = impl.Int4Linear(linear, 4)
        weight = weight_in(layer, 11, 4).to(dtype).double()
        added = linear.bias.detach().to(dtype).double() if bias else 0
        for shape in ((11,), (1, 11), (3, 11), (2, 3, 11), (0, 11)):
            x = torch.randn(shape).to(dtype)
            with unchanged(x=x):
                actual = layer(x)
            wanted = (x.double() @ weight.T + added).to(dtype)
            what = f"a product of {dtype} {shape} by a layer made from {own}"
            assert_matches(
                actual.detach(), wanted, what, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
            )


def test_large_and_small_products_in_float64(impl):
    linear, _ = a_linear(3, 5, 2)
    layer = impl.Int4Linear(linear, 2)
    x = torch.randn(4, 5, dtype=torch.float64) * 1e60
    wanted = x @ weight_in(layer, 5, 2).double().T + linear.bias.detach().double()
    assert_matches(layer(x).detach(), wanted, "a product of large float64", rtol=1e-9, atol=1e48)


def test_gradients_reach_the_input_and_the_bias(impl):
    linear, _ = a_linear(6, 11, 4)
    layer = impl.Int4Linear(linear, 4)
    x = torch.randn(5, 11, requires_grad=True)
    upstream = torch.randn(5, 6)
    layer(x).backward(upstream)
    assert x.grad is not None, "no gradient reaches the input"
    assert_matches(x.grad, upstream @ weight_in(layer, 11, 4), "the gradient of the input")
    assert layer.bias.grad is not None, "no gradient reaches the bias"
    assert_matches(layer.bias.grad, upstream.sum(0), "the gradient of the bias")
    assert linear.weight.grad is None, "a gradient reaches the weight that was quantised"


def test_a_layer_uses_its_buffers_as_they_are(impl):
    layer = impl.Int4Linear(a_linear(6, 11, 4)[0], 4)
    other = impl.Int4Linear(a_linear(6, 11, 4)[0], 4)
    x = torch.randn(3, 11)

    def wanted():
        return x @ weight_in(layer, 11, 4).T + layer.bias.detach()

    assert_matches(layer(x).detach(), wanted(), "a first product")
    first = layer.weight.clone()
    layer.load_state_dict(other.state_dict())
    assert_matches(layer(x).detach(), wanted(), "a product after load_state_dict")
    assert_matches(layer.weight, other.weight, "the weight after load_state_dict", **EXACT)
    assert not torch.equal(first, layer.weight)
    for name in ("packed", "zeros", "scales"):
        with torch.no_grad():
            buffer = layer.get_buffer(name)
            buffer.copy_(buffer.flip(0))
        assert_matches(layer(x).detach(), wanted(), f"a product after a change of {name}")
        assert_matches(layer.weight, weight_in(layer, 11, 4), f"the weight after one of {name}")
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        layer.scales.mul_(2)
    assert_matches(twin.weight * 2, layer.weight, "the weight of a copy", **EXACT)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_matches(layer(x), wanted(), f"a product under {mode.__name__}")
    for layout, strided in layouts(x):
        assert_matches(layer(strided).detach(), wanted(), f"a product of an input {layout}")


def test_a_product_of_rows_is_that_of_each(impl):
    layer = impl.Int4Linear(a_linear(6, 11, 4)[0], 4)
    x = torch.randn(7, 11)
    together = layer(x).detach()
    for count in (1, 3):
        what = f"products of {count} rows, alone and among 7"
        assert_matches(layer(x[:count]).detach(), together[:count], what)


# Checks: whole models


def test_every_linear_layer_is_quantized(impl):
    model = Net()
    copied = impl.quantize_model(model, 4)
    found = {
        n for n, m in copied.named_modules(remove_duplicate=False) if type(m) is impl.Int4Linear
    }
    wanted = {"layers.0.0", "layers.0.2", "layers.1.0", "layers.1.2", "shared", "subnet"}
    assert found == wanted, f"four bits in {sorted(found)}, not in {sorted(wanted)}"
    assert copied.shared is copied.layers[0][0], "a layer in two places has become two"
    assert type(copied) is Net, f"the copy is a {type(copied).__name__}"
    assert type(copied.head) is nn.Linear, "a tied head is quantised"
    for name in sorted(wanted):
        layer, linear = copied.get_submodule(name), model.get_submodule(name)
        alone = impl.Int4Linear(linear, 4)
        assert not same_tensors(layer.state_dict(), alone.state_dict()), f"{name} has other bits"
        assert layer.group_size == 4, f"{name} has groups of {layer.group_size}"
    by_hand = Net()
    by_hand.load_state_dict(model.state_dict())
    for name in sorted(wanted - {"shared"}):
        linear = by_hand.get_submodule(name)
        with torch.no_grad():
            linear.weight.copy_(weight_in(copied.get_submodule(name), linear.in_features, 4))
    ids = torch.randint(13, (4, 2))
    assert_matches(copied(ids).detach(), by_hand(ids).detach(), "what the copy answers")


def test_models_of_other_shapes(impl):
    linear, _ = a_linear(5, 6, 4)
    alone = impl.quantize_model(linear, 4)
    assert type(alone) is impl.Int4Linear, f"a linear layer alone becomes a {type(alone).__name__}"
    assert type(linear) is nn.Linear
    wanted = impl.Int4Linear(linear, 4).state_dict()
    assert not same_tensors(alone.state_dict(), wanted), "a linear layer alone has other bits"

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"a": nn.Sequential(nn.Sequential(nn.Linear(4, 3)))})
            self.first, self.second = nn.Linear(5, 4), nn.Linear(5, 4)
            self.second.weight = self.first.weight
            self.none = None
            self.scale = nn.Parameter(torch.tensor(2.0))

    model = Deep()
    copied = impl.quantize_model(model, np.int64(2))
    assert type(copied.parts["a"][0][0]) is impl.Int4Linear, "a layer three levels down is left"
    kinds = [type(copied.first), type(copied.second)]
    assert kinds == [nn.Linear, nn.Linear], f"two layers with one weight become {kinds}"
    assert copied.first.weight is copied.second.weight, "two layers with one weight have two"
    assert copied.first.bias is not copied.second.bias

    plain = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3))
    names = same_tensors(impl.quantize_model(plain, 4).state_dict(), plain.state_dict())
    assert not names, f"in a model without linear layers {names} change"


def test_the_model_that_is_quantized_stays_as_it_is(impl):
    model = Net()
    model.layers[1].eval()
    model.layers[0][2].bias.requires_grad_(False)
    model.embed.weight.requires_grad_(False)
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = {id(x) for x in model.state_dict(keep_vars=True).values()}
    before = copy.deepcopy(model.state_dict())
    copied = impl.quantize_model(model, 4)
    assert dict(model.named_modules(remove_duplicate=False)) == modules, "other modules in it"
    assert {id(x) for x in model.state_dict(keep_vars=True).values()} == tensors
    assert not same_tensors(model.state_dict(), before), "the model that was given has changed"
    for name, module in copied.named_modules(remove_duplicate=False):
        assert module.training == modules[name].training, f"{name or 'all'} has another mode"
    for name, parameter in copied.named_parameters():
        asked = model.get_parameter(name).requires_grad
        assert parameter.requires_grad == asked, f"{name} has requires_grad={not asked}"
    kept = {name: value for name, value in before.items() if name in copied.state_dict()}
    assert set(kept) >= {"embed.weight", "head.weight", "gain", "seen", "layers.0.2.bias"}
    names = same_tensors(kept, {name: copied.state_dict()[name] for name in kept})
    assert not names, f"in the copy, {', '.join(names)} are not as they were"
    with torch.no_grad():
        for value in copied.state_dict().values():
            value.zero_()
    assert not same_tensors(model.state_dict(), before), "the copy shares memory with the model"
    assert copied.head.weight is copied.embed.weight, "the copy's head is not tied"


def test_a_layer_that_cannot_be_quantized_is_named(impl):
    for name, bad in (("layers.1.2", math.nan), ("layers.0.2", math.inf), ("layers.1.0", 2e6)):
        model = Net()
        with torch.no_grad():
            model.get_submodule(name).weight[3, 2] = bad
        before = copy.deepcopy(model.state_dict())
        with refuses(f"{bad} in {name}", name.replace(".", r"\.")):
            impl.quantize_model(model, 4)
        assert same_tensors(model.state_dict(), before) in ([], [f"{name}.weight"])
    model = Net()
    with torch.no_grad():
        model.embed.weight[0, 0] = math.nan
        model.layers[0][0].bias[0] = math.nan
    copied = impl.quantize_model(model, 4)
    assert copied.embed.weight[0, 0].isnan(), "a NaN that is not quantised is gone"


# Checks: writing


def renamed_by_hand(names, renames):
    new = []
    for name in names:
        fitting = sorted((p for p in renames if name.startswith(p)), key=len)
        new.append(renames[fitting[-1]] + name[len(fitting[-1]) :] if fitting else name)
    return new


RENAMES = [
    {},
    {"": "module."},
    {"layers.": "model.layers.", "layers.1.": "model.blocks.9."},
    {"layers.1.": "model.blocks.9.", "layers.": "model.layers."},
    {"": "model.", "emb": "net.layers.", "layers.0.2.": ""},
    {"layers.0.": "layers.1.", "layers.1.": "layers.0."},
    {"layers.1.": "layers.0.", "layers.0.": "layers.1."},
    {"ers.": "nothing.", "layers": "lay.layers", "weight": "w"},
    {"layers.0.0.bias": "b", "gain": "layers.gain"},
    {"l": "", "la": "la", "seen": "seen"},
    {"s": "T."},
    {"net.": ""},
    {"net.": "", "net.sub": "sub."},
    {"layers.1.": "a.", "layers.0": "b", "g.i": "c."},
]


@pytest.mark.parametrize("renames", RENAMES, ids=str)
def test_names_in_the_file(impl, tmp_path, renames):
    model = Net()
    del model.shared  # so that the head alone is tied
    state = {n: x for n, x in model.state_dict().items() if n != "head.weight"}
    wanted = dict(zip(renamed_by_hand(state, renames), state.values(), strict=True))
    before = dict(renames)
    impl.save(model, tmp_path / "file.pt", renames)
    names = same_tensors(read(tmp_path / "file.pt"), wanted)
    assert not names, f"renamed by {renames}, the file and the brief differ in {', '.join(names)}"
    assert renames == before, "renames is changed"


def test_a_file_holds_plain_tensors(impl, tmp_path):
    model = impl.quantize_model(Net(), 4)
    model.layers[0][2].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    path = tmp_path / "file.pt"
    path.write_bytes(b"an older file")
    impl.save(model, str(path), {})
    tensors = read(path)
    assert type(tensors) in (dict, type(model.state_dict())), f"a file has a {type(tensors)}"
    for name, value in tensors.items():
        assert type(value) is torch.Tensor, f"{name} is a {type(value).__name__}"
        assert not value.requires_grad, f"{name} asks for a gradient"
    shared = {name for name in before if name.startswith("shared")} | {"head.weight"}
    names = same_tensors(tensors, {n: x for n, x in before.items() if n not in shared})
    assert not names, f"not as in the model: {', '.join(names)}"
    assert not same_tensors(model.state_dict(), before), "the model that is saved has changed"
    assert model.layers[0][0].bias.requires_grad, "the model's bias asks for no gradient now"


def test_tied_tensors_are_written_once(impl, tmp_path):
    model = Net()
    impl.save(model, tmp_path / "file.pt", {"head.": "out.", "shared.": "s.", "embed.": "e."})
    names = set(read(tmp_path / "file.pt"))
    assert "e.weight" in names, f"the embedding is not under the first of its names: {names}"
    twice = sorted(name for name in names if name.startswith(("out.", "s.")))
    assert not twice, f"written twice: {', '.join(twice)}"
    # Equal is not tied.
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].load_state_dict(model[0].state_dict())
    impl.save(model, tmp_path / "file.pt", {})
    names = sorted(read(tmp_path / "file.pt"))
    assert names == ["0.bias", "0.weight", "1.bias", "1.weight"], f"of equal layers: {names}"
    # Nor is what shares memory: these are two buffers.
    model = nn.Module()
    model.register_buffer("whole", torch.arange(6.0))
    model.register_buffer("start", model.whole[:3])
    model.register_buffer("same", model.whole[:])
    impl.save(model, tmp_path / "file.pt", {})
    names = sorted(read(tmp_path / "file.pt"))
    assert names == ["same", "start", "whole"], f"of buffers that share memory: {names}"


def test_a_view_is_written_without_what_it_is_a_view_of(impl, tmp_path):
    model = nn.Module()
    large = torch.randn(1000, 100)
    model.register_buffer("view", large[300:303])
    model.register_buffer("column", large[:20, 7])
    model.register_buffer("turned", large[:5, :4].T)
    model.register_buffer("passing", torch.zeros(3), persistent=False)
    path = tmp_path / "file.pt"
    impl.save(model, path, {})
    names = same_tensors(
        read(path), {"view": large[300:303], "column": large[:20, 7], "turned": large[:5, :4].T}
    )
    assert not names, f"not as in the model: {', '.join(names)}"
    size = path.stat().st_size
    assert size < 20_000, f"a file with 340 floats takes {size} bytes"


def test_two_names_that_become_one(impl, tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))
    with refuses("two names that become one", r"x\.(weight|bias)"):
        impl.save(model, tmp_path / "file.pt", {"0.": "x.", "1.": "x."})
    assert not list(tmp_path.iterdir()), "a file is left behind"
    impl.save(model, tmp_path / "file.pt", {"0.": "a.", "1.": "b."})
    before = copy.deepcopy(model.state_dict())
    with refuses("two names that become one", r"0\.(weight|bias)"):
        impl.load(model, tmp_path / "file.pt", {"a.": "0.", "b.": "0."})
    assert not same_tensors(model.state_dict(), before), "the model has changed"


# Checks: reading


@pytest.mark.parametrize("renames", RENAMES, ids=str)
def test_names_from_elsewhere(impl, tmp_path, renames):
    # A file of another program, whose names become those of the model when they are renamed.
    model = nn.Module()
    there = ["layers.0.0.bias", "layers.10.w", "layers.1.x", "gain", "net.subnet.x"]
    names = renamed_by_hand(there, renames)
    tensors = [torch.randn(2 + n, 3).to(d) for n, d in enumerate([torch.half, torch.double] * 2)]
    tensors.append(torch.arange(5))
    for name, tensor in zip(names, tensors, strict=True):
        *parents, last = name.split(".")
        module = model
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.register_buffer(last, torch.zeros_like(tensor))
    torch.save(dict(reversed([*zip(there, tensors, strict=True)])), tmp_path / "file.pt")
    impl.load(model, tmp_path / "file.pt", renames)
    off = same_tensors(model.state_dict(), dict(zip(names, tensors, strict=True)))
    assert not off, f"renamed by {renames}, read wrongly: {', '.join(off)}"


def test_loading_fills_what_is_there(impl, tmp_path):
    source, model = impl.quantize_model(Net(), 4), impl.quantize_model(Net(), 4)
    with torch.no_grad():
        source.gain[2] = math.nan
        source.layers[0][2].bias[1] = -0.0
        source.seen[1] = -(2**62) + 1
    model.embed.weight.requires_grad_(False)
    model.layers[1].eval()
    before = dict(model.state_dict(keep_vars=True))
    asked = {name: value.requires_grad for name, value in before.items()}
    modes = [module.training for module in model.modules()]
    impl.save(source, tmp_path / "file.pt", {})
    with torch.enable_grad():
        impl.load(model, str(tmp_path / "file.pt"), {})
        assert torch.is_grad_enabled(), "no graph is recorded after loading"
    after = dict(model.state_dict(keep_vars=True))
    for name, value in after.items():
        assert value is before[name], f"{name} is another tensor than before"
        assert value.requires_grad == asked[name], f"{name} has another requires_grad"
        assert value.is_leaf, f"{name} hangs on a graph"
    assert [module.training for module in model.modules()] == modes, "modes have changed"
    names = same_tensors(model.state_dict(), source.state_dict())
    assert not names, f"not as they were saved: {', '.join(names)}"
    assert model.head.weight is model.embed.weight, "the head is not tied any more"
    with torch.no_grad():
        source.embed.weight.zero_()
    assert model.embed.weight.abs().sum() > 0, "the loaded model shares memory with the saved one"


def test_a_model_that_is_not_quantized(impl, tmp_path):
    for kind in (torch.float32, torch.bfloat16, torch.float64):
        source, model = Net().to(kind), Net().to(kind)
        impl.save(source, tmp_path / "file.pt", {"": "module."})
        impl.load(model, tmp_path / "file.pt", {"module.": ""})
        names = same_tensors(model.state_dict(), source.state_dict())
        assert not names, f"{kind}: not as they were saved: {', '.join(names)}"


def load_error(impl, model, path, renames=None):
    """The three lists of the error, which is to leave the model alone and to say all of them."""
    before = copy.deepcopy(model.state_dict())
    with refuses("a file that does not fit"):
        try:
            impl.load(model, path, renames or {})
        except impl.CheckpointError as error:
            lists, message = (error.missing, error.left_over, error.mismatched), str(error)
            raise
    unsaid = [name for names in lists for name in names if name not in message]
    assert not unsaid, f"the message does not have {', '.join(unsaid)}"
    assert not same_tensors(model.state_dict(), before), "the model was changed by a refused file"
    return tuple(map(list, lists))


def test_all_that_does_not_fit_is_named(impl, tmp_path):
    model = impl.quantize_model(Net(), 4)
    path = tmp_path / "file.pt"
    impl.save(model, path, {})
    whole = {name: value + 1 for name, value in read(path).items()}
    first = "layers.0.0."

    def check(change, wanted, what):
        tensors = dict(whole)
        change(tensors)
        torch.save(tensors, path)
        assert load_error(impl, model, path) == wanted, f"{what} is reported otherwise"

    def several(tensors):
        for name in ("seen", "layers.1.2.zeros", f"{first}scales", "embed.weight"):
            del tensors[name]
        tensors |= {"z": torch.ones(1), "Extra": torch.ones(2), "layers.1": torch.ones(3)}
        tensors["gain"] = tensors["gain"].float()
        tensors["layers.1.2.bias"] = tensors["layers.1.2.bias"][:, None]
        tensors["layers.0.2.packed"] = tensors["layers.0.2.packed"].to(torch.int8)

    missing = ["embed.weight", f"{first}scales", "layers.1.2.zeros", "seen"]
    mismatched = ["gain", "layers.0.2.packed", "layers.1.2.bias"]
    check(several, (missing, ["Extra", "layers.1", "z"], mismatched), "a file wrong in many ways")
    check(lambda t: t.pop("gain"), (["gain"], [], []), "one name that is missing")
    check(lambda t: t.update(more=t["gain"]), ([], ["more"], []), "one name too many")
    half = {"seen": whole["seen"].int()}
    check(lambda t: t.update(half), ([], [], ["seen"]), "another dtype of integers")
    wide = {"gain": whole["gain"][:1]}
    check(lambda t: t.update(wide), ([], [], ["gain"]), "a shape that could be expanded")
    check(lambda t: t.clear(), (sorted(whole), [], []), "an empty file")
    torch.save({f"m.{name}": value for name, value in whole.items()}, path)
    names = sorted(f"x.{name}" for name in whole)
    wanted = (sorted(whole), names, [])
    assert load_error(impl, model, path, {"m.": "x."}) == wanted, "left over, but not as renamed"


def test_a_tied_tensor_may_have_any_of_its_names(impl, tmp_path):
    path = tmp_path / "file.pt"
    source = Net()
    state = copy.deepcopy(dict(source.state_dict()))

    def change(**tensors):
        new = {n: x for n, x in state.items() if n not in ("embed.weight", "head.weight")}
        new |= {name.replace("_", "."): value for name, value in tensors.items()}
        torch.save(new, path)

    value = torch.randn(13, 10)
    for tensors in (
        {"embed_weight": value},
        {"head_weight": value},
        {"embed_weight": value, "head_weight": value.clone()},
        {"head_weight": value, "embed_weight": value},
    ):
        model = Net()
        change(**tensors)
        impl.load(model, path, {})
        what = f"a tied tensor that the file has as {', '.join(tensors)}"
        assert_matches(model.embed.weight.detach(), value, what, **EXACT)
        assert model.head.weight is model.embed.weight, f"{what} is not tied any more"

    model = Net()
    change(embed_weight=value, head_weight=value + 1)
    assert load_error(impl, model, path) == ([], [], ["head.weight"]), "values that are not equal"
    change(head_weight=value + 1, embed_weight=value)
    assert load_error(impl, model, path) == ([], [], ["head.weight"]), "the same, otherwise ordered"
    change(embed_weight=value, head_weight=value.double())
    found = load_error(impl, model, path)
    assert found == ([], [], ["head.weight"]), "equal values, in another dtype"
    change(head_weight=value.double())
    assert load_error(impl, model, path) == ([], [], ["head.weight"]), "another dtype"
    change()
    assert load_error(impl, model, path) == (["embed.weight"], [], []), "none of its names"
    # Two tensors that happen to be equal are no tied ones.
    plain = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    torch.save({"0.weight": torch.ones(3, 3)}, path)
    with torch.no_grad():
        plain[1].weight.copy_(plain[0].weight)
    assert load_error(impl, plain, path) == (["1.weight"], [], []), (
        "of equal tensors, one is missing"
    )


class Planted:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_but_tensors_is_read(impl, tmp_path):
    model = nn.Linear(2, 2)
    path, folder = tmp_path / "file.pt", tmp_path / "made"
    torch.save({**model.state_dict(), "extra": Planted(folder)}, path)
    refused = False
    try:
        impl.load(model, path, {})
    except Exception:
        refused = True
    assert refused, "a file with an object in it is loaded"
    assert not folder.exists(), "what a file had in it was run"


# Checks: the run


KEYS = {"perplexity", "int4_perplexity", "max_error", "mean_error", "bytes"}


def test_a_line_for_each_file(impl, log):
    assert len(log) == LINES, f"a run logs {len(log)} lines, not {LINES}"
    for line in log:
        assert set(line) == KEYS, f"a line has {sorted(line)}"
    same = sum(
        math.isclose(line["perplexity"], line["int4_perplexity"], rel_tol=1e-7) for line in log
    )
    assert same < 7, f"int4_perplexity is that of the trained model in {same} of {LINES} lines"
    falls = [float(line["perplexity"]) for line in log]
    assert falls[4] < 0.5 * falls[0], f"perplexity goes from {falls[0]:.1f} to {falls[4]:.1f}"


def test_a_seed_gives_one_log(impl, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = random.getstate(), np.random.get_state()[1].tolist()
    one = read_with_draws(lambda seed, steps: impl.run(seed=seed, steps=steps), 3, 3)
    after = random.getstate(), np.random.get_state()[1].tolist()
    assert before == after, "a run changes a global generator"
    assert list(impl.run(3, 3)) == one, "the same seed gives another log"
    together = list(zip(impl.run(3, 3), impl.run(4, 3), strict=True))
    assert [line for line, _ in together] == one, "two runs at once change each other"
    assert together[0][1]["perplexity"] != one[0]["perplexity"], "seeds do not count"
    assert list(impl.run(steps=1)) == list(impl.run(0, 1)), "seed is not 0 by default"
    assert len(list(impl.run(5, 2))) == 2, "steps=2 does not log two lines"
    left = [path.name for path in tmp_path.iterdir()]
    assert not left, f"files stay behind: {left}"


def test_parts_of_a_run(impl, log):
    assert list(impl.run(0, 3)) == log[:3], "a shorter run begins otherwise"
