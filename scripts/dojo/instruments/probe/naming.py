"""Gives what the hooks have noted the names that its author knows, as plain data."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields

from torch import nn

from dojo.instruments.probe.facts import ModuleFacts, OptimizerFacts, ParameterFacts
from dojo.instruments.probe.hooks import Hooks, Stepped, Weight, models
from dojo.instruments.probe.tensors import norm

# Of one module or parameter, seen in several tests: what adds up, and what the first one says.
_ADD_UP = (
    *("calls", "ungraded", "training_ungraded", "evaluation_graded"),
    *("statistics_ungraded", "training_in_evaluation", "evaluation_in_training"),
    *("drops_ungraded", "drops_in_evaluation"),
)
_FIRST = ("nan_at", "infinite_at", "first_size")


class Gathered:
    """The facts of one test after another, those of the same name taken together.

    Tests make many models of one class. The last of each is shown; what a finding is made of is
    kept of all.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._modules: dict[str, ModuleFacts] = {}
        self._parameters: dict[str, ParameterFacts] = {}
        self._last: dict[str, set[str]] = {}  # names, by class

    def add(self, hooks: Hooks, wanted: Callable[[nn.Module], bool]) -> None:
        """Add what the hooks have noted of the models that are wanted, named by their class."""
        for model in filter(wanted, models(hooks)):
            label = type(model).__name__
            modules = list(_named_modules(hooks, model, label, f"{label}."))
            parameters = _parameters(hooks, model, f"{label}.")
            self._last[label] = {one.name for one in modules} | {one.name for one in parameters}
            for module in modules:
                known = self._modules.get(module.name)
                self._modules[module.name] = _together(known, module) if known else module
            for parameter in parameters:
                before = self._parameters.get(parameter.name)
                if before and parameter.gradient is None:
                    parameter.gradient = before.gradient
                self._parameters[parameter.name] = parameter

    @property
    def modules(self) -> list[ModuleFacts]:
        """Return the modules to show, and those with something to tell."""
        last = set().union(*self._last.values())
        return [one for one in self._modules.values() if one.name in last or _tells(one)]

    @property
    def parameters(self) -> list[ParameterFacts]:
        """Return the parameters to show."""
        last = set().union(*self._last.values())
        return [one for one in self._parameters.values() if one.name in last]


def modules_and_parameters(hooks: Hooks) -> tuple[list[ModuleFacts], list[ParameterFacts]]:
    """Return the facts of all modules that were called, and of all parameters."""
    found = models(hooks)
    labels = _numbered(type(model).__name__ for model in found)
    modules: list[ModuleFacts] = []
    parameters: list[ParameterFacts] = []
    for label, model in zip(labels, found, strict=True):
        prefix = f"{label}." if len(found) > 1 else ""
        modules += _named_modules(hooks, model, label, prefix)
        parameters += _parameters(hooks, model, prefix)
    held = {id(one) for model in found for one in model.parameters()}
    names = _optimizer_names(hooks)
    for key, weight in hooks.weights.items():
        if key not in held and weight.owner is not None:
            parameters.append(_of_weight(weight, names[weight.owner] + weight.place, names))
    return modules, parameters


def optimizers(hooks: Hooks) -> list[OptimizerFacts]:
    """Return the facts of all optimisers that took a step."""
    found: Iterable[Stepped] = hooks.optimizers.values()
    return [
        OptimizerFacts(name, one.steps, one.rates)
        for name, one in zip(_optimizer_names(hooks), found, strict=True)
    ]


def _optimizer_names(hooks: Hooks) -> list[str]:
    """Return a name for each optimiser: its class, with a number where there are several."""
    return _numbered(type(one.optimizer).__name__ for one in hooks.optimizers.values())


def _numbered(names: Iterable[str]) -> list[str]:
    """Return the names, from the second of each on with a number."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


def _named_modules(
    hooks: Hooks, model: nn.Module, label: str, prefix: str
) -> Iterable[ModuleFacts]:
    for path, module in model.named_modules():
        facts = hooks.modules.get(module)
        if facts is not None:
            facts.name = prefix + path if path else label
            facts.is_model = module is model
            facts.is_leaf = not any(module.children())
            yield facts


def _parameters(hooks: Hooks, model: nn.Module, prefix: str) -> list[ParameterFacts]:
    names: dict[int, list[str]] = {}
    tensors: dict[int, nn.Parameter] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(prefix + name)
        tensors[id(tensor)] = tensor
    called = [hooks.modules[module] for module in model.modules() if module in hooks.modules]
    graded = any(one.calls > one.ungraded for one in called)
    owners = _optimizer_names(hooks)
    passes = max((hooks.weights[key].passes for key in names if key in hooks.weights), default=0)
    found = []
    for key, tensor in tensors.items():
        weight = hooks.weights.get(key) or Weight(tensor, tensor.detach())
        facts = _of_weight(weight, names[key][0], owners)
        facts.tied = tuple(names[key][1:])
        facts.graded = facts.graded or graded
        facts.shares_memory = tuple(
            names[other][0]
            for other, one in tensors.items()
            if other != key and one.data_ptr() == tensor.data_ptr() != 0
        )
        if not facts.owner:
            facts.chances = passes
        found.append(facts)
    return found


def _of_weight(weight: Weight, name: str, owners: list[str]) -> ParameterFacts:
    tensor, owned = weight.tensor, weight.owner is not None
    return ParameterFacts(
        name=name,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        trainable=tensor.requires_grad,
        owner="" if weight.owner is None else owners[weight.owner],
        graded=weight.graded,
        changed=weight.changed,
        gradient=weight.gradient,
        chances=weight.steps,
        gradients=weight.step_gradients if owned else weight.passes,
        zero_gradients=weight.step_zeros if owned else weight.pass_zeros,
        infinite_gradient_at=weight.infinite_gradient_at,
        weight=norm(tensor) if weight.norm is None else weight.norm,
        updates=weight.updates,
        update=weight.update,
        ratio=weight.ratio,
        largest_ratio=weight.largest_ratio,
        large=weight.large,
        largest=weight.largest,
        largest_at=weight.largest_at,
        from_zero=not bool(weight.first.any()),
    )


def _tells(one: ModuleFacts) -> bool:
    """Say whether a finding in a run of tests may be made of this module."""
    return one.drops_in_evaluation > 0 or one.nan_at is not None


def _together(before: ModuleFacts, after: ModuleFacts) -> ModuleFacts:
    """Return what two runs say of one module: the values are those of the last."""
    values = {field.name: getattr(after, field.name) for field in fields(ModuleFacts)}
    values |= {name: getattr(before, name) + getattr(after, name) for name in _ADD_UP}
    for name in _FIRST:
        if (first := getattr(before, name)) is not None:
            values[name] = first
    if before.nan_at is not None:
        values |= {"nan_call": before.nan_call, "nan_weights": before.nan_weights}
    values["model"] = after.model or before.model
    if after.size is None:
        for name in ("shape", "dtype", "mean", "spread", "zeros", "nans", "size"):
            values[name] = getattr(before, name)
    return ModuleFacts(**values)
