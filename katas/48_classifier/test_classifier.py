import copy
import itertools
import math
import os
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dojo.testing import assert_matches, unchanged

STEPS, EPOCH = 184, 23  # of a run
MARK = 5


@pytest.fixture(scope="module", autouse=True)
def in_the_katas_folder():
    """Have fixtures/ above the working directory, wherever pytest and the tested file are."""
    before = Path.cwd()
    os.chdir(Path(__file__).resolve().parent)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def log(impl):
    """The log of one whole run."""
    return [dict(line) for line in impl.run()]


@pytest.fixture(scope="module")
def trained(impl):
    """A model after two epochs on the digits, its sets, and the log."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        generator = torch.Generator().manual_seed(7)
        train_set, val_set, mean, std = impl.prepare(*impl.load_digits(), 0.2, generator)
        model = impl.DigitClassifier(mean, std)
        lines = list(train_on(impl, model, train_set, val_set, 2 * EPOCH, 64, generator=generator))
    return model, train_set, val_set, lines


def train_on(impl, model, train_set, val_set, steps, batch_size, lr=0.01, generator=None):
    generator = generator or torch.Generator().manual_seed(11)
    return impl.train(
        model, train_set, val_set, steps=steps, batch_size=batch_size, lr=lr, generator=generator
    )


# Symptoms


# What a healthy run ends with; of 50 seeds the extremes are 0.026 and 0.045 for the loss, 0.990 for
# the accuracy, 0.023 and 0.080 in validation, and 0.972.
HEALTHY = {
    "loss": (0.015, 0.12),
    "accuracy": (0.97, 1),
    "val_loss": (0.01, 0.13),
    "val_accuracy": (0.96, 1),
}


@pytest.mark.symptom
def test_a_run_goes_as_a_healthy_one_does(log):
    off = []
    for name, (low, high) in HEALTHY.items():
        value = float(log[-1][name])
        if not low <= value <= high:
            off.append(f"it ends with {name} {value:.3f}, a healthy one within {low} and {high}")
    second = float(log[2 * EPOCH - 1]["val_loss"])
    if not second < 0.22:  # of 50 seeds the highest is 0.155
        off.append(f"val_loss is {second:.3f} after two epochs, and should be about 0.1")
    rates = [float(line["lr"]) for line in log]
    if not 0.007 < rates[0] < 0.013:
        off.append(f"its learning rate begins with {rates[0]:g} and not with 0.01")
    if rises := sum(later > sooner for sooner, later in itertools.pairwise(rates)):
        off.append(f"its learning rate rises at {rises} steps, where it should fall all the way")
    assert not off, "this run is not healthy: " + "; ".join(off)


@pytest.mark.symptom
def test_validation_does_not_depend_on_how_images_are_batched(impl, trained):
    model, _, (images, labels), _ = trained
    wanted = impl.evaluate(model, images, labels, batch_size=len(labels))
    for size in (len(labels), 256, 64, 7, 1000):
        loss, accuracy = impl.evaluate(model, images, labels, batch_size=size)
        assert math.isclose(loss, wanted[0], rel_tol=1e-4), (
            f"{len(labels)} images have a loss of {wanted[0]:.4f} at once, "
            f"and of {loss:.4f} with batch_size={size}"
        )
        assert abs(accuracy - wanted[1]) < 0.5 / len(labels), (
            f"{len(labels)} images have an accuracy of {wanted[1]:.4f} at once, "
            f"and of {accuracy:.4f} with batch_size={size}"
        )


@pytest.mark.symptom
def test_what_is_saved_is_what_was_trained(impl, trained):
    model, _, val_set, lines = trained
    state = copy.deepcopy(model.state_dict())
    fresh = impl.DigitClassifier(1.5, 2.5)
    fresh.load_state_dict(state)
    accuracy, wanted = (impl.evaluate(each, *val_set)[1] for each in (fresh, model))
    assert accuracy == wanted, (
        f"a model trained to {wanted:.3f} scores {accuracy:.3f} once its state dict is loaded "
        "into a new one"
    )
    # Two epochs, the second much better than the first.
    counted = {int(value) for name, value in state.items() if name.endswith("batches_tracked")}
    assert counted == {2 * EPOCH}, (
        f"after {len(lines)} steps the normalisation has seen {sorted(counted)} batches"
    )


@pytest.mark.symptom
def test_the_best_model_is_the_one_that_is_kept(impl, trained):
    # Labels that no one can learn from the training set: the more it learns, the worse it is.
    _, train_set, (images, labels), _ = trained
    wrong = (labels + 1) % 10
    torch.default_generator.manual_seed(3)
    model = impl.DigitClassifier(4.9, 6.0)
    lines = list(train_on(impl, model, train_set, (images, wrong), 3 * EPOCH, 64))
    losses = [float(line["val_loss"]) for line in lines if "val_loss" in line]
    kept = impl.evaluate(model, images, wrong)[0]
    assert math.isclose(kept, min(losses), rel_tol=1e-3), (
        f"validation losses were {', '.join(f'{loss:.2f}' for loss in losses)}; "
        f"the model that is left has {kept:.2f}, not the lowest"
    )


@pytest.mark.symptom
def test_memory_does_not_grow(impl):
    watch = GraphWatch(impl.DigitClassifier)
    alive = []
    with watch:
        for step, _ in enumerate(impl.run(steps=EPOCH + 3)):
            alive.append(watch.alive())
            if step == EPOCH - 1:
                forgotten = watch.recorded - watch.undone
    assert max(alive) <= 3, (
        f"after {alive.index(max(alive)) + 1} steps the graphs of {max(alive)} forward passes are "
        "still in memory"
    )
    assert not forgotten, (
        f"in an epoch of {EPOCH} steps, {forgotten} forward passes were kept ready for a backward "
        "pass that never came"
    )


@pytest.mark.symptom
def test_validation_tells_of_images_that_training_has_not_seen(impl):
    images, labels = impl.load_digits()
    train_set, val_set, *_ = impl.prepare(images, labels, 0.2, torch.Generator().manual_seed(5))
    seen = {bytes(image.flatten().tolist()) for image in train_set[0]}
    again = sum(bytes(image.flatten().tolist()) in seen for image in val_set[0])
    assert not again, f"{again} of {len(val_set[0])} validation images are trained on"

    # Nothing that training does may change if the images of validation are all white.
    validation = {bytes(image.flatten().tolist()) for image in val_set[0]}
    other = torch.stack(
        [
            torch.full_like(image, 16) if bytes(image.flatten().tolist()) in validation else image
            for image in images
        ]
    )
    losses = []
    for data in (images, other):
        generator = torch.Generator().manual_seed(5)
        train_set, val_set, mean, std = impl.prepare(data, labels, 0.2, generator)
        torch.default_generator.manual_seed(5)
        model = impl.DigitClassifier(mean, std)
        lines = train_on(impl, model, train_set, val_set, 3, 64)
        losses.append([float(line["loss"]) for line in lines])
    assert losses[0] == losses[1], (
        f"with other images in validation alone, the training losses are {losses[1]}, "
        f"and were {losses[0]}"
    )


class GraphWatch:
    """Counts the graphs that a model's outputs hang on: recorded, gone back through, alive."""

    def __init__(self, kind):
        self.kind, self.recorded, self.undone, self.nodes = kind, 0, 0, []

    def alive(self):
        self.nodes = [node for node in self.nodes if node() is not None]
        return len(self.nodes)

    def __enter__(self):
        watch = self

        class Mark(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                watch.nodes.append(weakref.ref(ctx))
                return x.view_as(x)

            @staticmethod
            def backward(ctx, grad):
                watch.undone += 1
                return grad

        def hook(module, args, out):
            if isinstance(module, self.kind) and out.requires_grad:
                self.recorded += 1
                return Mark.apply(out)
            return None

        self.handle = nn.modules.module.register_module_forward_hook(hook)
        return self

    def __exit__(self, *_):
        self.handle.remove()


# Checks: the data


def test_load_digits(impl):
    images, labels = impl.load_digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), torch.uint8), f"{images.shape}"
    assert (labels.shape, labels.dtype) == ((1797,), torch.int64), f"{labels.shape} {labels.dtype}"
    counts = torch.bincount(labels).tolist()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180], f"images a class: {counts}"
    assert (int(images.min()), int(images.max()), int(images.sum())) == (0, 16, 561718)
    rows = {0: [0, 0, 5, 13, 9, 1, 0, 0], 1: [0, 0, 13, 15, 10, 15, 5, 0]}
    assert all(images[0, row].tolist() == pixels for row, pixels in rows.items())


