"""What stands out in the parameters: their owners, gradients and updates."""

from collections.abc import Iterator, Sequence

from dojo.instruments.probe.facts import Facts, ParameterFacts
from dojo.instruments.probe.finding import Finding, Kind, agreeing, listed

SMALL = 1e-7  # update over weight: half of what float32 resolves
NOISE = 1e-6  # of the largest gradient: as of a bias before BatchNorm, which has none in truth


def ownership(facts: Facts) -> Iterator[Finding]:
    """Yield parameters that could be trained and are not, for no optimiser knows them."""
    found = [one for one in facts.parameters if _unowned(one, facts)]
    if found:
        them = agreeing(_names(found), "it", "they")
        sentence = f"No optimiser owns {_which(found, facts, 'any')}, and {them} never changed."
        yield _finding(Kind.UNOWNED, sentence, found)


def gradients(facts: Facts) -> Iterator[Finding]:
    """Yield gradients that never came, that were exactly zero, and that were not finite."""
    known = _known(facts)
    none = [one for one in known if _has_none(one)]
    if none:
        sentence = f"No gradient reached {_which(none, facts, 'any')} in {_times(none)}."
        yield _finding(Kind.NO_GRADIENT, sentence, none)
    lost = [one for one in known if not one.gradients and not _has_none(one)]
    if lost:
        sentence = (
            f"A backward pass gave {_which(lost, facts)} a gradient, and none was there as an "
            f"optimiser took its {_times(lost)}."
        )
        yield _finding(Kind.NO_GRADIENT, sentence, lost)
    zero = [one for one in known if _all_zero(one)]
    if zero:
        sentence = f"In {_times(zero)} the gradient of {_which(zero, facts)} was exactly zero."
        yield _finding(Kind.ZERO_GRADIENT, sentence, zero)
    infinite = [one for one in known if one.infinite_gradient_at is not None]
    if infinite:
        step = min(one.infinite_gradient_at or 0 for one in infinite)
        first = [one for one in infinite if one.infinite_gradient_at == step]
        sentence = (
            f"The gradient of {_which(first, facts)} was infinite or NaN as an optimiser took a "
            f"step, first at step {step}."
        )
        yield _finding(Kind.GRADIENT_NOT_FINITE, sentence, first)


def updates(facts: Facts) -> Iterator[Finding]:
    """Yield updates of more than the weight, and of next to nothing of it."""
    large = [one for one in facts.parameters if _moves_too_far(one)]
    if large:
        worst = max(large, key=lambda one: one.largest or 0.0)
        whose = f" for {worst.name}" if len(large) > 1 else ""
        sentence = (
            f"An update of {_which(large, facts)} was larger than the weight: "
            f"{worst.largest:.3g} times{whose} at step {worst.largest_at}."
        )
        yield _finding(Kind.LARGE_UPDATE, sentence, large)
    most = max((one.gradient or 0.0 for one in facts.parameters), default=0.0)
    small = [one for one in _known(facts) if _hardly_moves(one, NOISE * most)]
    if small:
        which = _which(small, facts, "Each")
        sentence = (
            f"{which} got a gradient, and in {_times(small)} no update of more than 1e-7 of the "
            "weight."
        )
        yield _finding(Kind.SMALL_UPDATE, sentence, small)


def shared_memory(facts: Facts) -> Iterator[Finding]:
    """Yield parameters that are not tied, and lie in the same memory all the same."""
    found = [one for one in facts.parameters if one.shares_memory]
    if found:
        twice = ", which is updated for each" if all(one.owner for one in found) else ""
        sentence = f"{listed(_names(found))} are not tied, yet in the same memory{twice}."
        yield _finding(Kind.SHARED_MEMORY, sentence, found)


def by_hand(one: ParameterFacts) -> bool:
    """Say whether something other than an optimiser of torch changed a parameter."""
    return one.trainable and not one.owner and one.changed


def _unowned(one: ParameterFacts, facts: Facts) -> bool:
    owners_are_known = bool(facts.optimizers) and one.graded
    return owners_are_known and one.trainable and not one.owner and not one.changed


def _known(facts: Facts) -> list[ParameterFacts]:
    """Return the parameters that ought to get gradients and updates."""
    return [
        one
        for one in facts.parameters
        if one.trainable and one.chances and not _unowned(one, facts)
    ]


def _has_none(one: ParameterFacts) -> bool:
    return not one.gradients and one.gradient is None


def _all_zero(one: ParameterFacts) -> bool:
    # At the first step LoRA's A has a gradient of zero, and so has what a zero weight is behind.
    return 1 < one.gradients == one.zero_gradients


def _moves_too_far(one: ParameterFacts) -> bool:
    if len(one.shape) > 1:
        return one.large > 0
    # A bias may start at zero, and pass through it again and again.
    return not one.from_zero and one.large > one.updates / 2


def _hardly_moves(one: ParameterFacts, noise: float) -> bool:
    if one.from_zero or one.largest_ratio is None or not one.gradients:
        return False
    return one.largest_ratio < SMALL and (one.gradient or 0.0) > noise


def _finding(kind: Kind, sentence: str, found: Sequence[ParameterFacts]) -> Finding:
    return Finding(kind, sentence, tuple(_names(found)))


def _names(found: Sequence[ParameterFacts]) -> list[str]:
    return [one.name for one in found]


def _which(found: Sequence[ParameterFacts], facts: Facts, word: str = "each") -> str:
    """Return which parameters: their names, or that it is all of them."""
    if 1 < len(found) == len(facts.parameters):
        return f"{word} of the {len(found)} parameters"
    return listed(_names(found))


def _times(found: Sequence[ParameterFacts]) -> str:
    fewest = min(one.chances for one in found)
    what = "step" if all(one.owner for one in found) else "backward call"
    return f"{fewest} {what}" if fewest == 1 else f"{fewest} {what}s"
