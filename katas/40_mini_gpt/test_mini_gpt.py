import copy
import functools
import inspect
import math

import pytest
import torch
import torch._dynamo  # making an optimiser imports it, a second that every run would pay
from torch.nn.functional import scaled_dot_product_attention
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dojo.testing import (
    assert_any_layout,
    assert_any_mode,
    assert_matches,
    assert_repeatable,
    golden,
    layouts,
    refuses,
    unchanged,
)

SIZES = {"vocab_size": 11, "block_size": 7, "n_layer": 2, "n_head": 3, "n_embd": 12}
VECTORS = ("bias", "ln_1.weight", "ln_2.weight", "ln_f.weight")
LETTERS = 24  # in the paragraph


# The brief as a formula


def shapes(vocab_size, block_size, n_layer, n_head, n_embd):
    """The state dict's keys, and the shape of each."""
    found = {"transformer.wte.weight": (vocab_size, n_embd)}
    found["transformer.wpe.weight"] = (block_size, n_embd)
    for layer in range(n_layer):
        block = f"transformer.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            found[f"{block}.{norm}.weight"] = found[f"{block}.{norm}.bias"] = (n_embd,)
        for name, out, into in (
            ("attn.c_attn", 3 * n_embd, n_embd),
            ("attn.c_proj", n_embd, n_embd),
            ("mlp.c_fc", 4 * n_embd, n_embd),
            ("mlp.c_proj", n_embd, 4 * n_embd),
        ):
            found[f"{block}.{name}.weight"] = (out, into)
            found[f"{block}.{name}.bias"] = (out,)
    found["transformer.ln_f.weight"] = found["transformer.ln_f.bias"] = (n_embd,)
    found["lm_head.weight"] = (vocab_size, n_embd)
    return found


def random_state(**sizes):
    """Weights of which each matters, in float64."""
    state = {
        name: 0.5 * torch.randn(shape, dtype=torch.float64) + (".ln_" in name and "weight" in name)
        for name, shape in shapes(**sizes).items()
    }
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def silence(state, part):
    """Let every `attn` or every `mlp` add nothing to the stream."""
    for name in state:
        if f"{part}.c_proj" in name:
            state[name] = torch.zeros_like(state[name])


def leaves_of(state):
    """The parameters, to be trained; the head is the embedding."""
    return {name: x.clone().requires_grad_() for name, x in state.items() if name[:2] != "lm"}


def norm(x, state, name):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].mT + state[f"{name}.bias"]


def attention(qkv, n_head):
    """Scores are a few hundred at most."""
    T, width = qkv.shape[-2], qkv.shape[-1] // 3
    size = width // n_head
    heads = []
    for head in range(n_head):
        first = head * size
        q, k, v = (qkv[..., part * width + first :][..., :size] for part in range(3))
        weights = (q @ k.mT / math.sqrt(size)).exp() * torch.ones(T, T).tril()
        heads.append(weights / weights.sum(-1, keepdim=True) @ v)
    return torch.cat(heads, -1)


def gelu(x):
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def formula(state, n_head, ids):
    """The logits by the brief, one head after the other."""
    x = state["transformer.wte.weight"][ids]
    x = x + state["transformer.wpe.weight"][: ids.shape[1]]
    for layer in range(sum(name.endswith("ln_1.weight") for name in state)):
        block = f"transformer.h.{layer}"
        qkv = linear(norm(x, state, f"{block}.ln_1"), state, f"{block}.attn.c_attn")
        x = x + linear(attention(qkv, n_head), state, f"{block}.attn.c_proj")
        hidden = linear(norm(x, state, f"{block}.ln_2"), state, f"{block}.mlp.c_fc")
        x = x + linear(gelu(hidden), state, f"{block}.mlp.c_proj")
    return norm(x, state, "transformer.ln_f") @ state["transformer.wte.weight"].mT


def surprise(logits, targets):
    """The mean of -log p over the targets that count, one after the other."""
    shares = (logits - logits.logsumexp(-1, keepdim=True)).flatten(0, 1)
    pairs = enumerate(targets.flatten().tolist())
    losses = [-shares[place, target] for place, target in pairs if target != -1]
    return torch.stack(losses).mean()


def made(impl, state, dtype=torch.float64, dropout=0.0, **sizes):
    """A model of these weights, in eval mode."""
    model = impl.GPT(**(sizes or SIZES), dropout=dropout).to(dtype)
    model.load_state_dict({name: weight.clone() for name, weight in state.items()})
    return model.eval()


def constant(impl, logits, **more):
    """A model that gives these logits wherever it is, and the embeddings that make it so."""
    state = random_state(**SIZES)
    state["transformer.ln_f.weight"] = torch.zeros(SIZES["n_embd"], dtype=torch.float64)
    state["transformer.ln_f.bias"] = torch.eye(SIZES["n_embd"], dtype=torch.float64)[2]
    state["transformer.wte.weight"][:, 2] = torch.as_tensor(logits, dtype=torch.float64)
    return made(impl, state, **more)


def tokens(*shape):
    return torch.randint(SIZES["vocab_size"], shape)


def gpt2(impl, dtype=torch.float64, dropout=0.0):
    """The transformers library's model, and all that it gave."""
    known = golden("mini_gpt.json")
    state = {
        name: torch.tensor(weight, dtype=torch.float64)
        for name, weight in known["state_dict"].items()
    }
    return made(impl, state, dtype, dropout, **known["sizes"]), known


def mean_of_the_end(log):
    return sum(numbers["loss"] for numbers in log[-20:]) / 20


def assert_shares(drawn, expected, behaviour):
    """Compare how often each token was drawn with its probability, within 5 deviations."""
    count = drawn.numel()
    shares = torch.bincount(drawn.flatten(), minlength=len(expected)) / count
    for token, (share, wanted) in enumerate(zip(shares.tolist(), expected.tolist(), strict=True)):
        room = 5 * math.sqrt(wanted * (1 - wanted) / count) + 1e-9
        assert abs(share - wanted) <= room, (
            f"{behaviour}: token {token} is drawn {share:.1%} of the time, not {wanted:.1%}"
        )


# Symptoms


@pytest.fixture(scope="module")
def log(impl):
    """The log of a whole run, read by the first test that asks for it."""
    return functools.cache(lambda: list(impl.run()))


@pytest.mark.symptom
def test_the_loss_falls_to_what_the_paragraph_allows(log):
    first, last = log()[0]["loss"], mean_of_the_end(log())
    assert abs(first - math.log(LETTERS)) < 0.15, (
        f"training begins at a loss of {first:.3f}; who knows nothing has {math.log(LETTERS):.3f}"
    )
    assert last < 0.06, f"training ends at a loss of {last:.4f}; a healthy run ends below 0.05"


@pytest.mark.symptom
def test_the_loss_is_not_too_good_to_be_true(log):
    last = mean_of_the_end(log())
    assert last > 0.028, (
        f"training ends at a loss of {last:.4f}, less than the 0.03 that it takes to guess "
        "how a window of the paragraph goes on by its first letters"
    )


