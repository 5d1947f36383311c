import math

import pytest
import torch

from dojo.testing import (
    assert_all_match,
    assert_any_layout,
    assert_any_mode,
    assert_gradients_reach,
    assert_matches,
    assert_repeatable,
    golden,
    refuses,
    told_apart,
    unchanged,
)

APPLY = ["apply_rope", "apply_rope_interleaved"]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# B, H, T, D: no two sizes above one are equal in the first.
SHAPES = [
    (2, 3, 5, 8),
    (4, 3, 5, 2),
    (5, 2, 1, 6),  # one token, as in generation
    (1, 4, 3, 10),
    (3, 1, 2, 14),
    (1, 1, 1, 2),
]
# Sizes by which one axis may be taken for another.
EQUAL_SIZES = [
    (3, 3, 5, 8),  # as many heads as sequences
    (2, 5, 5, 8),  # as many heads as tokens
    (5, 2, 5, 8),  # as many sequences as tokens
    (3, 3, 3, 8),
    (2, 3, 4, 8),  # as many tokens as pairs
    (2, 4, 3, 8),  # as many heads as pairs
    (4, 4, 4, 8),
]


# Oracles, in float64


def exact_tables(positions, dim, base=10000.0):
    rates = torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
    angles = positions.double()[..., None] * rates
    return angles.cos(), angles.sin()


def complex_pairs(x, name):
    half = x.shape[-1] // 2
    if name == "apply_rope":
        return torch.complex(x[..., :half].double(), x[..., half:].double())
    return torch.complex(x[..., ::2].double(), x[..., 1::2].double())


def complex_tables(cos, sin):
    turn = torch.complex(cos.double(), sin.double())
    return turn[:, None] if turn.ndim == 3 else turn


def exact_turn(name, x, cos, sin):
    """Turn each pair by a multiplication of complex numbers."""
    turned = complex_pairs(x, name) * complex_tables(cos, sin)
    if name == "apply_rope":
        return torch.cat([turned.real, turned.imag], dim=-1)
    return torch.view_as_real(turned).flatten(-2)


def turned_like(name, x, cos, sin):
    return exact_turn(name, x, cos, sin).to(x.dtype)