def numbered(counts, dtype=torch.float64):
    """Images whose pixels tell their number, and labels in mixed order."""
    labels = torch.cat([torch.full((count,), label) for label, count in counts.items()])
    labels = labels[torch.randperm(len(labels))]
    images = torch.arange(len(labels)).to(dtype)[:, None, None].expand(-1, 8, 8).clone()
    images[:, 0, 0] *= -1
    return images, labels


def test_every_image_is_in_one_set_and_keeps_its_label(impl):
    images, labels = numbered({0: 31, 3: 40, 4: 22, 9: 17})
    for fraction in (0.2, 0.5, 0.1):
        sets = impl.prepare(images, labels, fraction, torch.Generator().manual_seed(1))[:2]
        numbers = [part[:, 1, 1].long() for part, _ in sets]
        found = torch.cat(numbers).sort().values
        assert found.tolist() == list(range(len(labels))), (
            f"val_fraction={fraction}: of {len(labels)} images {len(set(found.tolist()))} are in "
            f"the sets, which have {len(found)}"
        )
        for (part, its_labels), places in zip(sets, numbers, strict=True):
            assert_matches(part, images[places], "the images of a set", rtol=0, atol=0)
            assert_matches(its_labels, labels[places], "the labels of a set", rtol=0, atol=0)


def test_every_class_has_its_share_of_validation(impl):
    counts = {0: 31, 3: 40, 4: 22, 9: 17}
    images, labels = numbered(counts, torch.uint8)
    for fraction in (0.2, 0.35, 0.75, 0.05, 0.02):
        (_, train), (val_images, val), *_ = impl.prepare(
            images, labels, fraction, torch.Generator().manual_seed(2)
        )
        for label, count in counts.items():
            chosen = int((val == label).sum())
            assert abs(chosen - fraction * count) <= 0.5 + 1e-9, (
                f"val_fraction={fraction}: {chosen} of {count} images of class {label}"
            )
        assert len(train) + len(val) == len(labels)
        assert val_images.dtype == torch.uint8, f"the images of a set are {val_images.dtype}"


