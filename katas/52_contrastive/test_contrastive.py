import copy
import itertools
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dojo
from dojo.simulation.ranks import launch
from dojo.testing import HandDown, assert_matches, layouts, read_with_draws, unchanged

STEPS = 120  # of a run
LIMIT = math.log(100)


@pytest.fixture(scope="module")
def log(impl):
    """The log of one whole run."""
    return [dict(line) for line in impl.run()]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def towers(impl, dropout=0.0, seed=5):
    """Two towers in float64, where sums in another order do not show."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return impl.TwoTowers((9, 7), hidden=11, dim=5, dropout=dropout).double()


def some_pairs(count, dtype=torch.float64):
    return torch.randn(count, 9, dtype=dtype), torch.randn(count, 7, dtype=dtype)


# Symptoms

# Of 50 seeds the extremes are: means of the last 20 steps, loss 0.095 and 0.153, distill_loss 0.116
# and 0.173; at the end, scale 15.0 and 16.1, recall 0.992, student_recall 0.984.
HEALTHY = {"loss": (0.06, 0.25), "distill_loss": (0.085, 0.27)}
AT_THE_END = {"scale": (14.4, 17.2), "recall": (0.97, 1), "student_recall": (0.94, 1)}


@pytest.mark.symptom
def test_a_run_goes_as_a_healthy_one_does(log):
    off = []
    for name, (low, high) in HEALTHY.items():
        value = sum(float(line[name]) for line in log[-20:]) / 20
        if not low <= value <= high:
            off.append(f"over its last 20 steps {name} is {value:.3f}, not {low} to {high}")
    for name, (low, high) in AT_THE_END.items():
        value = float(log[-1][name])
        if not low <= value <= high:
            off.append(f"it ends with {name} {value:.3f}, not within {low} and {high}")
    early = float(log[39]["recall"])
    if not early >= 0.93:  # of 50 seeds the lowest is 0.977
        off.append(f"recall is {early:.3f} after 40 steps, and should be about 1")
    first = float(log[0]["loss"])
    if not 4 < first < 14:  # 6.2 and 10.5
        off.append(f"its loss begins at {first:.2f}, not at about 8")
    first = float(log[0]["distill_loss"])
    if not 5.2 < first < 13:  # 5.7 and 9.8
        off.append(f"its distill_loss begins at {first:.2f}, not at about 7")
    assert not off, "this run is not healthy: " + "; ".join(off)


@pytest.mark.symptom
def test_two_ranks_are_as_good_as_one(log):
    gaps = {step: line["rank_gap"] for step, line in enumerate(log, 1) if "rank_gap" in line}
    worst = max(gaps, key=gaps.get)
    assert gaps[worst] < 1e-5, (
        f"loss or gradients of two ranks are off those of one by {gaps[worst]:.2g} after step "
        f"{worst}, where rounding is 1e-7"
    )


@pytest.mark.symptom
def test_training_is_the_same_on_any_number_of_ranks(impl):
    pairs = some_pairs(31)
    logs, weights = {}, {}
    for ranks in (1, 2, 3):
        model = towers(impl)
        logs[ranks] = list(impl.train(model, pairs, ranks, 6, 13, seeded(3)))
        weights[ranks] = torch.cat([p.detach().flatten() for p in model.parameters()])
    for ranks in (2, 3):
        for step, (line, wanted) in enumerate(zip(logs[ranks], logs[1], strict=True), 1):
            for name in ("loss", "scale"):
                assert math.isclose(line[name], wanted[name], rel_tol=1e-6), (
                    f"at step {step} on {ranks} ranks the {name} is {line[name]:.6f}, "
                    f"on one {wanted[name]:.6f}"
                )
        off = (weights[ranks] - weights[1]).abs().max().item()
        assert off < 1e-6, f"after 6 steps on {ranks} ranks weights are off by {off:.2g}"


@pytest.mark.symptom
def test_the_scale_does_not_run_away(impl):
    pairs = torch.eye(9).repeat(3, 1), torch.eye(9)[:, :7].repeat(3, 1)
    model = towers(impl).float()
    with torch.no_grad():
        model.log_scale.fill_(math.log(150))  # as a checkpoint of another training may have it
    scales = [line["scale"] for line in impl.train(model, pairs, 2, 4, 2, seeded(1))]
    assert max(scales[1:]) < 100.01, f"the scale is still {max(scales[1:]):.2f}, beyond 100"
    with torch.no_grad():
        model.log_scale.fill_(LIMIT)
    wrong = pairs[0][:8], pairs[1][:8].roll(1, dims=0) * 3
    scales = [line["scale"] for line in impl.train(model, wrong, 2, 3, 8, seeded(1))]
    assert scales[-1] < 99.8, (
        f"the scale begins at 100, where pairs are as yet wrong, and stays at {scales[-1]:.2f}"
    )


@pytest.mark.symptom
def test_evaluation_says_the_same_each_time(impl):
    model = towers(impl, dropout=0.5)
    pairs = some_pairs(60)
    recalls = {}
    for size in (60, 256, 7, 1, 60):
        recalls.setdefault(size, set()).add(
            impl.evaluate(model.image_tower, model.text_tower, pairs, batch_size=size)
        )
    assert len(set().union(*recalls.values())) == 1, (
        f"recall of the same 60 pairs, by the size of the batches: {recalls}"
    )
    # A model that has collapsed finds nothing.
    with torch.no_grad():
        model.image_tower.project.weight.zero_()
        model.text_tower.project.weight.zero_()
    recall = impl.evaluate(model.image_tower, model.text_tower, pairs)
    assert recall < 0.1, f"towers that embed all alike have a recall of {recall:.2f}"


@pytest.mark.symptom
def test_a_student_and_its_teacher_agree_on_the_loss(impl):
    teacher, pairs = towers(impl, dropout=0.5), some_pairs(40)
    losses = []
    for _ in range(3):
        student = towers(impl, seed=8).image_tower
        optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
        losses.append(float(impl.distill_step(student, teacher, optimizer, *pairs)))
    assert len(set(losses)) == 1, f"the same student, teacher and batch have losses {losses}"
    # A student that is the teacher has nothing left to learn from it.
    calm = towers(impl).image_tower
    calm.load_state_dict(teacher.image_tower.state_dict())
    optimizer = torch.optim.SGD(calm.parameters(), lr=0.0)
    loss = float(impl.distill_step(calm, teacher, optimizer, *pairs))
    logits = similarities(teacher, calm, *pairs)
    hard = -np.mean(np.diag(log_softmax(logits)))
    assert math.isclose(loss, hard / 2, rel_tol=1e-6), (
        f"the teacher's own tower has a loss of {loss:.4f}, though only the {hard / 2:.4f} of the "
        "pairs should be left"
    )


@pytest.mark.symptom
def test_a_step_lowers_the_loss_by_what_its_gradient_says(impl):
    model, pairs, lr = towers(impl), some_pairs(12), 1e-5
    parts = list(zip(*(view.split([7, 5]) for view in pairs), strict=True))

    def two_steps(comm):
        replica = copy.deepcopy(model)
        optimizer = torch.optim.SGD(replica.parameters(), lr=lr)
        before = impl.train_step(replica, optimizer, *parts[comm.get_rank()], comm)
        steps = (p - q for p, q in zip(replica.parameters(), model.parameters(), strict=True))
        gradient = sum((step.detach() / lr).square().sum().item() for step in steps)
        return before, gradient, impl.train_step(replica, optimizer, *parts[comm.get_rank()], comm)

    before, gradient, after = launch(2, two_steps)[0]
    assert math.isclose(before - after, lr * gradient, rel_tol=0.02), (
        f"one small step lowers the loss by {before - after:.3g}, "
        f"where a step of its length along the gradient does by {lr * gradient:.3g}"
    )
    # Images and texts may change places.
    losses = []
    for view in pairs, pairs[::-1]:
        x, y = (F.pad(each, (0, 9 - each.shape[1])) for each in view)
        scale = torch.tensor(0.7, dtype=torch.float64)
        losses.append(launch(1, partial(share_of, impl, x, y, scale))[0])
    assert math.isclose(*losses, rel_tol=1e-6), (
        f"the loss of twelve pairs is {losses[0]:.4f}, and with the places of images and texts "
        f"changed {losses[1]:.4f}"
    )


@pytest.mark.symptom
def test_what_is_random_is_drawn_anew(impl):
    model = probe()
    list(impl.train(model, numbered(12), 2, 6, 4, seeded(1)))
    drawn = [number for *_, number, _ in model.seen]
    assert len(set(drawn)) == 12, (
        f"of 12 forward passes, two ranks' in six steps, {12 - len(set(drawn))} have the dropout "
        "of another"
    )
    seen = [sorted(itertools.chain.from_iterable(step)) for step in batches_seen(model, 2)]
    assert seen[:3] != seen[3:], f"two epochs have the same batches: {seen[:3]}"


def share_of(impl, images, texts, log_scale, comm):
    return impl.contrastive_loss(images, texts, log_scale, comm).item()


# Oracles, in NumPy and float64


def log_softmax(logits, axis=1):
    shifted = logits - logits.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def info_nce(images, texts, log_scale):
    """The symmetric loss of a whole batch and its gradients, in closed form."""
    images, texts = (np.asarray(x.detach().double()) for x in (images, texts))
    scale = math.exp(float(torch.as_tensor(log_scale, dtype=torch.float64).detach()))
    logits = scale * images @ texts.T
    rows, columns = log_softmax(logits, 1), log_softmax(logits, 0)
    count = len(logits)
    loss = -(np.trace(rows) + np.trace(columns)) / (2 * count)
    grad = (np.exp(rows) + np.exp(columns) - 2 * np.eye(count)) / (2 * count)
    grads = scale * grad @ texts, scale * grad.T @ images, (grad * logits).sum()
    return loss, *(torch.as_tensor(each) for each in grads)


def similarities(teacher, image_tower, images, texts):
    """Logits of the teacher's texts by some tower's images, in evaluation mode."""
    teacher = copy.deepcopy(teacher).eval()
    with torch.no_grad():
        x, y = image_tower(images), teacher.text_tower(texts)
        return np.asarray(teacher.log_scale.exp() * x @ y.T)


def assert_number(got, wanted, what, rtol=1e-6, atol=1e-9):
    got, wanted = (
        float(torch.as_tensor(each, dtype=torch.float64).detach()) for each in (got, wanted)
    )
    close = math.isclose(got, wanted, rel_tol=rtol, abs_tol=atol)
    assert close, f"{what} is {got:.8g}, not {wanted:.8g}"


# Checks: the data


def test_pairs_are_what_the_brief_says(impl):
    before = torch.get_rng_state()
    images, texts = impl.make_pairs(300, seeded(1))
    assert torch.equal(torch.get_rng_state(), before), "pairs draw from the global generator"
    for name, view, width in (("images", images, 24), ("texts", texts, 20)):
        assert (view.shape, view.dtype) == ((300, width), torch.float32), f"{name} {view.shape}"
        assert view.unique(dim=0).shape[0] == 300, f"of 300 {name} some are the same"
    again = impl.make_pairs(300, seeded(1))
    other = impl.make_pairs(300, seeded(2))
    for one, same, different in zip((images, texts), again, other, strict=True):
        assert torch.equal(one, same), "the same state of the generator gives other pairs"
        assert not torch.equal(one, different), "another seed gives the same pairs"


def test_both_views_tell_of_one_latent(impl):
    images, texts = (x.double() for x in impl.make_pairs(300, seeded(4)))
    pairs_of_another_seed = [x.double() for x in impl.make_pairs(300, seeded(5))]
    for one, other, (x, y) in (
        (images, texts, pairs_of_another_seed),
        (texts, images, pairs_of_another_seed[::-1]),
    ):
        weights = torch.linalg.lstsq(one[:200], other[:200]).solution
        left = (one[200:] @ weights - other[200:]).square().mean() / other[200:].square().mean()
        assert left < 0.2, f"a linear map from a view leaves {left:.2f} of the other unexplained"
        assert left > 1e-4, "one view follows from the other without any noise"
        # The mixing is drawn with the rest: another seed has another world.
        left = (x @ weights - y).square().mean() / y.square().mean()
        assert left > 0.5, "another seed mixes latents in the same way"
    for view in (images, texts):
        energy = torch.linalg.svdvals(view).square()
        share = (energy[:8].sum() / energy.sum()).item()
        assert 0.9 < share < 0.9999, f"eight latents explain {share:.4f} of a view"
        assert energy[7] > 5 * energy[8], "a view shows fewer than eight latents"


# Checks: the towers


def test_a_tower_is_that_of_the_brief(impl):
    tower = impl.Tower(6, 13, 4).double().eval()
    shapes = {name: tuple(value.shape) for name, value in tower.state_dict().items()}
    wanted = {"hidden.weight": (13, 6), "hidden.bias": (13,), "project.weight": (4, 13)}
    assert shapes == wanted, f"the state dict of a tower has {shapes}"
    for rows in (1, 7):
        x = torch.randn(rows, 6, dtype=torch.float64)
        with unchanged(x=x), torch.no_grad():
            out = tower(x)
        state = {name: np.asarray(value) for name, value in tower.state_dict().items()}
        h = np.asarray(x) @ state["hidden.weight"].T + state["hidden.bias"]
        erf = np.vectorize(math.erf)
        y = (h * (1 + erf(h / math.sqrt(2))) / 2) @ state["project.weight"].T
        y /= np.sqrt((y * y).sum(axis=1, keepdims=True))
        assert_matches(out, torch.as_tensor(y), f"embeddings of {rows} rows")


def test_a_tower_drops_hidden_features_in_training_alone(impl):
    for arguments, rate in (((), 0.1), ((0.4,), 0.4), ((0.0,), 0.0)):
        tower = impl.Tower(3, 500, 500, *arguments).double()
        with torch.no_grad():
            tower.project.weight.copy_(torch.eye(500))
            tower.hidden.bias.fill_(1.0)  # where GELU is curved, and hardly a feature is zero
            x = torch.randn(20, 3, dtype=torch.float64)
            whole, dropped = tower.eval()(x), tower.train()(x)
        kept = dropped.abs() > 1e-9
        share = 1 - kept.double().mean().item()
        assert abs(share - rate) < 0.02, f"dropout={rate}: {share:.3f} of the features are dropped"
        assert (whole.abs() > 1e-9).all(), "features are dropped in evaluation mode"
        wanted = F.normalize(whole * kept, dim=1)
        assert_matches(dropped, wanted, f"embeddings with dropout={rate}")
        assert rate == 0 or len(kept.unique(dim=0)) == 20, "all rows drop the same features"


def test_weights_begin_as_pytorch_has_them(impl):
    torch.default_generator.manual_seed(3)
    tower = impl.Tower(25, 400, 16)
    for name, weight, inputs in (
        ("hidden.weight", tower.hidden.weight, 25),
        ("hidden.bias", tower.hidden.bias, 25),
        ("project.weight", tower.project.weight, 400),
    ):
        bound = 1 / math.sqrt(inputs)
        largest = weight.abs().max().item()
        assert 0.9 * bound < largest <= bound, f"{name} reaches {largest:.4f}, not {bound:.4f}"
        assert abs(weight.std().item() / bound - 1 / math.sqrt(3)) < 0.06, f"{name}: its spread"
    torch.default_generator.manual_seed(3)
    again = impl.Tower(25, 400, 16)
    assert torch.equal(again.hidden.weight, tower.hidden.weight), "weights are not the generator's"


def test_two_towers(impl):
    model = impl.TwoTowers((9, 7), 11, 5)
    keys = [f"{side}_tower.{name}" for side in ("image", "text") for name in tower_keys()]
    assert sorted(model.state_dict()) == sorted([*keys, "log_scale"]), f"{list(model.state_dict())}"
    assert isinstance(model.log_scale, nn.Parameter), "log_scale is no parameter"
    assert model.log_scale.shape == (), f"log_scale has shape {tuple(model.log_scale.shape)}"
    assert_number(model.log_scale, math.log(1 / 0.07), "log_scale at first")
    assert model.image_tower.hidden.weight.shape == (11, 9)
    assert model.text_tower.project.weight.shape == (5, 11)
    assert not torch.equal(model.image_tower.project.weight, model.text_tower.project.weight)
    model.eval()
    images, texts = some_pairs(6, torch.float32)
    with torch.no_grad():
        found = model(images, texts)
        assert_matches(found[0], model.image_tower(images), "embeddings of images")
        assert_matches(found[1], model.text_tower(texts), "embeddings of texts")
    # The dropout that is asked for, in both towers.
    for rate in (0.1, 0.6):
        model = impl.TwoTowers((9, 7), 300, 300, *([] if rate == 0.1 else [rate]))
        for tower, view in zip((model.image_tower, model.text_tower), (images, texts), strict=True):
            with torch.no_grad():
                tower.project.weight.copy_(torch.eye(300))
                tower.hidden.bias.fill_(5.0)
                share = (tower(view).abs() < 1e-9).double().mean().item()
            assert abs(share - rate) < 0.06, f"dropout={rate}: {share:.2f} are dropped in a tower"


def tower_keys():
    return ["hidden.weight", "hidden.bias", "project.weight"]


# Checks: gathering

SIZES = [(3, 2), (1, 4, 2), (2, 2), (1, 1), (5,), (1, 3)]


def split(x, sizes):
    return [part.clone() for part in x.split(list(sizes))]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gather_brings_all_rows_in_order_of_rank(impl, sizes):
    for dtype in (torch.float32, torch.float64):
        whole = torch.randn(sum(sizes), 3, dtype=dtype)
        parts = split(whole, sizes)

        def rows(comm, parts=parts):
            mine = parts[comm.get_rank()]
            before = mine.clone()
            found = impl.gather(mine, comm)
            kept = found.detach().clone()
            mine.add_(1)  # what is gathered has memory of its own
            same = torch.equal(found, kept)
            found.zero_()
            return kept, same, torch.equal(mine, before + 1)

        for rank, (found, same, left) in enumerate(launch(len(sizes), rows)):
            assert_matches(found, whole, f"rows of ranks with {sizes}, on rank {rank}", rtol=0)
            assert same, "what is gathered changes with the rows that were given"
            assert left, "the rows that were given change with what is gathered"


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_gradient_of_a_row_is_the_sum_over_ranks(impl, sizes):
    # Every rank weights every row in a way of its own.
    count, world = sum(sizes), len(sizes)
    parts = split(torch.randn(count, 3, dtype=torch.float64), sizes)
    upstream = torch.randn(world, count, 3, dtype=torch.float64)

    def gradient(comm):
        x = parts[comm.get_rank()].requires_grad_()
        (impl.gather(x, comm) * upstream[comm.get_rank()]).sum().backward()
        return x.grad

    wanted = upstream.sum(dim=0).split(list(sizes))
    for rank, found in enumerate(launch(world, gradient)):
        what = f"the gradient of rank {rank}'s rows, of ranks with {sizes}"
        assert_matches(found, wanted[rank], what)


def test_gather_of_any_layout_and_upstream_gradient(impl):
    parts = [torch.randn(3, 4), torch.randn(2, 4)]
    upstream = torch.randn(2, 5, 4)
    whole, wanted = torch.cat(parts), upstream.sum(dim=0).split([3, 2])
    for place, (layout, _) in enumerate(layouts(whole)):

        def both(comm, place=place):
            rank = comm.get_rank()
            x = list(layouts(parts[rank]))[place][1].requires_grad_()
            grad = list(layouts(upstream[rank]))[place][1]
            kept = grad.clone()
            out = impl.gather(x, comm)
            HandDown.apply(out, grad).backward()
            return out.detach(), x.grad, torch.equal(grad, kept)

        for rank, (out, grad, same) in enumerate(launch(2, both)):
            assert_matches(out, whole, f"rows, {layout}, on rank {rank}", rtol=0, atol=0)
            assert_matches(grad, wanted[rank], f"gradient, {layout}, on rank {rank}")
            assert same, f"the upstream gradient, {layout}, is changed in place"

    def of_a_sum(comm):
        x = parts[comm.get_rank()].clone().requires_grad_()
        impl.gather(x, comm).sum().backward()
        return x.grad

    for rank, grad in enumerate(launch(2, of_a_sum)):
        assert_matches(grad, torch.full_like(parts[rank], 2.0), "gradient of the sum of all rows")


def test_gather_without_a_backward_pass(impl):
    parts = [torch.randn(3, 4), torch.randn(2, 4)]
    for mode in (torch.no_grad, torch.inference_mode):

        def rows(comm, mode=mode):
            with mode():
                return impl.gather(parts[comm.get_rank()], comm).clone()

        for found in launch(2, rows):
            assert_matches(found, torch.cat(parts), f"rows under {mode.__name__}", rtol=0, atol=0)


def test_a_gathered_tensor_may_be_used_twice(impl):
    parts = split(torch.randn(5, 3, dtype=torch.float64), (2, 3))

    def gradient(comm):
        x = parts[comm.get_rank()].requires_grad_()
        rows = impl.gather(x, comm)
        other = impl.gather(x.square(), comm)
        (rows.square().sum() + (rows * other).sum() * (1 + comm.get_rank())).backward()
        return x.grad

    for part, found in zip(parts, launch(2, gradient), strict=True):
        x = part.detach()
        assert_matches(found, 4 * x + 9 * x.square(), "gradient of rows that are used three times")


# Checks: the loss


def shares(impl, images, texts, log_scale, sizes, asking=("images", "texts", "log_scale")):
    """Sum over ranks of the shares and of the gradients for the scale; the others by row."""
    parts = list(zip(split(images, sizes), split(texts, sizes), strict=True))

    def share(comm):
        x, y = (part.clone() for part in parts[comm.get_rank()])
        inputs = {"images": x, "texts": y, "log_scale": torch.as_tensor(log_scale).clone()}
        for name in asking:
            inputs[name].requires_grad_()
        before = [value.detach().clone() for value in inputs.values()]
        loss = impl.contrastive_loss(*inputs.values(), comm)
        loss.backward()
        for name, value, kept in zip(inputs, inputs.values(), before, strict=True):
            assert torch.equal(value, kept), f"the loss changes its argument {name}"
        return loss.detach(), {name: inputs[name].grad for name in asking}

    found = launch(len(sizes), share)
    loss = sum(each for each, _ in found)
    grads = {}
    for name in asking:
        each = [grad[name] for _, grad in found]
        grads[name] = sum(each) if name == "log_scale" else torch.cat(each)
    return loss, grads


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_loss_is_that_of_all_pairs(impl, sizes):
    # Rows of any length: nothing but the towers makes them unit vectors.
    images, texts = (torch.randn(sum(sizes), 3, dtype=torch.float64) for _ in range(2))
    for log_scale in (0.8, 0.0, -1.3):
        scale = torch.tensor(log_scale, dtype=torch.float64)
        loss, grads = shares(impl, images, texts, scale, sizes)
        wanted, *wanted_grads = info_nce(images, texts, log_scale)
        assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}"
        assert_number(loss, wanted, f"log_scale={log_scale}: the loss of ranks with {sizes} pairs")
        for (name, grad), want in zip(grads.items(), wanted_grads, strict=True):
            what = f"log_scale={log_scale}: the gradient for {name} of ranks with {sizes} pairs"
            assert_matches(grad, want, what, rtol=1e-6, atol=1e-9)


def test_the_loss_of_float32(impl):
    images, texts = (F.normalize(torch.randn(7, 5), dim=1) for _ in range(2))
    for log_scale in (LIMIT, 2.6):
        loss, grads = shares(impl, images, texts, torch.tensor(log_scale), (4, 3))
        wanted, *wanted_grads = info_nce(images, texts, log_scale)
        assert loss.dtype == torch.float32, f"the loss of float32 embeddings is {loss.dtype}"
        assert_number(loss, wanted, f"the loss at a scale of {math.exp(log_scale):.0f}", 1e-4)
        for (name, grad), want in zip(grads.items(), wanted_grads, strict=True):
            assert_matches(grad, want.float(), f"the gradient for {name}", rtol=1e-3, atol=1e-4)


def test_losses_that_are_known(impl):
    alike = torch.ones(6, 4, dtype=torch.float64) / 2
    scale = torch.tensor(1.7, dtype=torch.float64)
    assert_number(shares(impl, alike, alike, scale, (4, 2))[0], math.log(6), "six alike pairs")
    one = torch.randn(1, 4, dtype=torch.float64)
    assert_number(shares(impl, one, -one, scale, (1,))[0], 0, "the loss of a single pair")
    # Far apart, and right or wrong by a lot: no overflow.
    far = 100 * torch.eye(4)
    large = torch.tensor(LIMIT)
    assert_number(shares(impl, far, far, large, (2, 2))[0], 0, "pairs that are far apart")
    wrong = shares(impl, far, far.roll(1, dims=0), large, (2, 2))[0]
    assert_number(wrong, 1e6, "the loss of pairs that are all wrong", 1e-4)


def test_the_loss_of_a_tower_that_is_frozen(impl):
    images, texts = (torch.randn(5, 3, dtype=torch.float64) for _ in range(2))
    scale = torch.tensor(0.4, dtype=torch.float64)
    _, *wanted = info_nce(images, texts, 0.4)
    for name, want in zip(("images", "texts", "log_scale"), wanted, strict=True):
        _, grads = shares(impl, images, texts, scale, (3, 2), asking=(name,))
        assert_matches(grads[name], want, f"the gradient where {name} alone asks for one")


def test_the_loss_without_a_backward_pass(impl):
    images, texts = (torch.randn(5, 3) for _ in range(2))
    wanted = info_nce(images, texts, 0.4)[0]
    for mode in (torch.no_grad, torch.inference_mode):

        def share(comm, mode=mode):
            rank = comm.get_rank()
            part = images.split([3, 2])[rank], texts.split([3, 2])[rank]
            with mode():
                return impl.contrastive_loss(*part, torch.tensor(0.4), comm).item()

        assert_number(sum(launch(2, share)), wanted, f"the loss under {mode.__name__}", 1e-5)


# Checks: a step of training


class Probe(nn.Module):
    """Two linear towers and a scale, in float64; notes modes, rows, and what dropout would draw."""

    def __init__(self, log_scale=0.7, features=(9, 7), dim=5):
        super().__init__()
        self.image_tower = nn.Linear(features[0], dim, dtype=torch.float64)
        self.text_tower = nn.Linear(features[1], dim, bias=False, dtype=torch.float64)
        self.log_scale = nn.Parameter(torch.tensor(log_scale, dtype=torch.float64))
        self.seen = []

    def forward(self, images, texts):
        drawn = torch.rand(()).item() if self.training else None
        self.seen.append((images.detach().clone(), self.training, drawn, torch.is_grad_enabled()))
        return self.image_tower(images), self.text_tower(texts)

    def __deepcopy__(self, memo):
        new = type(self)(0.0, (self.image_tower.in_features, self.text_tower.in_features))
        new.load_state_dict(self.state_dict())
        new.seen = self.seen  # all replicas write into one list
        new.train(self.training)
        for mine, theirs in zip(new.parameters(), self.parameters(), strict=True):
            mine.requires_grad_(theirs.requires_grad)
        return new


def probe(seed=2, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Probe(**sizes)


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def by_hand(model, images, texts):
    """Loss of a whole batch and the gradient of every parameter of a probe."""
    x, y = model.image_tower(images), model.text_tower(texts)
    loss, grad_x, grad_y, grad_scale = info_nce(x, y, model.log_scale)
    grads = {
        "image_tower.weight": grad_x.T @ images,
        "image_tower.bias": grad_x.sum(dim=0),
        "text_tower.weight": grad_y.T @ texts,
        "log_scale": grad_scale,
    }
    return loss, grads


def stepped(impl, model, pairs, sizes, lr=0.01, before=None):
    """Results and replicas of one step of SGD on ranks with so many rows."""
    parts = list(zip(*(view.split(list(sizes)) for view in pairs), strict=True))

    def step(comm):
        replica = copy.deepcopy(model)
        if before:
            before(replica)
        optimizer = torch.optim.SGD((p for p in replica.parameters() if p.requires_grad), lr=lr)
        return impl.train_step(replica, optimizer, *parts[comm.get_rank()], comm), replica

    return launch(len(sizes), step)


@pytest.mark.parametrize("sizes", [(3, 2), (1, 4, 2), (4,), (1, 1)], ids=str)
def test_a_step_goes_along_the_gradient_of_all_pairs(impl, sizes):
    model, pairs = probe(), some_pairs(sum(sizes))
    loss, grads = by_hand(model, *pairs)
    with unchanged(images=pairs[0], texts=pairs[1]):
        found = stepped(impl, model, pairs, sizes)
    for rank, (got, replica) in enumerate(found):
        assert isinstance(got, float), f"a step returns {type(got).__name__}, not a float"
        assert_number(got, loss, f"the loss that rank {rank} of {sizes} returns")
        for name, value in values(replica).items():
            want = model.get_parameter(name).detach() - 0.01 * grads[name]
            what = f"{name} on rank {rank} of {sizes}, after a step"
            assert_matches(value, want, what, rtol=1e-7, atol=1e-9)
            assert torch.equal(value, values(found[0][1])[name]), f"{name} differs from rank 0"


def test_gradients_from_before_do_not_count(impl):
    model, pairs = probe(), some_pairs(5)
    _, grads = by_hand(model, *pairs)

    def leave_gradients(replica):
        for p in replica.parameters():
            p.grad = torch.full_like(p, 30.0)

    for _, replica in stepped(impl, model, pairs, (3, 2), before=leave_gradients):
        for name, value in values(replica).items():
            want = model.get_parameter(name).detach() - 0.01 * grads[name]
            assert_matches(value, want, f"{name}, where there were gradients before")


def test_a_step_is_in_training_mode(impl):
    for mode in (True, False):
        model = probe().train(mode)
        stepped(impl, model, some_pairs(5), (3, 2))
        modes = [training for _, training, *_ in model.seen]
        assert modes == [True, True], f"training mode in the forward passes of a step: {modes}"


def test_a_step_leaves_frozen_parameters(impl):
    model, pairs = probe(), some_pairs(5)
    model.text_tower.requires_grad_(False)
    model.log_scale.requires_grad_(False)
    _, grads = by_hand(model, *pairs)
    for _, replica in stepped(impl, model, pairs, (3, 2)):
        for name, value in values(replica).items():
            start = model.get_parameter(name).detach()
            want = start - 0.01 * grads[name] if name.startswith("image") else start
            assert_matches(value, want, f"{name}, text tower and scale frozen")


def test_weight_decay_leaves_frozen_parameters(impl):
    model, pairs = probe(), some_pairs(5)
    model.text_tower.requires_grad_(False)

    def step(comm):
        replica = copy.deepcopy(model)
        optimizer = torch.optim.SGD(replica.parameters(), lr=0.1, weight_decay=0.5)
        part = [view.split([2, 3])[comm.get_rank()] for view in pairs]
        impl.train_step(replica, optimizer, *part, comm)
        return replica

    for replica in launch(2, step):
        for name, p in replica.text_tower.named_parameters():
            start = model.text_tower.get_parameter(name).detach()
            assert_matches(p.detach(), start, f"{name} of a frozen tower beside weight decay")


def test_the_scale_is_at_most_100_after_a_step(impl):
    pairs = some_pairs(5)
    for start in (0.7, -0.4, LIMIT, LIMIT - 1e-4, 4.9):
        model = probe(log_scale=start)
        loss, grads = by_hand(model, *pairs)
        for lr in (1e-4, 1.0):
            want = min(start - lr * float(grads["log_scale"]), LIMIT)
            for got, replica in stepped(impl, model, pairs, (3, 2), lr=lr):
                assert_number(got, loss, f"the loss with log_scale={start:.5f}", 1e-5)
                what = f"log_scale after a step of {lr} from {start:.5f}"
                assert_number(replica.log_scale, want, what, 1e-5)
    # Where a larger scale is better, and at the limit already.
    model = probe(log_scale=LIMIT)
    model.text_tower = nn.Linear(9, 5, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.image_tower.bias.zero_()
        model.text_tower.weight.copy_(model.image_tower.weight)
    images = torch.eye(9, dtype=torch.float64)[:4] * 0.1
    _, grads = by_hand(model, images, images)
    assert grads["log_scale"] < 0
    for _, replica in stepped(impl, model, (images, images), (2, 2), lr=0.5):
        assert_number(replica.log_scale, LIMIT, "log_scale after a step that would raise it")


def test_one_optimizer_goes_on_from_step_to_step(impl):
    model, pairs = probe(), some_pairs(5)
    shadow, moment = copy.deepcopy(model), {}

    def steps(comm):
        replica = copy.deepcopy(model)
        optimizer = torch.optim.SGD(replica.parameters(), lr=0.02, momentum=0.9)
        part = [view.split([2, 3])[comm.get_rank()] for view in pairs]
        return [impl.train_step(replica, optimizer, *part, comm) for _ in range(3)], replica

    wanted = []
    for _ in range(3):
        loss, grads = by_hand(shadow, *pairs)
        wanted.append(loss)
        for name, p in shadow.named_parameters():
            moment[name] = 0.9 * moment.get(name, 0) + grads[name]
            p.data.sub_(0.02 * moment[name])
    for losses, replica in launch(2, steps):
        for step, (got, want) in enumerate(zip(losses, wanted, strict=True), 1):
            assert_number(got, want, f"the loss of step {step}")
        for name, value in values(replica).items():
            assert_matches(value, shadow.get_parameter(name).detach(), f"{name} after three steps")


# Checks: the loop


def numbered(count):
    """Pairs whose first feature tells their number."""
    images, texts = some_pairs(count)
    images[:, 0] = texts[:, 0] = torch.arange(count) / 10
    return images, texts


def batches_seen(model, ranks):
    """The numbers of the rows, by step and rank."""
    numbers = [[round(10 * x) for x in images[:, 0].tolist()] for images, *_ in model.seen]
    return [numbers[start : start + ranks] for start in range(0, len(numbers), ranks)]


def test_an_epoch_shows_every_pair_once(impl):
    for ranks, batch_size, sizes in ((1, 5, [5, 5, 5, 2]), (2, 7, [7, 7, 3]), (3, 40, [17])):
        model = probe()
        steps = 3 * len(sizes)
        lines = list(impl.train(model, numbered(17), ranks, steps, batch_size, seeded(1)))
        assert len(lines) == steps, f"{len(lines)} lines of the log for {steps} steps"
        seen = batches_seen(model, ranks)
        got = [sum(map(len, step)) for step in seen]
        assert got == 3 * sizes, f"17 pairs in batches of {batch_size}: {got}"
        for step in seen:
            lengths = [len(part) for part in step]
            assert max(lengths) - min(lengths) <= 1, (
                f"{ranks} ranks have {lengths} pairs of a batch"
            )
        for epoch in range(3):
            part = seen[epoch * len(sizes) : (epoch + 1) * len(sizes)]
            rows = sorted(itertools.chain.from_iterable(itertools.chain.from_iterable(part)))
            assert rows == list(range(17)), f"epoch {epoch + 1} shows {rows}"


def test_every_epoch_has_its_own_order(impl):
    def orders(seed, ranks=2):
        model = probe()
        list(impl.train(model, numbered(21), ranks, 9, 8, seeded(seed)))
        flat = [
            n
            for step in batches_seen(model, ranks)
            for n in sorted(itertools.chain.from_iterable(step))
        ]
        return [tuple(flat[start : start + 21]) for start in (0, 21, 42)]

    first = orders(1)
    assert len(set(first)) == 3, "two epochs have the same batches"
    torch.default_generator.manual_seed(99)
    assert orders(1) == first, "the same generator, and other batches"
    assert orders(1, ranks=3) == first, "three ranks have other batches than two"
    assert orders(2)[0] != first[0], "another generator, and the same batches"
    assert len({orders(seed)[0][0] for seed in range(3, 7)}) > 1, "all begin with the same pair"


def test_training_is_adam_on_the_pairs_of_each_batch(impl):
    model, (images, texts) = probe(), numbered(13)
    shadow, moments = copy.deepcopy(model), {}
    shadow.seen = []
    model.seen.clear()
    lines = impl.train(model, (images, texts), 2, 5, 5, seeded(4))
    for step, line in enumerate(lines, 1):
        assert set(line) == {"loss", "scale"}, f"a line of the log has {sorted(line)}"
        assert all(isinstance(value, float) for value in line.values()), f"no float in {line}"
        rows = list(itertools.chain.from_iterable(batches_seen(model, 2)[-1]))
        loss, grads = by_hand(shadow, images[rows], texts[rows])
        assert_number(line["loss"], loss, f"the loss of step {step}")
        for name, p in shadow.named_parameters():
            mean, square = moments.get(name, (0, 0))
            mean, square = 0.9 * mean + 0.1 * grads[name], 0.999 * square + 0.001 * grads[name] ** 2
            moments[name] = mean, square
            root = (square / (1 - 0.999**step)) ** 0.5 + 1e-8
            p.data.sub_(0.003 * mean / (1 - 0.9**step) / root)
        assert_number(line["scale"], shadow.log_scale.exp(), f"the scale after step {step}")
        for name, value in values(model).items():
            want = shadow.get_parameter(name).detach()
            assert_matches(value, want, f"{name} after step {step}", rtol=1e-6, atol=1e-7)


def test_every_rank_and_step_has_dropout_of_its_own(impl):
    model = probe()
    torch.default_generator.manual_seed(1)
    list(impl.train(model, some_pairs(12), 3, 6, 6, seeded(1)))
    drawn = [number for *_, number, _ in model.seen]
    assert len(drawn) == 18, f"{len(drawn)} forward passes of three ranks in six steps"
    assert len(set(drawn)) == 18, (
        f"18 forward passes of three ranks in six steps draw {len(set(drawn))} numbers"
    )
    model.seen.clear()
    torch.default_generator.manual_seed(2)
    list(impl.train(probe_like(model), some_pairs(12), 3, 6, 6, seeded(1)))
    again = [number for *_, number, _ in model.seen]
    assert again == drawn, "the same generator gives other dropout"
    model.seen.clear()
    list(impl.train(probe_like(model), some_pairs(12), 3, 6, 6, seeded(2)))
    assert not {number for *_, number, _ in model.seen} & set(drawn), "another generator: the same"


def probe_like(model):
    return copy.deepcopy(model)


def test_training_leaves_the_rest_alone(impl):
    images, texts = some_pairs(9)
    read_with_draws(
        lambda seed, steps: impl.train(
            towers(impl, 0.3), (images, texts), 2, steps, 4, seeded(seed)
        ),
        seed=1,
        steps=3,
    )
    with unchanged(images=images, texts=texts):
        list(impl.train(towers(impl), (images, texts), 2, 3, 4, seeded(1)))


def test_two_trainings_at_once(impl):
    pairs = some_pairs(12)
    alone = [list(impl.train(towers(impl, 0.2, s), pairs, 2, 3, 5, seeded(s))) for s in (1, 2)]
    both = [impl.train(towers(impl, 0.2, s), pairs, 2, 3, 5, seeded(s)) for s in (1, 2)]
    for line, other in zip(zip(*both, strict=True), zip(*alone, strict=True), strict=True):
        assert line == other, "a training goes another way while there is a second one"


# Checks: the gap between ranks


class Centred(Probe):
    """Subtracts the mean of the rows that it is given, so that ranks matter."""

    def forward(self, images, texts):
        return super().forward(images - images.mean(dim=0), texts)


@pytest.mark.parametrize("arguments", [(), (3,), (1,)], ids=str)
def test_the_gap_is_that_of_loss_and_gradients(impl, arguments):
    torch.default_generator.manual_seed(8)
    model, (images, texts) = Centred(), some_pairs(7)
    ranks = arguments[0] if arguments else 2
    parts = images.tensor_split(ranks)
    centred = images - images.mean(dim=0), torch.cat([x - x.mean(dim=0) for x in parts])
    (loss, grads), (other_loss, other_grads) = (by_hand(model, x, texts) for x in centred)
    gaps = {name: float((grads[name] - other_grads[name]).abs().max()) for name in grads}
    gaps["loss"] = abs(loss - other_loss)
    got = impl.rank_gap(model, images, texts, *arguments)
    assert isinstance(got, float), f"the gap is {type(got).__name__}"
    assert_number(got, max(gaps.values()), f"the gap of {ranks} ranks, of {gaps},")


def test_the_gap_is_also_that_of_the_loss(impl):
    class Moved(Probe):
        """Embeds unit vectors as they are, half as long where it sees half of them."""

        def forward(self, images, texts):
            x, y = super().forward(images, texts)
            moved = images[:, :5] * len(images) / 6, texts[:, :5]
            return moved[0] + 1e-9 * x, moved[1] + 1e-9 * y

    images = torch.eye(6, 9, dtype=torch.float64)
    texts = torch.eye(6, 7, dtype=torch.float64)
    losses, scales = [], []
    for share in (1, 0.5):
        loss, _, _, grad = info_nce(images[:, :5] * share, texts[:, :5], 0.0)
        losses.append(loss)
        scales.append(float(grad))
    gap = abs(losses[0] - losses[1])
    assert gap > abs(scales[0] - scales[1])
    got = impl.rank_gap(Moved(log_scale=0.0), images, texts)
    assert_number(got, gap, "the gap, which is that of the loss,", rtol=1e-5)


def test_the_gap_is_measured_in_evaluation_mode(impl):
    model, pairs = towers(impl, dropout=0.5), some_pairs(7)
    for mode in (True, False):
        model.train(mode)
        model.text_tower.train(not mode)
        for p in model.parameters():
            p.grad = torch.full_like(p, 3.0)
        before = values(model)
        state = torch.get_rng_state()
        with unchanged(images=pairs[0], texts=pairs[1]):
            gap = impl.rank_gap(model, *pairs)
        assert gap < 1e-9, f"in float64, two ranks and one are {gap:.2g} apart"
        modes = [module.training for module in model.modules()]
        wanted = [not mode if "text" in name else mode for name, _ in model.named_modules()]
        assert modes == wanted, "modules are left in another mode than before"
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name]), f"measuring changes {name}"
            assert p.grad is not None, f"measuring takes the gradient of {name} away"
            assert (p.grad == 3).all(), f"measuring changes the gradient of {name}"
            assert p.requires_grad
        assert torch.equal(torch.get_rng_state(), state), "measuring draws random numbers"


# Checks: recall


def test_recall_of_cases_by_hand(impl):
    eye = torch.eye(4)
    cases = [
        ("each its own", eye, eye, 1.0),
        ("all wrong", eye, eye.roll(1, dims=0), 0.0),
        ("half of them", eye, eye[[0, 1, 3, 2]], 0.5),
        ("one pair", eye[:1], -eye[:1], 1.0),
        ("all alike", torch.ones(4, 2), torch.ones(4, 2), 0.0),
        ("nothing is similar to anything", eye, torch.zeros(4, 4), 0.0),
        ("a tie of two", eye, torch.stack([eye[0], eye[0], eye[2], eye[3]]), 0.5),
        (
            "others tie behind the own",
            eye[:3],
            torch.tensor([[3.0, 1, 1, 0], [1, 3, 1, 0], [1, 1, 3, 0]]),
            1.0,
        ),
        ("negative similarities", -eye, 2 * eye - 1, 0.0),
        ("by length", eye[:2], torch.tensor([[1.0, 0, 0, 0], [2, 1, 0, 0]]), 0.5),
    ]
    for name, queries, keys, wanted in cases:
        for dtype in (torch.float32, torch.float64):
            got = impl.recall_at_1(queries.to(dtype), keys.to(dtype))
            assert isinstance(got, float), f"recall is {type(got).__name__}"
            assert got == wanted, f"recall where {name}: {got}, not {wanted}"


def test_recall_asks_for_the_keys_of_each_query(impl):
    for count in (2, 9, 40):
        queries, keys = torch.randn(count, 3), torch.randn(count, 3)
        keys[: count // 2] += 2 * queries[: count // 2]
        scores = np.asarray(queries.double()) @ np.asarray(keys.double()).T
        hits = [scores[i, i] > max(np.delete(scores[i], i)) for i in range(count)]
        with unchanged(queries=queries, keys=keys):
            got = impl.recall_at_1(queries, keys)
        assert_number(got, sum(hits) / count, f"recall of {count} random pairs")
    # One key is nearest to all: a column is right, and of its rows only one.
    queries, keys = torch.eye(3), torch.tensor([[4.0, 4, 4], [0, 1, 0], [0, 0, 1]])
    assert_number(impl.recall_at_1(queries, keys), 1 / 3, "recall where one key is near to all")
    assert_number(impl.recall_at_1(keys, queries), 0.667, "and the other way round", rtol=1e-2)


# Checks: evaluation


class Noted(nn.Module):
    """A tower that notes how it is called, with a part that has a mode of its own."""

    def __init__(self, tower):
        super().__init__()
        self.tower, self.noise, self.seen = tower, nn.Dropout(0.5), []

    def forward(self, x):
        mode = self.training, self.tower.training, self.noise.training, torch.is_grad_enabled()
        self.seen.append((len(x), *mode))
        return self.noise(self.tower(x))


def noted():
    model = probe()
    return Noted(model.image_tower), Noted(model.text_tower)


def test_recall_is_over_all_pairs_at_once(impl):
    one, other = noted()
    images, texts = some_pairs(50)
    with torch.no_grad():
        x, y = one.tower(images), other.tower(texts)
    scores = np.asarray(x @ y.T)
    hits = [scores[i, i] > max(np.delete(scores[i], i)) for i in range(50)]
    for arguments in ((), (7,), (50,), (1,), (64,)):
        with unchanged(images=images, texts=texts):
            got = impl.evaluate(one, other, (images, texts), *arguments)
        assert isinstance(got, float), f"recall is {type(got).__name__}"
        assert_number(got, sum(hits) / 50, f"recall of 50 pairs, batch_size {arguments}")
    one.seen.clear()
    impl.evaluate(one, other, some_pairs(300))
    impl.evaluate(one, other, some_pairs(9), batch_size=4)
    sizes = [size for size, *_ in one.seen]
    assert max(sizes) <= 256, f"batches of {max(sizes)} images, where 256 is the default"
    assert max(sizes[-3:]) <= 4, f"batches of {sizes[-3:]} where batch_size is 4"
    assert impl.evaluate(one, other, some_pairs(1)) == 1.0, "the recall of a single pair"


def test_evaluation_gives_modes_and_gradients_back(impl):
    for mode in (True, False):
        one, other = noted()
        one.train(mode)
        one.noise.train(not mode)
        other.train(not mode)
        for p in one.parameters():
            p.grad = torch.ones_like(p)
        before = [module.training for module in (*one.modules(), *other.modules())]
        with torch.set_grad_enabled(mode):
            impl.evaluate(one, other, some_pairs(5), 2)
            assert torch.is_grad_enabled() == mode, "evaluation leaves another grad mode behind"
        assert not any(any(modes) for _, *modes in one.seen + other.seen), (
            "in evaluation, a module is in training mode, or a graph is recorded"
        )
        after = [module.training for module in (*one.modules(), *other.modules())]
        assert after == before, f"modes of the modules were {before} and are {after}"
        assert all((p.grad == 1).all() for p in one.parameters()), "gradients have changed"
        # A part that both towers have.
        one, other = noted()
        other.noise = one.noise
        one.noise.train(mode)
        impl.evaluate(one, other, some_pairs(5), 2)
        assert one.noise.training == mode, "the mode of a part that both towers share has changed"


# Checks: distillation


@pytest.mark.parametrize("shape", [(5, 3), (1, 4), (4, 1), (3, 6)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5, 3])
def test_the_distillation_loss(impl, shape, temperature):
    student = 3 * torch.randn(shape, dtype=torch.float64)
    teacher = 3 * torch.randn(shape, dtype=torch.float64)
    log_q, log_p = (log_softmax(np.asarray(x) / temperature) for x in (student, teacher))
    wanted = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum() / shape[0]
    grad = temperature * (np.exp(log_q) - np.exp(log_p)) / shape[0]
    student.requires_grad_()
    teacher.requires_grad_()
    with unchanged(student=student, teacher=teacher):
        loss = impl.distillation_loss(student, teacher, temperature)
        loss.backward()
    assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}"
    assert_number(loss, wanted, f"the loss of logits {shape} at temperature {temperature}")
    assert_matches(student.grad, torch.as_tensor(grad), "the student's gradient", atol=1e-9)
    none = teacher.grad is None or not teacher.grad.any()
    assert none, "a gradient goes to the teacher's logits"


def test_distillation_losses_that_are_known(impl):
    logits = 5 * torch.randn(4, 6)
    same = impl.distillation_loss(logits + 3, logits, 2.0)
    assert_number(same, 0, "the loss of a student that says the same", atol=1e-5)
    sure, unsure = torch.tensor([[1e4, 0.0, 0.0]]), torch.zeros(1, 3)
    loss = impl.distillation_loss(unsure, sure, 2.0)
    assert_number(loss, 4 * math.log(3), "the loss where the teacher is sure", 1e-5)
    loss = impl.distillation_loss(sure, unsure, 2.0)
    assert_number(loss, 4 * (5000 * 2 / 3 - math.log(3)), "where only the student is", 1e-4)
    assert impl.distillation_loss(logits, logits, 2.0).dtype == torch.float32
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            loss = impl.distillation_loss(unsure, sure, 1.0)
        assert_number(loss, math.log(3), f"the loss under {mode.__name__}", 1e-5)


def distilled(impl, student, teacher, pairs, lr=0.02, before=None):
    optimizer = torch.optim.SGD(student.parameters(), lr=lr)
    if before:
        before(student)
    return impl.distill_step(student, teacher, optimizer, *pairs)


def distillation_by_hand(student, teacher, images, texts):
    """Loss and gradients of a student that is a linear layer."""
    keys = math.exp(teacher.log_scale.detach()) * np.asarray(teacher.text_tower(texts).detach())
    teaching, logits = (
        np.asarray(tower(images).detach()) @ keys.T for tower in (teacher.image_tower, student)
    )
    log_q, log_p, log_hard = log_softmax(logits / 2), log_softmax(teaching / 2), log_softmax(logits)
    count = len(logits)
    soft = 4 * (np.exp(log_p) * (log_p - log_q)).sum() / count
    hard = -np.trace(log_hard) / count
    grad = 2 * (np.exp(log_q) - np.exp(log_p)) + np.exp(log_hard) - np.eye(count)
    grad = torch.as_tensor(grad / (2 * count) @ keys)
    return (soft + hard) / 2, {"weight": grad.T @ images, "bias": grad.sum(dim=0)}


@pytest.mark.parametrize("count", [6, 1])
def test_a_step_of_distillation(impl, count):
    teacher, student, pairs = probe(), probe(seed=9).image_tower, some_pairs(count)
    start = values(student)
    loss, grads = distillation_by_hand(student, teacher, *pairs)
    with unchanged(images=pairs[0], texts=pairs[1]):
        got = distilled(impl, student, teacher, pairs)
    assert isinstance(got, float), f"the step returns {type(got).__name__}"
    assert_number(got, loss, f"the loss of {count} pairs")
    for name, value in values(student).items():
        want = start[name] - 0.02 * grads[name]
        assert_matches(value, want, f"the student's {name} after a step")


def test_gradients_from_before_do_not_count_for_a_student(impl):
    teacher, student, pairs = probe(), probe(seed=9).image_tower, some_pairs(6)
    start = values(student)
    _, grads = distillation_by_hand(student, teacher, *pairs)

    def leave_gradients(model):
        for p in model.parameters():
            p.grad = torch.full_like(p, 30.0)

    distilled(impl, student, teacher, pairs, before=leave_gradients)
    for name, value in values(student).items():
        assert_matches(value, start[name] - 0.02 * grads[name], f"{name}, with gradients before")


def test_the_teacher_stays_as_it_is(impl):
    for mode in (True, False):
        teacher = probe()
        teacher.noise = nn.Dropout(0.5)
        teacher.train(mode)
        teacher.noise.train(not mode)
        for p in teacher.parameters():
            p.grad = torch.full_like(p, 3.0)
        before, modes = values(teacher), [module.training for module in teacher.modules()]
        distilled(impl, probe(seed=9).image_tower, teacher, some_pairs(6))
        assert not any(training for _, training, *_ in teacher.seen), (
            "the teacher's forward pass is in training mode"
        )
        assert not any(grad for *_, grad in teacher.seen), "the teacher's forward pass is recorded"
        after = [module.training for module in teacher.modules()]
        assert after == modes, f"modes of the teacher's modules were {modes} and are {after}"
        for name, p in teacher.named_parameters():
            assert torch.equal(p, before[name]), f"a step of distillation changes the {name}"
            assert p.requires_grad, f"{name} no longer asks for a gradient"
            assert (p.grad == 3).all(), f"a step of distillation changes the gradient of {name}"


def test_the_student_is_in_training_mode(impl):
    for mode in (True, False):
        student = Noted(probe(seed=9).image_tower).train(mode)
        distilled(impl, student, probe(), some_pairs(6))
        assert student.seen, "the student is never called"
        assert all(modes == [True] * 4 for _, *modes in student.seen), (
            f"training modes of the student and its parts: {student.seen}"
        )


# Checks: the run


def test_the_lines_of_a_run(impl, log):
    assert len(log) == STEPS, f"a run logs {len(log)} steps, not {STEPS}"
    for step, line in enumerate(log, 1):
        wanted = {"loss", "scale", "distill_loss"}
        if step % 20 == 0:
            wanted |= {"recall", "student_recall", "rank_gap"}
        assert set(line) == wanted, f"the line of step {step} has {sorted(line)}"
        assert all(isinstance(value, float) for value in line.values()), f"no float in {line}"
    recalls = {line[name] for line in log[19::20] for name in ("recall", "student_recall")}
    assert all(abs(128 * x - round(128 * x)) < 1e-6 for x in recalls), (
        f"not the recall of 128 pairs: {sorted(recalls)}"
    )


def test_a_short_run(impl):
    for steps in (1, 21):
        lines = [dict(line) for line in impl.run(seed=1, steps=steps)]
        assert len(lines) == steps, f"steps={steps}: {len(lines)} lines"
        evaluated = [step for step, line in enumerate(lines, 1) if "recall" in line]
        assert evaluated == sorted({*range(20, steps, 20), steps}), f"recall at steps {evaluated}"


def test_a_seed_gives_one_log(impl):
    torch.default_generator.manual_seed(5)
    one = [dict(line) for line in impl.run(seed=3, steps=3)]
    assert [dict(line) for line in read_with_draws(impl.run, 3, 3)] == one, (
        "the same seed gives another log, where its reader draws random numbers"
    )
    before = torch.get_rng_state()
    other = [dict(line) for line in impl.run(4, 3)]
    assert torch.equal(torch.get_rng_state(), before), "a run changes the global generator"
    assert [line["loss"] for line in other] != [line["loss"] for line in one], "seeds do not count"
    assert list(impl.run(steps=2)) == list(impl.run(0, 2)), "seed is not 0 by default"


# Checks: real processes

GLOO = """
import datetime, importlib.util, os, sys