def reordered(weight, num_heads):
    """Move rows one by one: pair i of a head keeps its number."""
    size = len(weight) // num_heads
    out = torch.zeros_like(weight)
    for head in range(num_heads):
        for i in range(size // 2):
            out[head * size + i] = weight[head * size + 2 * i]
            out[head * size + size // 2 + i] = weight[head * size + 2 * i + 1]
    return out


# Comparisons


def allowed(positions):
    """By how much the brief lets an entry of the tables differ."""
    return 1e-6 + 2.5e-7 * (positions.double().abs().max().item() if positions.numel() else 0)


def assert_tables(actual, positions, dim, base, behaviour):
    expected = tuple(part.float() for part in exact_tables(positions, dim, base))
    # Half a unit in the last place of float32 besides.
    assert_all_match(actual, expected, behaviour, rtol=0, atol=allowed(positions) + 6e-8)


def assert_rounded_once(name, actual, x, cos, sin, behaviour):
    """Compare with what float32 may give before the one rounding to the dtype of x."""
    exact = exact_turn(name, x, cos, sin)
    assert_matches(actual, exact.to(x.dtype), behaviour, rtol=math.inf)  # type, shape and dtype
    lengths = (complex_pairs(x, name).abs() * complex_tables(cos, sin).abs()) * 2.0**-22
    pairs = [lengths, lengths]
    slack = torch.cat(pairs, -1) if name == "apply_rope" else torch.stack(pairs, -1).flatten(-2)
    low, high = (exact - slack).to(x.dtype), (exact + slack).to(x.dtype)
    wrong = ~((low <= actual) & (actual <= high))
    if wrong.any():
        index = tuple(wrong.nonzero()[0].tolist())
        got, wanted = told_apart(actual[index].item(), exact[index].item())
        pytest.fail(
            f"{behaviour}: {int(wrong.sum())} of {wrong.numel()} values are not what float32 gives "
            f"once it is rounded to {x.dtype}; at {index} it is {got}, "
            f"and the exact number is {wanted}",
            pytrace=False,
        )


def inputs(batch, heads, tokens, size, dtype=torch.float32, own=True, factor=1.0):
    """Features and float32 tables of random angles, for each sequence or for all."""
    x = torch.randn(batch, heads, tokens, size, dtype=torch.float64).to(dtype)
    angles = 7 * torch.randn(*([batch] if own else []), tokens, size // 2, dtype=torch.float64)
    return x, (factor * angles.cos()).float(), (factor * angles.sin()).float()


def run(impl, name, x, cos, sin):
    with unchanged(x=x, cos=cos, sin=sin):
        return getattr(impl, name)(x, cos, sin)


# The tables


def test_tables_match_the_formula(impl):
    for shape in [(7,), (2, 3), (), (1,), (2, 1, 3), (1, 1, 1, 4)]:
        for dim, base in [(2, 500.0), (4, 10000.0), (6, 500.0), (10, 1e6), (128, 10000.0)]:
            positions = torch.randint(0, 60, shape)
            with unchanged(positions=positions):
                actual = impl.rope_tables(positions, dim, base)
            what = f"the tables of {shape} positions for dim {dim} and base {base:g}"
            assert_tables(actual, positions, dim, base, what)


def test_tables_of_a_case_by_hand(impl):
    # The rates are 1, 1/10, 1/100.
    cos, sin = impl.rope_tables(torch.tensor([0, 3, 20]), 6, 1000.0)
    angles = [[0.0, 0.0, 0.0], [3.0, 0.3, 0.03], [20.0, 2.0, 0.2]]
    expected = torch.tensor([[math.cos(angle) for angle in row] for row in angles])
    assert_matches(cos, expected, "cos at positions 0, 3 and 20 for dim 6 and base 1000")
    expected = torch.tensor([[math.sin(angle) for angle in row] for row in angles])
    assert_matches(sin, expected, "sin at positions 0, 3 and 20 for dim 6 and base 1000")


def test_base_by_default_as_an_integer_and_at_one(impl):
    positions = torch.arange(50)
    assert_tables(impl.rope_tables(positions, 12), positions, 12, 10000.0, "the default base")
    for base in (10000, 500000, 10**7, 3, 2, 1, 1.0, 1.5):
        for actual in (
            impl.rope_tables(positions, 12, base),
            impl.rope_tables(positions=positions, dim=12, base=base),
        ):
            assert_tables(actual, positions, 12, base, f"the tables for base {base!r}")


def test_positions_are_looked_at_one_by_one(impl):
    for positions in [
        [40, 41, 42, 43],  # they do not start at zero
        [4095],  # one token after a cache
        [0, 0, 0, 1, 2],  # left padding
        [9, 2, 2, 30, 0, 7],
        [-1, -2, 0, -50, 3],
        [[0, 0, 1, 2], [5, 6, 7, 8], [-3, 50, 1, 0]],
        [[[3], [1]], [[0], [2]]],
        [1, 3, 5],
        17,
    ]:
        where = torch.tensor(positions)
        actual = impl.rope_tables(where, 6, 100.0)
        assert_tables(actual, where, 6, 100.0, f"the tables at positions {positions}")


def test_far_positions(impl):
    near, far = [2047, 2049, 4099, 8191, 16385, 32769], [100001, 131071, 131072, 199999, 262143]
    for dim, base in [(64, 10000.0), (128, 500000.0), (6, 1e6), (256, 10000.0)]:
        for where in (near, [65535, 65536, 65537], far, [-131071]):
            positions = torch.tensor(where)
            what = f"the tables at positions {where} for dim {dim} and base {base:g}"
            assert_tables(impl.rope_tables(positions, dim, base), positions, dim, base, what)
    for start in (255, 2047, 15962, 32767, 65520, 99990):
        positions = torch.arange(start, start + 9)
        what = f"the tables at positions {start} to {start + 8}"
        assert_tables(impl.rope_tables(positions, 32), positions, 32, 10000.0, what)
    positions = torch.tensor([999_983])
    what = f"the tables at position {positions.item()}"
    assert_tables(impl.rope_tables(positions, 4, 100.0), positions, 4, 100.0, what)


def test_integer_dtypes(impl):
    for dtype in INTEGERS:
        info = torch.iinfo(dtype)
        values = [max(info.min, -40000), 0, 1, 77, 100, min(info.max, 100003)]
        positions = torch.tensor(values, dtype=dtype)
        for dim, base in [(6, 10000.0), (300, 10000)]:
            what = f"the tables at {dtype} positions {values} for dim {dim}"
            assert_tables(impl.rope_tables(positions, dim, base), positions, dim, base, what)


def test_no_positions(impl):
    for shape in [(0,), (2, 0), (0, 3)]:
        actual = impl.rope_tables(torch.zeros(shape, dtype=torch.int64), 6)
        expected = torch.zeros(*shape, 3)
        assert_all_match(actual, (expected, expected), f"the tables of {shape} positions")


def test_odd_dim_is_refused(impl):
    for dim in (1, 7, 65):
        with refuses(f"an odd dim, {dim}", rf"\b{dim}\b"):
            impl.rope_tables(torch.arange(3), dim)


def test_tables_in_any_layout_and_mode(impl):
    positions = torch.randint(0, 100, (4, 3))
    wide = torch.full((4, 7), 77)
    wide[:, 1::2] = positions
    kinds = [
        ("transposed", positions.T.contiguous().T, positions),
        ("every other element of a wider tensor", wide[:, 1::2], positions),
        ("expanded", positions[:1].expand(4, 3), positions[:1].expand(4, 3)),
        ("backwards", positions.flip(0, 1), positions.flip(0, 1)),
    ]
    for layout, given, same in kinds:
        with unchanged(positions=given):
            actual = impl.rope_tables(given, 10)
        assert_tables(actual, same, 10, 10000.0, f"the tables of positions that are {layout}")
    far = torch.tensor([[0, 1, 300], [4097, 100003, 131071]])
    for positions in (torch.arange(9), far, torch.tensor([3, 100], dtype=torch.int8)):
        expected = tuple(part.float() for part in exact_tables(positions, 64))
        what = f"the tables at positions {positions.tolist()}"
        atol = allowed(positions) + 6e-8
        assert_any_mode(impl.rope_tables, (positions, 64), expected, what, rtol=0, atol=atol)


def test_tables_are_repeatable(impl):
    def expected(positions, dim, base=10000.0):
        return tuple(part.float() for part in exact_tables(positions, dim, base))

    for shape in [(5,), (2, 3), ()]:
        for rest in [(8,), (8, 500.0)]:
            assert_repeatable(
                impl.rope_tables,
                lambda shape=shape, rest=rest: (torch.randint(0, 20, shape), *rest),
                expected,
                f"the tables of {shape} positions, then dim and base {rest}",
            )
    # The same positions with another dim or base, and a result that the caller has written to.
    positions = torch.arange(20)
    for dim, base in [(8, 10000.0), (8, 100.0), (12, 100.0), (8, 10000.0), (8, 10000.0)]:
        cos, sin = impl.rope_tables(positions, dim, base)
        what = f"the tables for dim {dim} and base {base:g} after other calls"
        assert_tables((cos, sin), positions, dim, base, what)
        cos.zero_()
        sin.fill_(5)


# Turning by the tables


def test_turn_matches_complex_multiplication(impl):
    for name in APPLY:
        for shape in SHAPES:
            for own in (True, False):
                x, cos, sin = inputs(*shape, own=own)
                actual = run(impl, name, x, cos, sin)
                what = f"{name} for B, H, T, D = {shape} and tables of shape {tuple(cos.shape)}"
                assert_rounded_once(name, actual, x, cos, sin, what)


def test_axes_of_equal_size(impl):
    for name in APPLY:
        for shape in EQUAL_SIZES:
            for own in (True, False):
                x, cos, sin = inputs(*shape, own=own)
                actual = run(impl, name, x, cos, sin)
                what = f"{name} for B, H, T, D = {shape} and tables of shape {tuple(cos.shape)}"
                assert_rounded_once(name, actual, x, cos, sin, what)


# Pair 0 stays, pair 1 turns by a quarter and pair 2 by a half.
QUARTERS = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.0]])


