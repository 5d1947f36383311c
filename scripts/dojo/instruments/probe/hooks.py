"""Torch's global hooks for modules and optimisers, and what they note as the code runs.

At most so much is kept of each module, parameter and optimiser, however long the run; nothing is
computed from the random numbers or changed. Attach before the code is loaded.
"""

import contextlib
import math
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.optim import optimizer as optimizer_hooks

from dojo.instruments.probe import dropouts
from dojo.instruments.probe.facts import ModuleFacts
from dojo.instruments.probe.tensors import Figures, figures, finite, largest, norm

LARGE = 1.0  # an update over the weight before it
_MOST = 5_000  # modules, and parameters: a run that makes new ones at each step ends too


@dataclass
class Weight:
    """What is noted of one parameter."""

    tensor: Tensor
    first: Tensor  # its values when it was first seen
    last: Tensor | None = None  # its values at the last call of its model, where nobody owns it
    graded: bool = False
    owner: int | None = None  # which optimiser
    place: str = ""  # where in that optimiser
    moved: bool = False  # at some step
    gradient: float | None = None
    steps: int = 0
    step_gradients: int = 0
    step_zeros: int = 0
    passes: int = 0
    pass_zeros: int = 0
    infinite_gradient_at: int | None = None
    norm: float | None = None
    updates: int = 0
    update: float | None = None
    ratio: float | None = None
    largest_ratio: float | None = None
    large: int = 0
    largest: float | None = None
    largest_at: int = 0

    @property
    def changed(self) -> bool:
        """Say whether its values ever changed, as far as was seen."""
        return self.moved or not _equal(self.tensor.detach(), self.first)


@dataclass
class Stepped:
    """What is noted of one optimiser."""

    optimizer: torch.optim.Optimizer
    rates: list[list[float]]
    steps: int = 0
    before: dict[int, Tensor] = field(default_factory=dict)  # of the step under way


@dataclass
class _Call:
    module: nn.Module
    facts: ModuleFacts
    graded: bool