def test_the_generator_draws_the_split(impl):
    images, labels = numbered({1: 41, 2: 63})

    def chosen(seed):
        sets = impl.prepare(images, labels, 0.25, torch.Generator().manual_seed(seed))
        return set(sets[1][0][:, 1, 1].tolist())

    first = chosen(1)
    before = torch.get_rng_state()
    assert chosen(1) == first, "the same generator gives another split"
    assert torch.equal(torch.get_rng_state(), before), "the split draws from the global generator"
    assert chosen(2) != first, "another generator gives the same split"
    generator = torch.Generator().manual_seed(1)
    sides = [set(impl.prepare(images, labels, 0.25, generator)[1][0][:, 1, 1].tolist())]
    sides.append(set(impl.prepare(images, labels, 0.25, generator)[1][0][:, 1, 1].tolist()))
    assert sides[0] != sides[1], "a generator that goes on gives the same split again"
    # Of 10 images of each class, each should get its turn.
    images, labels = numbered({1: 10, 2: 10})
    ever = set().union(*(chosen(seed) for seed in range(60)))
    assert ever == set(range(20)), f"in 60 splits only {len(ever)} of 20 images were ever validated"


def test_statistics_are_those_of_the_training_pixels(impl):
    for dtype in (torch.float64, torch.uint8, torch.float32):
        images, labels = numbered({0: 33, 1: 52}, dtype)
        images[:, 2:5] = 7
        (train, _), _, mean, std = impl.prepare(
            images, labels, 0.3, torch.Generator().manual_seed(3)
        )
        pixels = [float(value) for value in train.double().flatten()]
        wanted = math.fsum(pixels) / len(pixels)
        spread = math.sqrt(math.fsum((x - wanted) ** 2 for x in pixels) / len(pixels))
        assert isinstance(mean, float), f"mean is {type(mean).__name__}"
        assert isinstance(std, float), f"std is {type(std).__name__}"
        what = f"of the training pixels, {dtype} images"
        assert math.isclose(mean, wanted, rel_tol=1e-5), f"the mean {what}: {mean}, not {wanted}"
        # Dividing by one less shows in the fourth digit.
        assert math.isclose(std, spread, rel_tol=1e-5), f"the std {what}: {std}, not {spread}"


def test_prepare_changes_nothing(impl):
    images, labels = numbered({0: 12, 1: 23})
    with unchanged(images=images, labels=labels):
        train_set, val_set, *_ = impl.prepare(images, labels, 0.4, torch.Generator())
        for part, its_labels in (train_set, val_set):
            part.zero_()
            its_labels.zero_()


# The model


def models(impl, **sizes):
    """A model with parameters and buffers that are all different from what they begin with."""
    model = impl.DigitClassifier(3.25, 5.5, **sizes)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("norm.weight", "running_var")):
                value.uniform_(0.5, 2)
            elif name.endswith(("norm.bias", "running_mean", "head.bias")):
                value.normal_()
    return model


def expected_features(state, images, training):
    """What goes into dropout, by the brief, from a state dict."""
    x = ((images.to(state["mean"].dtype) - state["mean"]) / state["std"])[:, None]
    for block in ("blocks.0", "blocks.1"):
        x = F.conv2d(x, state[f"{block}.conv.weight"], padding=1)
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        else:
            mean, var = state[f"{block}.norm.running_mean"], state[f"{block}.norm.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = x * state[f"{block}.norm.weight"][:, None, None]
        x = (x + state[f"{block}.norm.bias"][:, None, None]).clamp(min=0)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    return x.flatten(1)


def expected_logits(state, images, training=False):
    features = expected_features(state, images, training)
    return features @ state["head.weight"].T + state["head.bias"]


def some_images(count):
    return torch.randint(0, 17, (count, 8, 8), dtype=torch.uint8)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_logits_are_those_of_the_brief(impl, training):
    for sizes in ({}, {"channels": (3, 5), "num_classes": 7}, {"channels": (6, 4)}):
        model = models(impl, dropout=0.0, **sizes).double()
        state = copy.deepcopy(model.state_dict())
        images = some_images(9)
        model.train(training)
        what = f"logits in {'training' if training else 'evaluation'} mode, {sizes}"
        wanted = expected_logits(state, images, training)
        assert_matches(model(images), wanted, what, rtol=1e-9, atol=1e-9)


def test_an_image_does_not_depend_on_the_others(impl):
    model = models(impl).eval()
    images = some_images(12)
    together = model(images)
    for count in (1, 5):
        alone = model(images[:count])
        what = f"logits of {count} images, alone and among 12"
        assert_matches(alone, together[:count], what, rtol=1e-4, atol=1e-4)
    assert_matches(model(images), together, "logits in evaluation mode, again", rtol=0, atol=0)


def test_images_of_any_dtype(impl):
    images = some_images(5)
    for dtype in (torch.float32, torch.float64):
        model = models(impl).to(dtype).eval()
        wanted = expected_logits(model.state_dict(), images)
        tolerance = 1e-3 if dtype == torch.float32 else 1e-9
        for kind in (torch.uint8, torch.float32, torch.float64, torch.float16):
            given = images.to(kind)
            with unchanged(images=given):
                logits = model(given)
            what = f"logits of {kind} images by a {dtype} model"
            assert_matches(logits, wanted, what, rtol=tolerance, atol=tolerance)


def test_the_state_dict_is_that_of_the_brief(impl):
    model = impl.DigitClassifier(3.25, 5.5, channels=(3, 5), num_classes=7)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"mean", "std", "head.weight", "head.bias"}
    names |= {f"blocks.{n}.conv.weight" for n in (0, 1)}
    names |= {f"blocks.{n}.norm.{name}" for n in (0, 1) for name in norm}
    state = model.state_dict()
    off = sorted(set(state) ^ names)
    assert not off, f"missing from the state dict, or not asked for: {', '.join(off)}"
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    wanted = {
        "blocks.0.conv.weight": (3, 1, 3, 3),
        "blocks.1.conv.weight": (5, 3, 3, 3),
        "head.weight": (7, 20),
        "mean": (),
        "std": (),
    }
    for name, shape in wanted.items():
        assert shapes[name] == shape or (shape == () and state[name].numel() == 1), (
            f"{name} is {shapes[name]}, not {shape}"
        )
    assert float(state["mean"]) == 3.25, f"mean is {state['mean']}"
    assert float(state["std"]) == 5.5, f"std is {state['std']}"
    defaults = {
        name: tuple(value.shape)
        for name, value in impl.DigitClassifier(0.0, 1.0).state_dict().items()
    }
    assert defaults["blocks.1.conv.weight"] == (32, 16, 3, 3), f"{defaults}"
    assert defaults["head.weight"] == (10, 128), f"{defaults}"


