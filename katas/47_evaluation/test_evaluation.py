import contextlib
import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dojo.testing import assert_matches, golden, unchanged

STEPS, EVERY = 200, 20  # of a run
METRICS = ("perplexity", "accuracy", "macro_f1", "auc")
VOCABULARY = 16  # twelve words and four topics


class Reader(nn.Module):
    """Logits from the last token and from all of the row so far, so that context counts.

    It has what shows a wrong mode: dropout, and a normalisation with running statistics that is
    kept in evaluation mode, as one that is frozen. It notes each forward pass.
    """

    def __init__(self, vocabulary=VOCABULARY):
        super().__init__()
        self.last = nn.Embedding(vocabulary, vocabulary)
        self.past = nn.Embedding(vocabulary, vocabulary)
        self.norm = nn.BatchNorm1d(vocabulary)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.uniform_(0.5, 1.5)
            self.norm.bias.uniform_(-1, 1)
        self.norm.eval()
        self.seen = []

    def forward(self, ids):
        modes = [self.training, self.dropout.training, self.norm.training]
        self.seen.append((ids.clone(), modes, torch.is_grad_enabled()))
        places = torch.arange(1, ids.shape[1] + 1)[:, None]
        past = (1.5 * self.past(ids)).cumsum(dim=1) / places**0.5
        return self.norm((self.last(ids) + self.dropout(past)).mT).mT


def quiet(model):
    """A copy of a model in evaluation mode, to compute by hand with."""
    return copy.deepcopy(model).eval()


def some_documents(*lengths, vocabulary=12):
    return [torch.randint(vocabulary, (length,)) for length in lengths]


def log_likelihoods(model, document, window, stride):
    """The log-likelihood of each token but the first, one at a time, in float64."""
    model = quiet(model)
    found = []
    for place in range(1, len(document)):
        begin = 0
        while begin + window <= place:
            begin += stride
        with torch.no_grad():
            logits = model(document[begin:place].clone()[None])[0, -1].double()
        found.append((logits[document[place]] - logits.logsumexp(dim=0)).item())
    return found


def perplexity_by_hand(model, documents, window, stride):
    found = [x for document in documents for x in log_likelihoods(model, document, window, stride)]
    return math.exp(-math.fsum(found) / len(found))  # of documents with a token to score


def probabilities_by_hand(model, documents, window):
    model = quiet(model)
    with torch.no_grad():
        last = [model(document[-window:].clone()[None])[0, -1].double() for document in documents]
    return torch.stack(last)[:, 12:16].softmax(dim=1)


def metrics_by_hand(scores, labels):
    """Accuracy, macro-F1 and AUC by their definitions, in plain Python."""
    rows, labels = scores.tolist(), labels.tolist()
    guesses = [row.index(max(row)) for row in rows]
    pairs = list(zip(guesses, labels, strict=True))
    f1 = []
    for label in sorted({*guesses, *labels}):
        hits = sum(guess == truth == label for guess, truth in pairs)
        f1.append(2 * hits / (guesses.count(label) + labels.count(label)))
    areas = []
    for label in sorted(set(labels)):
        ones = [row[label] for row, truth in zip(rows, labels, strict=True) if truth == label]
        others = [row[label] for row, truth in zip(rows, labels, strict=True) if truth != label]
        wins = [(one > other) + 0.5 * (one == other) for one in ones for other in others]
        if wins:
            areas.append(math.fsum(wins) / len(wins))
    return {
        "accuracy": sum(guess == truth for guess, truth in pairs) / len(pairs),
        "macro_f1": math.fsum(f1) / len(f1),
        "auc": math.fsum(areas) / len(areas) if areas else math.nan,
    }


def assert_number(actual, wanted, what, tolerance=1e-5):
    value = float(actual)
    assert math.isclose(value, wanted, rel_tol=tolerance, abs_tol=tolerance), (
        f"{what} is {value:.7g}, not {wanted:.7g}"
    )


def measured(impl, scores, labels, sizes):
    """What the metrics are if the examples come in batches of these sizes, again and again."""
    metrics = impl.ClassMetrics(scores.shape[1])
    start, turns = 0, itertools.cycle(sizes)
    while start < len(labels):
        end = start + next(turns)
        metrics.update(scores[start:end], labels[start:end])
        start = end
    return metrics.compute()


