"""Chooses, among the mutants that a kata's tests catch, those that make good bugs to hunt."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from dojo.files import write_atomically
from dojo.kata.fresh import is_explained
from dojo.kata.kata import Kata
from dojo.verification.mutation.judging import Judged
from dojo.verification.mutation.mutants import Mutant, common_ends, is_plausible, meaning
from dojo.verification.mutation.result_store import MutantOutcome, Trial

LEAST, MOST = 40, 60
_TRIED = 2  # times as many: not every mutant that is caught makes a good bug

# What an operator leaves behind and nobody writes: `-0`, brackets round one name, two blanks.
_ODD = re.compile(r"-0(?![\w.])|(?<![\w)\]])\(\w+\)|\S  +\S")


def hopeful(kata: Kata, judged: Iterable[Judged]) -> list[Judged]:
    """Return the caught mutants that may make good bugs, evenly over operators."""
    catalogued = {meaning(kata.planted_source((bug.id,))) for bug in kata.bugs}
    found = [
        one
        for one in judged
        if one.outcome is MutantOutcome.CAUGHT
        and _looks_written(one.mutant)
        and meaning(one.mutant.source) not in catalogued
        and is_explained(one.mutant.operator)
    ]
    plausible = _evenly([one for one in found if is_plausible(one.mutant.operator)])[
        : _TRIED * MOST
    ]
    others = _evenly([one for one in found if not is_plausible(one.mutant.operator)])
    return plausible + others[: max(0, _TRIED * LEAST - len(plausible))]


def candidates(judged: Sequence[Judged]) -> list[Judged]:
    """Return those among the hopeful that are good and differ in behaviour, at most `MOST`."""
    good = [one for one in judged if is_good(one.trial)]
    # Of those that behave alike the first is taken.
    different = {one.trial.behaviour: one for one in reversed(good)}
    chosen = [one for one in good if different[one.trial.behaviour] is one]
    plausible = [one for one in chosen if is_plausible(one.mutant.operator)]
    return plausible[:MOST] if len(plausible) >= LEAST else chosen[:LEAST]


def _evenly(chosen: Sequence[Judged]) -> list[Judged]:
    """Put the first of each operator before the second of each, and so on."""
    groups: defaultdict[str, list[Judged]] = defaultdict(list)
    for one in chosen:
        groups[one.mutant.operator].append(one)
    rounds = zip_longest(*groups.values())
    return [one for in_turn in rounds for one in in_turn if one is not None]


def is_good(trial: Trial) -> bool:
    """Say whether most failures are wrong answers, and some tests catch it but not all."""
    return (
        trial.outcome is MutantOutcome.CAUGHT
        and trial.ended
        and trial.passing > 0
        and trial.wrong > 0
        and trial.raised * 5 <= trial.wrong + trial.raised
    )


def _looks_written(mutant: Mutant) -> bool:
    return len(_ODD.findall(mutant.after)) <= len(_ODD.findall(mutant.before))


def record(kata: Kata, chosen: Sequence[tuple[Judged, Trial]]) -> int:
    """Write the chosen mutants that are good under a second seed too; return how many they are."""
    bugs = []
    for one, second in chosen:
        killed_by = sorted(set(one.trial.failing) & set(second.failing))
        if is_good(second) and killed_by:
            bugs.append(_bug(kata, one, killed_by))
    bugs.sort(key=lambda bug: (kata.correct_source.index(bug["find"]), bug["id"]))
    lines = ",\n".join(json.dumps(bug, ensure_ascii=False) for bug in bugs)  # one a line, for git
    write_atomically(kata.fresh_file, f"[\n{lines}\n]\n".encode())
    return len(bugs)


def edit(source: str, mutated: str) -> tuple[str, str]:
    """Return `find`, whole lines that stand once in the source, and what takes their place."""
    old, new = source.splitlines(keepends=True), mutated.splitlines(keepends=True)
    first, last = common_ends(old, new)
    until, replaced_until = len(old) - last, len(new) - last
    while first > 0 and source.count("".join(old[first:until])) != 1:
        first -= 1
    return "".join(old[first:until]), "".join(new[first:replaced_until])


def _bug(kata: Kata, one: Judged, killed_by: list[str]) -> dict[str, Any]:
    find, replace = edit(kata.correct_source, one.mutant.source)
    name = one.mutant.operator.partition("/")[2]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", "-", name).lower()
    return {
        "id": f"fresh-{words}-{one.mutant.key[:8]}",
        "operator": one.mutant.operator,
        "find": find,
        "replace": replace,
        "killed_by": killed_by,
    }
