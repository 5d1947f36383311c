"""What in the facts of a probe is worth a sentence: true of what was seen, and no more."""

from dojo.instruments.probe import modules, parameters, rates
from dojo.instruments.probe.facts import Facts, Source
from dojo.instruments.probe.finding import Finding, agreeing, listed


def findings(facts: Facts) -> list[Finding]:
    """Return what is worth a sentence.

    Tests choose modes, gradients and values themselves; of a run under tests only what holds
    whatever they choose is said.
    """
    if facts.source is Source.TESTS:
        return [*modules.not_numbers(facts), *modules.dropouts_in_evaluation(facts)]
    return [
        *modules.not_numbers(facts),
        *modules.modes(facts),
        *modules.dropouts_without_gradients(facts),
        *modules.dropouts_in_evaluation(facts),
        *modules.running_statistics(facts),
        *modules.sizes(facts),
        *parameters.ownership(facts),
        *parameters.gradients(facts),
        *parameters.updates(facts),
        *parameters.shared_memory(facts),
        *rates.jumps(facts),
    ]


def notes(facts: Facts) -> list[str]:
    """Return what is good to know and no fault."""
    return [
        f"{listed([one.name, *one.tied])} are names of one tensor."
        for one in facts.parameters
        if one.tied
    ] + (_notes_of_a_run(facts) if facts.source is Source.RUN else [])


def _notes_of_a_run(facts: Facts) -> list[str]:
    said = []
    if not facts.optimizers and any(one.graded for one in facts.parameters):
        said.append("No optimiser of torch took a step, so who owns a parameter is not known.")
    by_hand = [one.name for one in facts.parameters if one.graded and parameters.by_hand(one)]
    if facts.optimizers and by_hand:
        it = agreeing(by_hand, "it", "them")
        said.append(f"{listed(by_hand)} changed, though no optimiser of torch owns {it}.")
    frozen = [one.name for one in facts.parameters if not one.trainable]
    if frozen:
        said.append(f"{listed(frozen)} {agreeing(frozen, 'is', 'are')} frozen.")
    for one in facts.modules:
        for mode, gradients, calls, among in (
            ("training", "off", one.training_ungraded, one.ungraded),
            ("evaluation", "on", one.evaluation_graded, one.calls - one.ungraded),
        ):
            if calls and one.is_model:
                said.append(
                    f"{one.name} was in {mode} mode in {calls} of {among} calls with gradients "
                    f"{gradients}."
                )
    return said