def assert_metrics(actual, wanted, what):
    for name in METRICS[1:]:
        assert_number(actual[name], wanted[name], f"{name} {what}", 1e-6)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_state(model, wanted, what, tolerance=0.0):
    state = model if isinstance(model, dict) else model.state_dict()
    assert list(state) == list(wanted), f"{what}: {list(state)}"
    for name, value in state.items():
        assert_matches(value, wanted[name], f"{name} {what}", rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def log(impl):
    """The log of one whole run."""
    return [dict(line) for line in impl.run()]


@pytest.fixture(scope="module")
def trained(impl):
    """A model that knows a little, and a validation set."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        generator = torch.Generator().manual_seed(7)
        train_set, val_set = impl.make_corpus(120, generator), impl.make_corpus(61, generator)
        model = impl.LanguageModel(VOCABULARY)
        list(impl.train(model, train_set, val_set, steps=60, generator=generator, eval_every=60))
    return model, val_set


# Symptoms


# What a healthy run ends with; of 50 seeds the extremes are 2.16 and 2.34 for the loss, 8.98 and
# 9.55 for the perplexity, 0.89 and 0.973, 0.769 and 0.966, and 0.989 and 0.999.
HEALTHY = {
    "loss": (1.9, 2.6),
    "val_perplexity": (8.6, 9.9),
    "val_accuracy": (0.83, 1),
    "val_macro_f1": (0.62, 1),
    "val_auc": (0.97, 1),
}


@pytest.mark.symptom
def test_a_run_goes_as_a_healthy_one_does(log):
    off = []
    if len(log) != STEPS:
        off.append(f"it ends after {len(log)} steps, and not after {STEPS}")
    for name, (low, high) in HEALTHY.items():
        value = float(log[-1].get(name, math.nan))
        if not low <= value <= high:
            off.append(f"it ends with {name} {value:.3f}, a healthy one within {low} and {high}")
    assert not off, "this run is not healthy: " + "; ".join(off)


@pytest.mark.symptom
def test_a_batch_of_one_is_as_good_as_a_batch_of_eight(impl, trained):
    model, corpus = trained
    wanted = impl.evaluate(model, corpus, batch_size=1)
    for size in (8, 7, 100):
        found = impl.evaluate(model, corpus, batch_size=size)
        for name in METRICS:
            assert math.isclose(found[name], wanted[name], rel_tol=1e-4), (
                f"the same model and the same {len(corpus[1])} documents: {name} is "
                f"{wanted[name]:.4f} in batches of 1, and {found[name]:.4f} in batches of {size}"
            )
    # Answers in the order in which they came in, topic by topic, or without those of one topic.
    labels = torch.multinomial(torch.tensor([5.0, 3.0, 1.0, 1.0]), 200, True)
    scores = (torch.randn(200, 4) + F.one_hot(labels, 4)).mul(4).round() / 8
    scores += torch.tensor([0.0, 0.01, 0.02, 0.03])
    for what, rows in (
        ("as they come", torch.arange(200)),
        ("topic by topic", labels.argsort()),
        (
            "all but those with or for topic 3",
            ((labels < 3) & (scores.argmax(1) < 3)).nonzero()[:, 0],
        ),
    ):
        wanted = metrics_by_hand(scores[rows], labels[rows])
        for size in (200, 50, 8, 7, 1):
            found = measured(impl, scores[rows], labels[rows], [size])
            for name in METRICS[1:]:
                assert math.isclose(found[name], wanted[name], rel_tol=1e-4), (
                    f"answers, {what}, in batches of {size}: {name} is {found[name]:.4f}; "
                    f"counted by hand it is {wanted[name]:.4f}"
                )


@pytest.mark.symptom
def test_the_numbers_are_those_of_reading_one_token_at_a_time(impl, trained):
    model, (documents, topics) = trained
    documents, topics = documents[:24], topics[:24]
    found = impl.evaluate(model, (documents, topics))
    wanted = {"perplexity": perplexity_by_hand(model, documents, 24, 12)}
    wanted |= metrics_by_hand(probabilities_by_hand(model, documents, 24), topics)
    for name in METRICS:
        assert math.isclose(found[name], wanted[name], rel_tol=1e-4), (
            f"{name} of 24 documents is {found[name]:.4f}, "
            f"and {wanted[name]:.4f} if the model is asked about one token at a time"
        )


@pytest.mark.symptom
def test_evaluation_leaves_no_trace_in_training(impl):
    torch.default_generator.manual_seed(5)
    start, train_set, val_set = Reader(), small_set(9), small_set(4)

    def losses(every):
        torch.default_generator.manual_seed(6)
        lines = train_on(
            impl, copy.deepcopy(start), train_set, val_set, 9, eval_every=every, patience=99
        )
        return [float(line["loss"]) for line in lines]

    rarely = losses(9)
    for every in (4, 1):
        often = losses(every)
        assert often == rarely, (
            f"with an evaluation every {every} steps the losses of training are "
            f"{[round(x, 3) for x in often]}, and without {[round(x, 3) for x in rarely]}"
        )

    # Training goes on after an evaluation that was broken off.
    model = copy.deepcopy(start)
    ema = impl.EMA(model, 0.9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update()
    before, modes = weights(model), [module.training for module in model.modules()]
    with contextlib.suppress(KeyboardInterrupt), ema.average_weights(), impl.evaluating(model):
        raise KeyboardInterrupt
    what = "after an evaluation that was interrupted"
    assert [module.training for module in model.modules()] == modes, f"other modes {what}"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} is another one {what}"


@pytest.mark.symptom
def test_a_training_that_only_gets_worse_is_stopped_and_its_best_model_left(impl, trained):
    # Validation speaks another language: all that is learned makes it worse.
    torch.default_generator.manual_seed(8)
    _, (documents, topics) = trained
    other = ([11 - document for document in documents[:20]], (topics[:20] + 1) % 4)
    model = impl.LanguageModel(VOCABULARY)
    lines = [
        dict(line)
        for line in train_on(impl, model, (documents, topics), other, 120, eval_every=4, patience=3)
    ]
    values = [line["val_perplexity"] for line in lines if "val_perplexity" in line]
    best = values.index(min(values))
    told = ", ".join(f"{value:.2f}" for value in values)
    assert len(values) == best + 4, (
        f"with a patience of 3 and validation perplexities of {told}, "
        f"training was stopped after {len(values)} evaluations"
    )
    # Up and down on the way to something better is no reason to stop, and no progress is one.
    for course, wanted in (([8, 6, 7, 5, 6, 3, 4, 2, 3, 1], None), ([8, 6, 5, 5, 5, 5], 4)):
        said, _ = offer(impl, map(float, course), 2, "min")
        stop = said.index(True) if True in said else None
        assert stop == wanted, (
            f"validation perplexities of {course}, with a patience of 2, stop the training "
            f"{'nowhere' if stop is None else f'at number {stop + 1}'}"
        )
    left = impl.evaluate(model, other)["perplexity"]
    assert math.isclose(left, values[best], rel_tol=1e-4), (
        f"validation perplexities were {told}; the model that is left has {left:.2f}"
    )


@pytest.mark.symptom
def test_the_average_is_calm_where_the_model_is_not(impl):
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    start = weights(model)
    ema = impl.EMA(model, 0.9)
    swings = []
    for update in range(100):
        with torch.no_grad():
            model[0].bias.copy_(start["0.bias"] + (-1) ** update)
        ema.update()
        with ema.average_weights():
            swings.append((model[0].bias - start["0.bias"])[0].item())
    largest = max(map(abs, swings[-20:]))
    assert largest < 0.2, (
        "a bias jumps between 1 above and 1 below where it started; its average, after 100 "
        f"updates, is still up to {largest:.2f} away"
    )
    # A young one forgets where it began.
    young = nn.Linear(1, 1)
    ema_of_young = impl.EMA(young, 0.9)
    with torch.no_grad():
        young.bias.add_(1)
    for _ in range(20):
        ema_of_young.update()
    now = young.bias.item()
    with ema_of_young.average_weights():
        behind = now - young.bias.item()
    assert abs(behind) < 0.01, (
        "a bias has risen by 1 in its first step and not moved since; its average, after 20 "
        f"updates, is still {behind:.2f} behind"
    )
    # Then the model stands still, somewhere else.
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(2)
    for _ in range(150):
        ema.update()
    x = torch.randn(7, 3)
    model.eval()
    with ema.average_weights():
        average = model(x)
    difference = (average - model(x)).abs().max().item()
    assert difference < 0.01, (
        "a model has stood still for 150 updates of its average, and the two differ by up to "
        f"{difference:.3f} in what they say"
    )


# Checks: modes and gradients


def test_evaluation_mode_and_back(impl):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()))
    model.add_module("again", model[0])
    for training in itertools.product((True, False), repeat=5):
        modules = list(model.modules())
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
        with impl.evaluating(model):
            inside = [module.training for module in modules]
            assert not any(inside), f"training modes within the block: {inside}"
        after = tuple(module.training for module in modules)
        assert after == training, f"training modes were {training}, and are {after} afterwards"


def test_modes_and_grad_mode_come_back_after_an_exception(impl):
    for grad, mode in itertools.product((True, False), repeat=2):
        model = Reader().train(mode)
        model.norm.train(not mode)
        with torch.set_grad_enabled(grad):
            enabled = []
            with pytest.raises(ZeroDivisionError), impl.evaluating(model):
                enabled.append(torch.is_grad_enabled()) or 1 / 0
            assert enabled == [False], "gradients are recorded within the block"
            assert torch.is_grad_enabled() == grad, "another grad mode afterwards"
        modes = (model.training, model.dropout.training, model.norm.training)
        assert modes == (mode, mode, not mode), f"the modes after an exception are {modes}"


def test_modes_that_a_block_changes_come_back(impl):
    for mode in (True, False):
        model = Reader().train(mode)
        model.norm.train(not mode)
        with impl.evaluating(model):
            model.train(not mode)
            model.norm.train(mode)
            torch.set_grad_enabled(True)
        modes = (model.training, model.dropout.training, model.norm.training)
        assert modes == (mode, mode, not mode), (
            f"the modes after a block that changes them: {modes}"
        )
        assert torch.is_grad_enabled(), "another grad mode afterwards"


def test_blocks_of_evaluation_within_each_other(impl):
    model = Reader()
    with impl.evaluating(model):
        with impl.evaluating(model):
            pass
        assert not model.training, "the inner block ends the outer one's mode"
        assert not torch.is_grad_enabled(), "the inner block ends the outer one's grad mode"
    assert (model.training, model.norm.training) == (True, False)


def calls(impl, model, corpus):
    """Each way to evaluate a model."""
    documents, topics = corpus
    return {
        "perplexity": lambda size: impl.perplexity(model, documents, 24, 12, size),
        "class_probabilities": lambda size: impl.class_probabilities(model, documents, 24, size),
        "evaluate": lambda size: impl.evaluate(model, (documents, topics), size),
    }


def small_set(count):
    lengths = torch.randint(2, 40, (count,)).tolist()
    return some_documents(*lengths), torch.arange(count) % 4


def test_an_evaluation_changes_nothing(impl):
    for mode in (True, False):
        model = Reader().train(mode)
        model.norm.train(not mode)
        model(torch.randint(12, (3, 5))).square().sum().backward()
        model.last.weight.requires_grad_(False)
        state = weights(model)
        grads = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
        documents, topics = small_set(5)
        for name, call in calls(impl, model, (documents, topics)).items():
            model.seen.clear()
            before = torch.get_rng_state()
            inputs = {f"document {i}": document for i, document in enumerate(documents)}
            with unchanged(topics=topics, **inputs):
                call(3)
            assert model.seen, f"{name} does not ask the model"
            for _, modes, grad in model.seen:
                assert modes == [False] * 3, f"{name}: training modes {modes} in a forward pass"
                assert not grad, f"{name}: a forward pass records a graph"
            assert torch.equal(torch.get_rng_state(), before), f"{name} draws random numbers"
            assert torch.is_grad_enabled(), f"{name} leaves another grad mode"
            modes = (model.training, model.dropout.training, model.norm.training)
            assert modes == (mode, mode, not mode), f"{name} leaves modes {modes}"
            assert_state(model, state, f"after {name}")
            for key, p in model.named_parameters():
                assert p.grad is not None, f"{name} takes the gradient of {key}"
                assert_matches(p.grad, grads[key][1], f"gradient of {key} after {name}", rtol=0)
                assert p.requires_grad == (key != "last.weight"), f"{name}: requires_grad of {key}"


def test_no_forward_pass_is_larger_than_asked(impl):
    model = Reader()
    corpus = (some_documents(70, 30, 5, 1, 25, 24, 49, 2, 60, 3), torch.arange(10) % 4)
    for name, call in calls(impl, model, corpus).items():
        for size in (1, 3, 8):
            model.seen.clear()
            call(size)
            rows, length = (max(ids.shape[axis] for ids, *_ in model.seen) for axis in (0, 1))
            assert rows <= size, f"{name}: {rows} rows in a batch, batch_size={size}"
            assert length <= 24, f"{name}: {length} tokens in a row, and the window has 24"
    model.seen.clear()
    impl.perplexity(model, corpus[0], 6, 2)
    impl.class_probabilities(model, corpus[0], 6)
    assert max(len(ids) for ids, *_ in model.seen) <= 8, "batch_size is 8 where it is not given"
    assert max(ids.shape[1] for ids, *_ in model.seen) <= 6, "rows are longer than the window"


# Perplexity


@pytest.mark.parametrize(
    ("window", "stride"), [(2, 1), (5, 1), (5, 2), (5, 4), (6, 3), (9, 7), (8, 4), (40, 13)]
)
def test_perplexity_by_hand(impl, window, stride):
    model = Reader()
    lengths = [1, 2, 3, window, window + 1, window + 2, window + stride, window + stride + 1, 31]
    documents = some_documents(*lengths)
    wanted = perplexity_by_hand(model, documents, window, stride)
    for size in (1, 2, 8, 100):
        found = impl.perplexity(model, documents, window, stride, size)
        assert isinstance(found, float), f"it is a {type(found).__name__}"
        what = f"window={window}, stride={stride}, batch_size={size}: the perplexity"
        assert_number(found, wanted, what)


def test_perplexity_of_one_document(impl):
    model = Reader()
    for window, stride in ((2, 1), (6, 2), (7, 6), (20, 5)):
        for length in (2, window - 1, window, window + 1, window + stride, window + stride + 1, 33):
            document = torch.randint(12, (max(length, 2),))
            wanted = perplexity_by_hand(model, [document], window, stride)
            found = impl.perplexity(model, [document], window=window, stride=stride)
            what = f"the perplexity of {len(document)} tokens, window={window}, stride={stride},"
            assert_number(found, wanted, what)


def test_each_token_counts_once(impl):
    class Surprised(nn.Module):
        """One token is a surprise, wherever it comes; all others are equally likely."""

        def forward(self, ids):
            return torch.zeros(*ids.shape, 16).index_fill(2, torch.tensor(7), -40.0)

    for length, window, stride in ((19, 6, 2), (16, 5, 4), (23, 9, 3), (8, 24, 12)):
        for place in range(length):
            document = torch.ones(length, dtype=torch.int64)
            document[place] = 7
            others = [torch.ones(size, dtype=torch.int64) for size in (3, 11)]
            found = impl.perplexity(Surprised(), [document, *others], window, stride, 3)
            count = length - 1 + 2 + 10
            times = (math.log(found) - math.log(15)) * count / 40
            wanted = 1 if place else 0
            assert abs(times - wanted) < 1e-4, (
                f"window={window}, stride={stride}: token {place} of {length}, counted from 0, "
                f"adds {times:.3f} times its likelihood, not {wanted}, if {count} tokens are scored"
            )


def test_padding_is_told_by_its_place(impl):
    model = Reader()
    documents = some_documents(9, 14, 3, 22)
    for document in documents:
        document[::3] = 0
        document[-2:] = 0
    wanted = perplexity_by_hand(model, documents, 10, 4)
    for size in (1, 3, 50):
        found = impl.perplexity(model, documents, 10, 4, batch_size=size)
        assert_number(
            found, wanted, f"batch_size={size}: the perplexity, with token 0 in the text,"
        )


def test_every_token_counts_the_same(impl):
    # One long document that is hard, and many short ones that are easy.
    model = Reader()
    with torch.no_grad():
        model.last.weight[3] = 0
        model.last.weight[3, 3] = 12
        model.past.weight[3] = 0
    documents = [*some_documents(58), *(torch.full((length,), 3) for length in (2, 3, 2, 4, 2, 3))]
    wanted = perplexity_by_hand(model, documents, 12, 5)
    for order in (documents, documents[::-1]):
        for size in (1, 2, 5, 30):
            found = impl.perplexity(model, order, 12, 5, size)
            assert_number(found, wanted, f"batch_size={size}: the perplexity")


def test_a_model_that_knows_nothing(impl):
    class Nothing(nn.Module):
        def forward(self, ids):
            return torch.zeros(*ids.shape, 16)

    documents = some_documents(5, 1, 44, 17)
    for window, stride, size in ((24, 12, 8), (7, 1, 3), (100, 99, 1)):
        found = impl.perplexity(Nothing(), documents, window, stride, size)
        what = f"window={window}, stride={stride}: the perplexity where 16 tokens are as likely"
        assert_number(found, 16.0, what)


def test_very_unlikely_tokens(impl):
    class Sure(nn.Module):
        def forward(self, ids):
            return 150.0 * F.one_hot(ids, 16)  # the same token again

    documents = [torch.tensor([1, 1, 1, 2, 2, 2, 2]), torch.tensor([5, 5, 5])]
    # Of eight tokens one is another, with a likelihood of exp(-150).
    found = impl.perplexity(Sure(), documents, 5, 2)
    assert_number(math.log(found), 150 / 8, "the log of the perplexity")


def test_logits_of_low_precision(impl):
    class Low(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Reader()

        def forward(self, ids):
            return self.inner(ids).to(torch.bfloat16)

    model = Low()
    documents = some_documents(30, 21, 26)
    wanted = perplexity_by_hand(model, documents, 8, 3)
    what = "the perplexity from logits in bfloat16"
    assert_number(impl.perplexity(model, documents, 8, 3), wanted, what, 1e-4)
    wanted = probabilities_by_hand(model, documents, 8)
    found = impl.class_probabilities(model, documents, 8)
    what = "probabilities from logits in bfloat16"
    assert_matches(found, wanted.float(), what, rtol=1e-4, atol=1e-5)


def test_documents_of_any_layout(impl):
    model = Reader()
    wide = torch.randint(12, (19, 5))
    documents = tuple(wide[:, column] for column in range(5))
    wanted = perplexity_by_hand(model, documents, 7, 3)
    assert_number(impl.perplexity(model, documents, 7, 3), wanted, "the perplexity of columns")
    found = impl.class_probabilities(model, documents, 7)
    wanted = probabilities_by_hand(model, documents, 7).float()
    assert_matches(found, wanted, "the probabilities of columns", rtol=1e-4, atol=1e-5)


# Topics


def test_class_probabilities_by_hand(impl):
    model = Reader()
    documents = some_documents(1, 2, 13, 24, 25, 40, 7, 3)
    documents[2][-3:] = 0
    for window in (1, 6, 24, 100):
        wanted = probabilities_by_hand(model, documents, window).float()
        for size in (1, 3, 8, 50):
            found = impl.class_probabilities(model, documents, window, batch_size=size)
            what = f"window={window}, batch_size={size}: the chances of the classes"
            assert_matches(found, wanted, what, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad, "they hold on to a graph"


def test_class_tokens_that_are_very_unlikely(impl):
    class Shy(Reader):
        """It would rather go on than name a class."""

        def forward(self, ids):
            logits = super().forward(ids)
            return torch.cat([logits[..., :12], logits[..., 12:] - 500], dim=-1)

    model, documents = Shy(), some_documents(3, 9, 30)
    wanted = probabilities_by_hand(model, documents, 24).float()
    found = impl.class_probabilities(model, documents, 24)
    what = "the chances of class tokens of which none is likely"
    assert_matches(found, wanted, what, rtol=1e-4, atol=1e-5)


# Metrics


@pytest.mark.parametrize("number", range(3), ids=["plain", "no-label", "nowhere"])
def test_metrics_are_those_of_scikit_learn(impl, number):
    case = golden("evaluation.json")[number]
    scores = torch.tensor(case["scores"], dtype=torch.float64)
    labels = torch.tensor(case["labels"])
    for dtype in (torch.float64, torch.float32):
        for sizes in ([1000], [8], [7], [1], [30, 1, 5]):
            found = measured(impl, scores.to(dtype), labels, sizes)
            assert set(found) == set(METRICS[1:]), f"it has {sorted(found)}"
            assert all(isinstance(value, float) for value in found.values()), f"{found}"
            assert_metrics(found, case, f"of {len(labels)} examples in batches of {sizes}")


def test_metrics_by_hand(impl):
    for classes, size in ((2, 9), (3, 25), (5, 60), (7, 12)):
        labels = torch.randint(classes, (size,))
        labels[:2] = torch.tensor([0, classes - 1])
        # Scores on a grid of their own for each column: ties within columns, none within rows.
        scores = torch.randint(-4, 5, (size, classes)).double()
        scores += torch.rand(1).item() * F.one_hot(labels, classes) * 8
        scores = scores.round() + torch.arange(classes) / 16
        wanted = metrics_by_hand(scores, labels)
        for rows in (torch.randperm(size), labels.argsort(), (-labels).argsort()):
            for sizes in ([size], [4], [1], [3, 0, 2]):
                found = measured(impl, scores[rows], labels[rows], sizes)
                assert_metrics(found, wanted, f"of {size} examples, batches of {sizes}")


def test_the_area_is_one_of_ranks(impl):
    labels = torch.randint(3, (50,))
    labels[:3] = torch.arange(3)
    scores = torch.randn(50, 3).mul(3).round().div(4) + torch.arange(3) / 64
    wanted = metrics_by_hand(scores, labels)["auc"]
    changed = {
        "as they are": scores,
        "halved": scores / 2,
        "shifted": scores + 100,
        "as exponentials": scores.double().exp(),
        "each column scaled and shifted": scores * torch.tensor([1.0, 5.0, 0.5]) - scores.mean(0),
        "close together": 1 + scores.double() * 1e-12,
    }
    for what, rows in changed.items():
        for size in (50, 6):
            found = measured(impl, rows, labels, [size])["auc"]
            assert_number(found, wanted, f"scores {what}, batches of {size}: auc", 1e-9)


@pytest.mark.parametrize("size", [40, 9])
def test_areas_that_are_known(impl, size):
    labels = torch.arange(40) % 2
    sure = F.one_hot(labels, 2).float()
    for what, scores, wanted in (
        ("are the same for all", torch.tensor([[0.25, 0.75]]).expand(40, 2), 0.5),
        ("are right", sure, 1.0),
        ("are the wrong way round", 1 - sure, 0.0),
    ):
        for rows in (torch.arange(40), labels.argsort(), (-labels).argsort()):
            found = measured(impl, scores[rows], labels[rows], [size])["auc"]
            assert_number(found, wanted, f"scores {what}: auc", 1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_low_precision(impl, dtype):
    labels = torch.arange(48) % 3
    scores = torch.randn(48, 3).mul(4).round().div(4) + torch.tensor([0, 1, 2]) / 16
    scores = scores.to(dtype)
    found = measured(impl, scores, labels, [11])
    assert_metrics(found, metrics_by_hand(scores, labels), f"of scores in {dtype}")


def test_one_class_alone_has_no_area(impl):
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.8, 0.2, 0.3], [0.0, 0.3, 0.1]])
    found = measured(impl, scores, torch.tensor([1, 1, 1]), [2])
    assert math.isnan(found["auc"]), f"all labels are 1: auc is {found['auc']}, not NaN"
    assert_number(found["accuracy"], 2 / 3, "all labels are 1: accuracy")
    assert_number(found["macro_f1"], (0 + 2 * 2 / 5) / 2, "all labels are 1: macro_f1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_metrics_go_on(impl, dtype):
    scores = torch.randn(30, 4, dtype=dtype)
    labels = torch.arange(30) % 4
    metrics, other = impl.ClassMetrics(4), impl.ClassMetrics(4)
    buffer, target = torch.empty(10, 4, dtype=dtype), torch.empty(10, dtype=torch.int64)
    for end in (10, 20, 30):
        # A loader may fill the same memory again.
        buffer.copy_(scores[end - 10 : end])
        target.copy_(labels[end - 10 : end])
        with unchanged(scores=buffer, labels=target):
            metrics.update(buffer, target)
            other.update(-buffer, target)
        wanted = metrics_by_hand(scores[:end], labels[:end])
        for _ in range(2):
            found = metrics.compute()
            assert_metrics(found, wanted, f"after {end} examples")
    assert_metrics(other.compute(), metrics_by_hand(-scores, labels), "of the other one")
    asking = scores.clone().requires_grad_()
    found = measured(impl, asking * 1, labels, [11])
    assert_metrics(found, metrics_by_hand(scores, labels), "of scores with a graph")


def test_evaluate_by_hand(impl):
    model = Reader()
    documents, topics = some_documents(3, 30, 58, 24, 12, 37, 2, 19, 41), torch.arange(9) % 4
    topics[:4] = 2
    for corpus in ((documents, topics), (documents[:8], topics[:8] % 2)):
        probabilities = probabilities_by_hand(model, corpus[0], 24)
        wanted = {"perplexity": perplexity_by_hand(model, corpus[0], 24, 12)}
        wanted |= metrics_by_hand(probabilities, corpus[1])
        for size in (1, 4, 8, 100):
            found = impl.evaluate(model, corpus, batch_size=size)
            assert set(found) == set(METRICS), f"it has {sorted(found)}"
            assert all(isinstance(value, float) for value in found.values()), f"{found}"
            for name in METRICS:
                assert_number(found[name], wanted[name], f"batch_size={size}: {name}")


# Averages


class Various(nn.Module):
    """Parameters that are free, frozen and tied, and buffers of two dtypes."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.embed = nn.Embedding(6, 2, dtype=torch.float64)
        self.head = nn.Linear(2, 6, bias=False, dtype=torch.float64)
        self.head.weight = self.embed.weight

    @torch.no_grad()
    def move(self):
        for p in self.parameters():
            p.add_(torch.randn_like(p))
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.norm.num_batches_tracked.add_(3)


def averages(states, decay):
    """The average after each of these states of a model, the first of which it started from."""
    average = dict(states[0])
    for count, state in enumerate(states[1:], 1):
        share = min(decay, (1 + count) / (10 + count))
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = share * average[name] + (1 - share) * value
            else:
                average[name] = value
    return average


@pytest.mark.parametrize("decay", [0.999, 0.3, 0.0])
def test_the_average_by_hand(impl, decay):
    model = Various()
    ema = impl.EMA(model, decay)
    other_model = Various()
    other = impl.EMA(other_model, decay)
    states, other_states = [weights(model)], [weights(other_model)]
    for updates in range(8):
        own = weights(model)
        with ema.average_weights():
            what = f"in the model after {updates} updates with decay={decay}"
            assert_state(model, averages(states, decay), what, 1e-5)
        assert_state(model, own, "given back")
        if updates == 3:
            with other.average_weights():
                assert_state(other_model, averages(other_states, decay), "of another model", 1e-5)
        model.move()
        other_model.move()
        states.append(weights(model))
        ema.update()
        assert_state(model, states[-1], "after an update of the average")
        if updates < 3:
            other_states.append(weights(other_model))
            other.update()


def test_many_updates(impl):
    model = nn.Linear(2, 1)
    ema = impl.EMA(model, 0.95)
    states = [weights(model)]
    for _ in range(230):  # the decay has its full value from 170 on
        with torch.no_grad():
            model.weight.add_(torch.rand(1, 2))
        states.append(weights(model))
        ema.update()
    with ema.average_weights():
        assert_state(model, averages(states, 0.95), "after 230 updates", 1e-4)


def test_a_young_average(impl):
    for decay in (0.9, 0.15, 0.22):
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.zero_()
        ema, wanted = impl.EMA(model, decay), 0.0
        with torch.no_grad():
            model.weight.fill_(1)
        for share in (2 / 11, 3 / 12, 4 / 13):
            ema.update()
            share = min(share, decay)
            wanted = share * wanted + 1 - share
            with ema.average_weights():
                found = model.weight.item()
            what = f"decay={decay}: a weight goes from 0 to 1, and its average"
            assert_number(found, wanted, what)


def test_buffers_are_averaged(impl):
    model = nn.BatchNorm1d(3, affine=False)
    ema = impl.EMA(model, 0.6)
    states = [weights(model)]
    for _ in range(9):
        model(torch.randn(8, 3) * 3 + 5)
        ema.update()
        states.append(weights(model))
        with ema.average_weights():
            assert_state(model, averages(states, 0.6), "of the average", 1e-5)


def test_weights_are_given_back(impl):
    model = Various()
    ema = impl.EMA(model, 0.9)
    model.move()
    ema.update()
    sum(p.sum() for p in model.parameters()).backward()
    model.norm.eval()
    objects = [*model.parameters(), *model.buffers()]
    asks = [p.requires_grad for p in model.parameters()]
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    own = weights(model)
    for error in (None, ZeroDivisionError, KeyboardInterrupt):
        with contextlib.ExitStack() as stack:
            if error:
                stack.enter_context(pytest.raises(error))
            stack.enter_context(ema.average_weights())
            lent = weights(model)
            assert not torch.equal(lent["inner.weight"], own["inner.weight"])
            model.move()  # what happens in the block is undone
            if error:
                raise error
        what = f"after a block that ends with {error.__name__ if error else 'nothing special'}"
        assert_state(model, own, what)
        with ema.average_weights():
            assert_state(model, lent, f"in a block {what}")
    now = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(objects, now, strict=True)), (
        "the model has other parameters or buffers than before, which no optimiser knows"
    )
    assert model.head.weight is model.embed.weight, "tied weights are no longer tied"
    assert [p.requires_grad for p in model.parameters()] == asks, "requires_grad has changed"
    assert (model.training, model.norm.training) == (True, False), "modes have changed"
    for name, p in model.named_parameters():
        if name in grads:
            assert p.grad is not None, f"the gradient of {name} is gone"
            assert_matches(p.grad, grads[name], f"the gradient of {name}", rtol=0, atol=0)