def test_a_quarter_turn_of_halves(impl):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape(1, 1, 1, 6)
    expected = torch.tensor([1.0, -5.0, -3.0, 4.0, 2.0, -6.0]).reshape(1, 1, 1, 6)
    what = "apply_rope of the pairs (1, 4), (2, 5), (3, 6): a quarter turn of (2, 5) is (-5, 2)"
    assert_matches(impl.apply_rope(x, *QUARTERS), expected, what)


def test_a_quarter_turn_of_neighbours(impl):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape(1, 1, 1, 6)
    expected = torch.tensor([1.0, 2.0, -4.0, 3.0, -5.0, -6.0]).reshape(1, 1, 1, 6)
    what = "apply_rope_interleaved of (1, 2), (3, 4), (5, 6): a quarter turn of (3, 4) is (-4, 3)"
    assert_matches(impl.apply_rope_interleaved(x, *QUARTERS), expected, what)


def test_arguments_by_name(impl):
    for name in APPLY:
        x, cos, sin = inputs(2, 3, 5, 8)
        actual = getattr(impl, name)(sin=sin, x=x, cos=cos)
        assert_rounded_once(name, actual, x, cos, sin, f"{name} with arguments by name")


def test_computes_in_float32_and_rounds_once(impl):
    for name in APPLY:
        for dtype in FLOATS:
            for own in (True, False):
                x, cos, sin = inputs(2, 3, 50, 8, dtype=dtype, own=own)
                what = f"{name} of {dtype}, tables of shape {tuple(cos.shape)}"
                actual = run(impl, name, x, cos, sin)
                assert_rounded_once(name, actual, x, cos, sin, what)
            x, cos, sin = inputs(2, 3, 50, 8, dtype=dtype, factor=1.2345)
            actual = run(impl, name, x, cos, sin)
            what = f"{name} of {dtype} by tables times 1.2345"
            assert_rounded_once(name, actual, x, cos, sin, what)