def test_all_weights_are_trained_and_the_statistics_are_not(impl):
    model = models(impl)
    names = {name for name, _ in model.named_parameters()}
    wanted = {f"blocks.{n}.{name}" for n in (0, 1) for name in ("conv.weight", "norm.weight")}
    wanted |= {"blocks.0.norm.bias", "blocks.1.norm.bias", "head.weight", "head.bias"}
    assert names == wanted, f"the parameters are {sorted(names)}, not {sorted(wanted)}"
    F.cross_entropy(model(some_images(6)), torch.arange(6)).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still, f"no gradient comes to {', '.join(still)}"


def test_statistics_go_where_the_model_goes(impl):
    model = models(impl).double()
    kinds = {name: value.dtype for name, value in model.state_dict().items()}
    assert kinds["mean"] == kinds["std"] == torch.float64, f"after double(): {kinds}"
    other = impl.DigitClassifier(0.5, 1.5).double()
    other.load_state_dict(model.state_dict())
    images = some_images(4)
    what = "logits of a model with another's state dict"
    assert_matches(other.eval()(images), model.eval()(images), what, rtol=0, atol=0)
    away = models(impl).to("meta").eval()
    assert away(images.to("meta")).device.type == "meta"
    left = [name for name, value in vars(away).items() if torch.is_tensor(value)]
    assert not left, f"moved to another device, the model leaves {', '.join(left)} behind"


def test_normalisation_follows_the_batches(impl):
    model = models(impl, dropout=0.0).double()
    state = copy.deepcopy(model.state_dict())
    images = some_images(11)
    model.train()(images)
    x = ((images.double() - state["mean"]) / state["std"])[:, None]
    x = F.conv2d(x, state["blocks.0.conv.weight"], padding=1).transpose(0, 1).flatten(1)
    for name, batch in (("running_mean", x.mean(1)), ("running_var", x.var(1))):
        name = f"blocks.0.norm.{name}"
        wanted = 0.9 * state[name] + 0.1 * batch
        what = f"{name} after a batch in training mode"
        assert_matches(model.state_dict()[name], wanted, what, rtol=1e-9, atol=1e-9)
    after = copy.deepcopy(model.state_dict())
    model.eval()(images)
    for name, value in model.state_dict().items():
        assert_matches(value, after[name], f"{name} after evaluation mode", rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.25, 0.6, 0.0])
def test_dropout(impl, p):
    sizes = {"channels": (3, 50), "num_classes": 200}
    model = models(impl, dropout=p, **sizes).double()
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(200))
        model.head.bias.zero_()
    images = some_images(10)
    for training in (True, False):
        features = expected_features(copy.deepcopy(model.state_dict()), images, training)
        out = model.train(training)(images)
        on = features > 1e-6
        kept = on & (out > 0)
        share = p if training else 0.0
        what = f"features kept in {'training' if training else 'evaluation'} mode, dropout={p}"
        assert_matches(out[kept], features[kept] / (1 - share), what, rtol=1e-6, atol=1e-9)
        # Of about 1,500 features; seven standard deviations are 0.09.
        dropped = 1 - int(kept.sum()) / int(on.sum())
        mode = "training" if training else "evaluation"
        assert abs(dropped - share) < (0.1 if share else 1e-9), (
            f"dropout={p}: {dropped:.2f} of the features are dropped in {mode} mode"
        )
    if p:
        model.train()
        features = expected_features(copy.deepcopy(model.state_dict()), images, True)
        out = model(images)
        on, lost = (x.view(10, 50, 4) for x in (features > 1e-6, (features > 1e-6) & (out <= 0)))
        mixed = (lost.any(2) & (on & ~lost).any(2)).sum()
        assert mixed > 20, "features of one channel are dropped together, not each by itself"
        first, second = model.train()(images), model(images)
        assert not torch.equal(first, second), "the same features are dropped in each pass"


