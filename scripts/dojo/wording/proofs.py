"""Puts proofs into words: what they are to catch, what they catch, and how they went."""

from collections.abc import Mapping, Sequence

from dojo.errors import typed
from dojo.history.proofs import Goal
from dojo.history.sessions import Ending
from dojo.practice.judging import ProofJudgement
from dojo.practice.proof_loop import (
    ClaimRefuted,
    ProofAction,
    ProofEvent,
    ProofJudged,
    ProofOver,
    ProofRefused,
    SurvivorHinted,
)
from dojo.practice.proving import Level, ProofDebrief, ProofHint, Prover
from dojo.testrun.results import TestResult
from dojo.wording.quantities import count, minutes
from dojo.wording.stories import story_lines, tale_lines
from dojo.wording.tables import render

KEYS = {
    "h": ProofAction.HINT,
    "c": ProofAction.CLAIM,
    "r": ProofAction.REVEAL,
    "q": ProofAction.QUIT,
}
_WORDS = {
    ProofAction.HINT: "hint on a version that survives",
    ProofAction.CLAIM: "claim that it is correct",
    ProofAction.REVEAL: "reveal",
    ProofAction.QUIT: "quit",
}
_SAID = 3  # lines of a message
_ALARMS = 3  # spelt out; more would scroll the first off the screen
_STORIES = 5
_GOALS = {
    Goal.ONE: "Write the test that catches it.",
    Goal.HALF: "Catch half of {versions}.",
    Goal.ALL: "Catch all of {versions}.",
}
_ENDINGS = {
    Ending.SOLVED: "proved",
    Ending.MISSED: "time was up",
    Ending.REVEALED: "revealed",
    Ending.SKIPPED: "left",
}


def keys_line(keys: Mapping[str, ProofAction] = KEYS) -> str:
    """Return the keys with their words."""
    return "  ".join(f"{key} {_WORDS[action]}" for key, action in keys.items())


def task_lines(prover: Prover) -> list[str]:
    """Return what the proof is to catch; of one bug, its story without its place."""
    kata, file = prover.kata, prover.kata.proof.name
    versions = count(len(prover.bugs), "wrong version")
    lines = [f"{kata.name}: prove it in {file}, tests of your own."]
    if prover.goal is Goal.ONE:
        (bug,) = prover.bugs
        lines += ["", *tale_lines(bug), ""]
    lines.append(_GOALS[prover.goal].format(versions=versions) + " Refuse no correct one.")
    return lines


def event_lines(event: ProofEvent, name: str) -> list[str]:
    """Return what is printed of an event in a kata of this name."""
    match event:
        case ProofJudged(judgement, left):
            clock = "" if left is None else f", {minutes(max(left, 0))} left"
            return [*judgement_lines(judgement), f"  seed {judgement.seed}{clock}"]
        case SurvivorHinted(hint):
            return hint_lines(hint)
        case ClaimRefuted(test):
            return ["It is not correct. The kata's own tests tell it apart:", *_failure(test)]
        case ProofRefused(reason):
            return [reason]
        case ProofOver(None):
            again = typed("prove", name)
            return [f"Your proof is as you left it: {again} goes on."]
        case ProofOver(debrief):
            assert debrief is not None
            return debrief_lines(debrief)


def judgement_lines(judgement: ProofJudgement) -> list[str]:
    """Return the false alarms, how much is caught, and what each test catches."""
    if judgement.problem:
        return [f"no verdict: {judgement.problem}"]
    lines = []
    for alarm in judgement.alarms[:_ALARMS]:
        lines.append(f"false alarm: {alarm.test.name} refuses a correct version ({alarm.style})")
        lines += _said(alarm.test)
    if len(judgement.alarms) > _ALARMS:
        lines.append(f"and {count(len(judgement.alarms) - _ALARMS, 'more false alarm')}")
    lines.append(f"{judgement.caught} of {count(judgement.versions, 'wrong version')} caught")
    for catch in judgement.catches:
        caught = f"catches {len(catch.bugs)}" if catch.bugs else "catches nothing"
        lines.append(f"  {catch.test}: {caught}")
    return lines


def hint_lines(hint: ProofHint) -> list[str]:
    """Return a hint on a version that survives: the behaviour, or with it an input."""
    behaviour = hint.test.function.removeprefix("test_").replace("_", " ")
    if hint.level is Level.BEHAVIOUR:
        return [f'One that survives is wrong where the kata tests "{behaviour}".']
    return ["The kata's own tests say of that version:", *_failure(hint.test)]


def debrief_lines(debrief: ProofDebrief) -> list[str]:
    """Return how a proof went: per bug your tests beside the kata's best, and what survived."""
    proof = debrief.proof
    budget = "" if proof.budget is None else f" of {minutes(proof.budget)}"
    lines = [
        "",
        f"{debrief.kata.name}: {_ENDINGS[proof.ending or Ending.SKIPPED]}, "
        f"{len(proof.caught)} of {count(len(debrief.bugs), 'wrong version')} caught, "
        f"{minutes(proof.spent)}{budget}, {count(proof.hints, 'hint')}, "
        f"{count(proof.claims, 'wrong claim')}, {debrief.score} points of 100",
        "",
    ]
    yours: dict[str, str] = {}
    for catch in debrief.judgement.catches if debrief.judgement else ():
        for bug_id in catch.bugs:
            yours.setdefault(bug_id, catch.test)
    rows = [(bug.title, yours.get(bug.id, "-"), bug.killed_by[0]) for bug in debrief.bugs]
    lines += render(("wrong version", "your test", "the kata's own"), sorted(rows)).splitlines()
    survivors = [bug for bug in debrief.bugs if bug.id not in yours]
    for bug in survivors[:_STORIES]:
        title, *rest = story_lines(bug)
        lines += ["", f"[survived] {title}", *rest]
    if len(survivors) > _STORIES:
        lines += ["", f"{len(survivors) - _STORIES} more survived"]
    return lines


def session_table(debriefs: Sequence[ProofDebrief]) -> str:
    """Return how the proofs of a session went, a line each."""
    rows = [
        (
            one.kata.name,
            one.proof.goal,
            _ENDINGS[one.proof.ending or Ending.SKIPPED],
            f"{len(one.proof.caught)} of {len(one.bugs)}",
            str(one.proof.alarms),
            minutes(one.proof.spent),
            str(one.score),
        )
        for one in debriefs
    ]
    return render(("kata", "goal", "outcome", "caught", "false alarms", "time", "points"), rows)


def _failure(test: TestResult) -> list[str]:
    return [f"  {test.name}", *_said(test)]


def _said(test: TestResult) -> list[str]:
    said, _, rest = test.message.partition("\n\n")
    if said.endswith("!"):  # of torch.testing, which says there only that something differs
        said += "\n" + rest.partition("\n\n")[0]
    return [f"      {line}" for line in said.splitlines()[:_SAID]]