def test_a_block_may_be_in_any_grad_mode(impl):
    model = nn.Linear(2, 3)
    ema = impl.EMA(model, 0.5)
    with ema.average_weights():
        assert torch.is_grad_enabled(), "a block of average weights turns gradients off"
        model(torch.ones(2)).sum().backward()
    model(torch.ones(2)).sum().backward()
    with torch.no_grad():
        ema.update()
        with ema.average_weights():
            assert not torch.is_grad_enabled()


# The best model


def offer(impl, values, patience, mode):
    """Offer models, in which the weight is the number of the value; return when it said stop."""
    model = nn.BatchNorm1d(1)
    best = impl.BestModel(patience, mode)
    said, kept, any_yet = [], [], False
    for number, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(number)
            model.running_mean.fill_(number)
        said.append(bool(best.update(value, model)))
        any_yet |= not math.isnan(value)
        if any_yet:
            numbers = {int(best.state[name].item()) for name in ("weight", "running_mean")}
            kept.append((numbers, best.value))
        else:
            kept.append(None)
    return said, kept


def stops(values, patience, mode):
    """When to stop, and the number of the best value at each time, in plain Python."""
    said, best, at = [], None, -1
    for number, value in enumerate(values):
        if not math.isnan(value) and (
            best is None or (value < best if mode == "min" else value > best)
        ):
            best, at = value, number
        said.append((number - at >= patience, at, best))
    return said


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_when_to_stop_and_what_to_keep(impl, patience, mode):
    lists = [
        [5.0, 4.0, 3.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0],
        [3.0, 4.0, 2.5, 3.5, 2.0, 2.9, 2.8, 2.7, 2.6, 1.0, 1.0, 5.0],
        [0.2, 0.5, 0.4, 0.45, 0.6, 0.1, 0.59, 0.7, 0.7, 0.7, 0.7],
        [-1.0, -2.0, -1.5, -0.5, -0.6, -3.0],
        [0.0, 0.0, -0.0, 1.0],
        [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 8.0, 7.0, 3.0, 9.0, 1.0, 9.0],
        [2.0, math.nan, 1.0, math.nan, math.nan, math.nan, 3.0, 0.5],
        torch.rand(15).tolist(),
    ]
    for values in lists:
        said, kept = offer(impl, values, patience, mode)
        for number, (stop, at, best) in enumerate(stops(values, patience, mode)):
            what = f"mode={mode}, patience={patience}, values {values[: number + 1]}"
            assert said[number] == stop, f"{what}: it says {'stop' if said[number] else 'go on'}"
            assert kept[number] == ({at}, best), (
                f"{what}: it keeps the model of {kept[number][0]} and value {kept[number][1]}, "
                f"and should keep that of {at} with {best}"
            )


