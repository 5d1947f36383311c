"""What a probe has seen, as tables of texts and as lines."""

from collections.abc import Sequence
from dataclasses import dataclass

from dojo.instruments.probe.facts import Facts, ModuleFacts, OptimizerFacts, ParameterFacts, Source
from dojo.instruments.probe.findings import findings, notes
from dojo.wording.quantities import count
from dojo.wording.tables import render

_NONE = "-"


@dataclass(frozen=True)
class Table:
    """A table of texts."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def heading(name: str, facts: Facts, seed: int) -> str:
    """Return what was run."""
    if facts.source is Source.TESTS:
        return f"{name}: {count(facts.steps, 'test')}, seed {seed}; values are of the last call"
    cut = ", as many as there was time for" if facts.cut else ""
    return f"{name}: {count(facts.steps, 'step')} of run(){cut}, seed {seed}"


def probe_lines(name: str, facts: Facts, seed: int) -> list[str]:
    """Return all that was seen, in lines: what stands out first."""
    if facts.empty:
        return [f"{name}: the run broke: {facts.error}" if facts.error else nothing(name, facts)]
    lines = [heading(name, facts, seed), "", *finding_lines(facts), *table_lines(facts), ""]
    lines += [*optimizer_lines(facts), *notes(facts)]
    return [*lines, f"the run broke: {facts.error}"] if facts.error else lines


def finding_lines(facts: Facts) -> list[str]:
    """Return what stands out, or that nothing does."""
    return [f"* {finding.sentence}" for finding in findings(facts)] or ["Nothing stands out."]


def table_lines(facts: Facts) -> list[str]:
    """Return the tables that have rows, with an empty line above each."""
    lines = []
    for table in (module_table(facts), parameter_table(facts)):
        if table.rows:
            lines += ["", *render(table.header, table.rows).splitlines()]
    return lines


def nothing(name: str, facts: Facts) -> str:
    """Return why there is nothing to show."""
    if facts.source is Source.TESTS:
        return f"{name}: its tests call no module of your file, so there is nothing to probe"
    return f"{name}: run() calls no module and no optimiser of torch, so there is nothing to probe"


def module_table(facts: Facts) -> Table:
    """Return a row for each module that was called."""
    return Table(
        ("module", "class", "shape", "dtype", "mean", "spread", "zeros", "NaN", "calls"),
        tuple(map(_module, facts.modules)),
    )


def parameter_table(facts: Facts) -> Table:
    """Return a row for each parameter; tests that call modules update nothing."""
    header = ("parameter", "shape", "dtype", "gradient", "weight", "update/weight", "owner")
    columns = len(header) if facts.source is Source.RUN else header.index("update/weight")
    rows = (_parameter(one, facts)[:columns] for one in facts.parameters)
    return Table(header[:columns], tuple(rows))


def optimizer_lines(facts: Facts) -> list[str]:
    """Return a line for each group of each optimiser."""
    return [
        f"{one.name}{place}: {count(one.steps, 'step')}, learning rate {_rates(rates)}"
        for one in facts.optimizers
        for place, rates in zip(_groups(one), one.rates, strict=True)
    ]


def _module(one: ModuleFacts) -> tuple[str, ...]:
    return (
        one.name,
        one.kind,
        _shape(one.shape),
        one.dtype or _NONE,
        _number(one.mean),
        _number(one.spread),
        _share(one.zeros),
        _share(one.nans),
        _calls(one),
    )


def _calls(one: ModuleFacts) -> str:
    if not one.ungraded:
        return str(one.calls)
    training = f", {one.training_ungraded} in training mode" if one.training_ungraded else ""
    return f"{one.calls} ({one.ungraded} without gradients{training})"


def _parameter(one: ParameterFacts, facts: Facts) -> tuple[str, ...]:
    # A test may ask autograd for gradients that no parameter ever has.
    no_gradient = "none" if facts.source is Source.RUN else _NONE
    gradient = no_gradient if one.gradient is None else _number(one.gradient)
    return (
        " = ".join((one.name, *one.tied)),
        _shape(one.shape),
        one.dtype,
        gradient if one.trainable else "frozen",
        _number(one.weight),
        _update(one),
        one.owner or ("nobody" if facts.optimizers else _NONE),
    )


def _update(one: ParameterFacts) -> str:
    if one.update is None:
        return _NONE
    return "from zero" if one.ratio is None and one.update else _number(one.ratio or 0.0)


def _groups(one: OptimizerFacts) -> Sequence[str]:
    return [""] if len(one.rates) == 1 else [f", group {i}" for i in range(len(one.rates))]


def _rates(rates: Sequence[float]) -> str:
    if not rates:
        return _NONE
    low, high = min(rates), max(rates)
    if low == high:
        return _number(high)
    return f"{_number(rates[0])} at first, {_number(rates[-1])} at last, {_number(high)} at most"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    if value is None:
        return _NONE
    return "0" if value == 0 else "< 0.1 %" if value < 0.001 else f"{100 * value:.1f} %"
