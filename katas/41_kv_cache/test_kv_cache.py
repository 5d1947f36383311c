import math

import pytest
import torch

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    first_difference,
    golden,
    gradients,
    refuses,
    unchanged,
)

SIZES = {
    "vocab_size": 23,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 0.02,
    "rope_theta": 500.0,
    "sliding_window": None,
}
WINDOWS = (None, 5)
ATOL = 2e-4  # logits are of size 3, and float32 keeps them to about 5e-6


# -- what the tests compare with -----------------------------------------------------------------


def formula(weights, sizes, row):
    """The brief in float64, for one row: logits (T, V), keys and values of each layer."""
    weights = {name: weight.detach().double() for name, weight in weights.items()}
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    size, window = sizes["head_dim"], sizes.get("sliding_window")

    def norm(x, name):
        mean_square = (x * x).mean(-1, keepdim=True)
        return weights[f"{name}.weight"] * x / (mean_square + sizes["rms_norm_eps"]).sqrt()

    def split(x, name):
        return (x @ weights[f"{name}.weight"].T).split(size, dim=-1)

    place = torch.arange(len(row))
    speed = sizes["rope_theta"] ** (-2 * torch.arange(size // 2, dtype=torch.float64) / size)
    turn = torch.polar(torch.ones(len(row), size // 2).double(), place[:, None] * speed)
    distance = place[:, None] - place
    seen = (distance >= 0) & (distance < (window or len(row) + 1))
    x, keys, values = weights["model.embed_tokens.weight"][row], [], []
    for layer in range(sizes["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        normed = norm(x, f"{name}.input_layernorm")
        q, k, v = (split(normed, f"{name}.self_attn.{part}_proj") for part in "qkv")
        q, k = ([_turned(head, turn) for head in heads_of] for heads_of in (q, k))
        outs = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = (q[head] @ k[shared].T / math.sqrt(size)).masked_fill(~seen, -math.inf)
            outs.append(scores.softmax(-1) @ v[shared])
        x = x + torch.cat(outs, -1) @ weights[f"{name}.self_attn.o_proj.weight"].T
        normed = norm(x, f"{name}.post_attention_layernorm")
        gate, up, down = (
            weights[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")
        )
        gated = normed @ gate.T
        x = x + (gated * gated.sigmoid() * (normed @ up.T)) @ down.T
        keys.append(torch.stack(k))
        values.append(torch.stack(v))
    return norm(x, "model.norm") @ weights["lm_head.weight"].T, keys, values


def _turned(head, turn):
    a, b = head.chunk(2, dim=-1)
    turned = torch.complex(a, b) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def config_of(impl, **changes):
    return impl.LlamaConfig(**(SIZES | changes))


def model_of(impl, dtype=torch.float32, **changes):
    """A model with weights that matter, the norms' too."""
    model = impl.Llama(config_of(impl, **changes)).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            else:
                weight.copy_(1.5 * torch.randn_like(weight) / math.sqrt(weight.shape[-1]))
    return model


def expected_logits(model, row, **changes):
    weight = model.state_dict()["lm_head.weight"]
    return formula(model.state_dict(), SIZES | changes, row)[0].to(weight.dtype)


def tokens(*shape):
    return torch.randint(SIZES["vocab_size"], shape)


def padded_batch(lengths, columns=None):
    """Ids and mask of rows of these lengths, padded on the left with ids that mean something."""
    columns = columns or max(lengths)
    mask = torch.arange(columns) >= columns - torch.tensor(lengths)[:, None]
    return tokens(len(lengths), columns), mask


def cache_of(impl, batch_size, max_length, dtype=torch.float32, **changes):
    return impl.KVCache(config_of(impl, **changes), batch_size, max_length, dtype)


@torch.no_grad()
def fed(model, cache, ids, chunks, mask=None):
    """The logits of ids that are fed to a cache in chunks of these sizes."""
    parts, start = [], cache.length
    for size in chunks:
        now = ids[:, cache.length - start : cache.length - start + size]
        seen = None if mask is None else mask[:, : cache.length + size]
        parts.append(model(now, cache, seen))
    return torch.cat(parts, dim=1)


def rows_alone(model, ids, mask, **changes):
    """The logits of each row's real columns, by the formula."""
    return [
        expected_logits(model, row[real], **changes) for row, real in zip(ids, mask, strict=True)
    ]


def assert_rows_match(model, logits, ids, mask, what, atol=ATOL, **changes):
    """Compare the real columns of each row with that row alone."""
    assert_rows_are(logits, rows_alone(model, ids, mask, **changes), mask, what, atol)


def assert_rows_are(logits, alone, mask, what, atol=ATOL):
    assert logits.isfinite().all(), f"{what}: some logits are NaN or infinite"
    for row, (real, expected) in enumerate(zip(mask, alone, strict=True)):
        which = f"{what}: row {row}, which has {int(real.sum())} tokens"
        assert_matches(logits[row, real], expected, which, atol=atol)


def from_transformers(impl, kind):
    data = golden("kv_cache.json")
    window = data["sliding_window"] if kind == "windowed" else None
    model = impl.Llama(impl.LlamaConfig(**data["sizes"], sliding_window=window))
    weights = {name: torch.tensor(weight) for name, weight in data["state_dict"].items()}
    model.load_state_dict(weights)
    return model, data


def written(impl, model, data, prompts):
    return impl.generate(model, prompts, data["max_new_tokens"], data["eos_id"], data["pad_id"])


def assert_answer(actual, expected, what):
    if actual != expected:
        place = first_difference(actual, expected)
        pytest.fail(
            f"{what}: the answers part at token {place}: {actual}, not {expected}", pytrace=False
        )


# -- symptoms: what a person would notice ----------------------------------------------------------


@pytest.fixture(scope="module")
def log(impl):
    return list(impl.run())


def assert_healthy(steps, when):
    worst = max(
        steps, key=lambda step: step["error"] if step["error"] == step["error"] else math.inf
    )
    agreement = min(step["agreement"] for step in steps)
    assert worst["error"] < 1e-3, (
        f"{when}, logits with a cache and without one differ by up to {worst['error']:.3g}, after "
        f"{worst['columns']:.0f} columns; a healthy run stays below 1e-4. "
        f"At worst {agreement:.0%} of the most likely tokens are the same"
    )
    assert agreement == 1.0, f"{when}, {1 - agreement:.0%} of the most likely tokens change"


@pytest.mark.symptom
def test_the_first_turns_read_the_same_with_a_cache(log):
    assert len(log) == 24, f"the run has {len(log)} steps, not 24"
    assert_healthy([step for step in log if step["columns"] <= 16], "Before the window is full")


@pytest.mark.symptom
def test_a_long_dialogue_reads_the_same_with_a_cache(log):
    steps = [step for step in log if 16 < step["columns"] <= 27]
    assert_healthy(steps, "Once the window has begun to slide")


@pytest.mark.symptom
def test_beams_go_on_from_where_they_came(log):
    steps = [step for step in log if step["columns"] > 27]
    assert_healthy(steps, "After the rows have changed places")


@pytest.mark.symptom
def test_answers_are_those_of_transformers(impl):
    for kind in ("full", "windowed"):
        model, data = from_transformers(impl, kind)
        for prompt, expected in zip(data["prompts"], data[kind]["answers"], strict=True):
            [actual] = written(impl, model, data, [prompt])
            what = f"a prompt of {len(prompt)} tokens alone, attention {kind}"
            assert_answer(actual, expected, what)


@pytest.mark.symptom
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(impl):
    for kind in ("full", "windowed"):
        model, data = from_transformers(impl, kind)
        together = written(impl, model, data, data["prompts"])
        for prompt, actual in zip(data["prompts"], together, strict=True):
            [expected] = written(impl, model, data, [prompt])
            what = f"a prompt of {len(prompt)} tokens in a batch and alone, attention {kind}"
            assert_answer(actual, expected, what)


@pytest.mark.symptom
def test_a_long_text_in_bfloat16_keeps_its_order(impl):
    torch.manual_seed(41)
    model = model_of(impl, torch.bfloat16, sliding_window=16)
    wide = impl.Llama(model.config)
    wide.load_state_dict(model.state_dict())
    ids = tokens(1, 500)
    logits = [
        fed(one, impl.KVCache(model.config, 1, 500, dtype), ids, [100] * 5).float()
        for one, dtype in ((model, torch.bfloat16), (wide, torch.float32))
    ]
    error = (logits[0] - logits[1]).abs().mean(dim=-1)[0]
    early, late = error[:100].mean().item(), error[-100:].mean().item()
    assert late < 4 * early, (
        f"logits in bfloat16 are off by {early:.3f} on average over the first 100 tokens of a text "
        f"and by {late:.3f} over the last 100 of 500; a healthy model strays no more at the end"
    )


# -- the model without a cache ---------------------------------------------------------------------


def test_state_dict_is_that_of_transformers(impl):
    model = impl.Llama(config_of(impl, num_hidden_layers=3))
    assert isinstance(model, torch.nn.Module), "Llama is not an nn.Module"
    shapes = {
        "model.embed_tokens.weight": (23, 20),
        "model.norm.weight": (20,),
        "lm_head.weight": (23, 20),
    }
    for layer in range(3):
        for name, shape in {
            "input_layernorm": (20,),
            "self_attn.q_proj": (48, 20),
            "self_attn.k_proj": (16, 20),
            "self_attn.v_proj": (16, 20),
            "self_attn.o_proj": (20, 48),
            "post_attention_layernorm": (20,),
            "mlp.gate_proj": (28, 20),
            "mlp.up_proj": (28, 20),
            "mlp.down_proj": (20, 28),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    found = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert found == shapes
    assert {name for name, _ in model.named_parameters()} == set(shapes)


def test_logits_are_those_of_transformers(impl):
    for kind in ("full", "windowed"):
        model, data = from_transformers(impl, kind)
        logits = model(torch.tensor(data["prompts"][:1]))
        expected = torch.tensor([data[kind]["logits"]])
        assert_matches(logits, expected, f"logits, attention {kind}", atol=1e-3)


def test_logits_match_the_formula(impl):
    for changes in (
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 3, "head_dim": 2},
        {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1},
        {"hidden_size": 4, "rms_norm_eps": 0.5, "rope_theta": 20.0},
        {"rope_theta": 3, "num_hidden_layers": 3},
    ):
        for window in (None, 1, 2, 7, 100):
            changes["sliding_window"] = window
            model = model_of(impl, **changes)
            for shape in ((1, 1), (1, 9), (3, 8)):
                ids = tokens(*shape)
                mask = torch.ones(shape, dtype=torch.bool)
                what = f"logits of {shape[0]} rows of {shape[1]} tokens with {changes}"
                with unchanged(ids=ids):
                    logits = model(ids)
                assert_rows_match(model, logits, ids, mask, what, **changes)


def test_attention_alone(impl):
    # With nothing from the MLPs, what the attention adds is all there is.
    model = model_of(impl)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "down_proj" in name:
                weight.zero_()
    ids = tokens(2, 9)
    what = "logits of a model whose MLPs add nothing"
    assert_rows_match(model, model(ids), ids, torch.ones_like(ids).bool(), what)


def test_the_mlp_alone(impl):
    model = model_of(impl)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name:
                weight.zero_()
    ids = tokens(2, 9)
    what = "logits of a model whose attention adds nothing"
    assert_rows_match(model, model(ids), ids, torch.ones_like(ids).bool(), what)


def test_the_stream_passes_by_a_layer_that_adds_nothing(impl):
    model = model_of(impl)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "down_proj" in name or "o_proj" in name:
                weight.zero_()
    ids = tokens(2, 9)
    what = "logits of a model whose layers add nothing"
    assert_rows_match(model, model(ids), ids, torch.ones_like(ids).bool(), what)


def test_a_column_sees_as_many_columns_as_the_window_has(impl):
    # One layer deep, a token reaches no further than the window.
    for window in (1, 3, 6, None):
        model = model_of(impl, num_hidden_layers=1, sliding_window=window)
        ids = tokens(1, 11)
        before = model(ids)
        for column in range(11):
            other = ids.clone()
            other[0, column] = (other[0, column] + 7) % 23
            moved = (model(other) - before).abs().amax(dim=-1)[0] > 1e-5
            reached = torch.arange(11) - column
            expected = (reached >= 0) & (reached < (window or 11))
            assert moved.tolist() == expected.tolist(), (
                f"with a window of {window}, the token of column {column} moves the logits of "
                f"columns {moved.nonzero().flatten().tolist()}, not "
                f"{expected.nonzero().flatten().tolist()}"
            )


def keys_and_values(impl, model, ids):
    """What a cache holds of the first layer, (Hkv, T, D) each, after one call on one row."""
    cache = impl.KVCache(model.config, 1, len(ids), torch.float32)
    fed(model, cache, ids[None], [len(ids)])
    return cache.keys[0][0], cache.values[0][0]


def test_feature_i_turns_with_feature_i_plus_half(impl):
    model = model_of(impl, num_hidden_layers=1)
    keys, _ = keys_and_values(impl, model, tokens(1).repeat(9))
    lengths = keys.unflatten(-1, (2, 4)).norm(dim=-2)
    what = "the lengths of the pairs (i, i + D/2) of one token's key at positions 0 to 8"
    assert_matches(lengths, lengths[:, :1].expand_as(lengths).clone(), what, atol=1e-4)


def test_each_pair_turns_by_its_angle(impl):
    for theta in (500.0, 20.0):
        model = model_of(impl, num_hidden_layers=1, rope_theta=theta)
        keys, _ = keys_and_values(impl, model, tokens(1).repeat(4))
        a, b = keys.chunk(2, dim=-1)
        angles = torch.atan2(b, a)
        turned = (angles[:, 1:] - angles[:, :-1]) % (2 * math.pi)
        expected = theta ** -(torch.arange(4) / 4)
        what = (
            f"the angles between one token's keys at neighbouring positions, rope_theta {theta:g}"
        )
        assert_matches(turned, expected.expand_as(turned).clone(), what, atol=1e-3)


def test_values_are_not_turned(impl):
    model = model_of(impl, num_hidden_layers=1)
    _, values = keys_and_values(impl, model, tokens(1).repeat(6))
    what = "one token's values at positions 0 to 5"
    assert_matches(values, values[:, :1].expand_as(values).clone(), what, atol=1e-5)


def test_every_dtype(impl):
    for dtype, atol in (
        (torch.float64, 2e-5),
        (torch.float16, 0.05),
        (torch.bfloat16, 0.4),
    ):
        for window in WINDOWS:
            model = model_of(impl, dtype, sliding_window=window)
            ids, mask = padded_batch([9, 4])
            logits = model(ids, attention_mask=mask)
            what = f"logits in {dtype}, window {window}"
            assert_rows_match(model, logits, ids, mask, what, atol, sliding_window=window)
            cache = cache_of(impl, 2, 9, dtype, sliding_window=window)
            assert {t.dtype for t in (*cache.keys, *cache.values)} == {dtype}
            logits = fed(model, cache, ids, [3, 1, 4, 1], mask)
            what = f"logits in {dtype} with a cache, window {window}"
            assert_rows_match(model, logits, ids, mask, what, atol, sliding_window=window)


def test_positions_are_exact_in_half_precision(impl):
    # Attention between neighbours is what it is at the start of a text, if no angle is rounded.
    for dtype in (torch.bfloat16, torch.float16):
        model = model_of(impl, dtype, num_hidden_layers=1, sliding_window=2)
        ids = tokens(1, 8).repeat(1, 64)
        with torch.no_grad():
            logits = fed(model, cache_of(impl, 1, 512, dtype, sliding_window=2), ids, [128] * 4)
        early, late = logits[:, 8:16].float(), logits[:, -8:].float()
        what = f"logits of the same tokens at column 8 and at column 504, in {dtype},"
        assert_matches(late, early, what, rtol=0, atol=0.25)


def test_positions_of_a_long_text(impl):
    # Longer than the tables that one makes in advance.
    model = model_of(impl, num_hidden_layers=1, sliding_window=2)
    ids = tokens(1, 8).repeat(1, 540)
    with torch.no_grad():
        logits = fed(model, cache_of(impl, 1, 4320, sliding_window=2), ids, [720] * 6)
    what = "logits of the same tokens at column 8 and at column 4,312"
    assert_matches(logits[:, -8:], logits[:, 8:16], what, atol=0.02)


def test_large_activations_in_float16(impl):
    # Their squares are beyond its range.
    model = model_of(impl, torch.float16)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").mul_(250)
    ids = tokens(2, 7)
    what = "logits in float16 where the stream holds values of hundreds"
    assert_rows_match(model, model(ids), ids, torch.ones_like(ids).bool(), what, atol=0.05)


def test_large_scores(impl):
    # Scores of thousands, as large activations make them.
    model = model_of(impl, num_hidden_layers=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(30)
    ids, mask = padded_batch([9, 5])
    logits = model(ids, attention_mask=mask)
    what = "logits under scores of thousands"
    assert_rows_match(model, logits, ids, mask, what, atol=0.02, num_hidden_layers=1)


def test_gradients_reach_all_parameters(impl):
    for window in WINDOWS:
        model = model_of(impl, torch.float64, sliding_window=window)
        row = tokens(9)
        weights = dict(model.named_parameters())
        sizes = SIZES | {"sliding_window": window}
        theirs = formula_with_gradients(weights, sizes, row)
        ours = model(row[None])[0]
        grad_out = torch.randn_like(theirs)
        found = gradients(ours, list(weights.values()), grad_out)
        wanted = gradients(theirs, list(weights.values()), grad_out)
        for name, one, other in zip(weights, found, wanted, strict=True):
            what = f"the gradient of {name}, window {window}"
            assert_matches(one, other, what, rtol=1e-3, atol=1e-3)


def test_a_model_that_was_used_for_inference_can_be_trained(impl):
    for window in WINDOWS:
        model = model_of(impl, torch.float64, sliding_window=window)
        row = tokens(9)[None]
        with torch.inference_mode():
            before = model(row).clone()
        logits = model(row)
        logits.sum().backward()
        what = f"logits after a call under inference_mode, window {window}"
        assert_matches(logits.detach(), before, what, rtol=1e-6, atol=1e-6)
        missing = [name for name, weight in model.named_parameters() if weight.grad is None]
        assert not missing, f"after a call under inference_mode {missing} get no gradient"


def formula_with_gradients(weights, sizes, row):
    class Kept(dict):
        """Weights that `formula` takes as they are, with their gradients."""

    class Undetached(torch.Tensor):
        def detach(self):
            return self

    kept = Kept({name: weight.as_subclass(Undetached) for name, weight in weights.items()})
    return formula(kept, sizes, row)[0].as_subclass(torch.Tensor)


def test_ids_and_mask_of_any_layout(impl):
    model = model_of(impl)
    ids, mask = padded_batch([7, 4, 6])
    with torch.no_grad():
        expected = model(ids, attention_mask=mask)
        assert_any_layout(
            lambda ids, mask: model(ids, None, mask), (ids, mask), expected, "logits", atol=1e-5
        )
        assert_any_mode(lambda ids: model(ids, None, mask), (ids,), expected, "logits", atol=1e-5)


def test_calls_are_repeatable(impl):
    model = model_of(impl)
    assert_repeatable(
        lambda ids: model(ids).detach(),
        lambda: (tokens(1, 7),),
        lambda ids: expected_logits(model, ids[0])[None],
        "logits",
        atol=ATOL,
    )
    for lengths in ([3, 2], [12, 5], [12, 7], [4, 4]):
        ids, mask = padded_batch(lengths)
        logits = model(ids, attention_mask=mask)
        assert_rows_match(model, logits, ids, mask, "logits after calls of other shapes and masks")
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(-0.9)
        ids = tokens(1, 7)
        what = f"logits after the weights were changed in place, {training=}"
        assert_rows_match(model, model(ids), ids, torch.ones_like(ids).bool(), what)


# -- padding ---------------------------------------------------------------------------------------


def test_a_padded_row_is_what_it_is_alone(impl):
    for window in (None, 1, 5):
        model = model_of(impl, sliding_window=window)
        ids, mask = padded_batch([9, 3, 1, 6])
        for given in (mask, mask.long(), mask.to(torch.uint8), 3 * mask.int()):
            with unchanged(ids=ids, mask=given):
                logits = model(ids, attention_mask=given)
            what = f"a padded batch without a cache, window {window}, mask in {given.dtype}"
            assert_rows_match(model, logits, ids, mask, what, sliding_window=window)
        by_position = model(ids, None, mask)
        assert_matches(by_position, logits, "logits with a mask by position", atol=1e-5)
        every = torch.ones_like(mask)
        what = "logits with a mask in which all columns are real, and without one"
        assert_matches(model(ids, attention_mask=every), model(ids), what, atol=1e-5)


def test_the_ids_of_padding_have_no_influence(impl):
    for window in WINDOWS:
        model = model_of(impl, sliding_window=window)
        ids, mask = padded_batch([9, 3, 6])
        other = torch.where(mask, ids, (ids + 5) % 23)
        for chunks in ([9], [2, 5, 1, 1]):
            one, two = (
                fed(model, cache_of(impl, 3, 9, sliding_window=window), x, chunks, mask)[mask]
                for x in (ids, other)
            )
            what = f"real columns after the ids of padding have changed, in chunks of {chunks}"
            assert_matches(two, one, what, rtol=0, atol=0)


def test_padding_in_any_chunks(impl):
    for window in (None, 1, 4, 5, 6):
        model = model_of(impl, sliding_window=window)
        ids, mask = padded_batch([14, 3, 1, 10])
        alone = rows_alone(model, ids, mask, sliding_window=window)
        # Chunks that are padding in a row, that begin within it, and that end with it.
        for chunks in ([14], [4, 4, 6], [11, 1, 1, 1], [1] * 14, [6, 5, 3], [13, 1], [2, 9, 3]):
            cache = cache_of(impl, 4, 14, sliding_window=window)
            logits = fed(model, cache, ids, chunks, mask)
            what = f"a padded batch in chunks of {chunks}, window {window}"
            assert_rows_are(logits, alone, mask, what)


def test_padding_in_a_window_that_slides(impl):
    for lengths in ([7, 3, 4], [9, 4, 8]):
        model = model_of(impl, sliding_window=6)
        ids, mask = padded_batch([length + 6 for length in lengths])
        prompt = max(lengths)
        cache = cache_of(impl, 3, prompt + 6, sliding_window=6)
        logits = fed(model, cache, ids, [prompt] + [1] * 6, mask)
        what = f"prompts of {lengths} tokens and one column at a time, window 6"
        assert_rows_match(model, logits, ids, mask, what, sliding_window=6)


def test_a_batch_that_begins_with_columns_of_padding(impl):
    for window in WINDOWS:
        model = model_of(impl, sliding_window=window)
        ids, mask = padded_batch([4, 2, 6], columns=12)
        alone = rows_alone(model, ids, mask, sliding_window=window)
        for chunks in ([12], [3, 3, 6], [1] * 12, [7, 5]):
            cache = cache_of(impl, 3, 12, sliding_window=window)
            logits = fed(model, cache, ids, chunks, mask)
            what = f"six columns of padding before any token, chunks of {chunks}, window {window}"
            assert_rows_are(logits, alone, mask, what)


def test_positions_count_the_real_tokens_of_a_row(impl):
    model = model_of(impl)
    ids, mask = padded_batch([9, 4, 7])
    for chunks in ([9], [6, 1, 2], [1] * 9):
        cache = cache_of(impl, 3, 9)
        fed(model, cache, ids, chunks, mask)
        for row, real in enumerate(mask):
            _, keys, _ = formula(model.state_dict(), SIZES, ids[row, real])
            for layer in range(2):
                what = (
                    f"keys of layer {layer} in the cache, turned by their positions, of a row with "
                    f"{int((~real).sum())} columns of padding, in chunks of {chunks}"
                )
                actual = cache.keys[layer][row][:, real]
                assert_matches(actual, keys[layer].float(), what, atol=ATOL)


# -- the cache -------------------------------------------------------------------------------------


def test_memory_is_set_aside_once(impl):
    for window, max_length, slots in ((None, 11, 11), (4, 11, 4), (11, 11, 11), (20, 11, 11)):
        model = model_of(impl, sliding_window=window)
        cache = cache_of(impl, 3, max_length, sliding_window=window)
        assert cache.length == 0, f"a new cache has been fed {cache.length} columns"
        tensors = [*cache.keys, *cache.values]
        assert len(tensors) == 4, "keys and values do not have one tensor a layer"
        for tensor in tensors:
            wanted, found = (3, 2, slots, 8), tuple(tensor.shape)
            assert found == wanted, (
                f"window {window}, max_length {max_length}: the shape is {found}"
            )
            assert tensor.dtype == torch.float32
        addresses = [tensor.data_ptr() for tensor in tensors]
        assert len(set(addresses)) == 4, "keys or values of two layers lie in the same memory"
        ids = tokens(3, 11)
        for chunks in ([6, 1, 4],):
            fed(model, cache, ids, chunks)
            after = [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)]
            assert after == addresses, "a call has put keys or values into new memory"
        assert cache.length == 11, f"11 columns were fed, and length is {cache.length}"


def test_any_chunks_give_the_same_logits(impl):
    for kv_heads in (2, 6):
        model = model_of(impl, num_key_value_heads=kv_heads)
        ids = tokens(2, 12)
        mask = torch.ones_like(ids).bool()
        alone = rows_alone(model, ids, mask, num_key_value_heads=kv_heads)
        for chunks in ([12], [1] * 12, [5, 4, 3], [11, 1], [1, 11], [7, 1, 1, 3]):
            cache = cache_of(impl, 2, 12, num_key_value_heads=kv_heads)
            with unchanged(ids=ids):
                logits = fed(model, cache, ids, chunks)
            what = f"a cache fed in chunks of {chunks}"
            assert_rows_are(logits, alone, mask, what)


def test_a_column_at_a_time_after_a_prompt(impl):
    model = model_of(impl)
    ids = tokens(2, 12)
    logits = fed(model, cache_of(impl, 2, 20), ids, [6] + [1] * 6)
    what = "a prompt of six columns and then one at a time"
    assert_rows_match(model, logits, ids, torch.ones_like(ids).bool(), what)


def test_a_window_in_any_chunks(impl):
    for window in (1, 2, 5, 12, 13):
        model = model_of(impl, sliding_window=window)
        ids = tokens(2, 13)
        mask = torch.ones_like(ids).bool()
        alone = rows_alone(model, ids, mask, sliding_window=window)
        for chunks in (
            [13],
            [1] * 13,
            [4, 4, 4, 1],
            [5, 8],
            [8, 5],
            [1, 7, 2, 1, 2],
            [12, 1],
            [4, 1, 1, 3, 4],
        ):
            cache = cache_of(impl, 2, 13, sliding_window=window)
            logits = fed(model, cache, ids, chunks)
            what = f"a cache fed in chunks of {chunks}, window {window}"
            assert_rows_are(logits, alone, mask, what)


def test_a_prompt_longer_than_the_window(impl):
    for prompt in (6, 7, 9, 10, 11):
        model = model_of(impl, sliding_window=5)
        ids = tokens(2, prompt + 7)
        cache = cache_of(impl, 2, prompt + 7, sliding_window=5)
        logits = fed(model, cache, ids, [prompt] + [1] * 7)
        what = f"a prompt of {prompt} columns, window 5, and then one at a time"
        mask = torch.ones_like(ids).bool()
        assert_rows_match(model, logits, ids, mask, what, sliding_window=5)


def test_a_chunk_that_fits_the_window_but_not_what_is_left_of_it(impl):
    for first, chunk in ((3, 4), (5, 2), (5, 5), (4, 3), (8, 4)):
        model = model_of(impl, sliding_window=5)
        ids = tokens(2, first + chunk + 3)
        cache = cache_of(impl, 2, 20, sliding_window=5)
        logits = fed(model, cache, ids, [first, chunk, 1, 1, 1])
        what = f"a chunk of {chunk} columns after {first}, window 5"
        mask = torch.ones_like(ids).bool()
        assert_rows_match(model, logits, ids, mask, what, sliding_window=5)


def test_a_column_at_a_time_far_beyond_the_window(impl):
    for window in (3, 5):
        model = model_of(impl, sliding_window=window)
        ids = tokens(2, 17)
        logits = fed(model, cache_of(impl, 2, 17, sliding_window=window), ids, [1] * 17)
        what = f"a column at a time, window {window}"
        mask = torch.ones_like(ids).bool()
        assert_rows_match(model, logits, ids, mask, what, sliding_window=window)


def test_slots_hold_the_last_columns(impl):
    for window in (None, 4, 5):
        model = model_of(impl, sliding_window=window)
        ids = tokens(2, 13)
        slots = window or 13
        expected = [
            formula(model.state_dict(), SIZES | {"sliding_window": window}, row) for row in ids
        ]
        for chunks in ([13], [1] * 13, [5, 4, 4], [4, 1, 8], [11, 1, 1]):
            cache, now = cache_of(impl, 2, 13, sliding_window=window), 0
            for size in chunks:
                fed(model, cache, ids[:, now : now + size], [size])
                now += size
                held = torch.arange(max(0, now - slots), now)
                for layer in range(2):
                    for name, part in (("keys", 1), ("values", 2)):
                        wanted = torch.stack([row[part][layer] for row in expected])[:, :, held]
                        actual = getattr(cache, name)[layer][:, :, held % slots]
                        what = (
                            f"{name} of layer {layer} after {now} columns in chunks of {chunks}, "
                            f"window {window}, in the slots where the last columns should stand,"
                        )
                        assert_matches(actual, wanted.float(), what, atol=ATOL)


def test_keys_are_those_of_transformers(impl):
    for kind in ("full", "windowed"):
        model, data = from_transformers(impl, kind)
        ids = torch.tensor(data["prompts"][:1])
        cache = impl.KVCache(model.config, 1, 12, torch.float32)
        fed(model, cache, ids, [10])
        for name in ("keys", "values"):
            for layer, theirs in enumerate(data[kind][name]):
                wanted = torch.tensor(theirs)
                held = torch.arange(10 - wanted.shape[1], 10)
                slots = held % cache.keys[layer].shape[2]
                what = f"{name} of layer {layer}, attention {kind},"
                assert_matches(getattr(cache, name)[layer][0][:, slots], wanted, what, atol=1e-3)


def test_a_column_fed_to_a_full_window_sees_no_more_than_the_window(impl):
    # What left the window one column ago is still in the memory that is about to be written.
    model = model_of(impl, num_hidden_layers=1, sliding_window=4)
    ids = tokens(1, 9)
    logits = fed(model, cache_of(impl, 1, 9, sliding_window=4), ids, [4, 4, 1])
    for column in range(5):
        other = ids.clone()
        other[0, column] = (other[0, column] + 7) % 23
        moved = fed(model, cache_of(impl, 1, 9, sliding_window=4), other, [4, 4, 1]) - logits
        assert moved[0, 8].abs().max() == 0, f"column 8 sees column {column} through a window of 4"


def test_too_many_columns_are_refused(impl):
    for window in (None, 3):
        model = model_of(impl, sliding_window=window)
        cache = cache_of(impl, 2, 7, sliding_window=window)
        ids = tokens(2, 7)
        with refuses("8 columns at once for a cache of 7", r"\b8\b", r"\b7\b"):
            fed(model, cache, tokens(2, 8), [8])
        assert cache.length == 0, "a refused call has changed the cache's length"
        first = fed(model, cache, ids[:, :5], [5])
        before = [tensor.clone() for tensor in (*cache.keys, *cache.values)]
        with refuses("3 columns after 5 for a cache of 7", r"\b8\b", r"\b7\b"):
            fed(model, cache, tokens(2, 3), [3])
        assert cache.length == 5, "a refused call has changed the cache's length"
        for old, new in zip(before, (*cache.keys, *cache.values), strict=True):
            assert_matches(new, old, "the cache after a refused call", rtol=0, atol=0)
        logits = torch.cat([first, fed(model, cache, ids[:, 5:], [1, 1])], dim=1)
        mask = torch.ones_like(ids).bool()
        what = "a cache that was fed to its last column after a refused call"
        assert_rows_match(model, logits, ids, mask, what, sliding_window=window)


def test_caches_are_independent(impl):
    for window in WINDOWS:
        model, other = (model_of(impl, sliding_window=window) for _ in range(2))
        ids, second = tokens(2, 12), tokens(3, 12)
        caches = [cache_of(impl, rows, 12, sliding_window=window) for rows in (2, 3)]
        parts = [[], []]
        for size in (3, 1, 5, 1, 1, 1):
            for cache, text, to in zip(caches, (ids, second), parts, strict=True):
                now = text[:, cache.length : cache.length + size]
                to.append(fed(model, cache, now, [size]))
            fed(other, cache_of(impl, 2, 12, sliding_window=window), tokens(2, 12), [9, 3])
            model(tokens(4, 8))
        for text, to in zip((ids, second), parts, strict=True):
            mask = torch.ones_like(text).bool()
            what = f"two caches fed in turn, window {window}"
            assert_rows_match(model, torch.cat(to, 1), text, mask, what, sliding_window=window)


def test_the_cache_under_inference_mode(impl):
    for window in WINDOWS:
        model = model_of(impl, sliding_window=window)
        ids, mask = padded_batch([9, 6])
        with torch.inference_mode():
            logits = fed(model, cache_of(impl, 2, 9, sliding_window=window), ids, [4, 1, 4], mask)
        what = f"a cache under inference_mode, window {window}"
        assert_rows_match(model, logits, ids, mask, what, sliding_window=window)
        default = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.float64)
            cache = cache_of(impl, 2, 9, sliding_window=window)
            logits = fed(model, cache, ids, [4, 1, 4], mask)
        finally:
            torch.set_default_dtype(default)
        what = f"a cache where float64 is the default dtype, window {window}"
        assert_rows_match(model, logits, ids, mask, what, sliding_window=window)


def test_logits_stay_when_the_cache_goes_on(impl):
    model = model_of(impl, sliding_window=4)
    cache, ids = cache_of(impl, 2, 12, sliding_window=4), tokens(2, 12)
    first = fed(model, cache, ids[:, :6], [6])
    kept = first.clone()
    fed(model, cache, ids[:, 6:], [1, 5])
    assert_matches(first, kept, "logits once the cache was fed again", rtol=0, atol=0)


# -- beams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    "beams", [[2, 0, 1], [1, 1, 0], [2, 2, 2], [0, 1, 2], [1, 0, 0, 2, 1], [2]]
)
def test_rows_go_on_from_the_rows_they_came_from(impl, window, beams):
    model = model_of(impl, sliding_window=window)
    ids, mask = padded_batch([7, 3, 6])
    cache = cache_of(impl, 3, 14, sliding_window=window)
    fed(model, cache, ids, [4, 3], mask)
    order = torch.tensor(beams)
    with unchanged(beam_indices=order):
        cache.reorder(order)
    assert cache.length == 7, f"reorder has changed the length to {cache.length}"
    more = tokens(len(beams), 5)
    ids = torch.cat([ids[order], more], dim=1)
    mask = torch.cat([mask[order], torch.ones_like(more).bool()], dim=1)
    logits = fed(model, cache, more, [1, 3, 1], mask)
    for row, beam in enumerate(beams):
        real = mask[row]
        expected = expected_logits(model, ids[row, real], sliding_window=window)[-5:]
        what = f"row {row}, which was row {beam} before reorder({beams}), window {window}"
        assert_matches(logits[row], expected, what, atol=ATOL)


def test_beams_that_part_are_independent(impl):
    for window in WINDOWS:
        model = model_of(impl, sliding_window=window)
        ids = tokens(1, 6)
        cache = cache_of(impl, 1, 12, sliding_window=window)
        fed(model, cache, ids, [6])
        for beams in ([0, 0, 0], [2, 0, 1], [0, 0, 2]):
            order = torch.tensor(beams)
            cache.reorder(order)
            ids = torch.cat([ids[order], tokens(3, 2)], dim=1)
            logits = fed(model, cache, ids[:, -2:], [1, 1])
            for row in range(3):
                expected = expected_logits(model, ids[row], sliding_window=window)[-2:]
                what = f"row {row} of beams that have parted, window {window}"
                assert_matches(logits[row], expected, what, atol=ATOL)


# -- attend ----------------------------------------------------------------------------------------


def attention(q, k, v, visible):
    """The brief's attention by loops, in float64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for b, h, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        seen = visible[b, t]
        scores = k[b, h // group, seen].double() @ q[b, h, t].double() / math.sqrt(q.shape[3])
        out[b, h, t] = scores.softmax(0) @ v[b, h // group, seen].double()
    return out.to(q.dtype)


def attend_inputs(dtype=torch.float32, heads=6, kv_heads=3, size=4):
    q, k, v = (
        2 * torch.randn(shape, dtype=torch.float64)
        for shape in ((2, heads, 5, size), (2, kv_heads, 7, size), (2, kv_heads, 7, size))
    )
    visible = torch.rand(2, 5, 7) < 0.5
    visible[..., 2] = True
    return q.to(dtype), k.to(dtype), v.to(dtype), visible


def test_attend_matches_the_formula(impl):
    for heads, kv_heads, size in ((6, 3, 4), (6, 2, 10), (4, 4, 2), (3, 1, 6), (1, 1, 1)):
        q, k, v, visible = attend_inputs(heads=heads, kv_heads=kv_heads, size=size)
        with unchanged(q=q, k=k, v=v, visible=visible):
            out = impl.attend(q, k, v, visible)
        what = f"attention of {heads} heads over {kv_heads} key heads of {size} features"
        assert_matches(out, attention(q, k, v, visible), what, atol=2e-5)


def test_attend_in_every_dtype(impl):
    for dtype, atol in ((torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.1)):
        inputs = attend_inputs(dtype)
        what = f"attention in {dtype}"
        assert_matches(impl.attend(*inputs), attention(*inputs), what, atol=atol)


def test_query_heads_in_a_row_share_a_key_head(impl):
    q, k = torch.randn(1, 6, 1, 4), torch.randn(1, 3, 1, 4)
    v = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 1, 4)
    out = impl.attend(q, k, v, torch.ones(1, 1, 1, dtype=torch.bool))
    found = out[0, :, 0, 0].tolist()
    assert found == [0, 0, 1, 1, 2, 2], f"six query heads read the values of heads {found}"


def test_scores_are_scaled_by_the_root_of_the_head_size(impl):
    for heads, size in ((2, 16), (6, 4)):
        q = torch.full((1, heads, 1, size), 1.0)
        k = torch.stack([torch.zeros(size), torch.ones(size)]).view(1, 1, 2, size)
        v = torch.stack([torch.zeros(size), torch.ones(size)]).view(1, 1, 2, size)
        out = impl.attend(q, k, v, torch.ones(1, 1, 2, dtype=torch.bool))
        expected = torch.full_like(q, math.sqrt(size)).sigmoid()
        assert_matches(out, expected, f"scores of 0 and {size} for heads of {size} features")


def test_what_is_not_visible_has_no_influence(impl):
    q, k, v, visible = attend_inputs()
    visible = visible[:, :1].expand(2, 5, 7)
    hidden = ~visible[:, 0][:, None, :, None]
    before = impl.attend(q, k, v, visible)
    for size in (60.0, -60.0, 1e30):
        after = impl.attend(q, k.masked_fill(hidden, size), v.masked_fill(hidden, -size), visible)
        what = f"attention after keys and values that no query sees have become {size:g}"
        assert_matches(after, before, what, rtol=0, atol=0)
    ones = torch.ones_like(v)
    weights = impl.attend(q, k, ones, visible)
    assert_matches(weights, torch.ones_like(q), "the sum of the weights over the visible keys")


def test_a_query_that_sees_nothing_gets_something_finite(impl):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q, k, v, visible = attend_inputs(dtype)
        visible[1, 3] = False
        out = impl.attend(q, k, v, visible)
        assert out.isfinite().all(), f"in {dtype}, a query that sees no key gets NaN or infinity"
        seen = torch.ones(2, 5).bool()
        seen[1, 3] = False
        expected = attention(q, k, v, visible)
        what = f"attention in {dtype} of the queries beside one that sees nothing"
        picked = out.transpose(1, 2)[seen], expected.transpose(1, 2)[seen]
        assert_matches(*picked, what, atol=0.1)


def test_attend_is_repeatable_in_any_layout_and_mode(impl):
    assert_repeatable(impl.attend, attend_inputs, attention, "attention", atol=2e-5)
    inputs = attend_inputs()
    expected = attention(*inputs)
    assert_any_layout(impl.attend, inputs, expected, "attention", atol=2e-5)
    assert_any_mode(impl.attend, inputs, expected, "attention", atol=2e-5)


# -- generate --------------------------------------------------------------------------------------


def greedy(model, prompt, count, eos_id, **changes):
    """The brief's answer to one prompt, by the formula, and the least lead of a chosen token."""
    answer, lead = [], math.inf
    while len(answer) < count and eos_id not in answer:
        logits = expected_logits(model, torch.tensor(prompt + answer), **changes)[-1]
        best = logits.topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        answer.append(int(best.indices[0]))
    return answer, lead


def assert_greedy(impl, model, prompts, count, eos_id, pad_id, what, **changes):
    """Compare each answer with the formula's, but for one that a rounding error could turn."""
    actual = impl.generate(model, prompts, count, eos_id, pad_id)
    assert isinstance(actual, list), f"{what}: generate returns a {type(actual).__name__}"
    assert len(actual) == len(prompts), f"{what}: {len(actual)} answers to {len(prompts)} prompts"
    for prompt, answer in zip(prompts, actual, strict=True):
        assert isinstance(answer, list), f"{what}: an answer is a {type(answer).__name__}"
        assert all(type(token) is int for token in answer), f"{what}: tokens are not plain ints"
        expected, lead = greedy(model, prompt, count, eos_id, **changes)
        if lead > 1e-3:
            assert_answer(answer, expected, f"{what}, a prompt of {len(prompt)} tokens")
    return actual


def test_batched_answers_are_those_of_transformers(impl):
    for kind in ("full", "windowed"):
        model, data = from_transformers(impl, kind)
        answers = written(impl, model, data, data["prompts"])
        for prompt, actual, expected in zip(
            data["prompts"], answers, data[kind]["answers"], strict=True
        ):
            what = f"a prompt of {len(prompt)} tokens in a batch, attention {kind}"
            assert_answer(actual, expected, what)


def test_answers_to_prompts_of_any_length(impl):
    for window in (None, 1, 5):
        model = model_of(impl, sliding_window=window)
        for lengths in ([1], [6], [4, 4], [9, 1, 3], [2, 7]):
            prompts = [tokens(length).tolist() for length in lengths]
            what = f"prompts of {lengths} tokens, window {window}"
            assert_greedy(impl, model, prompts, 8, 4, 0, what, sliding_window=window)


def test_answers_of_no_token_and_of_one(impl):
    model = model_of(impl)
    prompts = [tokens(length).tolist() for length in (4, 1, 3)]
    assert impl.generate(model, prompts, 0, 2, 1) == [[], [], []]
    answers = assert_greedy(impl, model, prompts, 1, 2, 1, "answers of one token")
    assert [len(answer) for answer in answers] == [1, 1, 1]


def test_an_answer_ends_with_its_first_eos(impl):
    for window in WINDOWS:
        model = model_of(impl, sliding_window=window)
        prompts = [tokens(length).tolist() for length in (6, 2, 4)]
        free = impl.generate(model, prompts, 9, -1, 0)
        assert [len(answer) for answer in free] == [9, 9, 9], (
            "an id that never comes ends an answer"
        )
        # Every token that comes may be the one that ends an answer.
        for eos_id in sorted({token for answer in free for token in answer}):
            ended = [
                answer[: answer.index(eos_id) + 1] if eos_id in answer else answer
                for answer in free
            ]
            for actual, expected in zip(
                impl.generate(model, prompts, 9, eos_id, 0), ended, strict=True
            ):
                assert_answer(actual, expected, f"eos_id {eos_id}, window {window}")


def test_any_token_may_stand_in_a_prompt(impl):
    model = model_of(impl)
    pad, eos = 5, 9
    prompts = [[5, 5, 3, 5, 9, 1], [5], [9, 5], [5, 5, 5, 5]]
    for eos_id in (eos, pad):
        what = f"prompts with pad_id {pad} and eos_id {eos_id} in them"
        assert_greedy(impl, model, prompts, 7, eos_id, pad, what)


def test_pad_id_has_no_influence(impl):
    model = model_of(impl)
    prompts = [tokens(length).tolist() for length in (7, 1, 4)]
    answers = [impl.generate(model, prompts, 8, 6, pad_id) for pad_id in (0, 6, 22)]
    assert answers[0] == answers[1] == answers[2], "the answers go by the padding's id"


def test_no_column_is_fed_twice_and_none_after_the_end(impl):
    model = model_of(impl)
    prompts = [tokens(length).tolist() for length in (5, 2, 4)]
    free = impl.generate(model, prompts, 8, -1, 0)
    for asked, eos_id in (
        (prompts, -1),
        (prompts, free[0][3]),
        (prompts[:1], free[0][3]),
        ([prompts[1]] * 2, free[1][1]),
    ):
        shapes = []
        hook = model.register_forward_pre_hook(
            lambda _, args, named: shapes.append(tuple((args[0] if args else named["ids"]).shape)),  # noqa: B023
            with_kwargs=True,
        )
        answers = impl.generate(model, asked, 8, eos_id, 0)
        hook.remove()
        rows, longest = len(asked), max(len(prompt) for prompt in asked)
        last = max(len(answer) for answer in answers)
        # A row whose answer has ended may stay in the batch or leave it.
        columns = [columns for _, columns in shapes]
        fed = [count for count, _ in shapes]
        rightly = columns == [longest] + [1] * (last - 1) and fed[0] == rows == max(fed)
        assert rightly, (
            f"for {rows} prompts, the longest of {longest} tokens, and answers of up to {last}, "
            f"the model is called with ids of the shapes {shapes}"
        )


def test_generate_changes_nothing(impl):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = model_of(impl, dtype, sliding_window=5)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        prompts = [tokens(length).tolist() for length in (7, 1, 4)]
        kept = [list(prompt) for prompt in prompts]
        for training in (True, False):
            model.train(training)
            state = torch.get_rng_state()
            first = impl.generate(model, prompts, 6, 4, 2)
            impl.generate(model, [[1, 2, 3]], 4, 4, 2)
            named = {"pad_id": 2, "eos_id": 4, "max_new_tokens": 6, "prompts": prompts}
            again = impl.generate(model=model, **named)
            assert first == again, f"in {dtype}, the same prompts get other answers the second time"
            assert prompts == kept, "generate changes the prompts"
            assert model.training == training, "generate leaves the model in another mode"
            assert torch.is_grad_enabled(), "generate leaves gradients switched off"
            assert torch.equal(torch.get_rng_state(), state), "generate draws random numbers"
        for name, weight in model.named_parameters():
            assert weight.grad is None, f"generate leaves a gradient on {name}"
            assert weight.requires_grad, f"generate freezes {name}"
            assert_matches(weight.detach(), before[name], f"{name} after generate", rtol=0, atol=0)


# -- run -------------------------------------------------------------------------------------------


def test_the_run_is_repeatable(impl, log):
    state = torch.get_rng_state()
    assert list(impl.run(0)) == log, "two runs of one seed differ"
    other = list(impl.run(seed=1, steps=3))
    assert torch.equal(torch.get_rng_state(), state), "the run moves the global generator"
    assert len(other) == 3
    assert other != log[:3], "seeds make no difference"
    assert [step["columns"] for step in log[:5]] == [6, 7, 8, 9, 15]