def test_the_first_of_equals(impl):
    for mode, values in (("max", [0.5, 1.0, 1.0, 1.0, 1.0]), ("min", [2.0, 1.0, 1.0, 1.0, 1.0])):
        said, kept = offer(impl, values, 3, mode)
        assert said == [False, False, False, False, True], f"{values}, patience 3: it says {said}"
        assert kept[-1][0] == {1}, f"{values}: it keeps the model of {kept[-1][0]}"


def test_values_that_are_no_numbers_are_not_the_best(impl):
    for mode in ("min", "max"):
        said, kept = offer(impl, [math.nan, math.nan, 7.0, 7.0, 7.0], 2, mode)
        assert said == [False, True, False, False, True], f"mode={mode}: it says stop at {said}"
        assert kept[-1] == ({2}, 7.0), f"mode={mode}: it keeps {kept[-1]}"


def test_what_is_kept_is_a_copy(impl):
    model = Various()
    best = impl.BestModel(4)
    best.update(3.0, model)
    own = weights(model)
    model.move()
    assert_state(best.state, own, "of the best model, after another step")
    best.update(4.0, model)
    assert_state(best.state, own, "of the best model, after a worse one")
    fresh = Various()
    fresh.load_state_dict(best.state)
    with torch.no_grad():
        for value in fresh.state_dict().values():
            value.add_(1)
    assert_state(best.state, own, "of the best model, after it was loaded")