import torch
import torch.distributed as dist
from torch import nn

implementation, folder = sys.argv[1:]
other = os.fork()
rank = 0 if other else 1
torch.set_num_threads(1)
try:
    timeout = datetime.timedelta(seconds=8)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    dist.all_reduce(torch.ones(1))
except Exception as error:
    print(f"no gloo: {error}", file=sys.stderr)
    os._exit(77)

spec = importlib.util.spec_from_file_location("kata", implementation)
impl = importlib.util.module_from_spec(spec)
sys.modules["kata"] = impl
spec.loader.exec_module(impl)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_tower = nn.Linear(9, 5)
        self.text_tower = nn.Linear(7, 5, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, images, texts):
        return self.image_tower(images), self.text_tower(texts)


class Descent:  # torch.optim's first optimizer imports its compiler, a second of this test
    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": 0.01}]

    def zero_grad(self, set_to_none=True):
        for p in self.param_groups[0]["params"]:
            p.grad = None if set_to_none else torch.zeros_like(p)

    def step(self):
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.sub_(0.01 * p.grad)


given = torch.load(f"{folder}/given")
images, texts = (view.split([3, 2])[rank].clone() for view in given["pairs"])
strided = images.T.contiguous().T.requires_grad_()
rows = impl.gather(strided, dist)
(rows * (1 + rank)).sum().backward()
model = Model().double()
model.load_state_dict(given["state"])
share = impl.contrastive_loss(*model(images, texts), model.log_scale, dist).detach()
loss = impl.train_step(model, Descent(model.parameters()), images, texts, dist)
found = {"rows": rows.detach(), "gradient": strided.grad, "share": share, "loss": loss}
torch.save(found | {"state": model.state_dict()}, f"{folder}/found{rank}")
dist.barrier()
if other and os.waitpid(other, 0)[1]:
    sys.exit("the other process failed")