def test_initial_weights_come_from_the_global_generator(impl):
    def made(seed):
        torch.default_generator.manual_seed(seed)
        return impl.DigitClassifier(1.0, 2.0).state_dict()

    one, again, other = made(1), made(1), made(2)
    assert all(torch.equal(one[name], again[name]) for name in one), "one seed, other weights"
    for name in ("blocks.0.conv.weight", "blocks.1.conv.weight", "head.weight"):
        assert not torch.equal(one[name], other[name]), f"{name} is the same for another seed"
        bound = one[name][0].numel() ** -0.5
        # PyTorch draws them evenly from -bound to bound.
        top = float(one[name].abs().max())
        assert 0.9 * bound < top <= bound * 1.0001, f"{name} goes up to {top:.3f}, not {bound:.3f}"


# A step


class Probe(nn.Module):
    """A linear model of the pixels that keeps what it was given, in which mode."""

    def __init__(self, classes=4, dtype=torch.float64):
        super().__init__()
        self.linear = nn.Linear(64, classes, dtype=dtype)
        self.seen = []

    def forward(self, images):
        self.seen.append((images.detach().clone(), self.training, torch.is_grad_enabled()))
        return self.linear(images.flatten(1).to(self.linear.weight.dtype) / 16)

    def numbers(self):
        """The numbers of the images of each batch of a `number_set`."""
        batches = [images for images, *_ in self.seen if int(images[0, 0, 0]) == MARK]
        return [images[:, 1, 1].tolist() for images in batches]


def a_batch(count, classes=4):
    images = some_images(count)
    images[:, 0, 0] = 0
    return images, torch.randint(classes, (count,))


def by_hand(model, images, labels):
    """Loss, accuracy and gradients of a linear model, by the formula."""
    weight, bias = (p.detach().clone() for p in (model.linear.weight, model.linear.bias))
    x = images.flatten(1).to(weight.dtype) / 16
    logits = x @ weight.T + bias
    logs = logits - logits.logsumexp(1, keepdim=True)
    loss = -logs[torch.arange(len(labels)), labels].mean().item()
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    slope = (logs.exp() - F.one_hot(labels, weight.shape[0])) / len(labels)
    return loss, accuracy, slope.T @ x, slope.sum(0)


def assert_number(value, wanted, behaviour, tolerance=1e-6):
    value = float(value)
    close = math.isclose(value, wanted, rel_tol=tolerance, abs_tol=tolerance)
    assert close, f"{behaviour} is {value:.6g}, not {wanted:.6g}"


def test_a_step_goes_along_the_gradient_of_its_batch(impl):
    model = Probe()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.75)
    for step in range(4):
        images, labels = a_batch((9, 5, 1, 9)[step])
        loss, accuracy, weight_grad, bias_grad = by_hand(model, images, labels)
        weight, bias = (p.detach().clone() for p in (model.linear.weight, model.linear.bias))
        got = impl.train_step(model, optimizer, images, labels)
        assert_number(got[0], loss, f"the loss of step {step + 1}")
        assert_number(got[1], accuracy, f"the accuracy of step {step + 1}")
        for p, before, grad in (
            (model.linear.weight, weight, weight_grad),
            (model.linear.bias, bias, bias_grad),
        ):
            what = f"the parameters after step {step + 1} of SGD"
            assert_matches(p.detach(), before - 0.75 * grad, what, rtol=1e-9, atol=1e-9)


def test_gradients_from_before_do_not_count(impl):
    model = Probe()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    images, labels = a_batch(7)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    _, _, grad, _ = by_hand(model, images, labels)
    before = model.linear.weight.detach().clone()
    impl.train_step(model, optimizer, images, labels)
    what = "the weight after a step with gradients left from before"
    assert_matches(model.linear.weight.detach(), before - 0.5 * grad, what, rtol=1e-9, atol=1e-9)


def test_a_step_is_in_training_mode(impl):
    model = Probe()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for mode in (False, True, False):
        model.train(mode)
        impl.train_step(model, optimizer, *a_batch(3))
    modes = [training for _, training, _ in model.seen]
    assert modes == [True] * 3, f"training mode in the three steps: {modes}"
    # The model is in training mode, and a part of it is not.
    model = nn.Sequential(Probe())
    model[0].eval()
    impl.train_step(model, torch.optim.SGD(model.parameters(), lr=0.5), *a_batch(3))
    modes = [training for _, training, _ in model[0].seen]
    assert modes == [True], "a part that was in evaluation mode is so in the step too"


def test_what_a_step_returns_holds_on_to_no_graph(impl):
    model = models(impl)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GraphWatch(impl.DigitClassifier) as watch:
        got = [impl.train_step(model, optimizer, *a_batch(6)) for _ in range(3)]
        alive = watch.alive()
    assert not alive, f"of 3 steps the graphs of {alive} are still there"
    assert watch.recorded == watch.undone == 3, "a step is one forward and one backward pass"
    for numbers in got:
        assert len(numbers) == 2
        for value in numbers:
            assert not (torch.is_tensor(value) and value.requires_grad), f"{value}"
            assert not torch.is_tensor(value) or value.shape == (), f"{value}"