@pytest.mark.symptom
def test_the_sample_repeats_the_paragraph(log):
    recited = log()[-1]["recited"]
    assert recited == 1, (
        f"a greedy sample after training repeats {recited:.1%} of the paragraph before its first "
        "mistake; after a healthy run it repeats all of it"
    )


@pytest.mark.symptom
def test_a_gpt2_checkpoint_computes_what_it_does_in_its_library(impl):
    model, known = gpt2(impl, torch.float32)
    padded = known["padded"]
    with torch.no_grad():
        _, loss = model(torch.tensor(padded["ids"]), torch.tensor(padded["targets"]))
    assert abs(loss - padded["loss"]) < 1e-4, (
        f"a checkpoint of GPT-2 has a loss of {loss:.5f} on a padded batch; "
        f"in the transformers library it is {padded['loss']:.5f}"
    )
    wanted = torch.tensor(known["greedy"])
    what = "the greedy continuation of two prompts by a checkpoint of GPT-2"
    assert_matches(impl.generate(model, wanted[:, :3], 20, top_k=1), wanted, what)


@pytest.mark.symptom
def test_training_a_gpt2_checkpoint_follows_the_log_of_its_library(impl):
    model, known = gpt2(impl)
    run, wanted = known["training"], known["training"]["log"]
    text = torch.tensor(run["text"])
    steps = impl.train(model, text, len(wanted), run["lr"], run["batch_size"], seed=5)
    for step, (numbers, theirs) in enumerate(zip(steps, wanted, strict=True)):
        for name, value in theirs.items():
            assert math.isclose(numbers[name], value, rel_tol=1e-4), (
                f"fine-tuned from a checkpoint of GPT-2, {name} at step {step} is "
                f"{numbers[name]:.6f}; by the transformers library it is {value:.6f}"
            )


@pytest.mark.symptom
def test_samples_are_as_random_as_asked(impl):
    model, known = gpt2(impl, dropout=0.2)
    ids = torch.tensor(known["ids"])[:1, :4].expand(3_000, -1)
    logits = torch.tensor(known["logits"], dtype=torch.float64)[0, 3]
    for temperature, top_k in ((1.0, None), (0.6, None), (2.5, None), (2.5, 3)):
        model.train()
        draws = [
            impl.generate(model, ids, 1, temperature, top_k, torch.Generator().manual_seed(8))
            for _ in range(2)
        ]
        what = f"samples of GPT-2 at {temperature=}, {top_k=}"
        assert torch.equal(*draws), f"{what} differ although the generators were the same"
        assert model.training, f"{what} leave a model that was training in eval mode"
        kept = logits if top_k is None else logits.where(logits >= logits.topk(3).values[-1], -1e9)
        assert_shares(draws[0][:, -1], (kept / temperature).softmax(-1), what)
    model.eval()
    impl.generate(model, ids[:1], 2)
    assert not model.training, "sampling leaves a model that was in eval mode in training mode"


# The model's weights


def test_the_state_dict_has_nanogpts_keys(impl):
    for sizes in (SIZES, {**SIZES, "n_layer": 3, "block_size": 5, "n_head": 2}):
        found = {name: tuple(x.shape) for name, x in impl.GPT(**sizes).state_dict().items()}
        wanted = shapes(**sizes)
        odd = sorted(set(found.items()) ^ set(wanted.items()))
        assert not odd, f"the state dict of {sizes} differs from nanoGPT's by {odd[:4]}"


def test_the_head_is_the_very_embedding(impl):
    model = impl.GPT(**SIZES)
    for what, one in {
        "a fresh model": model,
        "a model that has loaded weights": made(impl, random_state(**SIZES)),
        "a copy": copy.deepcopy(model),
    }.items():
        head, wte = (one.get_parameter(f"{x}.weight") for x in ("lm_head", "transformer.wte"))
        assert head is wte, f"lm_head.weight of {what} is another parameter than wte.weight"
        count, wanted = len(list(one.parameters())), len(shapes(**SIZES)) - 1
        assert count == wanted, f"{what} has {count} parameters, not {wanted}"


@functools.cache
def fresh(impl, n_layer, seed=3):
    sizes = {"vocab_size": 290, "block_size": 180, "n_head": 4, "n_embd": 96}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(impl.GPT(n_layer=n_layer, **sizes).named_parameters())


def assert_normal(weight, std, what):
    found = weight.std().item()
    assert abs(found / std - 1) < 0.04, f"{what} starts with a deviation of {found:.4f}, not {std}"
    mean = weight.mean().item()
    assert abs(mean) < 5 * std / math.sqrt(weight.numel()), (
        f"{what} starts around {mean:.4f}, not 0"
    )
    share = (weight.abs() < std).double().mean().item()
    assert abs(share - 0.683) < 0.03, f"{what}: {share:.0%} lie within a deviation, not 68%"


def test_embeddings_start_small(impl):
    for name in ("wte", "wpe"):
        assert_normal(fresh(impl, 3)[f"transformer.{name}.weight"], 0.02, name)


def test_other_weights_start_as_they_should(impl):
    for name, parameter in fresh(impl, 3).items():
        if name.endswith("bias"):
            assert not parameter.any(), f"{name} does not start at 0"
        elif ".ln_" in name:
            assert (parameter == 1).all(), f"{name} does not start at 1"
        elif "c_proj" not in name:
            assert_normal(parameter, 0.02, name)


def test_residual_projections_start_smaller(impl):
    for n_layer in (1, 3):
        for name, parameter in fresh(impl, n_layer).items():
            if name.endswith("c_proj.weight"):
                std = round(0.02 / math.sqrt(2 * n_layer), 5)
                assert_normal(parameter, std, f"{name}, of {n_layer} layers,")


def test_residual_projections_start_the_smaller_the_deeper(impl):
    for part in ("attn", "mlp"):
        name = f"transformer.h.0.{part}.c_proj.weight"
        ratio = (fresh(impl, 1)[name].std() / fresh(impl, 4)[name].std()).item()
        assert abs(ratio - 2) < 0.1, (
            f"{name} starts {ratio:.2f} times as large with 1 layer as with 4; it should be twice"
        )


def test_fresh_weights_come_from_the_global_generator(impl):
    one, same, other = fresh(impl, 1), dict(fresh.__wrapped__(impl, 1)), fresh(impl, 1, seed=4)
    for name, weight in one.items():
        assert torch.equal(weight, same[name]), f"{name} differs under the same seed"
        if weight.ndim == 2:
            assert not torch.equal(weight, other[name]), f"{name} is the same under another seed"
    layers = fresh(impl, 3)
    first, second = (layers[f"transformer.h.{i}.mlp.c_fc.weight"] for i in (0, 1))
    assert not torch.equal(first, second), "two layers start with the same weights"


# The model's logits


