"""How many of a kata's mutants its tests catch."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dojo.errors import CatalogueError
from dojo.kata.kata import Kata
from dojo.verification.mutation.judging import Judged
from dojo.verification.mutation.result_store import MutantOutcome


@dataclass
class Score:
    """What became of one kata's mutants. Those that are equivalent or invalid do not count."""

    kata: Kata
    total: int = 0  # mutants to judge
    judged: list[Judged] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # why the rest proves nothing

    def survivors(self) -> list[Judged]:
        """Return the mutants that no test catches, and nobody has explained."""
        return [one for one in self.judged if one.outcome is MutantOutcome.SURVIVED]

    def row(self) -> tuple[str, ...]:
        """Return the kata's row of the table under `HEADER`."""
        return (self.kata.name, *_cells(self._counts()), fresh_count(self.kata))

    def to_json(self) -> dict[str, Any]:
        """Return the counts, the survivors, and those that are excused with the reasons."""
        return {
            "kata": self.kata.name,
            **_numbers(self._counts()),
            "problems": self.problems,
            "survivors": [_facts(one) for one in self.survivors()],
            "excused": [
                {**_facts(one), "kind": one.survivor.kind, "reason": one.survivor.reason}
                for one in self.judged
                if one.survivor and one.outcome in (MutantOutcome.EQUIVALENT, MutantOutcome.GPU)
            ],
        }

    def _counts(self) -> Counter[MutantOutcome]:
        return Counter(one.outcome for one in self.judged)


HEADER = ("kata", "mutants", "caught", "survived", "equivalent", "gpu", "score", "fresh")


def total_row(scores: list[Score]) -> tuple[str, ...]:
    """Return the row that sums up the others."""
    return ("all", *_cells(_sum(scores)), "")


def as_json(scores: list[Score]) -> dict[str, Any]:
    """Return everything as plain data."""
    return {"all": _numbers(_sum(scores)), "katas": [score.to_json() for score in scores]}


def fresh_count(kata: Kata) -> str:
    """Return how many fresh bugs the kata has."""
    try:
        return str(len(kata.fresh))
    except CatalogueError:
        return "out of step"


def _sum(scores: list[Score]) -> Counter[MutantOutcome]:
    return Counter(one.outcome for score in scores for one in score.judged)


def _numbers(counts: Counter[MutantOutcome]) -> dict[str, Any]:
    caught, survived = counts[MutantOutcome.CAUGHT], counts[MutantOutcome.SURVIVED]
    return {
        "mutants": caught + survived,
        "caught": caught,
        "survived": survived,
        "equivalent": counts[MutantOutcome.EQUIVALENT],
        "gpu": counts[MutantOutcome.GPU],
        "invalid": counts[MutantOutcome.INVALID],
        "score": caught / (caught + survived) if caught + survived else None,
    }


def _cells(counts: Counter[MutantOutcome]) -> tuple[str, ...]:
    numbers = _numbers(counts)
    keys = ("mutants", "caught", "survived", "equivalent", "gpu")
    score = numbers["score"]
    return (*(str(numbers[key]) for key in keys), "-" if score is None else f"{score:.1%}")


def _facts(one: Judged) -> dict[str, Any]:
    mutant = one.mutant
    return {
        "operator": mutant.operator,
        "line": mutant.line,
        "before": mutant.before,
        "after": mutant.after,
    }