# Training


def train_on(impl, model, train_set, val_set, steps, generator=None, **options):
    generator = generator or torch.Generator().manual_seed(11)
    return impl.train(model, train_set, val_set, steps=steps, generator=generator, **options)


def rows_of(ids, corpus):
    """The numbers of the documents in a batch: no two of a corpus begin with the same tokens."""
    numbers = []
    for row in ids.tolist():
        found = [
            number
            for number, document in enumerate(corpus[0])
            if row[: len(document)] == document.tolist()
        ]
        assert len(found) == 1, f"a batch has the row {row}, which is no document"
        numbers.append(found[0])
    return numbers


def numbered_set(count):
    """Documents that begin with their number, of different lengths."""
    documents, topics = small_set(count)
    for number, document in enumerate(documents):
        document[:2] = torch.tensor([1 + number // 11, 1 + number % 11])
    return documents, topics


def loss_by_hand(model, corpus, numbers):
    """The mean loss of all tokens of these documents, each alone, with the class token after."""
    total, count = 0.0, 0
    for number in numbers:
        document = corpus[0][number]
        targets = torch.cat([document[1:], 12 + corpus[1][number].view(1)])
        total = total + F.cross_entropy(model(document.clone()[None])[0], targets, reduction="sum")
        count += len(targets)
    return total / count


def calm(model):
    """A model without chance: no dropout."""
    model.dropout.p = 0.0
    return model


def test_steps_and_evaluations_of_training(impl):
    train_set, val_set = numbered_set(20), small_set(5)
    model = calm(Reader())
    shadow = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(shadow.parameters(), lr=5e-3)
    states = [weights(model)]
    for p in model.parameters():  # left over from something else
        p.grad = torch.full_like(p, 3.0)
    lines = train_on(impl, model, train_set, val_set, 7, eval_every=3, patience=9)
    drawn = []
    done = 0
    for step, line in enumerate(lines, 1):
        batches = [ids for ids, modes, grad in model.seen[done:] if grad]
        done = len(model.seen)
        numbers = [number for ids in batches for number in rows_of(ids, train_set)]
        assert len(numbers) == 16, f"step {step} has {len(numbers)} documents, not 16"
        drawn += numbers
        loss = loss_by_hand(shadow, train_set, numbers)
        assert_number(line["loss"], loss.item(), f"the loss of step {step}", 1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert all(isinstance(value, float) for value in line.values()), f"no float in {line}"
        wanted = {"loss"}
        if step in (3, 6, 7):
            wanted |= {f"val_{name}" for name in METRICS}
        assert set(line) == wanted, f"the line of step {step} has {sorted(line)}"
        states.append(weights(shadow))
        if step < 7:  # after the last step the best model may be there already
            assert_state(model, states[-1], f"after step {step}", 1e-4)
        if step in (3, 6, 7):
            average = copy.deepcopy(shadow)
            average.load_state_dict(averages(states, 0.9))
            value = perplexity_by_hand(average, val_set[0], 24, 12)
            what = f"val_perplexity after step {step}, of the averaged weights,"
            assert_number(line["val_perplexity"], value, what, 1e-4)
            scores = metrics_by_hand(probabilities_by_hand(average, val_set[0], 24), val_set[1])
            for name in METRICS[1:]:
                assert_number(line[f"val_{name}"], scores[name], f"val_{name} after step {step}")
    assert step == 7, f"steps=7, and the log has {step} lines"
    assert len(set(drawn)) > 14, f"in 7 steps of 16 only the documents {sorted(set(drawn))}"


def test_training_is_in_the_modes_that_the_model_has(impl):
    for mode in (True, False):
        model = Reader().train(mode)
        model.norm.train(not mode)
        list(train_on(impl, model, numbered_set(9), small_set(4), 5, eval_every=2))
        modes = [modes for _, modes, grad in model.seen if grad]
        assert modes == [[mode, mode, not mode]] * len(modes), f"the modes of steps: {modes}"
        now = [model.training, model.dropout.training, model.norm.training]
        assert now == [mode, mode, not mode], f"the modes afterwards: {now}"


@pytest.mark.parametrize("monitor", METRICS)
@pytest.mark.parametrize("contrary", [False, True], ids=["learnable", "contrary"])
def test_the_best_average_is_what_training_leaves(impl, monitor, contrary):
    train_set = numbered_set(12)
    model = calm(Reader())
    with torch.no_grad():
        model.last.weight.mul_(0.3)
        model.past.weight.mul_(0.3)
    val_set = train_set
    if contrary:
        val_set = ([11 - document for document in train_set[0]], (train_set[1] + 1) % 4)
    states, lines = [weights(model)], []
    for line in train_on(
        impl, model, train_set, val_set, 24, monitor=monitor, eval_every=2, patience=3
    ):
        lines.append(dict(line))
        states.append(weights(model))
    evaluated = [step for step, line in enumerate(lines, 1) if f"val_{monitor}" in line]
    values = [lines[step - 1][f"val_{monitor}"] for step in evaluated]
    mode = "min" if monitor == "perplexity" else "max"
    wanted = stops(values, 3, mode)
    told = ", ".join(f"{value:.4f}" for value in values)
    early = [number for number, (stop, *_) in enumerate(wanted) if stop]
    assert early in ([], [len(values) - 1]), f"patience 3, {monitor} {told}: it goes on"
    if not early:
        assert len(lines) == 24, f"patience 3, {monitor} {told}: it stops after {len(lines)} steps"
    at = evaluated[wanted[-1][1]]
    if at < len(lines):  # the last weights themselves are not seen
        what = f"of what is left by training with {monitor} {told}"
        assert_state(model, averages(states[: at + 1], 0.9), what, 1e-5)
    value = impl.evaluate(model, val_set)[monitor]
    assert_number(value, values[wanted[-1][1]], f"{monitor} {told}: the one of the model left")


def test_the_direction_of_what_is_monitored(impl):
    train_set = numbered_set(10)
    contrary = ([11 - document for document in train_set[0]], (train_set[1] + 1) % 4)
    for val_set in (train_set, contrary):
        for monitor, best in (("perplexity", min), ("auc", max)):
            model = calm(Reader())
            options = {"eval_every": 3, "patience": 99, "monitor": monitor}
            lines = train_on(impl, model, train_set, val_set, 15, **options)
            values = [line[f"val_{monitor}"] for line in lines if f"val_{monitor}" in line]
            assert len(values) == 5, f"15 steps, with an evaluation every 3: {len(values)}"
            left = impl.evaluate(model, val_set)[monitor]
            told = ", ".join(f"{value:.4f}" for value in values)
            what = f"{monitor} was {told}; that of the model that is left"
            assert_number(left, best(values), what)


def test_documents_are_drawn_by_the_generator(impl):
    train_set, val_set = numbered_set(50), small_set(3)

    def drawn(seed):
        model = calm(Reader())
        generator = torch.Generator().manual_seed(seed)
        before = torch.get_rng_state()
        list(train_on(impl, model, train_set, val_set, 3, generator))
        assert torch.equal(torch.get_rng_state(), before), "training draws from the global one"
        numbers = [rows_of(ids, train_set) for ids, _, grad in model.seen if grad]
        numbers = list(itertools.chain.from_iterable(numbers))
        return [tuple(numbers[start : start + 16]) for start in range(0, len(numbers), 16)]

    first = drawn(1)
    assert drawn(1) == first, "one state of the generator, and other documents"
    assert drawn(2) != first, "another state of the generator, and the same documents"
    assert len(set(first)) == 3, "each step has the same documents"


def test_training_leaves_its_sets_alone(impl):
    train_set, val_set = numbered_set(6), small_set(4)
    documents = {f"document {i}": x for i, x in enumerate([*train_set[0], *val_set[0]])}
    with unchanged(train_topics=train_set[1], val_topics=val_set[1], **documents):
        list(train_on(impl, Reader(), train_set, val_set, 3, eval_every=2))


# Corpus, model, run


def test_a_corpus(impl):
    before = torch.get_rng_state()
    documents, topics = impl.make_corpus(500, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before), "it draws from the global generator"
    assert len(documents) == len(topics) == 500
    assert topics.dtype == torch.int64
    assert all(document.dtype == torch.int64 for document in documents)
    lengths = {len(document) for document in documents}
    assert min(lengths) >= 12, f"there is a document of {min(lengths)} tokens"
    assert max(lengths) <= 60, f"there is a document of {max(lengths)} tokens"
    assert len(lengths) > 40, f"documents have only the lengths {sorted(lengths)}"
    words = torch.cat(documents)
    assert sorted(set(words.tolist())) == list(range(12)), f"words {sorted(set(words.tolist()))}"
    # Six standard deviations or more.
    logits = 0.8 * torch.randn(4, 12, generator=torch.Generator().manual_seed(47))
    logits[:, 0] += 1
    for topic, share in enumerate((0.45, 0.25, 0.2, 0.1)):
        found = (topics == topic).double().mean().item()
        assert abs(found - share) < 0.14, f"topic {topic} has {found:.2f} of the documents"
        mine = torch.cat([x for x, y in zip(documents, topics, strict=True) if y == topic])
        shares = torch.bincount(mine, minlength=12).double() / len(mine)
        off = (shares - logits[topic].softmax(dim=0)).abs().max().item()
        assert off < 0.08, f"topic {topic}: the share of a word is off by {off:.2f}"
    again, same = impl.make_corpus(500, torch.Generator().manual_seed(3))
    assert torch.equal(same, topics), "one generator, and other topics"
    assert all(map(torch.equal, again, documents)), "one generator, and other documents"


def test_the_model_reads_from_left_to_right(impl):
    model = impl.LanguageModel(VOCABULARY).eval()
    ids = torch.randint(12, (5, 9))
    logits = model(ids)
    assert logits.shape == (5, 9, VOCABULARY), f"logits {tuple(logits.shape)}"
    for row, length in ((0, 9), (3, 9), (4, 6), (2, 1)):
        alone = model(ids[row : row + 1, :length])[0]
        what = f"row {row}, its first {length} tokens, alone and in the batch"
        assert_matches(alone, logits[row, :length], what, rtol=1e-4, atol=1e-5)


def test_a_seed_gives_one_log(impl):
    torch.default_generator.manual_seed(5)
    before = torch.get_rng_state()
    one = [dict(line) for line in impl.run(seed=3, steps=5)]
    assert torch.equal(torch.get_rng_state(), before), "a run changes the global generator"
    torch.default_generator.manual_seed(6)
    assert [dict(line) for line in impl.run(3, 5)] == one, "the same seed gives another log"
    other = [dict(line) for line in impl.run(seed=4, steps=5)]
    assert [line["loss"] for line in other] != [line["loss"] for line in one], "seeds do not count"
    assert [dict(x) for x in impl.run(steps=2)] == [dict(x) for x in impl.run(0, 2)], (
        "seed is not 0 by default"
    )


def test_the_log_of_a_run(impl, log):
    evaluated = [step for step, line in enumerate(log, 1) if "val_perplexity" in line]
    assert evaluated == list(range(EVERY, STEPS + 1, EVERY)), f"evaluations after {evaluated}"
    for steps in (1, 3):
        lines = [dict(line) for line in impl.run(seed=1, steps=steps)]
        assert len(lines) == steps, f"steps={steps}: {len(lines)} lines"
        assert set(lines[-1]) == {"loss", *(f"val_{name}" for name in METRICS)}