def test_logits_of_gpt2(impl):
    for dtype, atol in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        model, known = gpt2(impl, dtype)
        ids = torch.tensor(known["ids"])
        for length in (8, 5, 1):
            wanted = torch.tensor(known["logits"], dtype=dtype)[:, :length]
            logits, loss = model(ids[:, :length])
            what = f"logits of GPT-2 beside the transformers library's, {length} tokens, {dtype}"
            assert_matches(logits, wanted, what, rtol=0, atol=atol)
            assert loss is None, f"without targets the loss is {loss}, not None"


def test_logits_match_the_formula(impl):
    for changes in (
        {},
        {"n_head": 1},
        {"n_head": 12},
        {"n_layer": 1, "n_embd": 6},
        {"n_layer": 3, "block_size": 9},
        {"vocab_size": 1, "block_size": 1},
        {"n_head": 1, "n_embd": 1},
    ):
        sizes = SIZES | changes
        state = random_state(**sizes)
        model = made(impl, state, **sizes)
        for rows, length in (
            (2, sizes["block_size"]),
            (1, 1),
            (5, max(1, sizes["block_size"] - 2)),
        ):
            ids = torch.randint(sizes["vocab_size"], (rows, length))
            with unchanged(ids=ids):
                actual, _ = model(ids)
            what = f"logits of {rows} rows of {length} tokens for {sizes}"
            assert_matches(actual, formula(state, sizes["n_head"], ids), what, rtol=1e-8, atol=1e-8)


def test_no_token_sees_a_later_one(impl):
    model, ids = made(impl, random_state(**SIZES)), tokens(2, 7)
    before, _ = model(ids)
    for place in range(1, 7):
        other = ids.clone()
        other[:, place:] = (other[:, place:] + 1 + tokens(2, 7 - place) % 9) % 11
        after, _ = model(other)
        what = f"logits at places before {place}, once the tokens from there on have changed"
        assert_matches(after[:, :place], before[:, :place], what, rtol=0, atol=1e-10)


def test_attention_without_preferences_is_the_mean_of_what_came(impl):
    sizes = {**SIZES, "n_layer": 1}
    state = random_state(**sizes)
    silence(state, "mlp")
    block, eye = "transformer.h.0", torch.eye(12, dtype=torch.float64)
    state[f"{block}.attn.c_attn.weight"][:24] = 0
    state[f"{block}.attn.c_attn.bias"][:] = 0
    state[f"{block}.attn.c_attn.weight"][24:] = eye
    state[f"{block}.attn.c_proj.weight"] = eye
    state[f"{block}.attn.c_proj.bias"][:] = 0
    ids = tokens(2, 7)
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"]
    mean = norm(x, state, f"{block}.ln_1").cumsum(1) / torch.arange(1, 8)[:, None]
    wanted = norm(x + mean, state, "transformer.ln_f") @ state["transformer.wte.weight"].mT
    actual, _ = made(impl, state, **sizes)(ids)
    what = "with queries and keys of zeros, attention adds the mean of a token and those before it"
    assert_matches(actual, wanted, what, rtol=1e-8, atol=1e-8)


def test_scores_are_scaled_by_the_root_of_the_head_size(impl):
    for n_head in (2, 3, 6):
        sizes = {**SIZES, "n_layer": 1, "n_head": n_head}
        state = random_state(**sizes)
        silence(state, "mlp")
        block = "transformer.h.0"
        # Queries and keys are the same, so it does not matter which is which.
        for part in ("weight", "bias"):
            c_attn = state[f"{block}.attn.c_attn.{part}"]
            c_attn[12:24] = c_attn[:12]
        ids = tokens(2, 7)
        x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"]
        qkv = linear(norm(x, state, f"{block}.ln_1"), state, f"{block}.attn.c_attn")
        q, k, v = (part.unflatten(-1, (n_head, -1)).transpose(1, 2) for part in qkv.split(12, -1))
        out = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(out, state, f"{block}.attn.c_proj")
        wanted = norm(x, state, "transformer.ln_f") @ state["transformer.wte.weight"].mT
        actual, _ = made(impl, state, **sizes)(ids)
        what = f"attention of {n_head} heads beside scaled_dot_product_attention"
        assert_matches(actual, wanted, what, rtol=1e-8, atol=1e-8)


def test_queries_come_before_keys(impl):
    """All queries are one large vector, so every token takes the value of one place alone."""
    sizes = {**SIZES, "n_layer": 1, "n_head": 1}
    state = random_state(**sizes)
    silence(state, "mlp")
    block = "transformer.h.0"
    state[f"{block}.attn.c_attn.weight"][:12] = 0
    state[f"{block}.attn.c_attn.bias"][:12] = 3e4 * torch.randn(12, dtype=torch.float64)
    state[f"{block}.attn.c_attn.weight"][12:24] = torch.eye(12, dtype=torch.float64)
    state[f"{block}.attn.c_attn.bias"][12:24] = 0
    ids = tokens(1, 7)
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"]
    q, k, v = linear(norm(x, state, f"{block}.ln_1"), state, f"{block}.attn.c_attn").split(12, -1)
    scores = (q @ k.mT)[0, 0]
    if scores[0] > 0:  # far below zero, so that no number which stands for hiding is low enough
        state[f"{block}.attn.c_attn.bias"][:12] *= -1
        scores = -scores
    best = torch.stack([scores[: place + 1].argmax() for place in range(7)])
    x = x + linear(v[:, best], state, f"{block}.attn.c_proj")
    wanted = norm(x, state, "transformer.ln_f") @ state["transformer.wte.weight"].mT
    actual, _ = made(impl, state, **sizes)(ids)
    what = "where all queries are one large vector, tokens take the value of the key most like it"
    assert_matches(actual, wanted, what, rtol=1e-8, atol=1e-8)


def test_each_head_keeps_to_its_own_features(impl):
    state = random_state(**SIZES)
    ids = tokens(2, 7)
    # Only what the second head has put out counts, features 4 to 7.
    for name in state:
        if name.endswith("attn.c_proj.weight"):
            state[name][:, :4] = state[name][:, 8:] = 0
    before, _ = made(impl, state)(ids)
    for head in range(3):
        other = dict(state)
        for name in state:
            if "c_attn" in name:
                other[name] = state[name].clone()
                for part in range(3):
                    first = 12 * part + 4 * head
                    rows = other[name][first : first + 4]
                    rows.copy_(torch.randn_like(rows))
        after, _ = made(impl, other)(ids)
        moved = not torch.allclose(after, before, rtol=0, atol=1e-9)
        assert moved == (head == 1), (
            f"other weights for head {head} {'' if moved else 'do not '}show, "
            "where only the output of head 1 is used"
        )


