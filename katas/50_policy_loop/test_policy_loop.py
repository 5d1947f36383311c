import copy
import inspect
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dojo.testing import assert_all_match, assert_any_layout, assert_matches, unchanged

UPDATES = 40  # of a run
LINES = ["...#.X", "......", ".#..#.", "...O..", "G..#.."]
WORTH = {".": -0.02, "G": 0.2, "X": 1.0, "O": -1.0}
STARTS = [cell for cell, kind in enumerate("".join(LINES)) if kind in ".G"]
OPTIMUM = 1.30006  # the mean over the starts of the values below, by value iteration
PARTS = ("loss", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction")
FIELDS = (
    "observations",
    "actions",
    "log_probs",
    "values",
    "rewards",
    "terminated",
    "truncated",
    "next_values",
)


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


class Table(nn.Module):
    """Logits and values that are looked up: a row for each entry of the observation."""

    def __init__(self, logits, values):
        super().__init__()
        self.logits, self.values = nn.Parameter(logits.clone()), nn.Parameter(values.clone())

    def forward(self, observations):
        return observations @ self.logits, observations @ self.values


class Script:
    """A world that plays what is written down, whatever is done, and notes what is done.

    Its observations, (N, D), hold the number of the step and of the environment, and what an action
    leads to is told apart from what is acted on next, at every step.
    """

    def __init__(self, rewards, terminated, truncated, arrived, observations):
        self.script = rewards, terminated, truncated
        self.arrived, self.observations = arrived, observations  # (T, N, D) and (T + 1, N, D)
        self.resets, self.actions = 0, []

    def reset(self):
        self.resets += 1
        return self.observations[len(self.actions)].clone()

    def step(self, actions):
        t = len(self.actions)
        self.actions.append(actions.clone())
        outcome = (part[t].clone() for part in self.script)
        return (self.arrived[t].clone(), *outcome, self.observations[t + 1].clone())


def a_script(steps, envs, width, ends=0.3):
    return Script(
        torch.randn(steps, envs),
        torch.rand(steps, envs) < ends,
        torch.rand(steps, envs) < ends,
        torch.randn(steps, envs, width),
        torch.randn(steps + 1, envs, width),
    )


def move(cell, action):
    """Where an action leads to, what it pays, and whether that is the end: by the map's lines."""
    row, column = divmod(cell, 6)
    to_row = row + (-1, 0, 1, 0)[action]
    to_column = column + (0, 1, 0, -1)[action]
    if not (0 <= to_row < 5 and 0 <= to_column < 6) or LINES[to_row][to_column] == "#":
        to_row, to_column = row, column
    kind = LINES[to_row][to_column]
    return to_row * 6 + to_column, WORTH[kind], kind in "XO"


def values_of(probs, gamma=0.9):
    """The values of a policy, probs (30, 4), by iteration: a dict of the starts."""
    values = np.zeros(30)
    for _ in range(400):
        new = np.zeros(30)
        for cell in STARTS:
            for action in range(4):
                reached, reward, end = move(cell, action)
                follows = 0 if end else gamma * values[reached]
                new[cell] += float(probs[cell, action]) * (reward + follows)
        values = new
    return values


@pytest.fixture(scope="module")
def log(impl):
    """The log of one whole run."""
    return [dict(line) for line in impl.run()]


@pytest.fixture(scope="module")
def collected(impl):
    """A rollout on the grid world of a policy that has learnt nothing, with values at random."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        world = impl.GridWorld(7, 5, generator(1))
        model = impl.ActorCritic(30, 4)
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.7)
    rollout, _ = impl.collect(world, model, world.reset(), 33, generator(2))
    return model, rollout


# Symptoms


# What a healthy run ends with; of 50 seeds the extremes are 1.200 and 1.299, 0.001 and 0.015, 0.23
# and 0.44, 0.0000 and 0.0008.
HEALTHY = {
    "value": (1.17, OPTIMUM + 0.001),
    "value_error": (0.0, 0.06),
    "entropy": (0.12, 0.7),
    "value_loss": (0.0, 0.02),
}


@pytest.mark.symptom
def test_a_run_goes_as_a_healthy_one_does(log):
    off = []
    for name, (low, high) in HEALTHY.items():
        value = float(log[-1][name])
        if not low <= value <= high:
            off.append(
                f"it ends with {name} {value:.3f}, a healthy one within {low:g} and {high:g}"
            )
    if not 1.3 < (entropy := float(log[0]["entropy"])) < 1.39:
        off.append(f"entropy is {entropy:.3f} in the first update, and should be about 1.37")
    # Of 50 seeds from 1.005 to 1.084.
    earned = sum(float(line["episode_return"]) for line in log[20:]) / len(log[20:])
    if not 0.96 < earned < 1.125:
        off.append(
            f"over its second half episodes earn {earned:.3f} in the mean, and should about 1.05"
        )
    # Of 50 seeds from 0.0145 to 0.0202, and never below 0.
    kl = [float(line["kl"]) for line in log]
    if not 0.008 < (mean := sum(kl[:10]) / 10) < 0.03:
        off.append(f"kl is {mean:.4f} over the first ten updates, and should be about 0.017")
    if min(kl) < -1e-4:
        off.append(f"kl is {min(kl):.4f} in one update, below 0")
    rates = [float(line["lr"]) for line in log]
    if not all(abs(lr - 0.01 * (1 - i / UPDATES)) < 1e-4 for i, lr in enumerate(rates)):
        off.append(f"lr goes {', '.join(f'{lr:.4f}' for lr in rates[:4])} ... {rates[-1]:.4f}")
    assert not off, "this run is not healthy: " + "; ".join(off)


@pytest.mark.symptom
def test_how_soon_an_episode_is_cut_off_does_not_change_what_is_learnt(impl):
    # Cut off after each step: what follows is then the critic's word alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        draws = generator(0)
        world, model = impl.GridWorld(32, 1, draws), impl.ActorCritic(30, 4)
    for _ in impl.train(world, model, impl.Config(), 30, draws):
        pass
    with torch.no_grad():
        logits, values = model(torch.eye(30))
    truth = values_of(logits.softmax(-1))[STARTS]
    worth = truth.mean()
    error = float(np.sqrt(np.square(values[STARTS].numpy() - truth).mean()))
    assert error < 0.25, (
        f"trained on episodes of one step, the critic is wrong by {error:.3f} (RMS), not by 0.1: "
        f"in the mean it says {float(values[STARTS].mean()):.3f}, and its policy is worth "
        f"{worth:.3f} where nothing cuts it off"
    )
    assert worth > 1.1, (
        f"trained on episodes of one step, the policy is worth {worth:.3f}; the best is {OPTIMUM}"
    )


@pytest.mark.symptom
def test_an_episode_is_judged_by_what_happens_in_it(impl, collected):
    _, rollout = collected
    advantages, _ = impl.gae(rollout, 0.9, 0.8)
    ended = rollout.terminated | rollout.truncated
    seen = set()
    for n in range(ended.shape[1]):
        first = 0
        for t in range(len(ended)):
            if not ended[t, n]:
                continue
            kind = "terminated" if rollout.terminated[t, n] else "cut off"
            alone = impl.Rollout(
                **{name: getattr(rollout, name)[first : t + 1, n : n + 1] for name in FIELDS}
            )
            wanted, _ = impl.gae(alone, 0.9, 0.8)
            got = advantages[first : t + 1, n]
            seen.add(kind)
            worst = float((got - wanted[:, 0]).abs().max())
            assert worst < 1e-4, (
                f"an episode of {len(got)} steps that was {kind} has the advantages "
                f"{[round(x, 3) for x in got.tolist()]} within its rollout, and "
                f"{[round(x, 3) for x in wanted[:, 0].tolist()]} when the rollout is it alone"
            )
            first = t + 1
    assert len(seen) == 2, f"of {ended.numel()} steps all episodes were {seen}"


@pytest.mark.symptom
def test_the_first_look_at_a_rollout_finds_the_policy_that_acted(impl):
    world = impl.GridWorld(16, 8, generator(4))
    model = Table(torch.randn(30, 4), torch.randn(30))
    rollout, _ = impl.collect(world, model, world.reset(), 24, generator(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    config = impl.Config(epochs=1, minibatch_size=24 * 16)
    said = impl.update(model, optimizer, rollout, config, generator(6))
    for name in ("policy_loss", "kl", "clip_fraction"):
        assert abs(float(said[name])) < 1e-4, (
            f"no step has been taken yet since the policy acted, and {name} is "
            f"{float(said[name]):.4f}, not 0"
        )
    surprise = -float(rollout.log_probs.mean())
    assert abs(surprise - float(said["entropy"])) < 0.15, (
        f"the actions taken have a mean log-probability of {-surprise:.3f}, "
        f"and the policy an entropy of {float(said['entropy']):.3f}"
    )


@pytest.mark.symptom
def test_small_steps_lead_to_one_place_however_a_rollout_is_cut(impl, collected):
    # Of 231 transitions, in 3 minibatches or in one.
    source, rollout = collected
    moved = []
    for minibatch_size, lr in ((77, 1e-3), (231, 3e-3)):
        model = copy.deepcopy(source)
        config = impl.Config(epochs=2, minibatch_size=minibatch_size, max_grad_norm=1e9)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        impl.update(model, optimizer, rollout, config, generator(7))
        pairs = zip(model.parameters(), source.parameters(), strict=True)
        moved.append(torch.cat([(new - old).detach().flatten() for new, old in pairs]))
    off = float((moved[0] - moved[1]).norm() / moved[1].norm())
    assert off < 0.1, (
        f"in three times as many steps, each a third as long, the weights went "
        f"{moved[0].norm():.5f} far, and in one minibatch an epoch {moved[1].norm():.5f}; they end "
        f"{off:.0%} apart"
    )


class Witness:
    """A world that notes what each episode has earned by its end."""

    def __init__(self, world):
        self.world, self.ended = world, []

    def reset(self):
        observations = self.world.reset()
        self.earned = [0.0] * len(observations)
        return observations

    def step(self, actions):
        arrived, rewards, terminated, truncated, observations = self.world.step(actions)
        for n, reward in enumerate(rewards.tolist()):
            self.earned[n] += reward
            if terminated[n] or truncated[n]:
                self.ended.append(self.earned[n])
                self.earned[n] = 0.0
        return arrived, rewards, terminated, truncated, observations


@pytest.mark.symptom
def test_the_log_tells_what_episodes_have_earned(impl):
    world = Witness(impl.GridWorld(40, 6, generator(3)))
    model = Table(torch.randn(30, 4), torch.zeros(30))
    config = impl.Config(lr=0.0, num_steps=4, epochs=1, minibatch_size=160)
    for number, line in enumerate(impl.train(world, model, config, 8, generator(4))):
        wanted = sum(world.ended) / len(world.ended)
        got = float(line["episode_return"])
        assert abs(got - wanted) < 1e-3, (
            f"in rollout {number}, of 4 steps, {len(world.ended)} episodes of up to 6 steps ended; "
            f"they earned {wanted:.3f} in the mean, and the log says {got:.3f}"
        )
        world.ended.clear()


# Checks: the world


def test_the_tables_are_those_of_the_map(impl):
    world = impl.GridWorld(3, 4, generator())
    assert sorted(world.starts.tolist()) == STARTS
    for name, dtype in (("next_cell", torch.int64), ("reward", torch.float32)):
        table = getattr(world, name)
        assert (table.shape, table.dtype) == ((30, 4), dtype), (
            f"{name}: {table.shape} {table.dtype}"
        )
    assert (world.terminal.shape, world.terminal.dtype) == ((30, 4), torch.bool)
    for cell, action in itertools.product(STARTS, range(4)):
        reached, reward, end = move(cell, action)
        which = f"action {action} in cell {cell}"
        got = int(world.next_cell[cell, action])
        assert got == reached, f"{which} leads to cell {got}, and should to {reached}"
        paid = float(world.reward[cell, action])
        assert abs(paid - reward) < 1e-6, f"{which} pays {paid}, and should {reward}"
        assert bool(world.terminal[cell, action]) == end, f"{which}: terminal is {not end}"


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_episodes_by_hand(impl, limit):
    envs = 9
    world = impl.GridWorld(envs, limit, generator())
    observed = world.reset()
    ages = [0] * envs
    both = 0
    for step in range(40):
        assert (observed.shape, observed.dtype) == ((envs, 30), torch.float32)
        assert observed.sum(1).eq(1).all()
        assert observed.max(1).values.eq(1).all()
        cells = observed.argmax(1).tolist()
        assert set(cells) <= set(STARTS), f"an episode goes on in one of the cells {cells}"
        actions = torch.randint(4, (envs,))
        arrived, rewards, terminated, truncated, following = world.step(actions)
        assert (rewards.shape, rewards.dtype) == ((envs,), torch.float32)
        assert (terminated.shape, terminated.dtype) == ((envs,), torch.bool)
        assert (truncated.shape, truncated.dtype) == ((envs,), torch.bool)
        assert (arrived.shape, arrived.dtype) == ((envs, 30), torch.float32)
        for n, cell in enumerate(cells):
            reached, reward, end = move(cell, int(actions[n]))
            ages[n] += 1
            what = f"step {step}, at age {ages[n]} of {limit}, action {int(actions[n])} in {cell}"
            got = int(arrived[n].argmax())
            assert got == reached, f"{what}: arrived at {got}, not at {reached}"
            assert abs(float(rewards[n]) - reward) < 1e-6, f"{what}: earned {float(rewards[n])}"
            assert bool(terminated[n]) == end, f"{what}: terminated is {not end}"
            cut = ages[n] == limit
            assert bool(truncated[n]) == cut, f"{what}: truncated is {not cut}"
            both += end and cut
            if end or cut:
                ages[n] = 0
            else:
                assert torch.equal(following[n], arrived[n]), (
                    f"{what}: it does not go on from there"
                )
        observed = following
    assert both or limit == 5


def test_episodes_begin_anywhere_by_the_generator(impl):
    world = impl.GridWorld(4000, 1, generator(8))
    counts = torch.zeros(30)
    state = torch.get_rng_state()
    for observed in (world.reset(), world.step(torch.zeros(4000, dtype=torch.int64))[-1]):
        found = observed.sum(0)
        counts += found
        assert found[STARTS].min() > 100, f"of 4000 episodes, {found.tolist()} began in the cells"
        assert found[STARTS].max() < 240, f"of 4000 episodes, {found.tolist()} began in the cells"
    assert float(counts[STARTS].sum()) == 8000
    assert torch.equal(torch.get_rng_state(), state), "it draws from the global generator"
    pairs = observed.argmax(1).reshape(-1, 2)
    same = float((pairs[:, 0] == pairs[:, 1]).float().mean())
    assert same < 0.1, f"{same:.0%} of the neighbours begin in one cell"
    worlds = [impl.GridWorld(40, 1, generator(seed)) for seed in (8, 8, 9)]
    firsts = [world.reset() for world in worlds]
    assert torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[0], firsts[2])
    again = worlds[0].reset()
    assert not torch.equal(again, firsts[0]), "a second reset begins where the first did"


def test_reset_begins_new_episodes(impl):
    world = impl.GridWorld(50, 3, generator())
    world.reset()
    world.step(torch.randint(4, (50,)))
    world.step(torch.randint(4, (50,)))
    world.reset()
    assert not world.step(torch.randint(4, (50,)))[3].any(), "cut off at once after a reset"


def test_true_values_by_iteration(impl):
    world = impl.GridWorld(2, 3, generator())
    for gamma, spread in ((0.9, 1.0), (0.5, 3.0), (0.97, 0.3), (0.0, 1.0)):
        probs = (spread * torch.randn(30, 4)).softmax(-1)
        values = impl.true_values(world, probs, gamma)
        assert (values.shape, values.dtype) == ((30,), torch.float64)
        wanted = torch.from_numpy(values_of(probs.double().numpy(), gamma))
        assert_matches(
            values[STARTS], wanted[STARTS], f"values with gamma {gamma}", rtol=1e-5, atol=1e-4
        )


def test_true_values_of_other_tables(impl):
    cells, actions, gamma = 6, 3, 0.8
    world = SimpleNamespace(
        next_cell=torch.randint(cells, (cells, actions)),
        reward=torch.randn(cells, actions),
        terminal=torch.rand(cells, actions) < 0.3,
    )
    for dtype in (torch.float32, torch.float64):
        probs = torch.randn(cells, actions, dtype=dtype).softmax(-1)
        wanted = np.zeros(cells)
        for _ in range(300):
            wanted = np.array(
                [
                    sum(
                        float(probs[s, a])
                        * (
                            float(world.reward[s, a])
                            + gamma
                            * (not world.terminal[s, a])
                            * wanted[int(world.next_cell[s, a])]
                        )
                        for a in range(actions)
                    )
                    for s in range(cells)
                ]
            )
        with unchanged(probs=probs, reward=world.reward):
            values = impl.true_values(world, probs, gamma)
        what = f"values of another world, by {dtype} probabilities"
        assert_matches(values, torch.from_numpy(wanted), what, rtol=1e-10, atol=1e-10)


# Checks: the model


def test_the_model_takes_any_leading_axes(impl):
    model = impl.ActorCritic(7, 3, width=5)
    flat = torch.randn(24, 7)
    logits, values = model(flat)
    for shape in ((24,), (4, 6), (2, 3, 4), (1, 24)):
        got = model(flat.reshape(*shape, 7))
        assert_matches(got[0], logits.reshape(*shape, 3), f"logits of observations {shape}")
        assert_matches(got[1], values.reshape(shape), f"values of observations {shape}")
    one = model(flat[0])
    assert (one[0].shape, one[1].shape) == ((3,), ())
    assert torch.get_default_dtype() == logits.dtype == values.dtype


def test_the_first_policy_is_about_uniform(impl):
    for seed in range(5):
        torch.default_generator.manual_seed(seed)
        model = impl.ActorCritic(30, 4)
        probs = model(torch.eye(30))[0].detach().softmax(-1)
        low, high = float(probs.min()), float(probs.max())
        assert 0.15 < low < high < 0.4, f"probabilities are from {low:.3f} to {high:.3f}"
        assert float(probs.std(0).max()) > 0, "all observations give one policy"


def test_policy_and_values_share_no_weight(impl):
    model = impl.ActorCritic(6, 3)
    logits, values = model(torch.randn(11, 6))
    reached = []
    for out in (logits * torch.randn(11, 3), values * torch.randn(11)):
        grads = torch.autograd.grad(
            out.sum(), list(model.parameters()), retain_graph=True, allow_unused=True
        )
        reached.append({i for i, g in enumerate(grads) if g is not None and bool(g.any())})
    assert not reached[0] & reached[1], "a weight serves policy and values"
    assert len(reached[0] | reached[1]) == len(list(model.parameters())), "a weight serves neither"


def test_what_the_model_can_express(impl):
    # Sums of single entries would not do: the targets are products of two of them.
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)))
    torch.default_generator.manual_seed(1)
    model = impl.ActorCritic(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    target = signs.prod(1)
    for _ in range(150):
        logits, values = model(signs)
        loss = (values - target).square().mean() + (logits[:, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2, f"it cannot learn a product of two inputs: loss {loss.item():.2f}"


# Checks: collection


def test_a_rollout_by_hand(impl):
    steps, envs, width, choices = 5, 3, 4, 6
    world = a_script(steps, envs, width)
    model = Table(torch.randn(width, choices), torch.randn(width))
    first = world.observations[0].clone()
    rollout, following = impl.collect(world, model, first, steps, generator())
    assert world.resets == 0, "a rollout goes on from the observations that are given"
    assert_matches(torch.stack(world.actions), rollout.actions, "the actions taken")
    assert (rollout.actions.shape, rollout.actions.dtype) == ((steps, envs), torch.int64)
    assert_matches(following, world.observations[-1], "observations to go on from")
    rewards, terminated, truncated = world.script
    with torch.no_grad():
        logits, values = model(world.observations[:-1])
        _, next_values = model(world.arrived)
    log_probs = torch.zeros(steps, envs)
    for t, n in itertools.product(range(steps), range(envs)):
        row = logits[t, n].double()
        chosen = rollout.actions[t, n]
        log_probs[t, n] = (row[chosen] - row.exp().sum().log()).float()
    wanted = {
        "observations": world.observations[:-1],
        "log_probs": log_probs,
        "values": values,
        "rewards": rewards,
        "terminated": terminated,
        "truncated": truncated,
        "next_values": next_values,
    }
    for name, expected in wanted.items():
        got = getattr(rollout, name)
        assert_matches(got, expected, f"{name} of a rollout", rtol=1e-4, atol=1e-5)
        assert not got.requires_grad, f"{name} of a rollout hang on to a graph"


def test_what_a_rollout_is(impl):
    names = list(inspect.signature(impl.Rollout).parameters)
    assert names == list(FIELDS), f"the fields are {names}"
    rollout = impl.Rollout(**{name: number for number, name in enumerate(FIELDS)})
    assert [getattr(rollout, name) for name in FIELDS] == list(range(8))


@pytest.mark.parametrize(("steps", "envs"), [(1, 4), (6, 1), (1, 1)])
def test_small_rollouts(impl, steps, envs):
    world = a_script(steps, envs, 5)
    model = Table(torch.randn(5, 2), torch.randn(5))
    rollout, following = impl.collect(world, model, world.reset(), steps, generator())
    for name in FIELDS:
        shape = (steps, envs, 5) if name == "observations" else (steps, envs)
        assert getattr(rollout, name).shape == shape, f"{name} is {getattr(rollout, name).shape}"
    assert following.shape == (envs, 5)


def test_actions_are_drawn_from_the_policy(impl):
    envs = 30000
    logits = torch.tensor([[2.0, 0.5, -1.0], [-0.5, 1.0, 0.3]])
    model = Table(logits, torch.zeros(2))
    observations = torch.eye(2)[torch.arange(envs) % 2].expand(3, -1, -1)
    world = Script(
        torch.zeros(2, envs),
        torch.zeros(2, envs, dtype=torch.bool),
        torch.zeros(2, envs, dtype=torch.bool),
        observations[:2],
        observations,
    )
    rollout, _ = impl.collect(world, model, world.reset(), 2, generator(12))
    probs = logits.double().softmax(-1)
    for which in range(2):
        taken = rollout.actions[:, which::2]
        for step in range(2):
            share = torch.bincount(taken[step], minlength=3) / taken.shape[1]
            off = float((share - probs[which]).abs().max())
            assert off < 0.018, (
                f"actions with probabilities {[round(x, 3) for x in probs[which].tolist()]} were "
                f"taken with frequencies {[round(x, 3) for x in share.tolist()]}"
            )
        # Two draws that have nothing to do with each other.
        chance = float(probs[which].square().sum())
        for one, other in ((taken[0], taken[1]), (taken[0, :-1], taken[0, 1:])):
            same = float((one == other).float().mean())
            assert abs(same - chance) < 0.03, f"two draws agree in {same:.3f}, not {chance:.3f}"


def test_the_generator_draws_the_actions(impl):
    def actions(seed):
        world = impl.GridWorld(20, 5, generator(1))
        model = Table(torch.ones(30, 4), torch.zeros(30))
        return impl.collect(world, model, world.reset(), 12, generator(seed))[0].actions

    state = torch.get_rng_state()
    one, same, other = actions(5), actions(5), actions(6)
    assert torch.equal(torch.get_rng_state(), state), "it draws from the global generator"
    assert torch.equal(one, same), "the same generator gives other actions"
    assert not torch.equal(one, other), "another generator gives the same actions"


def test_it_does_not_matter_where_rollouts_are_cut(impl):
    model = Table(torch.randn(30, 4), torch.randn(30))
    # The world may draw from the same generator as the actions, or from one of its own.
    for seeds in ((1, 2), (2,)):
        whole = None
        for pieces in ((17,), (9, 8), (1, 15, 1)):
            generators = [generator(seed) for seed in seeds]
            world, draws = impl.GridWorld(6, 4, generators[0]), generators[-1]
            observations = world.reset()
            parts = []
            for steps in pieces:
                part, observations = impl.collect(world, model, observations, steps, draws)
                parts.append(part)
            joined = [torch.cat([getattr(part, name) for part in parts]) for name in FIELDS]
            whole = whole or joined
            for name, got, wanted in zip(FIELDS, joined, whole, strict=True):
                what = f"{name} collected in pieces of {pieces}, by {len(seeds)} generators"
                assert_matches(got, wanted, what)


def test_collecting_leaves_model_and_mode_alone(impl):
    world = a_script(3, 2, 4)
    model = Table(torch.randn(4, 3), torch.randn(4))
    model.logits.grad = torch.full((4, 3), 3.0)
    for enabled in (True, False):
        world.actions.clear()
        with torch.set_grad_enabled(enabled), unchanged(logits=model.logits, values=model.values):
            impl.collect(world, model, world.reset(), 3, generator())
            assert torch.is_grad_enabled() == enabled
    assert bool((model.logits.grad == 3).all()), "gradients changed"


# Checks: advantages


def a_rollout(impl, steps, envs, ends=0.25, dtype=torch.float32):
    def numbers():
        return torch.randn(steps, envs, dtype=dtype)

    return impl.Rollout(
        observations=torch.randn(steps, envs, 3, dtype=dtype),
        actions=torch.randint(4, (steps, envs)),
        log_probs=-numbers().abs(),
        values=numbers(),
        rewards=numbers(),
        terminated=torch.rand(steps, envs) < ends,
        truncated=torch.rand(steps, envs) < ends,
        next_values=numbers(),
    )


def advantages_by_hand(rollout, gamma, lam):
    """The sum over all later steps of the episode: (T, N) of float64."""
    r, v, w = (
        getattr(rollout, name).double().numpy() for name in ("rewards", "values", "next_values")
    )
    terminated, truncated = rollout.terminated.numpy(), rollout.truncated.numpy()
    steps, envs = r.shape
    out = np.zeros((steps, envs))
    for n in range(envs):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                follows = 0.0 if terminated[k, n] else w[k, n]
                out[t, n] += weight * (r[k, n] + gamma * follows - v[k, n])
                if terminated[k, n] or truncated[k, n]:
                    break
                weight *= gamma * lam
    return torch.from_numpy(out)


@pytest.mark.parametrize(
    ("gamma", "lam"), [(0.9, 0.8), (0.99, 0.0), (0.7, 1.0), (1.0, 0.5), (0, 1)]
)
def test_advantages_by_hand(impl, gamma, lam):
    for (steps, envs), ends in itertools.product(((9, 4), (1, 3), (7, 1)), (0.25, 0.0, 0.7)):
        rollout = a_rollout(impl, steps, envs, ends)
        wanted = advantages_by_hand(rollout, gamma, lam)
        got = impl.gae(rollout, gamma, lam)
        what = f"of {steps} steps, gamma {gamma}, lambda {lam}"
        assert_all_match(
            got,
            (wanted.float(), (wanted + rollout.values.double()).float()),
            f"advantages (1) and returns (2) {what}",
            rtol=1e-4,
            atol=1e-5,
        )


def one_environment(impl, **fields):
    empty = {
        "observations": torch.zeros(3, 1, 2),
        "actions": torch.zeros(3, 1, dtype=torch.int64),
        "log_probs": torch.zeros(3, 1),
        "terminated": torch.zeros(3, 1, dtype=torch.bool),
        "truncated": torch.zeros(3, 1, dtype=torch.bool),
    }
    return impl.Rollout(**empty | fields)


def test_three_steps(impl):
    column = {
        "rewards": torch.tensor([[1.0], [2.0], [4.0]]),
        "values": torch.tensor([[0.5], [1.0], [2.0]]),
        "next_values": torch.tensor([[1.0], [8.0], [16.0]]),
    }
    middle = torch.tensor([[False], [True], [False]])
    cases = {
        # Of the last: 4 + 8 - 2 = 10. Of the middle one: 2 + 4 - 1 + 10 / 4, or less.
        "that all go on": ({}, [1 + 0.5 - 0.5 + 7.5 / 4, 7.5, 10.0]),
        "of which the middle one is terminated": ({"terminated": middle}, [1.25, 1.0, 10.0]),
        "of which the middle one is cut off": ({"truncated": middle}, [2.25, 5.0, 10.0]),
        "of which the middle one is terminated when the time is up": (
            {"terminated": middle, "truncated": middle},
            [1.25, 1.0, 10.0],
        ),
    }
    for what, (ends, wanted) in cases.items():
        rollout = one_environment(impl, **column, **ends)
        advantages, returns = impl.gae(rollout, 0.5, 0.5)
        got = [float(x) for x in advantages.flatten()]
        assert got == pytest.approx(wanted, abs=1e-5), (
            f"three steps {what} have the advantages {got}, and should have {wanted}"
        )
        wanted = [a + v for a, v in zip(wanted, (0.5, 1.0, 2.0), strict=True)]
        got = [float(x) for x in returns.flatten()]
        assert got == pytest.approx(wanted, abs=1e-5), (
            f"three steps {what} have the returns {got}, and should have {wanted}"
        )


def test_environments_have_nothing_to_do_with_each_other(impl):
    rollout = a_rollout(impl, 11, 5)
    advantages, returns = impl.gae(rollout, 0.9, 0.7)
    for n in range(5):
        alone = impl.Rollout(**{name: getattr(rollout, name)[:, n : n + 1] for name in FIELDS})
        for got, wanted in zip(impl.gae(alone, 0.9, 0.7), (advantages, returns), strict=True):
            assert_matches(got, wanted[:, n : n + 1], f"environment {n} alone")


def test_with_lambda_one_returns_are_discounted_rewards(impl):
    rollout = a_rollout(impl, 8, 3, ends=0.2)
    goes_on = ~(rollout.terminated | rollout.truncated)[:-1]
    rollout.next_values[:-1][goes_on] = rollout.values[1:][goes_on]
    _, returns = impl.gae(rollout, 0.8, 1.0)
    for n in range(3):
        following = rollout.next_values[-1, n].double()
        for t in reversed(range(8)):
            if rollout.truncated[t, n]:
                following = rollout.next_values[t, n].double()
            if rollout.terminated[t, n]:
                following = torch.zeros((), dtype=torch.float64)
            following = rollout.rewards[t, n] + 0.8 * following
            assert math.isclose(returns[t, n], following, rel_tol=1e-4, abs_tol=1e-4), (
                f"with lambda 1 the return of step {t} is {float(returns[t, n]):.5f}, and the "
                f"discounted rewards are {float(following):.5f}"
            )


def test_advantages_of_any_layout_and_dtype(impl):
    wide = a_rollout(impl, 6, 4, dtype=torch.float64)
    wanted = advantages_by_hand(wide, 0.95, 0.9)
    got = impl.gae(wide, 0.95, 0.9)
    assert_all_match(got, (wanted, wanted + wide.values), "advantages of float64", rtol=1e-6)
    rollout = a_rollout(impl, 6, 4)
    wanted = advantages_by_hand(rollout, 0.95, 0.9)
    names = ("values", "rewards", "terminated", "truncated", "next_values")

    def call(*columns):
        return impl.gae(rollout_with(impl, rollout, names, columns), 0.95, 0.9)

    columns = [getattr(rollout, name) for name in names]
    wanted = (wanted.float(), (wanted + rollout.values).float())
    assert_any_layout(call, columns, wanted, "advantages and returns", rtol=1e-4, atol=1e-5)
    with unchanged(**{name: getattr(rollout, name) for name in FIELDS}):
        advantages, returns = impl.gae(rollout, 0.95, 0.9)
        advantages.zero_()
        returns.zero_()


def rollout_with(impl, rollout, names, columns):
    fields = {name: getattr(rollout, name) for name in FIELDS}
    return impl.Rollout(**fields | dict(zip(names, columns, strict=True)))


# Checks: the loss


def loss_by_hand(logits, values, actions, old, advantages, returns, config):
    """The parts of the loss, and its gradients for logits and values, in float64."""
    z = logits.detach().double().numpy()
    z = z - z.max(axis=1, keepdims=True)
    probs = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    v, old, adv, ret = (x.detach().double().numpy() for x in (values, old, advantages, returns))
    count, choices = probs.shape
    grad_logits, grad_values = np.zeros_like(probs), np.zeros(count)
    surrogate, squares, entropies, kls, clips = [], [], [], [], []
    for i, action in enumerate(actions.tolist()):
        log_ratio = math.log(probs[i, action]) - old[i]
        ratio = math.exp(log_ratio)
        bounded = min(max(ratio, 1 - config.clip), 1 + config.clip)
        surrogate.append(min(ratio * adv[i], bounded * adv[i]))
        squares.append((v[i] - ret[i]) ** 2)
        entropy = -sum(p * math.log(p) for p in probs[i])
        entropies.append(entropy)
        kls.append(ratio - 1 - log_ratio)
        clips.append(abs(ratio - 1) > config.clip)
        moves = ratio * adv[i] <= bounded * adv[i]
        for j in range(choices):
            hit = (j == action) - probs[i, j]
            grad_logits[i, j] -= moves * ratio * adv[i] * hit / count
            slope = probs[i, j] * (math.log(probs[i, j]) + entropy)
            grad_logits[i, j] += config.entropy_coef * slope / count
        grad_values[i] = config.value_coef * 2 * (v[i] - ret[i]) / count
    said = {
        "policy_loss": -np.mean(surrogate),
        "value_loss": np.mean(squares),
        "entropy": np.mean(entropies),
        "kl": np.mean(kls),
        "clip_fraction": np.mean(clips),
    }
    said["loss"] = (
        said["policy_loss"]
        + config.value_coef * said["value_loss"]
        - config.entropy_coef * said["entropy"]
    )
    return {name: float(value) for name, value in said.items()}, grad_logits, grad_values


def a_minibatch(count, choices, far=0.5):
    logits = torch.randn(count, choices)
    actions = torch.randint(choices, (count,))
    old = logits.log_softmax(-1)[torch.arange(count), actions] + far * torch.randn(count)
    return logits, torch.randn(count), actions, old, torch.randn(count), torch.randn(count)


SETTINGS = {"clip": 0.15, "value_coef": 0.7, "entropy_coef": 0.3}


@pytest.mark.parametrize(
    "changed", [{}, {"clip": 0.4}, {"value_coef": 0.0}, {"entropy_coef": 0.0}], ids=str
)
def test_the_loss_by_hand(impl, changed):
    config = impl.Config(**SETTINGS | changed)
    for count, choices in ((23, 5), (1, 3), (40, 2)):
        batch = a_minibatch(count, choices)
        batch[0].requires_grad_()
        batch[1].requires_grad_()
        wanted, grad_logits, grad_values = loss_by_hand(*batch, config)
        said = impl.ppo_loss(*batch, config)
        assert set(said) == set(PARTS), f"it returns {sorted(said)}"
        for name, value in wanted.items():
            assert said[name].shape == (), f"{name} has the shape {tuple(said[name].shape)}"
            assert math.isclose(said[name].item(), value, rel_tol=1e-4, abs_tol=1e-5), (
                f"{name} of {count} transitions is {said[name].item():.6f}, not {value:.6f}"
            )
        grads = torch.autograd.grad(said["loss"], batch[:2], allow_unused=True)
        grads = [
            torch.zeros_like(x) if g is None else g for x, g in zip(batch, grads, strict=False)
        ]
        for which, got, by_hand in zip(
            ("logits", "values"), grads, (grad_logits, grad_values), strict=True
        ):
            assert_matches(
                got,
                torch.from_numpy(by_hand).float(),
                f"gradient of the loss for the {which}",
                rtol=1e-3,
                atol=1e-5,
            )


def test_the_surrogate_is_the_smaller_one(impl):
    # Of one transition each: a ratio, an advantage, what it counts and how it moves the logit.
    config = impl.Config(clip=0.2, value_coef=0.0, entropy_coef=0.0)
    cases = [
        (1.5, 2.0, 1.2 * 2, False),
        (1.5, -2.0, 1.5 * -2, True),
        (0.5, 2.0, 0.5 * 2, True),
        (0.5, -2.0, 0.8 * -2, False),
        (1.1, 2.0, 1.1 * 2, True),
        (0.9, -2.0, 0.9 * -2, True),
    ]
    for ratio, advantage, counts, moves in cases:
        logits = torch.zeros(1, 2, requires_grad=True)
        old = torch.tensor([math.log(0.5 / ratio)])
        said = impl.ppo_loss(
            logits,
            torch.zeros(1),
            torch.tensor([1]),
            old,
            torch.tensor([advantage]),
            torch.zeros(1),
            config,
        )
        which = f"a ratio of {ratio} with an advantage of {advantage}"
        got = -said["policy_loss"].item()
        assert abs(got - counts) < 1e-4, f"{which} counts {got:.3f}, and should {counts:.3f}"
        grad = torch.autograd.grad(said["loss"], logits)[0][0, 1].item()
        wanted = -advantage * ratio * 0.5 if moves else 0.0
        assert abs(grad - wanted) < 1e-4, f"{which} has the gradient {grad:.3f}, not {wanted:.3f}"


def test_the_loss_is_repeatable_and_changes_nothing(impl):
    batch = a_minibatch(12, 3)
    names = ("logits", "values", "actions", "old", "advantages", "returns")
    with unchanged(**dict(zip(names, batch, strict=True))):
        first = impl.ppo_loss(*batch, impl.Config())
        second = impl.ppo_loss(*batch, impl.Config())
    assert {k: float(v) for k, v in first.items()} == {k: float(v) for k, v in second.items()}


def test_extreme_logits(impl):
    logits = torch.tensor([[90.0, -60.0, 0.0], [1e-3, 300.0, 299.0]])
    batch = (logits, torch.zeros(2), torch.tensor([0, 2]), torch.tensor([-0.1, -1.0]))
    said = impl.ppo_loss(*batch, torch.ones(2), torch.zeros(2), impl.Config())
    for name in PARTS:
        assert math.isfinite(float(said[name])), f"{name} is {float(said[name])}"
    p = 1 / (1 + math.e)
    wanted = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / 2
    assert math.isclose(float(said["entropy"]), wanted, rel_tol=1e-4)


def test_settings(impl):
    names = list(inspect.signature(impl.Config).parameters)
    wanted = {
        "lr": 0.01,
        "gamma": 0.9,
        "lam": 0.8,
        "num_steps": 24,
        "epochs": 4,
        "minibatch_size": 192,
        "clip": 0.2,
        "value_coef": 0.5,
        "entropy_coef": 0.04,
        "max_grad_norm": 0.5,
    }
    assert names == list(wanted), f"the settings are {names}"
    config = impl.Config()
    assert {name: getattr(config, name) for name in names} == wanted


# Checks: the update


def told_apart(impl, steps, envs, choices=3, ends=0.25):
    """A rollout whose transitions are each a row of their own of a table, and that table."""
    rollout = a_rollout(impl, steps, envs, ends)
    size = steps * envs
    logits, values = torch.randn(size, choices), torch.randn(size)
    actions = torch.randint(choices, (steps, envs))
    # In mixed order, so that a row says nothing of the place.
    observations = torch.eye(size)[torch.randperm(size)].reshape(steps, envs, size)
    old = (observations @ logits).log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
    old = old + 0.2 * torch.randn(steps, envs)
    columns = (observations, actions, old)
    rollout = rollout_with(impl, rollout, ("observations", "actions", "log_probs"), columns)
    return rollout, Table(logits, values)


def normalised_by_hand(rollout, config):
    advantages = advantages_by_hand(rollout, config.gamma, config.lam)
    returns = advantages + rollout.values.double()
    spread = math.sqrt(float((advantages - advantages.mean()).square().mean()))
    return (advantages - advantages.mean()) / (spread + 1e-8), returns


def update_by_hand(rollout, table, config, lr, share):
    """Take each epoch's gradient of all rows at once; `share` is 1 over the transitions a step.

    Rows do not touch each other, so the order of minibatches does not matter unless the norm of
    their gradient is clipped.
    """
    advantages, returns = normalised_by_hand(rollout, config)
    rows = rollout.observations.flatten(0, 1).argmax(-1)
    logits, values = table.logits.detach().double(), table.values.detach().double()
    size = len(rows)
    said = []
    for _ in range(config.epochs):
        parts, grad_logits, grad_values = loss_by_hand(
            logits[rows],
            values[rows],
            rollout.actions.flatten(),
            rollout.log_probs.flatten(),
            advantages.flatten(),
            returns.flatten(),
            config,
        )
        said.append(parts)
        grad_logits = torch.from_numpy(grad_logits) * size * share
        grad_values = torch.from_numpy(grad_values) * size * share
        norm = math.sqrt(float(grad_logits.square().sum() + grad_values.square().sum()))
        scale = min(1.0, config.max_grad_norm / norm)
        logits[rows] -= lr * scale * grad_logits
        values[rows] -= lr * scale * grad_values
    means = {name: sum(parts[name] for parts in said) / len(said) for name in PARTS}
    return means, logits, values


def check_update(impl, rollout, table, config, lr, what):
    size = rollout.rewards.numel()
    share = 1 / min(size, config.minibatch_size)
    means, logits, values = update_by_hand(rollout, table, config, lr, share)
    optimizer = torch.optim.SGD(table.parameters(), lr=lr)
    # Whatever gradients there were before.
    table.logits.grad, table.values.grad = torch.ones_like(table.logits), torch.ones(size)
    said = impl.update(table, optimizer, rollout, config, generator())
    assert set(said) == set(PARTS), f"it returns {sorted(said)}"
    for name, value in means.items():
        assert isinstance(said[name], float), f"{name} is {type(said[name]).__name__}"
        assert math.isclose(said[name], value, rel_tol=1e-3, abs_tol=1e-5), (
            f"{what}: {name} is {said[name]:.6f}, and by hand {value:.6f}"
        )
    for got, wanted, name in ((table.values, values, "values"), (table.logits, logits, "logits")):
        assert_matches(got, wanted.float(), f"{what}: {name}", rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("norm", [0.05, 1e9], ids=["clipped", "not clipped"])
def test_an_update_in_one_minibatch_by_hand(impl, epochs, norm):
    rollout, table = told_apart(impl, 5, 4)
    for minibatch_size in (20, 1000):
        config = impl.Config(
            **SETTINGS,
            gamma=0.8,
            lam=0.7,
            epochs=epochs,
            minibatch_size=minibatch_size,
            max_grad_norm=norm,
        )
        fresh = Table(table.logits.detach(), table.values.detach())
        lr = 5.0 if norm > 1 else 1.0
        check_update(impl, rollout, fresh, config, lr, f"{epochs} epochs in one minibatch each")


@pytest.mark.parametrize(("steps", "envs", "size"), [(6, 4, 8), (4, 3, 1), (1, 6, 3), (8, 1, 2)])
def test_every_transition_counts_once_an_epoch(impl, steps, envs, size):
    rollout, table = told_apart(impl, steps, envs)
    config = impl.Config(
        **SETTINGS, gamma=0.85, lam=0.6, epochs=3, minibatch_size=size, max_grad_norm=1e9
    )
    what = f"{steps} steps of {envs}, in minibatches of {size}"
    check_update(impl, rollout, table, config, 0.3 * size, what)


def last_ones(impl, rollout, table, config, seed):
    """Which transitions stood in the smaller, last minibatch: told by how far their value moved."""
    fresh = Table(table.logits.detach(), table.values.detach())
    _, returns = normalised_by_hand(rollout, config)
    optimizer = torch.optim.SGD(fresh.parameters(), lr=1e-2)
    impl.update(fresh, optimizer, rollout, config, seed)
    rows = rollout.observations.flatten(0, 1).argmax(-1)
    before, after = (x.values.detach()[rows].double() for x in (table, fresh))
    return ((before - after) / (before - returns.flatten())).tolist()


def test_the_last_minibatch_is_smaller(impl):
    rollout, table = told_apart(impl, 5, 1)
    config = impl.Config(epochs=1, minibatch_size=3, max_grad_norm=1e9, value_coef=0.5)
    moved = sorted(last_ones(impl, rollout, table, config, generator()))
    wanted = [0.01 / 3] * 3 + [0.01 / 2] * 2
    assert moved == pytest.approx(wanted, rel=0.02), (
        f"5 transitions in minibatches of 3 moved by {[round(x, 5) for x in moved]} of their "
        f"error, and should by {[round(x, 5) for x in wanted]}"
    )


def test_means_are_over_transitions(impl):
    # Nothing moves, so all epochs see the same, however unequal the minibatches are.
    rollout, table = told_apart(impl, 7, 1)
    for minibatch_size in (3, 5, 6):
        config = impl.Config(**SETTINGS, epochs=2, minibatch_size=minibatch_size)
        wanted, _, _ = update_by_hand(rollout, table, config, 0.0, 1 / 7)
        optimizer = torch.optim.SGD(table.parameters(), lr=0.0)
        said = impl.update(table, optimizer, rollout, config, generator())
        for name, value in wanted.items():
            assert math.isclose(said[name], value, rel_tol=1e-3, abs_tol=1e-5), (
                f"{name} of 7 transitions in minibatches of {minibatch_size} is {said[name]:.6f}, "
                f"and by hand {value:.6f}"
            )


def test_the_order_is_drawn_anew_for_each_epoch(impl):
    rollout, table = told_apart(impl, 3, 2)
    base = {"minibatch_size": 4, "max_grad_norm": 1e9, "value_coef": 0.5}
    draws = generator(21)
    state = torch.get_rng_state()
    pairs = set()
    for _ in range(150):
        moved = last_ones(impl, rollout, table, impl.Config(epochs=1, **base), draws)
        pairs.add(tuple(i for i, x in enumerate(moved) if x > 0.01 / 3))
    wanted = set(itertools.combinations(range(6), 2))
    assert pairs == wanted, (
        f"of 6 transitions in minibatches of 4, {sorted(wanted - pairs)} never were the last two"
    )
    # Twice in the last one moves a value by 2/2 parts, twice in the first by 2/4.
    twice = 0
    for _ in range(24):
        moved = last_ones(impl, rollout, table, impl.Config(epochs=2, **base), draws)
        twice += sum(x > 0.0087 for x in moved)
    assert twice < 40, f"in 24 updates {twice} transitions came last in both of two epochs"
    assert torch.equal(torch.get_rng_state(), state), "it draws from the global generator"
    same = [last_ones(impl, rollout, table, impl.Config(**base), generator(4)) for _ in range(2)]
    assert same[0] == same[1], "the same generator gives another order"


def test_advantages_that_are_all_equal(impl):
    rollout, table = told_apart(impl, 1, 1)
    config = impl.Config(epochs=2, minibatch_size=4)
    check_update(impl, rollout, table, config, 0.5, "one transition")


def test_an_update_changes_nothing_but_the_model(impl):
    rollout, table = told_apart(impl, 4, 3)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    with unchanged(**{name: getattr(rollout, name) for name in FIELDS}):
        impl.update(table, optimizer, rollout, impl.Config(minibatch_size=5), generator())


def test_an_update_learns_from_all_of_a_real_model(impl):
    world = impl.GridWorld(6, 5, generator(1))
    model = impl.ActorCritic(30, 4)
    rollout, _ = impl.collect(world, model, world.reset(), 20, generator(2))
    before = [weight.detach().clone() for weight in model.parameters()]
    impl.update(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        rollout,
        impl.Config(minibatch_size=50),
        generator(3),
    )
    still = sum(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not still, f"{still} of {len(before)} weights did not move"


# Checks: the loop


class Line(nn.Module):
    """One action, and the values of a table: what is learnt does not hang on any draw."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, observations):
        values = observations @ self.values
        return values[..., None] * 0, values


def loop_by_hand(world, values, config, updates):
    """Adam in float64 on the squared errors: the tables after each update."""
    rewards, terminated, truncated = world.script
    table = values.double()
    mean, square = torch.zeros_like(table), torch.zeros_like(table)
    count, out = 0, []
    for number in range(updates):
        part = slice(number * config.num_steps, (number + 1) * config.num_steps)
        observations = world.observations[:-1][part].double()
        rollout = SimpleNamespace(
            rewards=rewards[part],
            values=observations @ table,
            next_values=world.arrived[part].double() @ table,
            terminated=terminated[part],
            truncated=truncated[part],
        )
        returns = advantages_by_hand(rollout, config.gamma, config.lam) + rollout.values
        flat = observations.flatten(0, 1)
        for _ in range(config.epochs):
            errors = flat @ table - returns.flatten()
            grad = config.value_coef * 2 * (errors[:, None] * flat).mean(0)
            grad = grad * min(1.0, config.max_grad_norm / float(grad.norm()))
            count += 1
            mean = 0.9 * mean + 0.1 * grad
            square = 0.999 * square + 0.001 * grad**2
            lr = config.lr * (1 - number / updates)
            step = (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-5)
            table = table - lr * step
        out.append(table)
    return out


@pytest.mark.parametrize(("scale", "norm"), [(1.0, 0.3), (2e-4, 1e9)], ids=["large", "small"])
def test_training_by_hand(impl, scale, norm):
    # Small rewards show Adam's eps, large ones the norm.
    updates, steps, envs, width = 4, 5, 3, 2
    world = a_script(updates * steps, envs, width)
    world.script[0].mul_(scale)
    values = scale * torch.randn(width)
    config = impl.Config(
        lr=0.03, num_steps=steps, epochs=3, minibatch_size=99, max_grad_norm=norm, value_coef=0.8
    )
    model = Line(values)
    wanted = loop_by_hand(world, values, config, updates)
    for number, log in enumerate(impl.train(world, model, config, updates, generator())):
        lr = 0.03 * (1 - number / updates)
        assert math.isclose(log["lr"], lr, rel_tol=1e-6), f"lr {log['lr']} in update {number}"
        assert_matches(
            model.values,
            wanted[number].float(),
            f"the table after update {number} of {updates}",
            rtol=1e-3,
            atol=1e-4,
        )
    assert number == updates - 1
    assert world.resets == 1, f"the world was reset {world.resets} times"
    assert len(world.actions) == updates * steps


def test_returns_of_episodes(impl):
    updates, steps, envs = 6, 3, 2
    world = a_script(updates * steps, envs, 4)
    rewards, terminated, truncated = world.script
    terminated.zero_()
    truncated.zero_()
    # Of environment 0 an episode of one step, one of nine, and one of two in which both ends meet.
    terminated[2, 0] = truncated[3, 0] = terminated[12, 0] = True
    terminated[14, 0] = truncated[14, 0] = truncated[13, 1] = True
    config = impl.Config(num_steps=steps, epochs=1)
    logs = list(impl.train(world, Line(torch.zeros(4)), config, updates, generator()))
    got = [float(log["episode_return"]) for log in logs]
    first, second = rewards.double().T
    wanted = [
        first[:3].sum(),
        first[3],
        math.nan,
        math.nan,
        (first[4:13].sum() + first[13:15].sum() + second[:14].sum()) / 3,
        math.nan,
    ]
    wanted = [float(x) for x in wanted]
    assert got == pytest.approx(wanted, abs=1e-4, nan_ok=True), (
        f"episodes returned {[round(x, 3) for x in got]} in the mean of each rollout, and "
        f"should {[round(x, 3) for x in wanted]}"
    )


def test_the_log_of_training(impl):
    world = impl.GridWorld(4, 3, generator(1))
    model = impl.ActorCritic(30, 4)
    config = impl.Config(num_steps=5, minibatch_size=7, epochs=2)
    logs = list(impl.train(world, model, config, 3, generator(2)))
    assert len(logs) == 3
    for log in logs:
        assert set(log) == {"lr", "episode_return", *PARTS}, f"a line has {sorted(log)}"
        assert all(isinstance(value, float) for value in log.values()), f"{log}"


def test_training_is_told_as_it_goes(impl):
    world = a_script(12, 2, 4)
    lines = impl.train(world, Line(torch.zeros(4)), impl.Config(num_steps=3), 4, generator())
    next(lines)
    assert len(world.actions) == 3, f"{len(world.actions)} steps were taken for the first line"


class InMode(Table):
    """A table that notes in which modes it is asked."""

    modes: frozenset = frozenset()

    def forward(self, observations):
        self.modes |= {self.training}
        return super().forward(observations)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_left_alone(impl, training):
    model = InMode(torch.randn(4, 3), torch.randn(4)).train(training)
    world = a_script(8, 2, 4)
    for _ in impl.train(world, model, impl.Config(num_steps=4), 2, generator()):
        pass
    assert model.modes == {training} == {model.training}, f"asked with training {model.modes}"


# Checks: the run


def test_a_seed_gives_one_run(impl):
    torch.default_generator.manual_seed(1)
    one = [dict(line) for line in impl.run(3, steps=3)]
    torch.default_generator.manual_seed(2)
    state = torch.get_rng_state()
    same = [dict(line) for line in impl.run(3, steps=3)]
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not as it was"
    assert one == same, "a seed gives two logs"
    other = [dict(line) for line in impl.run(4, steps=3)]
    assert one[0]["loss"] != other[0]["loss"], "two seeds give one log"
    assert one[0]["value"] != other[0]["value"], "two seeds give one log"
    rates = [line["lr"] for line in one]
    assert rates == pytest.approx([0.01, 0.01 * 2 / 3, 0.01 / 3]), f"lr goes {rates}"


def test_the_log_of_a_run(impl, log):
    assert len(log) == UPDATES, f"a run has {len(log)} lines"
    names = {"lr", "episode_return", *PARTS, "value", "value_error"}
    for line in log:
        assert set(line) == names, f"a line has {sorted(line)}"
        assert all(isinstance(value, float) for value in line.values()), f"{line}"
    # The limit of 8 steps: what an episode can earn at most.
    assert max(line["episode_return"] for line in log) < 8 * 0.2
    rates = [line["lr"] for line in log]
    assert rates == pytest.approx([0.01 * (1 - i / 40) for i in range(40)])


def test_a_run_tells_the_true_values(impl):
    models = []

    def hook(module, args, out):
        if isinstance(module, impl.ActorCritic):
            models.append(module)

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        for line in itertools.islice(impl.run(2, steps=9), 9):
            last = line
    finally:
        handle.remove()
    with torch.no_grad():
        logits, values = models[-1](torch.eye(30))
    truth = values_of(logits.double().softmax(-1))[STARTS]
    error = math.sqrt(np.square(values.double().numpy()[STARTS] - truth).mean())
    for name, wanted in (("value", truth.mean()), ("value_error", error)):
        assert abs(last[name] - wanted) < 1e-4, f"{name} is {last[name]:.5f}, by hand {wanted:.5f}"