def test_numbers_at_the_edge_of_the_dtype(impl):
    for name in APPLY:
        for dtype in FLOATS:
            info = torch.finfo(dtype if dtype != torch.float64 else torch.float32)
            for scale in (info.max / 16, info.max / 3, info.tiny * 64):
                x, cos, sin = inputs(2, 3, 7, 8)
                x = (x.clamp(-3, 3) * scale).to(dtype)
                if scale > 1:
                    cos, sin = cos / 2, sin / 2
                what = f"{name} of {dtype} numbers of about {scale:.3g}"
                assert_rounded_once(name, run(impl, name, x, cos, sin), x, cos, sin, what)
    # The two products are beyond float16 and their difference is not.
    for name in APPLY:
        x = torch.full((2, 3, 4, 6), 60000.0).half()
        cos = torch.full((4, 3), 1.5)
        actual = run(impl, name, x, cos, cos)
        what = f"{name} of float16 numbers of 60000 by tables of 1.5"
        assert_rounded_once(name, actual, x, cos, cos, what)


def test_big_sizes(impl):
    for name in APPLY:
        for shape, own in [
            ((1, 1, 66000, 2), False),
            ((2, 1, 2100, 4), True),
            ((300, 2, 3, 4), True),
            ((2, 300, 3, 4), False),
            ((1, 2, 3, 600), True),
        ]:
            x, cos, sin = inputs(*shape, own=own)
            expected = turned_like(name, x, cos, sin)
            what = f"{name} for B, H, T, D = {shape} and tables of shape {tuple(cos.shape)}"
            assert_matches(run(impl, name, x, cos, sin), expected, what)


def test_many_positions(impl):
    for shape, dim in [((66000,), 2), ((300, 3), 4), ((2, 1500), 6), ((3,), 600)]:
        positions = torch.arange(math.prod(shape)).reshape(shape) % 50
        what = f"the tables of {shape} positions for dim {dim}"
        assert_tables(impl.rope_tables(positions, dim), positions, dim, 10000.0, what)


def test_any_layout(impl):
    for name in APPLY:
        for own in (True, False):
            x, cos, sin = inputs(2, 3, 5, 8, own=own)
            expected = turned_like(name, x, cos, sin)
            what = f"{name}, tables of shape {tuple(cos.shape)}"
            assert_any_layout(getattr(impl, name), (x, cos, sin), expected, what)
            for axis in range(4):
                given = x.narrow(axis, 0, 1).expand(x.shape)
                actual = run(impl, name, given, cos, sin)
                expected = turned_like(name, given, cos, sin)
                assert_matches(actual, expected, f"{what}, x expanded along axis {axis}")
            for axis in range(cos.ndim):
                c, s = (table.narrow(axis, 0, 1).expand(table.shape) for table in (cos, sin))
                actual = run(impl, name, x, c, s)
                expected = turned_like(name, x, c, s)
                assert_matches(actual, expected, f"{what}, tables expanded along axis {axis}")
            # As projections make them: (B, T, H * D), seen as (B, H, T, D).
            flat = torch.randn(2, 5, 24)
            given = flat.unflatten(-1, (3, 8)).transpose(1, 2)
            expected = turned_like(name, given, cos, sin)
            actual = run(impl, name, given, cos, sin)
            assert_matches(actual, expected, f"{what}, x seen in a projection's output")
            actual = run(impl, name, given, cos, cos)
            expected = turned_like(name, given, cos, cos)
            assert_matches(actual, expected, f"{what}, one tensor as cos and sin")