def test_every_parameter_takes_part(impl):
    state, ids = random_state(**SIZES), tokens(2, 7)
    before, _ = made(impl, state)(ids)
    for name, weight in state.items():
        if name == "lm_head.weight":
            continue
        other = {**state, name: weight + torch.randn_like(weight)}
        other["lm_head.weight"] = other["transformer.wte.weight"]
        after, _ = made(impl, other)(ids)
        moved = not torch.allclose(after, before, rtol=0, atol=1e-7)
        assert moved, f"other weights in {name} do not change the logits"


def test_a_token_is_told_from_itself_at_another_place(impl):
    logits, _ = made(impl, random_state(**SIZES))(torch.full((1, 7), 4))
    for place in range(6):
        alike = torch.allclose(logits[0, place], logits[0, place + 1], rtol=0, atol=1e-3)
        assert not alike, f"seven times the same token: places {place} and {place + 1} are alike"


def test_the_stream_passes_blocks_that_add_nothing(impl):
    state, ids = random_state(**SIZES), tokens(2, 7)
    silence(state, "attn")
    silence(state, "mlp")
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"]
    wanted = norm(x, state, "transformer.ln_f") @ state["transformer.wte.weight"].mT
    actual, _ = made(impl, state)(ids)
    what = "logits where no block adds anything"
    assert_matches(actual, wanted, what, rtol=1e-8, atol=1e-8)


def test_attention_alone(impl):
    state, ids = random_state(**SIZES), tokens(2, 7)
    silence(state, "mlp")
    actual, _ = made(impl, state)(ids)
    what = "logits where the MLPs add nothing"
    assert_matches(actual, formula(state, 3, ids), what, rtol=1e-8, atol=1e-8)


def test_the_mlp_alone(impl):
    state, ids = random_state(**SIZES), tokens(2, 7)
    silence(state, "attn")
    actual, _ = made(impl, state)(ids)
    what = "logits where attention adds nothing"
    assert_matches(actual, formula(state, 3, ids), what, rtol=1e-8, atol=1e-8)


def test_large_embeddings_outweigh_what_blocks_add(impl):
    """Blocks read norms, so what they add has one size, whatever the size of the stream."""
    state, ids = random_state(**SIZES), torch.tensor([[3, 5, 6, 2]])
    with_blocks = []
    for size in (1.0, 1e6):
        # Rows that are not read as logits here.
        wte = state["transformer.wte.weight"].clone()
        wte[ids[0]] *= size
        other = {**state, "transformer.wte.weight": wte, "lm_head.weight": wte}
        logits, _ = made(impl, other)(ids)
        plain = norm(wte[ids] + state["transformer.wpe.weight"][:4], state, "transformer.ln_f")
        off = logits - plain @ wte.mT
        with_blocks.append(off[..., [0, 1, 4, 7, 8, 9, 10]].abs().max().item())
    small, large = with_blocks
    assert large < 1e-2 < small, (
        f"blocks change the logits by {small:.2g} with ordinary embeddings and by {large:.2g} with "
        "embeddings a million times as large, beside which what they add should be nothing"
    )


def test_logits_come_through_the_last_norm(impl):
    wanted = torch.randn(11, dtype=torch.float64)
    actual, _ = constant(impl, wanted)(tokens(2, 7))
    what = "logits where ln_f has gains of 0 and picks one feature by its bias"
    assert_matches(actual, wanted.expand(2, 7, 11), what, rtol=1e-9)


def test_the_gelu_is_the_approximation_by_tanh(impl):
    """The first feature of the MLP goes through the GELU alone; the stream passes beside it."""
    sizes = {**SIZES, "n_layer": 1}
    state = random_state(**sizes)
    silence(state, "attn")
    silence(state, "mlp")
    block = "transformer.h.0"
    state[f"{block}.mlp.c_fc.weight"][:] = 0
    out = torch.zeros(12, 48, dtype=torch.float64)
    out[:, 0] = torch.randn(12, dtype=torch.float64)
    state[f"{block}.mlp.c_proj.weight"] = out
    ids = tokens(2, 7)
    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"]
    for value in (-4.0, -2.2, -0.7, 0.4, 1.9, 3.1):
        state[f"{block}.mlp.c_fc.bias"][0] = value
        y = x + gelu(torch.tensor(value, dtype=torch.float64)) * out[:, 0]
        wanted = norm(y, state, "transformer.ln_f") @ state["transformer.wte.weight"].mT
        actual, _ = made(impl, state, **sizes)(ids)
        what = f"logits where the MLP adds gelu({value}) times a vector"
        assert_matches(actual, wanted, what, rtol=1e-7, atol=1e-7)


def test_rows_of_a_batch_do_not_touch(impl):
    model, ids = made(impl, random_state(**SIZES)), tokens(5, 7)
    together, _ = model(ids)
    for row in range(5):
        alone, _ = model(ids[row : row + 1])
        what = f"row {row} of a batch beside the same row by itself"
        assert_matches(together[row : row + 1], alone, what, rtol=0, atol=1e-10)


def test_more_tokens_than_a_block_are_refused(impl):
    model = impl.GPT(**SIZES)
    model(tokens(1, 7))
    for length in (8, 20):
        with refuses(f"{length} tokens for a block of 7"):
            model(tokens(1, length))


def test_the_model_again_and_again_in_any_layout_and_mode(impl):
    state = random_state(**SIZES)
    model = made(impl, state)

    def logits(ids):
        return model(ids)[0]

    def wanted(ids):
        return formula(state, 3, ids)

    near = {"rtol": 1e-8, "atol": 1e-8}
    assert_repeatable(logits, lambda: [tokens(2, 7)], wanted, "logits", **near)
    ids = tokens(3, 5)
    assert_any_layout(logits, [ids], wanted(ids), "logits", **near)
    assert_any_mode(logits, [ids], wanted(ids), "logits", **near)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0.5)
            state[name] = parameter.detach().clone()
    assert_matches(logits(ids), wanted(ids), "logits, once weights have changed in place", **near)
    model.train()
    assert_matches(logits(ids), wanted(ids), "logits in training mode without dropout", **near)


def test_two_models_at_once(impl):
    ids = tokens(2, 4)
    sizes = [SIZES, {**SIZES, "n_layer": 1, "n_head": 2, "block_size": 4}]
    states = [random_state(**each) for each in sizes]
    models = [made(impl, state, **each) for state, each in zip(states, sizes, strict=True)]
    for model, state, each in list(zip(models, states, sizes, strict=True)) * 2:
        actual, wanted = model(ids)[0], formula(state, each["n_head"], ids)
        assert_matches(actual, wanted, "logits of one of two models", rtol=1e-8, atol=1e-8)


# The model's loss


def test_the_loss_is_the_mean_surprise(impl):
    state = random_state(**SIZES)
    for dtype in (torch.float64, torch.float32):
        model = made(impl, state, dtype)
        for shape in ((2, 7), (3, 4), (1, 2)):
            ids, targets = tokens(*shape), tokens(*shape)
            wanted = formula(state, 3, ids)
            with unchanged(ids=ids, targets=targets):
                logits, loss = model(ids, targets)
            what = f"with targets of shape {shape}, {dtype}"
            near = {"rtol": 1e-8, "atol": 1e-8} if dtype == torch.float64 else {"atol": 1e-4}
            assert_matches(logits, wanted.to(dtype), f"logits {what}", **near)
            assert_matches(loss, surprise(wanted, targets).to(dtype), f"the loss {what}", **near)


