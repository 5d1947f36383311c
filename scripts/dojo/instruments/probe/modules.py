"""What stands out in the modules that were called: their outputs, modes and dropouts."""

import math
from collections.abc import Iterator, Sequence

from dojo.instruments.probe.facts import Facts, ModuleFacts, Source
from dojo.instruments.probe.finding import Finding, Kind, agreeing, listed

EXPLODED = 1e4  # root mean square of the outputs
GROWTH, GROWN = 1e3, 1e2  # so many times the first size, and at least this large
VANISHED = 1e-6  # root mean square of the outputs, at their largest


def not_numbers(facts: Facts) -> Iterator[Finding]:
    """Yield the first module whose outputs are NaN though nothing that it was given is."""
    found = [one for one in facts.modules if one.nan_at is not None]
    if not found:
        return
    first = min(found, key=lambda one: one.nan_call)
    where = f" at step {first.nan_at}" if facts.source is Source.RUN else ""
    but = ": its weights had" if first.nan_weights else ", and its inputs had none"
    yield Finding(
        Kind.NOT_A_NUMBER,
        f"The outputs of {first.name} had NaN{where}{but}.",
        tuple(one.name for one in found),
    )


def sizes(facts: Facts) -> Iterator[Finding]:
    """Yield activations that explode, and that vanish."""
    exploded = _innermost([one for one in facts.modules if _explodes(one)])
    if exploded:
        first = min(exploded, key=lambda one: one.infinite_at or one.largest_at)
        if first.infinite_at is not None:
            how = f"were infinite at step {first.infinite_at}"
        else:
            how = (
                f"had a size of {first.largest_size:.3g} at step {first.largest_at}, and of "
                f"{first.first_size:.3g} at first"
            )
        yield _finding(Kind.EXPLODED, "Activations explode", first, how, exploded)
    vanished = _innermost([one for one in facts.modules if _vanishes(one)])
    if vanished:
        first = vanished[0]
        size = f"of {first.largest_size:.1g} in size or less" if first.largest_size else "all zero"
        how = f"were {size} in {_calls(first)}"
        yield _finding(Kind.VANISHED, "Activations vanish", first, how, vanished)


def dropouts_without_gradients(facts: Facts) -> Iterator[Finding]:
    """Yield dropout that was active while gradients were off."""
    found = [one for one in facts.modules if one.drops_ungraded]
    names = [one.name for one in found]
    if facts.drops_outside:
        names.append("a function outside all modules")
    if names:
        also = ", in evaluation mode too" if any(one.drops_in_evaluation for one in found) else ""
        sentence = f"Dropout was active in {listed(names)} while gradients were off{also}."
        yield Finding(Kind.DROPOUT, sentence, tuple(names))


def dropouts_in_evaluation(facts: Facts) -> Iterator[Finding]:
    """Yield dropout that was active in a module in evaluation mode, and is not told of yet."""
    told = facts.source is Source.RUN
    found = [one for one in facts.modules if one.drops_in_evaluation]
    names = [one.name for one in found if not (told and one.drops_ungraded)]
    if names:
        were = agreeing(names, "was", "were")
        sentence = f"Dropout was active in {listed(names)}, which {were} in evaluation mode."
        yield Finding(Kind.DROPOUT, sentence, tuple(names))


def running_statistics(facts: Facts) -> Iterator[Finding]:
    """Yield modules that took up statistics of data that they are evaluated on."""
    names = [one.name for one in facts.modules if one.statistics_ungraded]
    if names:
        sentence = (
            f"{listed(names)}, in training mode, changed {agreeing(names, 'its', 'their')} running "
            "statistics while gradients were off."
        )
        yield Finding(Kind.RUNNING_STATISTICS, sentence, tuple(names))


def modes(facts: Facts) -> Iterator[Finding]:
    """Yield modules that were called in another mode than the model that they are part of."""
    for counted, own, other in (
        ("training_in_evaluation", "training", "evaluation"),
        ("evaluation_in_training", "evaluation", "training"),
    ):
        found = [one for one in facts.modules if getattr(one, counted)]
        names = _outermost([one.name for one in found])
        if names:
            sentence = (
                f"{listed(names)} {agreeing(names, 'was', 'were')} called in {own} mode while the "
                f"model, {found[0].model}, was in {other} mode."
            )
            yield Finding(Kind.MODE, sentence, tuple(names))


def _explodes(one: ModuleFacts) -> bool:
    if one.infinite_at is not None:
        return True
    if one.largest_size is None or one.first_size is None:
        return False
    grown = one.largest_size > GROWN and one.largest_size > GROWTH * one.first_size > 0
    return grown or one.largest_size > EXPLODED


def _vanishes(one: ModuleFacts) -> bool:
    if one.largest_size is None or math.prod(one.shape) < 2:  # a loss of zero is none
        return False
    return one.largest_size < VANISHED and not one.nans


def _finding(
    kind: Kind, what: str, first: ModuleFacts, how: str, found: Sequence[ModuleFacts]
) -> Finding:
    names = [first.name, *(one.name for one in found if one is not first)]
    others = f"; so do {listed(names[1:])}" if len(names) > 1 else ""
    return Finding(kind, f"{what}: the outputs of {first.name} {how}{others}.", tuple(names))


def _calls(one: ModuleFacts) -> str:
    return "its one call" if one.calls == 1 else f"all its {one.calls} calls"


def _innermost(found: Sequence[ModuleFacts]) -> list[ModuleFacts]:
    """Return the modules that hold no others; all where each holds some."""
    return [one for one in found if one.is_leaf] or list(found)


def _outermost(names: Sequence[str]) -> list[str]:
    """Return the names of modules that lie in no other of them."""
    return [one for one in names if not any(one.startswith(f"{other}.") for other in names)]