def test_a_step_leaves_its_batch_alone(impl):
    model = models(impl)
    images, labels = a_batch(6)
    with unchanged(images=images, labels=labels):
        impl.train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), images, labels)


# Evaluation


def test_evaluation_by_hand(impl):
    model = Probe(classes=5)
    images, labels = a_batch(23, classes=5)
    loss, accuracy, *_ = by_hand(model, images, labels)
    for size in (1, 4, 10, 22, 23, 24, 500):
        got = impl.evaluate(model, images, labels, batch_size=size)
        assert len(got) == 2
        assert all(isinstance(value, float) for value in got), f"it returns {got}, not two floats"
        assert_number(got[0], loss, f"the loss of 23 images in batches of {size}")
        assert_number(got[1], accuracy, f"the accuracy of 23 images in batches of {size}")
    assert_number(impl.evaluate(model, images, labels)[0], loss, "the loss, with no batch_size")
    assert_number(impl.evaluate(model, images, labels, 6)[0], loss, "the loss, batch_size=6")
    one = by_hand(model, images[:1], labels[:1])
    got = impl.evaluate(model, images[:1], labels[:1], batch_size=3)
    assert_number(got[0], one[0], "the loss of a single image")


def test_evaluation_keeps_to_its_batch_size(impl):
    model = Probe()
    images, labels = a_batch(300)
    for size in (64, None):
        model.seen.clear()
        impl.evaluate(model, images, labels, *([] if size is None else [size]))
        largest = max(len(batch) for batch, *_ in model.seen)
        wanted = 256 if size is None else size
        assert largest <= wanted, f"batches of {largest} images, though batch_size is {wanted}"


def test_evaluation_is_in_evaluation_mode(impl):
    for mode in (True, False):
        model = Probe().train(mode)
        impl.evaluate(model, *a_batch(5), batch_size=2)
        modes = [training for _, training, _ in model.seen]
        assert not any(modes), f"training mode in the batches of an evaluation: {modes}"


def test_evaluation_records_no_graph(impl):
    for grad in (True, False):
        model = Probe()
        with torch.set_grad_enabled(grad):
            impl.evaluate(model, *a_batch(5), batch_size=2)
            assert torch.is_grad_enabled() == grad, "evaluation leaves another grad mode behind"
        recorded = sum(enabled for *_, enabled in model.seen)
        assert not recorded, f"{recorded} of {len(model.seen)} forward passes record a graph"


def test_evaluation_changes_nothing(impl):
    model = models(impl)
    images, labels = a_batch(30)
    F.cross_entropy(model(images), labels).backward()
    state = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    asking = {name for name, p in model.named_parameters() if p.requires_grad}
    before = torch.get_rng_state()
    with unchanged(images=images, labels=labels):
        impl.evaluate(model, images, labels, batch_size=8)
    for name, value in model.state_dict().items():
        assert_matches(value, state[name], f"{name} after an evaluation", rtol=0, atol=0)
    for name, p in model.named_parameters():
        assert p.grad is not None, f"evaluation takes the gradient of {name}"
        assert_matches(p.grad, grads[name], f"gradient of {name} after it", rtol=0, atol=0)
        assert p.requires_grad == (name in asking)
    assert torch.equal(torch.get_rng_state(), before), "evaluation draws random numbers"


# The loop


def number_set(count, classes=4):
    """Images that tell in a pixel that they are such, and in another their number; and labels."""
    images = some_images(count)
    images[:, 0, 0] = MARK
    images[:, 1, 1] = torch.arange(count)
    return images, torch.randint(classes, (count,))


def test_an_epoch_shows_every_image_once(impl):
    for batch_size, sizes in ((5, [5, 5, 5, 2]), (17, [17]), (50, [17]), (1, [1] * 17)):
        model = Probe()
        train_set = number_set(17)
        steps = 3 * len(sizes)
        lines = list(train_on(impl, model, train_set, a_batch(6), steps, batch_size))
        assert len(lines) == steps, f"{len(lines)} lines of the log for {steps} steps"
        batches = model.numbers()
        got = [len(batch) for batch in batches]
        assert got == 3 * sizes, f"17 images in batches of {batch_size}: {got}"
        for epoch in range(3):
            parts = batches[epoch * len(sizes) : (epoch + 1) * len(sizes)]
            seen = sorted(itertools.chain.from_iterable(parts))
            assert seen == list(range(17)), f"epoch {epoch + 1} in batches of {batch_size}: {seen}"


def test_every_epoch_has_its_own_order(impl):
    train_set = number_set(40)

    def orders(seed):
        model = Probe()
        generator = torch.Generator().manual_seed(seed)
        list(train_on(impl, model, train_set, a_batch(3), 15, 8, generator=generator))
        flat = list(itertools.chain.from_iterable(model.numbers()))
        return [tuple(flat[start : start + 40]) for start in (0, 40, 80)]

    first = orders(1)
    assert tuple(range(40)) not in first, "an epoch shows the images in the order of the set"
    assert len(set(first)) == 3, "two epochs have the same order"
    torch.default_generator.manual_seed(99)
    assert orders(1) == first, "one generator, and another order"
    assert orders(2)[0] != first[0], "another generator, and the same order"
    # Each place gets images from all over the set.
    firsts = {orders(seed)[0][0] for seed in range(12)}
    assert len(firsts) > 4, f"in 12 runs the first image is one of {sorted(firsts)}"