def test_the_loss_of_a_single_token(impl):
    state = random_state(**SIZES)
    ids, target = tokens(1, 1), torch.tensor([[6]])
    _, loss = made(impl, state)(ids, target)
    what = "the loss of one token with one target"
    assert_matches(loss, surprise(formula(state, 3, ids), target), what, rtol=1e-8)


def test_the_first_token_of_the_vocabulary_counts(impl):
    state, ids = random_state(**SIZES), tokens(2, 7)
    _, loss = made(impl, state)(ids, torch.zeros_like(ids))
    wanted = surprise(formula(state, 3, ids), torch.zeros_like(ids))
    assert_matches(loss, wanted, "the loss where every target is token 0", rtol=1e-8)


def test_targets_that_do_not_count(impl):
    state, ids = random_state(**SIZES), tokens(3, 7)
    model, logits = made(impl, state), formula(state, 3, ids)
    for counting in (20, 9, 1):
        targets = tokens(3, 7).flatten()
        targets[torch.randperm(21)[counting:]] = -1
        targets = targets.view(3, 7)
        _, loss = model(ids, targets)
        what = f"the loss where {counting} of 21 targets count"
        assert_matches(loss, surprise(logits, targets), what, rtol=1e-8)


def test_who_is_sure_and_right_has_no_loss(impl):
    logits = torch.full((11,), -30.0)
    logits[5] = 30.0
    _, loss = constant(impl, logits)(tokens(2, 7), torch.full((2, 7), 5))
    assert abs(loss) < 1e-9, f"logits of 30 for the target and -30 for others: the loss is {loss:g}"


def test_targets_in_any_layout(impl):
    state, ids = random_state(**SIZES), tokens(3, 7)
    targets = tokens(3, 7)
    targets[1, 2:5] = -1
    model, wanted = made(impl, state), surprise(formula(state, 3, ids), targets)
    for layout, each in layouts(targets):
        _, loss = model(ids, each)
        assert_matches(loss, wanted, f"the loss of targets {layout}", rtol=1e-8)


def test_gradients_of_the_loss(impl):
    state, ids, targets = random_state(**SIZES), tokens(3, 7), tokens(3, 7)
    targets[0, 4:] = -1
    model = made(impl, state)
    model.train()
    model(ids, targets)[1].backward()
    leaves = leaves_of(state)
    surprise(formula(leaves, 3, ids), targets).backward()
    for name, leaf in leaves.items():
        grad = model.get_parameter(name).grad
        assert grad is not None, f"the loss gives {name} no gradient"
        assert_matches(grad, leaf.grad, f"the gradient of {name}", rtol=1e-7, atol=1e-9)


# Dropout


def test_dropout_is_off_in_eval_mode(impl):
    state, ids = random_state(**SIZES), tokens(2, 7)
    model = made(impl, state, dropout=0.6)
    for _ in range(2):
        actual, _ = model(ids)
        what = "logits of a model with dropout in eval mode"
        assert_matches(actual, formula(state, 3, ids), what, rtol=1e-8, atol=1e-8)


def dropped_shares(impl, place, ids, p=0.3):
    """The share of features that is gone from the stream where all of it comes from one place.

    The stream is a constant, or zero where it was dropped, and the head shows its features.
    """
    sizes = {**SIZES, "vocab_size": 41, "n_layer": 1, "n_head": 4, "n_embd": 40}
    state = {name: torch.zeros_like(x) for name, x in random_state(**sizes).items()}
    for name in ("transformer.h.0.ln_1", "transformer.h.0.ln_2", "transformer.ln_f"):
        state[f"{name}.weight"] = torch.ones(40, dtype=torch.float64)
    # Token 40 has an embedding of zeros, and logit i of the others is feature i.
    state["transformer.wte.weight"][:40] = torch.eye(40, dtype=torch.float64)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    state["transformer.wpe.weight" if place == "embeddings" else place][:] = 1.0
    model = made(impl, state, dropout=p, **sizes)
    model.train()
    with torch.no_grad():
        logits = model(ids)[0][..., :40]
    return (logits < logits.mean(-1, keepdim=True)).double().mean().item()


def test_dropout_of_embeddings_and_of_both_branches(impl):
    ids = torch.full((60, 7), 40)
    for place in (
        "embeddings",
        "transformer.h.0.attn.c_proj.bias",
        "transformer.h.0.mlp.c_proj.bias",
    ):
        share = dropped_shares(impl, place, ids)
        assert abs(share - 0.3) < 0.03, (
            f"in training with a dropout of 0.3, {share:.0%} of the stream is gone "
            f"where all of it comes from {place}"
        )


def test_dropout_of_attention_weights(impl):
    """Values are all 1, so an output tells how many weights are left; heads drop their own."""
    sizes = {**SIZES, "n_layer": 1}
    state = random_state(**sizes)
    silence(state, "mlp")
    block = "transformer.h.0"
    state["transformer.wte.weight"][0] = 0
    state["transformer.wpe.weight"][:] = 0
    state[f"{block}.attn.c_attn.weight"][:] = 0
    state[f"{block}.attn.c_attn.bias"][:] = torch.tensor([0.0] * 24 + [1.0] * 12)
    state[f"{block}.attn.c_proj.weight"] = torch.eye(12, dtype=torch.float64)
    state[f"{block}.attn.c_proj.bias"][:] = 0
    state["transformer.ln_f.weight"][:] = 1
    state["transformer.ln_f.bias"][:] = 0
    state["transformer.wte.weight"][:] = 0
    state["transformer.wte.weight"][1:] = torch.eye(12, dtype=torch.float64)[:10]
    model = made(impl, state, dropout=0.3, **sizes)
    model.train()
    with torch.no_grad():
        logits = model(torch.zeros(40, 7, dtype=torch.int64))[0][:, -1, 1:]
    # By the dropout of outputs alone, features would have one of two values.
    values = max(len({round(x, 6) for x in row.tolist()}) for row in logits)
    assert values > 2, "in training, no weight of attention is ever dropped"


# The optimiser


def optimizer_of(impl, lr=0.25, weight_decay=0.5):
    model = made(impl, random_state(**SIZES))
    return model, impl.configure_optimizer(model, lr, weight_decay)


def test_every_parameter_is_optimised_once(impl):
    model, optimizer = optimizer_of(impl)
    assert isinstance(optimizer, torch.optim.AdamW), f"a {type(optimizer).__name__}, not an AdamW"
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in model.named_parameters():
        count = held.count(id(parameter))
        assert count == 1, f"the optimiser has {name} {count} times"
    assert len(held) == len(list(model.parameters())), "the optimiser has other parameters too"


