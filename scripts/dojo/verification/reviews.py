"""What requests to review rest on: what is called harmless passes, and what is called wrong fails.

A bug alone is proved elsewhere, by the same text. What is left are the harmless changes, and the
sides of requests that have several changes. The same text is run once, however often it is drawn.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dojo.history.reviews import Effect
from dojo.kata.bug import Bug
from dojo.kata.kata import Kata
from dojo.practice.review.drawing import Material, draw_request
from dojo.practice.review.edits import edited
from dojo.practice.review.pull_request import PullRequest, edited_alone
from dojo.runner.runner import Runner
from dojo.testrun.implementation import Text
from dojo.testrun.results import RunResult, Verdict
from dojo.verification.findings import refusal
from dojo.verification.symptoms import symptoms

# Requests to each kata: more than a thousand in a check of all.
SEEDS = 35
SEEDS_OF_SLOW = 2  # whose tests take seconds, unless the kata is named
SEEDS_OF_SLOW_NAMED = 20


@dataclass(frozen=True)
class Claim:
    """A text that requests rest on: correct, or wrong by these bugs."""

    source: str
    bugs: tuple[Bug, ...]
    said: str  # what it is, for a message

    def run(self, runner: Runner, kata: Kata) -> RunResult:
        """Run what shows whether the claim is true: all tests, or those that its bugs fail."""
        names = {name for bug in self.bugs for name in bug.killed_by}
        if kata.is_system:
            names = names - symptoms(kata) or names  # a symptom takes a second, a check does not
        return runner.run(kata, Text(self.source), seed=0, only=names, first_failure=True)

    def problem(self, result: RunResult) -> str | None:
        """Say what is wrong with it, if anything is."""
        if not self.bugs and result.verdict is not Verdict.PASSED:
            return refusal(result, 0, f"review: {self.said}")
        if self.bugs and result.verdict is not Verdict.FAILED:
            return f"review: {self.said} is not caught: {result.verdict} {result.detail}".rstrip()
        return None


def claims(kata: Kata, seeds: int) -> list[Claim]:
    """Return what so many requests to a kata rest on, less what is proved elsewhere.

    Every equivalent of `mutants.toml` is among it: no syntax tree vouches for these.
    """
    material = Material(kata)
    found: dict[str, Claim | None] = {kata.correct_source: None}
    for equivalent in material.equivalents:
        text = "\n".join(edited(material.text.lines, [equivalent.edit]))
        said = f"what mutants.toml calls equivalent ({equivalent.reason})"
        found.setdefault(text, Claim(text, (), said))
    for seed in range(seeds):
        rng = random.Random(f"{kata.name}:{seed}")
        for claim in _claims(draw_request(material, rng), f"request {seed}"):
            found.setdefault(claim.source, claim)
    return [claim for claim in found.values() if claim]


def _claims(request: PullRequest, name: str) -> Iterator[Claim]:
    kata = request.kata
    for change in request.changes:
        if change.effect is Effect.HARMLESS:
            text = edited_alone(kata, change)
            yield Claim(text, (), f"{name}, a change called harmless ({change.reason})")
    alone = {kata.planted_source((change.bug.id,)) for change in request.changes if change.bug}
    for side, text, effect in (
        ("old", request.old, Effect.MENDS),
        ("new", request.new, Effect.BREAKS),
    ):
        bugs = tuple(one.bug for one in request.changes if one.bug and one.effect is effect)
        if text not in alone:
            what = _named(bugs) or "with no bug in it"
            yield Claim(text, bugs, f"{name}, the {side} side, {what}")


def _named(bugs: Sequence[Bug]) -> str:
    return f"with {' and '.join(bug.id for bug in bugs)}" if bugs else ""