def test_images_keep_their_labels_in_training(impl):
    # One batch is all images, so that their order does not count.
    images, labels = number_set(20)
    model = Probe()
    wanted = by_hand(model, images, labels)
    line = next(iter(train_on(impl, model, (images, labels), a_batch(3), 4, 20)))
    assert_number(line["loss"], wanted[0], "the loss of the first step, all images", 1e-5)


def test_steps_are_those_of_adam_with_a_cosine(impl):
    images, labels = number_set(12)
    model = Probe()
    with torch.no_grad():  # much to learn, so that the last model is the best
        model.linear.weight.mul_(0.1)
    weights = [p.detach().clone() for p in model.parameters()]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    shadow = copy.deepcopy(model)
    lines = list(train_on(impl, model, (images, labels), (images, labels), 6, 12, lr=0.004))
    for step in range(6):
        lr = 0.004 * (1 + math.cos(math.pi * step / 6)) / 2
        loss, accuracy, *grads = by_hand(shadow, images, labels)
        assert_number(lines[step]["loss"], loss, f"the loss of step {step + 1}", 1e-5)
        assert_number(lines[step]["accuracy"], accuracy, f"the accuracy of step {step + 1}", 1e-5)
        for p, (mean, square), grad in zip(shadow.parameters(), moments, grads, strict=True):
            mean.mul_(0.9).add_(0.1 * grad)
            square.mul_(0.999).add_(0.001 * grad**2)
            direction = mean / (1 - 0.9 ** (step + 1))
            direction /= (square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            p.data.sub_(lr * direction)
    for p, wanted in zip(model.parameters(), shadow.parameters(), strict=True):
        what = "parameters after six steps on all images"
        assert_matches(p.detach(), wanted.detach(), what, rtol=1e-6, atol=1e-6)


def test_the_learning_rate_is_half_a_cosine(impl):
    for steps, lr in ((1, 0.5), (2, 0.03), (7, 0.004), (12, 0.2)):
        lines = list(train_on(impl, Probe(), number_set(10), a_batch(3), steps, 4, lr=lr))
        for step, line in enumerate(lines):
            wanted = lr * (1 + math.cos(math.pi * step / steps)) / 2
            assert_number(line["lr"], wanted, f"lr={lr}: the rate of step {step} of {steps}", 1e-9)


def test_the_log_has_means_over_the_epoch_so_far(impl):
    model = Probe()
    train_set = number_set(17)
    lines = train_on(impl, model, train_set, a_batch(6), 11, 5, lr=0.05)
    before, sums, count = copy.deepcopy(model), [0.0, 0.0], 0
    for step, line in enumerate(lines):
        if step % 4 == 0:
            sums, count = [0.0, 0.0], 0
        numbers = [int(n) for n in model.numbers()[-1]]
        labels = train_set[1][numbers]
        loss, accuracy, *_ = by_hand(before, train_set[0][numbers], labels)
        sums = [total + x * len(labels) for total, x in zip(sums, (loss, accuracy), strict=True)]
        count += len(labels)
        where = f"step {step % 4 + 1} of epoch {step // 4 + 1}"
        assert_number(line["loss"], sums[0] / count, f"the logged loss at {where}", 1e-5)
        assert_number(line["accuracy"], sums[1] / count, f"the logged accuracy at {where}", 1e-5)
        wanted = {"lr", "loss", "accuracy"}
        if step in (3, 7, 10):
            wanted |= {"val_loss", "val_accuracy"}
        assert set(line) == wanted, f"the line of {where} has {sorted(line)}"
        assert all(isinstance(value, float) for value in line.values()), f"no float in {line}"
        before = copy.deepcopy(model)


def test_validation_is_that_of_the_model_after_the_step(impl):
    model = Probe()
    val_set = a_batch(13)
    lines = train_on(impl, model, number_set(17), val_set, 9, 5, lr=0.05)
    for step, line in enumerate(lines):
        if step < 8 and "val_loss" in line:  # after the last step the best model may be back
            loss, accuracy, *_ = by_hand(model, *val_set)
            assert_number(
                line["val_loss"], loss, f"the validation loss after step {step + 1}", 1e-5
            )
            what = f"the validation accuracy after step {step + 1}"
            assert_number(line["val_accuracy"], accuracy, what, 1e-5)


def test_every_step_is_in_training_mode(impl):
    for mode in (True, False):
        model = Probe().train(mode)
        list(train_on(impl, model, number_set(10), a_batch(4), 9, 4))
        modes = [training for images, training, _ in model.seen if int(images[0, 0, 0]) == MARK]
        assert modes == [True] * 9, f"training mode in the nine steps of three epochs: {modes}"


@pytest.mark.parametrize("falling", [True, False], ids=["learnable", "contrary"])
@pytest.mark.parametrize("lr", [4e-3, 1e-5])
def test_the_weights_with_the_lowest_validation_loss_are_kept(impl, falling, lr):
    # Of three epochs the last is the best one, or with contrary labels the first.
    images = some_images(12)
    labels = torch.arange(12) % 4
    val_labels = labels if falling else (labels + 1) % 4
    model = Probe()
    with torch.no_grad():  # at first all classes are equally likely
        model.linear.weight.zero_()
        model.linear.bias.zero_()
    lines, states = [], []
    for line in train_on(impl, model, (images, labels), (images, val_labels), 3, 12, lr=lr):
        lines.append(line)
        states.append([p.detach().clone() for p in model.parameters()])
    losses = [line["val_loss"] for line in lines]
    best = losses.index(min(losses))
    assert best == (2 if falling else 0), f"validation losses {losses}"
    left = by_hand(model, images, val_labels)[0]
    assert_number(left, losses[best], "the validation loss of the weights that are left", 1e-7)
    for p, wanted in zip(model.parameters(), states[best], strict=True):
        what = f"validation losses {[round(loss, 3) for loss in losses]}: the weights that are left"
        assert_matches(p.detach(), wanted, what, rtol=0, atol=0)


def test_the_best_may_be_inside_an_epoch(impl):
    # All images are the same: each step makes validation better, and the last ends no epoch.
    images, labels = some_images(1).expand(12, -1, -1).clone(), torch.full((12,), 2)
    model = Probe()
    lines = list(train_on(impl, model, (images, labels), (images, labels), 5, 5))
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    assert len(losses) == 2, f"validation after {len(losses)} of 5 steps, 3 an epoch"
    assert losses[1] < losses[0], f"validation losses {losses}"
    left = by_hand(model, images, labels)[0]
    assert_number(left, losses[1], "the validation loss of the weights that are left", 1e-7)


def test_buffers_are_kept_with_the_weights(impl):
    # Contrary labels: whatever is learned from the images makes validation worse.
    images, labels = a_batch(40, classes=10)
    model = impl.DigitClassifier(8.0, 4.9, dropout=0.0)
    lines = list(
        train_on(impl, model, (images, labels), (images, (labels + 3) % 10), 40, 10, lr=0.01)
    )
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    best = losses.index(min(losses))
    assert best < 9, f"validation losses {losses}"
    counted = int(model.state_dict()["blocks.0.norm.num_batches_tracked"])
    assert counted == 4 * (best + 1), (
        f"epoch {best + 1} of 10 is the best, and the buffers are those after {counted} of 40 steps"
    )


def test_of_equal_losses_the_first_is_kept(impl):
    class Still(Probe):
        """Its loss in evaluation mode is always the same."""

        def forward(self, images):
            logits = super().forward(images)
            return logits if self.training else logits * 0

    model = Still()
    states = []
    for _ in train_on(impl, model, number_set(6), a_batch(5), 4, 6, lr=0.1):
        states.append(model.linear.weight.detach().clone())
    what = "the weights that are left of four epochs with the same validation loss"
    assert_matches(model.linear.weight.detach(), states[0], what, rtol=0, atol=0)


def test_training_leaves_its_sets_alone(impl):
    (images, labels), (val_images, val_labels) = number_set(9), a_batch(5)
    with unchanged(images=images, labels=labels, val_images=val_images, val_labels=val_labels):
        list(train_on(impl, models(impl), (images, labels), (val_images, val_labels), 5, 4))


# The run


def test_a_run_is_what_the_brief_says(impl, log):
    assert len(log) == STEPS, f"a run logs {len(log)} steps, not {STEPS}"
    for step, line in enumerate(log):
        wanted = 0.01 * (1 + math.cos(math.pi * step / STEPS)) / 2
        assert_number(line["lr"], wanted, f"the learning rate of step {step} of a run", 1e-7)
    evaluated = [step for step, line in enumerate(log) if "val_loss" in line]
    assert evaluated == list(range(EPOCH - 1, STEPS, EPOCH)), f"validation at steps {evaluated}"


def test_a_seed_gives_one_log(impl):
    torch.default_generator.manual_seed(5)
    before = torch.get_rng_state()
    one = [dict(line) for line in impl.run(seed=3, steps=4)]
    assert torch.equal(torch.get_rng_state(), before), "a run changes the global generator"
    torch.default_generator.manual_seed(6)
    assert [dict(line) for line in impl.run(3, 4)] == one, "the same seed gives another log"
    other = [dict(line) for line in impl.run(seed=4, steps=4)]
    assert [line["loss"] for line in other] != [line["loss"] for line in one], "seeds do not count"
    assert list(impl.run(steps=2)) == list(impl.run(0, 2)), "seed is not 0 by default"


def test_a_short_run(impl):
    for steps in (1, 3):
        lines = [dict(line) for line in impl.run(seed=1, steps=steps)]
        assert len(lines) == steps, f"steps={steps}: {len(lines)} lines"
        assert "val_loss" in lines[-1], "the last step has no validation"
        for step, line in enumerate(lines):
            wanted = 0.01 * (1 + math.cos(math.pi * step / steps)) / 2
            assert_number(line["lr"], wanted, f"the rate of step {step} of a run of {steps}", 1e-9)