def test_options_of_the_optimiser(impl):
    _, optimizer = optimizer_of(impl)
    for group in optimizer.param_groups:
        for option, wanted in {"lr": 0.25, "betas": (0.9, 0.95), "eps": 1e-8}.items():
            found = tuple(group[option]) if option == "betas" else group[option]
            assert found == wanted, f"{option} is {found}, not {wanted}"
        assert not group.get("amsgrad"), "it is AMSGrad"
        assert not group.get("maximize"), "it goes uphill"


def shrunk(impl, belongs, weight_decay=0.5):
    """By what factor a step without a gradient changes each of these parameters."""
    model, optimizer = optimizer_of(impl, weight_decay=weight_decay)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if belongs(name)}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return {name: (model.get_parameter(name) / x).mean().item() for name, x in before.items()}


def test_biases_do_not_decay(impl):
    for name, factor in shrunk(impl, lambda name: name.endswith("bias")).items():
        assert factor == 1, f"a step with gradients of zero multiplies {name} by {factor:.3f}"


def test_gains_of_norms_do_not_decay(impl):
    gains = shrunk(impl, lambda name: ".ln_" in name and name.endswith("weight"))
    for name, factor in gains.items():
        assert factor == 1, f"a step with gradients of zero multiplies {name} by {factor:.3f}"


def test_matrices_and_embeddings_decay(impl):
    for decay in (0.5, 0.0):
        matrices = shrunk(impl, lambda name: not name.endswith(VECTORS), decay)
        for name, factor in matrices.items():
            wanted = 1 - 0.25 * decay
            assert abs(factor - wanted) < 1e-9, (
                f"a step with gradients of zero, a rate of 0.25 and a decay of {decay} "
                f"multiplies {name} by {factor:.3f}, not {wanted}"
            )


# Batches


def test_a_window_and_its_targets(impl):
    ids = torch.randperm(30)  # each place has a token of its own
    inputs, targets = impl.get_batch(ids, 6, 50, torch.Generator().manual_seed(1))
    for what, x in {"windows": inputs, "targets": targets}.items():
        found = tuple(x.shape), x.dtype
        assert found == ((50, 6), torch.int64), f"{what} of 50 rows of 6 are {found}"
    first = torch.stack([(ids == row[0]).nonzero()[0, 0] for row in inputs])
    places = first[:, None] + torch.arange(7)
    assert places.max() < 30, "a window goes beyond the last token that could be a target"
    assert_matches(inputs, ids[places[:, :-1]], "windows of consecutive tokens")
    assert_matches(targets, ids[places[:, 1:]], "targets, the token after each")


def test_every_window_is_as_likely(impl):
    for length, block_size in ((9, 4), (8, 6), (5, 1)):
        count = length - block_size
        inputs, _ = impl.get_batch(
            torch.arange(length), block_size, 4_000, torch.Generator().manual_seed(2)
        )
        what = f"windows of {block_size} of {length} tokens, by their first token"
        assert_shares(inputs[:, 0], torch.full((count,), 1 / count), what)


def test_rows_are_drawn_by_themselves(impl):
    generator = torch.Generator().manual_seed(3)
    pairs = torch.cat(
        [impl.get_batch(torch.arange(6), 3, 2, generator)[0][:, :1].mT for _ in range(900)]
    )
    assert_shares(pairs[:, 0] * 3 + pairs[:, 1], torch.full((9,), 1 / 9), "pairs of two windows")


def test_the_one_window_of_a_short_text(impl):
    ids = tokens(5)
    inputs, targets = impl.get_batch(ids, 4, 3, torch.Generator())
    assert_matches(inputs, ids[:4].expand(3, 4), "windows of 4 of 5 tokens")
    assert_matches(targets, ids[1:].expand(3, 4), "targets of windows of 4 of 5 tokens")


def test_batches_are_new_and_by_their_generator_alone(impl):
    ids = tokens(40)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(4)
    drawn = [impl.get_batch(ids, 5, 8, generator) for _ in range(2)]
    again = impl.get_batch(ids, 5, 8, torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), state), "drawing a batch uses the global generator"
    assert all(map(torch.equal, drawn[0], again)), "the same generator gives another batch"
    assert not torch.equal(drawn[0][0], drawn[1][0]), "a generator gives the same batch twice"
    for rows in (1, 8):
        inputs, targets = impl.get_batch(ids, 5, rows, generator)
        with unchanged(ids=ids, targets=targets):
            inputs.fill_(77)
        with unchanged(ids=ids, inputs=inputs):
            targets.fill_(78)
    for layout, each in layouts(ids):
        batch = impl.get_batch(each, 5, 8, torch.Generator().manual_seed(4))
        for actual, wanted in zip(batch, again, strict=True):
            assert_matches(actual, wanted, f"a batch of ids {layout}")


# Training


def rate(step, steps, lr):
    w = steps // 10
    if step < w:
        return lr * (step + 1) / w
    p = (step - w) / (steps - w)
    return lr * (0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2)