def test_any_mode(impl):
    for name in APPLY:
        for dtype in FLOATS:
            for own in (True, False):
                arguments = inputs(2, 3, 5, 8, dtype=dtype, own=own)
                expected = turned_like(name, *arguments)
                tolerance = {torch.float64: 1e-6, torch.float32: 1e-6}.get(dtype, 2e-3)
                what = f"{name} of {dtype}, tables for each sequence: {own}"
                call = getattr(impl, name)
                assert_any_mode(call, arguments, expected, what, atol=tolerance)


def test_calls_do_not_disturb_each_other(impl):
    for name in APPLY:
        for dtype in (torch.float32, torch.float16):
            for own in (True, False):
                for shape in ((2, 3, 5, 8), (3, 2, 1, 2)):
                    assert_repeatable(
                        getattr(impl, name),
                        lambda shape=shape, dtype=dtype, own=own: inputs(*shape, dtype, own),
                        lambda *arguments, name=name: turned_like(name, *arguments),
                        f"{name} of {dtype} and shape {shape}, tables for each sequence: {own}",
                        atol=2e-3 if dtype == torch.float16 else 1e-5,
                    )
    # At position zero nothing turns, and yet the result is a tensor of its own.
    for name in APPLY:
        for shape in ((2, 3, 4, 6), (2, 3, 1, 6), (1, 1, 1, 2)):
            for dtype in FLOATS:
                x = torch.randn(shape).to(dtype)
                pairs = torch.ones(shape[2], shape[3] // 2)
                out = getattr(impl, name)(x, pairs, 0 * pairs)
                what = f"{name} by angles of zero, {dtype} of shape {shape}"
                assert_matches(out, x, what, rtol=0, atol=1e-6 if dtype == torch.float64 else 0)
                out.fill_(7.0)
                assert not (x == 7).any(), f"{what}: gives x itself, or a view of it"


def test_gradients_reach_x(impl):
    for name in APPLY:
        for shape in ((2, 3, 5, 8), (3, 2, 1, 2)):
            for own in (True, False):
                given = dict(zip(("x", "cos", "sin"), inputs(*shape, own=own), strict=True))
                assert_gradients_reach(
                    getattr(impl, name),
                    lambda *arguments, name=name: turned_like(name, *arguments),
                    given,
                    ["x"],
                    f"{name} for B, H, T, D = {shape}, tables for each sequence: {own}",
                )
        x, cos, sin = inputs(2, 3, 5, 8)
        for dtype in FLOATS:
            leaf = x.to(dtype, copy=True).requires_grad_()
            getattr(impl, name)(leaf, cos, sin).sum().backward()
            expected = exact_turn(name, torch.ones_like(x), cos, -sin).to(dtype)
            atol = 3e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-5
            what = f"the gradient through {name} in {dtype}"
            assert_matches(leaf.grad, expected, what, atol=atol)


# Tables and turns together: what the embedding is for


def scores(name, q, k, distances, base=10000.0):
    """Return each query's score with each key where it is `distances` (T, S) ahead of the key."""
    cos, sin = exact_tables(distances, q.shape[-1], base)
    turn = torch.complex(cos, sin)
    a, b = complex_pairs(q, name), complex_pairs(k, name)
    return torch.einsum("bhti,bhsi,tsi->bhts", a, b.conj(), turn).real


def test_scores_depend_on_the_distance_alone(impl):
    for name in APPLY:
        turn = getattr(impl, name)
        for dim in (2, 10):
            q, k = torch.randn(2, 2, 3, 5, dim).unbind()
            size = (q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max()).item()
            for shift in (0, 37, -20, 4095, 131071):
                positions = torch.tensor([0, 1, 2, 5, 11]) + shift
                cos, sin = impl.rope_tables(positions, dim)
                actual = turn(q, cos, sin).double() @ turn(k, cos, sin).double().mT
                expected = scores(name, q, k, positions[:, None] - positions)
                what = f"scores by {name}, D = {dim}, where the first position is {shift}"
                atol = 2 * size * (allowed(positions) + 3e-7)
                assert_matches(actual, expected, what, rtol=0, atol=atol)


def test_a_token_after_a_cache_is_turned_as_in_a_full_pass(impl):
    for name in APPLY:
        turn = getattr(impl, name)
        for start in (0, 40, 4090):
            x = torch.randn(2, 3, 7, 6)
            positions = torch.arange(start, start + 7)
            whole = turn(x, *impl.rope_tables(positions, 6))
            expected = exact_turn(name, x, *exact_tables(positions, 6)).float()
            atol = 10 * allowed(positions)
            for first, last in [(0, 3), (3, 4), (6, 7)]:
                part = turn(x[:, :, first:last], *impl.rope_tables(positions[first:last], 6))
                what = f"{name} of tokens {start + first} to {start + last - 1} by themselves"
                assert_matches(part, expected[:, :, first:last], what, atol=atol)
                what = f"{what}, and in a row"
                assert_matches(part, whole[:, :, first:last], what, atol=2 * atol)


def test_each_sequence_has_its_own_positions(impl):
    positions = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3], [50, 51, 52, 53]])
    for name in APPLY:
        x = torch.randn(3, 2, 4, 6)
        actual = getattr(impl, name)(x, *impl.rope_tables(positions, 6))
        for row in range(3):
            expected = exact_turn(name, x[row : row + 1], *exact_tables(positions[row], 6))
            what = f"{name} of sequence {row} of a batch with positions {positions[row].tolist()}"
            assert_matches(actual[row : row + 1], expected.float(), what, atol=1e-4)