class Hooks:
    """Notes what modules and optimisers do in the block."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.step = 1
        self.modules: dict[nn.Module, ModuleFacts] = {}
        self.parents: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()
        self.kept: dict[nn.Module, None] = {}  # what holds those, which may have no other owner
        self.weights: dict[int, Weight] = {}
        self.optimizers: dict[int, Stepped] = {}
        self.drops_outside = 0
        self._calls = 0
        self._threads = threading.local()  # each with calls of its own, as of simulated ranks
        self._attached = contextlib.ExitStack()

    def __enter__(self) -> "Hooks":
        """Attach the hooks."""
        attach = self._attached
        for handle in (
            global_hooks.register_module_module_registration_hook(self._registered),
            global_hooks.register_module_forward_pre_hook(self._begins),
            global_hooks.register_module_forward_hook(
                self._ends, with_kwargs=True, always_call=True
            ),
            optimizer_hooks.register_optimizer_step_pre_hook(self._steps),
            optimizer_hooks.register_optimizer_step_post_hook(self._stepped),
        ):
            attach.callback(handle.remove)
        attach.enter_context(dropouts.told(self._drops))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the hooks off."""
        self._attached.close()

    def forget(self) -> None:
        """Let go of all that was seen, as before another test."""
        self._stack.clear()  # a test may end inside a call
        self.modules.clear()
        self.kept.clear()
        self.weights.clear()
        self.optimizers.clear()

    @property
    def _stack(self) -> list[_Call]:
        """Return the calls under way in this thread, the innermost last."""
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
        stack: list[_Call] = self._threads.stack
        return stack

    def _registered(self, parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if child is None:
            return
        known = self.parents.get(child)
        before = known() if known else None
        # A slice of nn.Sequential holds the same modules for a moment: they stay where they were.
        if before is None or all(part is not child for part in before.children()):
            self.parents[child] = ref(parent)

    def _begins(self, module: nn.Module, args: Any) -> None:
        stack = self._stack
        facts = self.modules.get(module)
        if facts is None:
            facts = ModuleFacts(name="", kind=type(module).__name__)
            if len(self.modules) < _MOST:
                self.modules[module] = facts
                self.kept[_top(self, module)] = None
        # The model's own, for inside a checkpoint gradients are off, and on again for the backward.
        graded = stack[0].graded if stack else torch.is_grad_enabled()
        call = _Call(module, facts, graded)
        if stack:
            self._compare_modes(call, stack[0].module)
        elif graded and not _is_watched():
            self._watch(module)
        stack.append(call)
        facts.calls += 1
        facts.ungraded += not graded
        facts.training_ungraded += not graded and module.training
        facts.evaluation_graded += graded and not module.training
        if not graded and module.training and _keeps_statistics(module):
            facts.statistics_ungraded += 1

    def _compare_modes(self, call: _Call, model: nn.Module) -> None:
        module, facts = call.module, call.facts
        if module.training == model.training:
            return
        if module.training:
            facts.training_in_evaluation += 1
        # A part that is frozen, or that gradients are off for, is rightly in evaluation mode.
        elif torch.is_grad_enabled() and not self._is_frozen(call):
            facts.evaluation_in_training += 1
        facts.model = type(model).__name__

    def _is_frozen(self, call: _Call) -> bool:
        """Say whether a module, or one that it is called by, has parameters that are all frozen."""
        for one in (call, *reversed(self._stack[1:])):
            parameters = list(one.module.parameters())
            if parameters:
                return not any(weight.requires_grad for weight in parameters)
        return False

    def _ends(self, module: nn.Module, args: Any, *rest: Any) -> None:
        # Where the module has raised, torch leaves out the keywords, and the output is None.
        kwargs, output = rest if len(rest) == 2 else ({}, *rest)
        stack = self._stack
        while stack and stack.pop().module is not module:  # others have raised
            continue
        if output is None or _is_watched():
            return
        facts = self.modules.get(module)
        value = largest(output)
        if facts is None or value is None:
            return
        self._calls += 1
        facts.shape = tuple(value.shape)
        facts.dtype = str(value.dtype).removeprefix("torch.")
        try:
            with torch.no_grad():
                found = figures(value)
                if found is not None:
                    self._note(module, found, (args, kwargs))
        except RuntimeError:  # a layout that lacks an operator, such as a sparse one
            return

    def _note(self, module: nn.Module, found: Figures, given: Any) -> None:
        facts = self.modules[module]
        facts.mean, facts.spread, facts.size = found.mean, found.spread, found.size
        facts.zeros, facts.nans = found.zeros, found.nans
        if facts.first_size is None:
            facts.first_size = found.size
        if facts.largest_size is None or found.size > facts.largest_size:
            facts.largest_size, facts.largest_at = found.size, self.step
        if found.has_infinity and facts.infinite_at is None and finite(given):
            facts.infinite_at = self.step
        if found.nans and facts.nan_at is None and finite(given):
            facts.nan_at, facts.nan_call = self.step, self._calls
            facts.nan_weights = not finite(list(module.parameters()))

    def _drops(self) -> None:
        stack = self._stack
        if not stack:
            self.drops_outside += not torch.is_grad_enabled()
            return
        call = stack[-1]
        call.facts.drops_ungraded += not call.graded
        call.facts.drops_in_evaluation += not call.module.training

    def _watch(self, model: nn.Module) -> None:
        """Note the parameters of a model that is called with gradients on, and their changes."""
        for tensor in model.parameters():
            weight = self._weight(tensor)
            if weight is None:
                continue
            weight.graded = True
            if weight.owner is not None or _equal(tensor.detach(), weight.last):
                continue
            if weight.last is not None:
                self._updated(weight, weight.last)
            weight.last = tensor.detach().clone()

    def _weight(self, tensor: Tensor) -> Weight | None:
        """Return what is noted of a parameter; begin with it where nothing is, and room is left."""
        weight = self.weights.get(id(tensor))
        if weight is None and len(self.weights) < _MOST and not tensor.is_meta:
            weight = Weight(tensor, tensor.detach().clone())
            self.weights[id(tensor)] = weight
            if tensor.requires_grad and tensor.is_leaf:
                tensor.register_post_accumulate_grad_hook(self._graded)  # type: ignore[no-untyped-call]
        return weight

    def _graded(self, tensor: Tensor) -> None:
        weight = self.weights.get(id(tensor))
        if weight is None or tensor.grad is None:
            return
        weight.gradient = norm(tensor.grad)
        weight.passes += 1
        weight.pass_zeros += weight.gradient == 0

    def _steps(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        groups = optimizer.param_groups
        stepped = self.optimizers.setdefault(
            id(optimizer), Stepped(optimizer, [[] for _ in groups])
        )
        stepped.rates += [[] for _ in groups[len(stepped.rates) :]]
        for rates, group in zip(stepped.rates, groups, strict=False):
            rates.append(float(group.get("lr", "nan")))
        stepped.steps += 1
        number = list(self.optimizers).index(id(optimizer))
        for i, group in enumerate(groups):
            for k, tensor in enumerate(group["params"]):
                weight = self._weight(tensor)
                if weight is not None:
                    weight.owner, weight.place, weight.last = number, f"[{i}][{k}]", None
                    self._note_gradient(weight)
                    stepped.before[id(tensor)] = tensor.detach().clone()

    def _note_gradient(self, weight: Weight) -> None:
        weight.steps += 1
        gradient = weight.tensor.grad
        if gradient is None:
            return
        weight.gradient = norm(gradient)
        weight.step_gradients += 1
        weight.step_zeros += weight.gradient == 0
        if not weight.gradient < float("inf") and weight.infinite_gradient_at is None:
            weight.infinite_gradient_at = self.step

    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        stepped = self.optimizers.get(id(optimizer))
        if stepped is None:
            return
        for key, before in stepped.before.items():
            self._updated(self.weights[key], before)
        stepped.before.clear()

    def _updated(self, weight: Weight, before: Tensor) -> None:
        after = weight.tensor.detach()
        if before.shape != after.shape:
            return
        weight.moved = weight.moved or not _equal(before, after)
        weight.norm = norm(before)
        weight.update = norm(after.double() - before.double())
        weight.updates += 1
        weight.ratio = weight.update / weight.norm if weight.norm else None
        if weight.ratio is None:
            return
        weight.largest_ratio = max(weight.ratio, weight.largest_ratio or 0.0)
        if weight.ratio > LARGE and weight.update > _small(after):
            weight.large += 1
            if weight.ratio > (weight.largest or 0.0):
                weight.largest, weight.largest_at = weight.ratio, self.step


def _small(weight: Tensor) -> float:
    """Return a norm below which a matrix has hardly begun: a head may start at next to nothing.

    It is a tenth of one whose entries are 1 / sqrt(fan-in), for any other parameter zero.
    """
    return 0.1 * math.sqrt(len(weight)) if weight.dim() > 1 else 0.0


def _equal(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _keeps_statistics(module: nn.Module) -> bool:
    """Say whether a call in training mode changes the module's running statistics."""
    kept = getattr(module, "track_running_stats", False)
    return bool(kept) and getattr(module, "running_mean", None) is not None


def _is_watched() -> bool:
    """Say whether others see every operator: a test that bans some, or a transform such as vmap."""
    modes = torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()
    return bool(modes) or torch._C._functorch.peek_interpreter_stack() is not None


def models(hooks: Hooks) -> list[nn.Module]:
    """Return the modules that were called, or hold some that were, and that lie in no other."""
    tops = dict.fromkeys(_top(hooks, module) for module in hooks.modules)
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for top in sorted(tops, key=lambda one: -len(list(one.modules()))):
        children = set(top.children())
        # Nothing but parts of another, as a slice of nn.Sequential is.
        is_view = children and children <= inside and not list(top.parameters(recurse=False))
        if top not in inside and not is_view:
            found.append(top)
            inside.update(top.modules())
    return [top for top in tops if top in set(found)]


def _top(hooks: Hooks, module: nn.Module) -> nn.Module:
    """Return the outermost module that still holds this one."""
    top, passed = module, {module}
    while (parent := hooks.parents.get(top)) is not None:
        above = parent()
        if above is None or above in passed or all(part is not top for part in above.children()):
            break
        top = above
        passed.add(top)
    return top