def trained(state, text, steps, lr):
    """Train the formula on a text of one window; return its log and its weights."""
    leaves = leaves_of(state)
    vectors = [x for name, x in leaves.items() if name.endswith(VECTORS)]
    rest = [x for name, x in leaves.items() if not name.endswith(VECTORS)]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": rest}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1)
    found = []
    for step in range(steps):
        loss = surprise(formula(leaves, 3, text[None, :-1]), text[None, 1:])
        grads = torch.autograd.grad(loss, list(leaves.values()))
        total = torch.cat([grad.flatten() for grad in grads]).square().sum().sqrt()
        for leaf, grad in zip(leaves.values(), grads, strict=True):
            leaf.grad = grad * min(1.0, 1 / (total + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, lr)
        optimizer.step()
        numbers = {"loss": loss.item(), "lr": rate(step, steps, lr), "grad_norm": total.item()}
        found.append(numbers)
    return found, leaves


def test_training_is_what_the_brief_says(impl):
    for steps, lr in ((23, 0.03), (10, 0.004), (4, 0.01)):
        state, text = random_state(**SIZES), tokens(8)
        model = made(impl, state)
        wanted, leaves = trained(state, text, steps, lr)
        with unchanged(text=text):
            log = list(impl.train(model, text, steps, lr, 2, 6))
        assert len(log) == steps, f"training for {steps} steps gives {len(log)} dicts"
        for step, (numbers, theirs) in enumerate(zip(log, wanted, strict=True)):
            assert set(numbers) == set(theirs), f"the log has {sorted(numbers)}"
            for name, value in theirs.items():
                assert isinstance(numbers[name], float), f"{name}: {type(numbers[name]).__name__}"
                assert math.isclose(numbers[name], value, rel_tol=1e-5, abs_tol=1e-9), (
                    f"{name} at step {step} of {steps} is {numbers[name]:.8g}, not {value:.8g}"
                )
        for name, leaf in leaves.items():
            if "c_attn.bias" not in name:  # the part of the keys has no gradient but rounding
                what = f"{name} after {steps} steps"
                assert_matches(model.get_parameter(name), leaf, what, rtol=1e-4, atol=1e-6)


def rates(impl, steps, lr):
    """The rates of a training run, and the rates by the brief."""
    sizes = {**SIZES, "n_layer": 1, "block_size": 2}
    log = impl.train(made(impl, random_state(**sizes), **sizes), tokens(9), steps, lr, 1, 0)
    return [(numbers["lr"], rate(step, steps, lr)) for step, numbers in enumerate(log)]


def test_the_rate_warms_up(impl):
    for steps in (30, 19):
        for step, (found, wanted) in enumerate(rates(impl, steps, 0.003)[: steps // 10]):
            assert math.isclose(found, wanted), f"step {step} of {steps}: {found:g}, not {wanted:g}"


def test_the_rate_falls_along_a_cosine(impl):
    for steps in (30, 19, 9, 1):
        found = rates(impl, steps, 0.003)
        for step, (ours, wanted) in list(enumerate(found))[steps // 10 :]:
            assert math.isclose(ours, wanted), f"step {step} of {steps}: {ours:g}, not {wanted:g}"


def test_every_parameter_moves_at_the_rate_of_the_log(impl):
    """Adam's first step goes by the rate along the sign of the gradient."""
    state = random_state(**SIZES)
    model = made(impl, state)
    numbers = next(impl.train(model, tokens(9), 40, 1e-4, 4, 0))
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - state[name]).abs().max().item()
        # Decay adds a little.
        assert 0.9 < moved / 2.5e-5 < 1.4, (
            f"{name} moves by {moved:.2g} in the first step, at a rate of {numbers['lr']:.2g}"
        )


def test_the_norm_is_that_of_this_step_before_clipping(impl):
    """Gradients that are there already do not count, and training has not begun to clip yet."""
    state, text = random_state(**SIZES), tokens(8)
    (theirs,), _ = trained(state, text, 1, 0.01)
    model = made(impl, state)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    numbers = next(impl.train(model, text, 1, 0.01, 3, 0))
    for name, value in theirs.items():
        assert math.isclose(numbers[name], value, rel_tol=1e-6), (
            f"{name} of a first step is {numbers[name]:.6g}, not {value:.6g}"
        )


def test_every_step_is_taken_on_clipped_gradients(impl):
    model, taken = made(impl, random_state(**SIZES)), []
    forward = model.forward

    def steep(*args, **kwargs):
        logits, loss = forward(*args, **kwargs)
        return logits, 1e6 * loss

    def look(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms = [gradient.norm() for gradient in gradients if gradient is not None]
        taken.append(torch.stack(norms).norm().item() if norms else 0.0)

    model.forward = steep
    hook = register_optimizer_step_pre_hook(look)
    try:
        log = list(impl.train(model, tokens(30), 6, 0.01, 2, 1))
    finally:
        hook.remove()
    for step, (numbers, norm) in enumerate(zip(log, taken, strict=True)):
        assert math.isclose(norm, min(1.0, numbers["grad_norm"]), rel_tol=1e-4), (
            f"step {step} is taken on gradients of norm {norm:.4g}; before clipping the log has "
            f"{numbers['grad_norm']:.4g}"
        )


def test_steps_do_not_pile_up_gradients(impl):
    """At a rate of next to nothing, every step on the same window has the same gradient."""
    model = made(impl, random_state(**SIZES))
    norms = [numbers["grad_norm"] for numbers in impl.train(model, tokens(8), 6, 1e-9, 2, 0)]
    assert max(norms) < 1.001 * min(norms), f"the same batch six times has norms of {norms}"
    assert min(norms) > 1e-3, "there are no gradients"


def test_gradients_from_between_two_steps_do_not_count(impl):
    state, ids = random_state(**SIZES), tokens(30)

    def norms(disturb):
        model = made(impl, state)
        found = []
        for numbers in impl.train(model, ids, 4, 0.01, 2, 1):
            found.append(numbers["grad_norm"])
            if disturb:
                model(ids[None, :7], ids[None, 1:8])[1].backward()
        return found

    undisturbed, disturbed = norms(False), norms(True)
    assert disturbed == pytest.approx(undisturbed, rel=1e-4), (
        f"gradient norms are {undisturbed}, and {disturbed} if the reader of the log computes "
        "gradients between two steps"
    )


def watched(impl, model, *arguments):
    """Train, and note what the model was given at each step, and in which mode it was."""
    seen = []
    forward, signature = model.forward, inspect.signature(model.forward)

    def watching(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        seen.append((*(given[name].clone() for name in ("ids", "targets")), model.training))
        return forward(*args, **kwargs)

    model.forward = watching
    list(impl.train(model, *arguments))
    return seen


def test_each_step_draws_a_batch_of_its_own(impl):
    text = torch.arange(11)
    seen = watched(impl, made(impl, random_state(**SIZES)), text, 40, 0.001, 3, 1)
    assert len(seen) == 40, f"40 steps call the model {len(seen)} times"
    starts = torch.cat([ids[:, 0] for ids, _, _ in seen])
    assert_shares(starts, torch.full((4,), 0.25), "windows of 40 batches, by their first token")
    for ids, targets, _ in seen:
        assert ids.shape == (3, 7), f"a batch has the shape {tuple(ids.shape)}"
        assert_matches(targets, ids + 1, "the targets of a batch")


def test_training_is_in_training_mode(impl):
    for mode in (False, True):
        model = made(impl, random_state(**SIZES), dropout=0.4).train(mode)
        modes = {training for _, _, training in watched(impl, model, tokens(20), 5, 0.01, 2, 1)}
        assert modes == {True}, f"a model with training={mode} is trained with training={modes}"


def test_batches_depend_on_the_seed_alone(impl):
    state, text = random_state(**SIZES), tokens(30)

    def run(seed):
        before = torch.get_rng_state()
        log = list(impl.train(made(impl, state), text, 8, 0.01, 2, seed))
        torch.rand(1)
        assert not torch.equal(torch.get_rng_state(), before)
        return [numbers["loss"] for numbers in log]

    assert run(1) == run(1), "the same seed gives another run"
    assert run(1) != run(2), "another seed gives the same run"
    model = made(impl, state)
    before = torch.get_rng_state()
    list(impl.train(model, text, 3, 0.01, 2, 1))
    assert torch.equal(torch.get_rng_state(), before), "batches use the global generator"


def test_steps_are_taken_as_the_log_is_read(impl):
    state, text = random_state(**SIZES), tokens(20)
    model = made(impl, state)
    steps = impl.train(model, text, 12, 0.01, 2, 1)
    weight = model.get_parameter("transformer.wpe.weight")
    assert torch.equal(weight, state["transformer.wpe.weight"]), "it trains before it is asked"
    seen = []
    for _ in steps:
        seen.append(weight.detach().clone())
    for before, after in zip([state["transformer.wpe.weight"], *seen], seen, strict=False):
        assert not torch.equal(before, after), "a step leaves the weights as they were"
    assert len(seen) == 12, f"12 steps have {len(seen)} entries in the log"
    assert not list(impl.train(model, text, 0, 0.01, 2, 1)), "no steps have entries in the log"


# Sampling


def greedy(state, ids, count, block=7):
    for _ in range(count):
        logits = formula(state, 3, ids[:, -block:])[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


def test_greedy_samples_see_the_last_block(impl):
    state = random_state(**SIZES)
    model = made(impl, state)
    for length, count in ((1, 12), (3, 0), (3, 9), (6, 1), (7, 2), (8, 1), (15, 0), (15, 4)):
        ids = tokens(9, length)
        with unchanged(ids=ids):
            actual = impl.generate(model, ids, count, top_k=1)
        what = f"{count} greedy tokens after {length}, with a block of 7"
        assert_matches(actual, greedy(state, ids, count), what)


def test_temperature(impl):
    logits = 1.5 * torch.randn(11, dtype=torch.float64)
    model = constant(impl, logits)
    for temperature in (1, 0.5, 2.0, 0.05, 30.0):
        generator = torch.Generator().manual_seed(5)
        drawn = impl.generate(model, tokens(5_000, 2), 1, temperature, generator=generator)
        wanted = (logits / temperature).softmax(-1)
        assert_shares(drawn[:, -1], wanted, f"tokens at a temperature of {temperature}")


def test_top_k(impl):
    # All logits are below zero, and no two alike.
    logits = -1 - torch.randperm(11).double() / 5
    model = constant(impl, logits)
    for top_k in (None, 1, 2, 7, 10, 11, 12, 500):
        generator = torch.Generator().manual_seed(6)
        drawn = impl.generate(model, tokens(4_000, 2), 1, 1.3, top_k, generator)
        kept = logits.argsort(descending=True)[:top_k]
        wanted = torch.zeros(11, dtype=torch.float64)
        wanted[kept] = (logits[kept] / 1.3).softmax(-1)
        assert_shares(drawn[:, -1], wanted, f"tokens with top_k={top_k}")


def test_top_k_of_each_row(impl):
    state = random_state(**SIZES)
    state["transformer.ln_f.weight"] *= 3
    model, ids = made(impl, state), tokens(6, 4)
    wanted = formula(state, 3, ids)[:, -1].topk(2).indices
    drawn = impl.generate(model, ids.repeat(300, 1), 1, 50.0, 2)[:, -1].view(300, 6)
    for row in range(6):
        found, best = drawn[:, row].unique().tolist(), sorted(wanted[row].tolist())
        assert found == best, f"row {row} of 6 draws the tokens {found}, not its top two, {best}"


def test_samples_come_from_their_generator(impl):
    model = constant(impl, torch.zeros(11))
    ids = tokens(2, 3)
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(7)
    first, second = (impl.generate(model, ids, 30, generator=generator) for _ in range(2))
    again = impl.generate(model, ids, 30, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), before), "sampling uses the global generator too"
    assert_matches(again, first, "a sample by a generator of the same seed")
    assert not torch.equal(first, second), "a generator gives the same sample twice"
    assert not torch.equal(first[0, 3:], first[1, 3:]), "rows draw the same tokens"
    torch.manual_seed(9)
    one, two = (impl.generate(model, ids, 30) for _ in range(2))
    torch.manual_seed(9)
    assert_matches(impl.generate(model, ids, 30), one, "a sample by the global generator, seeded")
    assert not torch.equal(one, two), "the global generator gives the same sample twice"


def test_sampling_is_without_dropout(impl):
    state, ids = random_state(**SIZES), tokens(3, 4)
    for mode in (True, False):
        model = made(impl, state, dropout=0.5).train(mode)
        actual = impl.generate(model, ids, 9, top_k=1)
        what = f"greedy tokens of a model with dropout and training={mode}"
        assert_matches(actual, greedy(state, ids, 9), what)


def test_a_training_model_is_left_in_training_mode(impl):
    model = made(impl, random_state(**SIZES), dropout=0.1).train()
    for count in (0, 2):
        impl.generate(model, tokens(1, 3), count)
        assert model.training, "a model that was training is in eval mode after sampling"
        modes = {module.training for module in model.modules()}
        assert modes == {True}, "parts of a model that was training are in eval mode"


def test_a_model_in_eval_mode_is_left_in_it(impl):
    model = made(impl, random_state(**SIZES), dropout=0.1)
    for count in (0, 2):
        impl.generate(model, tokens(1, 3), count)
        modes = {module.training for module in model.modules()}
        assert modes == {False}, "a model that was in eval mode is training after sampling"


def test_sampling_records_nothing_for_autograd(impl):
    model, ids = made(impl, random_state(**SIZES)), tokens(2, 3)
    called = []
    forward = model.forward
    model.forward = lambda *args, **kwargs: called.append(forward(*args, **kwargs)) or called[-1]
    drawn = impl.generate(model, ids, 3)
    found = tuple(drawn.shape), drawn.dtype
    assert found == ((2, 6), torch.int64), f"3 tokens after ids of shape (2, 3) are {found}"
    assert not any(logits.requires_grad for logits, _ in called), "autograd records the sampling"
    assert torch.is_grad_enabled(), "gradients are off after sampling"
    for layout, each in layouts(ids):
        actual = impl.generate(model, each, 4, top_k=1)
        assert_matches(actual, impl.generate(model, ids, 4, top_k=1), f"tokens after ids {layout}")


# The run


def test_a_short_run(impl):
    before = torch.get_rng_state()
    log = list(impl.run(3, 4))
    assert torch.equal(torch.get_rng_state(), before), "a run changes the global generator"
    assert len(log) == 4, f"a run of 4 steps has {len(log)} entries"
    for step, numbers in enumerate(log):
        wanted = {"loss", "lr", "grad_norm"} | ({"recited"} if step == 3 else set())
        assert set(numbers) == wanted, f"step {step} of a run of 4 logs {sorted(numbers)}"
        assert math.isclose(numbers["lr"], rate(step, 4, 0.02)), f"a rate of {numbers['lr']}"
        assert all(isinstance(value, float) for value in numbers.values()), numbers
    torch.rand(5)
    assert list(impl.run(seed=3, steps=4)) == log, "the same seed gives another run"
    assert list(impl.run(4, 4)) != log, "another seed gives the same run"
    assert not list(impl.run(3, 0)), "a run of no steps has entries in its log"


def test_the_log_of_the_run(log):
    steps = log()
    assert len(steps) == 200, f"a run has {len(steps)} steps"
    said = [step for step, numbers in enumerate(steps, 1) if "recited" in numbers]
    assert said == [100, 200], f"recited is in the log at the steps {said}"
