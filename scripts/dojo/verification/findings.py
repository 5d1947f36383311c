"""What verifying a kata found, in plain data: the command line shows it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dojo.kata.kata import Kata
from dojo.testrun.results import Outcome, RunResult


class Standing(StrEnum):
    """What verifying says of a kata as a whole."""

    TRUSTED = "ok"
    DRAFT = "draft"  # its author knows that things are left to do
    PROBLEMS = "PROBLEMS"


@dataclass
class Tally:
    """How many sets of bugs were planted, and how many of these were caught."""

    planted: int = 0
    caught: int = 0


@dataclass
class Proof:
    """What running a kata's tests showed."""

    solutions: int = 0  # that are accepted beside the reference
    alone: Tally = field(default_factory=Tally)
    pairs: Tally = field(default_factory=Tally)
    larger_sets: Tally = field(default_factory=Tally)
    reference_seconds: float = 0.0  # that the reference's tests took, in the fastest run

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Proof":
        """Return the proof from its plain data."""
        tallies = {name: Tally(**facts[name]) for name in ("alone", "pairs", "larger_sets")}
        return cls(**{**facts, **tallies})


@dataclass
class Findings:
    """What verifying one kata found; no problems means that it can be trusted."""

    kata: Kata
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)  # bugs that only a GPU shows
    proof: Proof = field(default_factory=Proof)
    known: bool = False  # nothing was run: the proof is an earlier one, and nothing has changed
    runs: int = 0
    seconds: float = 0.0

    @property
    def standing(self) -> Standing:
        """Return what the findings come to."""
        if not self.problems:
            return Standing.TRUSTED
        return Standing.DRAFT if self.kata.draft else Standing.PROBLEMS


def refusal(result: RunResult, seed: int, what: str = "the reference") -> str:
    """Return why what is correct does not pass, with the test that says so if there is one."""
    ended = (Outcome.PASSED, Outcome.SKIPPED)
    test = next((test for test in result.tests if test.outcome not in ended), None)
    if test is not None and result.whole:
        return f"{what} does not pass {test.name} (--kata-seed {seed}): {test.message}"
    return f"{what} does not pass (--kata-seed {seed}): {result.verdict}: {result.detail}"