def test_a_bfloat16_model_beyond_100000_tokens(impl):
    for name in APPLY:
        for dtype, unit in [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)]:
            positions = torch.tensor([100003, 117001, 131071, 150001])
            x = torch.randn(2, 3, 4, 32).to(dtype)
            actual = run(impl, name, x, *impl.rope_tables(positions, 32, 500000.0))
            expected = exact_turn(name, x, *exact_tables(positions, 32, 500000.0)).to(dtype)
            size = complex_pairs(x, name).abs().max().item()
            atol = size * (1.5 * allowed(positions) + unit)
            what = f"{name} of {dtype} at positions {positions.tolist()}"
            assert_matches(actual, expected, what, rtol=0, atol=atol)


# From one convention to the other


def test_rows_by_hand(impl):
    weight = torch.arange(12.0)[:, None] * torch.tensor([1.0, 10.0, 100.0])
    for num_heads, order in [
        (1, [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]),
        (2, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]),
        (3, [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]),
        (6, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ]:
        with unchanged(weight=weight):
            actual = impl.to_half_layout(weight, num_heads)
        assert_matches(actual, weight[order], f"the rows of {num_heads} heads, from 0 to 11")


def test_rows_of_any_dtype_and_size(impl):
    for rows, width, num_heads in [
        (24, 5, 3),
        (10, 7, 5),
        (10, 7, 1),
        (2, 1, 1),
        (320, 3, 4),
        (1200, 2, 2),
        (1032, 1, 129),
        (66000, 1, 1),
        (16, 600, 2),
    ]:
        weight = torch.randn(rows, width)
        actual = impl.to_half_layout(weight, num_heads)
        heads = weight.split(rows // num_heads)
        expected = torch.cat([half for head in heads for half in (head[::2], head[1::2])])
        what = f"{num_heads} heads of {rows // num_heads} rows, {width} wide"
        assert_matches(actual, expected, what, rtol=0, atol=0)
    for dtype in [*FLOATS, torch.int8, torch.int64, torch.bool]:
        weight = (40 * torch.randn(24, 5)).to(dtype)
        if dtype == torch.int64:
            weight += 2**62  # beyond what float64 holds
        actual = impl.to_half_layout(weight=weight, num_heads=2)
        expected = reordered(weight, 2)
        assert_matches(actual, expected, f"the rows of a weight of {dtype}", rtol=0, atol=0)


def test_scores_survive_the_conversion(impl):
    # Queries and keys of one token stream, with fewer heads of keys, each for a group of queries.
    tokens = torch.randn(2, 5, 9, dtype=torch.float64)
    positions = torch.tensor([[3, 4, 5, 6, 7], [0, 1, 2, 30, 31]])
    for size, heads, key_heads in [(6, 4, 2), (10, 3, 3), (2, 3, 1), (8, 1, 1)]:
        q_weight = torch.randn(heads * size, 9)
        k_weight = torch.randn(key_heads * size, 9)
        tables = impl.rope_tables(positions, size, 100.0)

        def score(turn, *weights, size=size, tables=tables, group=heads // key_heads):
            flat = (tokens @ weight.double().T for weight in weights)
            q, k = (turn(x.unflatten(-1, (-1, size)).transpose(1, 2), *tables) for x in flat)
            return q @ k.repeat_interleave(group, dim=1).mT

        expected = score(lambda *a: exact_turn(APPLY[1], *a), q_weight, k_weight)
        weights = (
            impl.to_half_layout(q_weight, heads),
            impl.to_half_layout(k_weight, key_heads),
        )
        what = f"apply_rope after the conversion of {heads} and {key_heads} heads of {size} rows"
        for turn in (impl.apply_rope, lambda *a: exact_turn(APPLY[0], *a)):
            assert_matches(score(turn, *weights), expected, f"scores by {what}", atol=1e-4)


def test_conversion_leaves_the_weight_alone(impl):
    for num_heads, rows in [(3, 24), (6, 12), (1, 2)]:
        assert_repeatable(
            impl.to_half_layout,
            lambda rows=rows, num_heads=num_heads: (torch.randn(rows, 5), num_heads),
            reordered,
            f"{num_heads} heads of {rows // num_heads} rows",
        )
        weight = torch.randn(rows, 5)
        arguments = (weight, num_heads)
        expected = reordered(*arguments)
        what = f"the rows of {num_heads} heads of {rows // num_heads}"
        assert_any_layout(impl.to_half_layout, arguments, expected, what, rtol=0, atol=0)
        assert_any_mode(impl.to_half_layout, arguments, expected, what, rtol=0, atol=0)
        for axis in (0, 1):
            given = weight.narrow(axis, 0, 1).expand(rows, 5)
            actual = impl.to_half_layout(given, num_heads)
            assert_matches(actual, reordered(given, num_heads), f"{what}, expanded", rtol=0, atol=0)
    # The same weight with another number of heads.
    weight = torch.randn(24, 5)
    for num_heads in (2, 3, 1, 12, 2):
        actual = impl.to_half_layout(weight, num_heads)
        what = f"{num_heads} heads after other numbers of heads"
        assert_matches(actual, reordered(weight, num_heads), what, rtol=0, atol=0)


def test_rows_that_make_no_even_heads_are_refused(impl):
    for rows, num_heads in [(24, 5), (15, 3), (24, 8), (7, 1), (10, 20), (12, 12)]:
        with refuses(f"{rows} rows in {num_heads} heads", rf"\b{rows}\b", str(num_heads)):
            impl.to_half_layout(torch.randn(rows, 4), num_heads)


# A published library


def test_transformers(impl):
    for case in golden("rope.json")["turned"]:
        name = "apply_rope" if case["convention"] == "half" else "apply_rope_interleaved"
        what = f"transformers, {case['label']}"
        positions, dim, base = torch.tensor(case["positions"]), case["dim"], case["base"]
        theirs = torch.tensor(case["cos"]), torch.tensor(case["sin"])
        ours = impl.rope_tables(positions, dim, base)
        # Theirs are in float32 too, and six digits of them are kept.
        atol = 2 * allowed(positions)
        assert_all_match(ours, theirs, f"the tables of {what}", rtol=0, atol=atol)
        for which in ("q", "k"):
            x, expected = torch.tensor(case[which]), torch.tensor(case[f"{which}_out"])
            actual = getattr(impl, name)(x, *theirs)
            assert_matches(actual, expected, f"{name} of {which} of {what}", atol=2e-5)
            actual = getattr(impl, name)(x, *ours)
            both = f"tables and {name} of {which} of {what}"
            assert_matches(actual, expected, both, atol=2e-5 + 8 * atol)


def test_transformers_tables_in_the_dtype_of_the_model(impl):
    for case in golden("rope.json")["tables"]:
        positions, dtype = torch.tensor(case["positions"]), getattr(torch, case["dtype"])
        theirs = tuple(torch.tensor(case[part], dtype=dtype) for part in ("cos", "sin"))
        ours = impl.rope_tables(positions, case["dim"], case["base"])
        cast = tuple(part.to(dtype) for part in ours)
        atol = 2 * allowed(positions) + (2.0**-8 if dtype == torch.bfloat16 else 0)
        assert_all_match(cast, theirs, f"transformers, {case['label']}", rtol=0, atol=atol)