sys.stderr.flush()
os._exit(0)
"""


def test_two_real_processes(impl, tmp_path):
    if not hasattr(os, "fork") or not torch.distributed.is_available():
        pytest.skip("needs fork and torch.distributed")
    model, (images, texts) = probe(), some_pairs(5)
    torch.save({"pairs": (images, texts), "state": model.state_dict()}, tmp_path / "given")
    paths = [str(Path(dojo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", GLOO, impl.__file__, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"needs gloo: {done.stderr.strip()}")
    said = done.stderr.strip().splitlines()
    assert done.returncode == 0, f"on two processes: {said[-1] if said else 'it ends early'}"
    found = [torch.load(tmp_path / f"found{rank}") for rank in range(2)]
    loss, grads = by_hand(model, images, texts)
    total = sum(float(each["share"]) for each in found)
    assert_number(total, loss, "the sum of the shares of two processes")
    for rank, each in enumerate(found):
        assert_matches(each["rows"], images, f"rows gathered by process {rank}", rtol=0, atol=0)
        assert_matches(each["gradient"], torch.full_like(each["gradient"], 3.0), "their gradient")
        assert_number(each["loss"], loss, f"the loss that process {rank} returns")
        for name, value in each["state"].items():
            want = model.get_parameter(name).detach() - 0.01 * grads[name]
            assert_matches(value, want, f"{name} on process {rank} after a step")


def test_a_run_has_two_ranks_and_batches_of_63(impl):
    rows = set()

    def note(module, inputs, _):
        (x,) = inputs[:1] or (None,)
        if module.training and isinstance(x, torch.Tensor) and x.shape[1:] == (24,):
            rows.add(len(x))

    hook = nn.modules.module.register_module_forward_hook(note)
    try:
        list(impl.run(0, 2))
    finally:
        hook.remove()
    assert rows == {31, 32, 63}, f"rows of images in a forward pass of training: {sorted(rows)}"
