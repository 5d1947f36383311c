"""What stands out in the learning rates."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from dojo.instruments.probe.facts import Facts
from dojo.instruments.probe.finding import Finding, Kind

JUMP = 0.1  # of the largest rate
_OF_NEIGHBOURS = 2.0  # a jump is so many times what changes just before and after it
_STEADY = 2  # steps at one rate on both sides of a drop, as a step schedule has it
_DROP = 0.05  # a step schedule drops to this share or more


def jumps(facts: Facts) -> Iterator[Finding]:
    """Yield learning rates that jump, or are below zero, or always zero."""
    for optimizer in facts.optimizers:
        odd = {i: what for i, rates in enumerate(optimizer.rates) if (what := _what(rates))}
        if odd:
            first = min(odd)
            group = "" if len(odd) == len(optimizer.rates) else f"'s group {first}"
            sentence = f"The learning rate of {optimizer.name}{group} {odd[first]}."
            yield Finding(Kind.LEARNING_RATE, sentence, (optimizer.name,))


def _what(rates: Sequence[float]) -> str:
    """Return what is odd about the rates of one group, or nothing."""
    below = next((i for i, rate in enumerate(rates) if rate < 0), None)
    if below is not None:
        return f"was {rates[below]:.3g}, below zero, at its step {below + 1}"
    if rates and not any(rates):
        return f"was zero in {len(rates)} steps"
    found = [i for i in range(1, len(rates) - 1) if _jumps(rates, i)]
    if not found:
        return ""
    first = found[0]
    times = "" if len(found) == 1 else f", the first of {len(found)} jumps"
    return (
        f"jumped from {rates[first]:.3g} to {rates[first + 1]:.3g} at its step {first + 2}{times}"
    )


def _jumps(rates: Sequence[float], i: int) -> bool:
    """Say whether the rate after step i is far from the one before, and all around it is smooth."""
    change = abs(rates[i + 1] - rates[i])
    around = [abs(rates[k + 1] - rates[k]) for k in (i - 1, i + 1) if k + 1 < len(rates)]
    if not change > max(JUMP * max(map(abs, rates)), _OF_NEIGHBOURS * max(around)):
        return False
    if rates[i + 1] > rates[i]:  # it may warm up by steps
        return any(later < earlier for earlier, later in pairwise(rates[: i + 1]))
    before, after = rates[max(i + 1 - _STEADY, 0) : i + 1], rates[i + 1 : i + 1 + _STEADY]
    by_steps = math.isclose(min(before), max(before)) and math.isclose(min(after), max(after))
    return not (by_steps and rates[i + 1] >= _DROP * rates[i])
