"""How many of a kata's mutants its tests catch."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dojo.errors import CatalogueError
from dojo.kata.kata import Kata
from dojo.verification.mutation.judging import Judged


@dataclass
class Score:
    """What became of one kata's mutants. Those that are equivalent or invalid do not count."""

    kata: Kata
    total: int = 0  # mutants to judge
    judged: list[Judged] = field(default_factory=list)

    def survivors(self) -> list[Judged]:
        """Return the mutants that no test catches, and nobody has judged equivalent."""
        return [one for one in self.judged if one.verdict == "survived"]

    def row(self) -> tuple[str, ...]:
        """Return the kata's row of the table under `HEADER`."""
        return (self.kata.name, *_cells(self._counts()), fresh_count(self.kata))

    def to_json(self) -> dict[str, Any]:
        """Return the counts, the survivors, and the equivalents with their reasons."""
        return {
            "kata": self.kata.name,
            **_numbers(self._counts()),
            "survivors": [_facts(one) for one in self.survivors()],
            "equivalents": [
                {**_facts(one), "reason": one.equivalent.reason.strip()}
                for one in self.judged
                if one.verdict == "equivalent" and one.equivalent
            ],
        }

    def _counts(self) -> Counter[str]:
        return Counter(one.verdict for one in self.judged)


HEADER = ("kata", "mutants", "caught", "survived", "equivalent", "score", "fresh")


def total_row(scores: list[Score]) -> tuple[str, ...]:
    """Return the row that sums up the others."""
    return ("all", *_cells(_sum(scores)), "")


def report(scores: list[Score]) -> dict[str, Any]:
    """Return everything as plain data."""
    return {"all": _numbers(_sum(scores)), "katas": [score.to_json() for score in scores]}


def fresh_count(kata: Kata) -> str:
    """Return how many fresh bugs the kata has."""
    try:
        return str(len(kata.fresh))
    except CatalogueError:
        return "out of step"


def _sum(scores: list[Score]) -> Counter[str]:
    return Counter(one.verdict for score in scores for one in score.judged)


def _numbers(counts: Counter[str]) -> dict[str, Any]:
    caught, survived = counts["caught"], counts["survived"]
    return {
        "mutants": caught + survived,
        "caught": caught,
        "survived": survived,
        "equivalent": counts["equivalent"],
        "invalid": counts["invalid"],
        "score": caught / (caught + survived) if caught + survived else None,
    }


def _cells(counts: Counter[str]) -> tuple[str, ...]:
    numbers = _numbers(counts)
    keys = ("mutants", "caught", "survived", "equivalent")
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
