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
from dojo.verification.mutation.mutants import common_ends, meaning
from dojo.verification.mutation.result_store import MutantOutcome, Trial

MOST, MOST_OF_ONE_OPERATOR = 60, 6
_TRIED = 2  # times as many: not every mutant that is caught makes a good bug

# What an engineer gets wrong while the formula stands above it: a sign, an index, a bound, a name.
# An operator that turns `*` into `/` makes mutants, and no bugs.
_WRITTEN = re.compile(
    r"dojo/.+"
    r"|core/(NumberReplacer|Replace(True|False|And|Or|Break|Continue)With\w+)"
    r"|core/ReplaceUnaryOperator_Delete_(USub|Invert)"
    r"|core/ReplaceComparisonOperator_(Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt)"
    r"|core/ReplaceBinaryOperator_(Add_Sub|Sub_Add|BitAnd_BitOr|BitOr_BitAnd)"
)
_LARGEST_INDEX = 20  # a larger number, or one with a point, is not off by one
_NUMBER = re.compile(r"\d[\d_.]*(?:e-?\d+)?")

# What an operator leaves behind and nobody writes: `-0`, brackets round one name, two blanks.
_ODD = re.compile(r"-0(?![\w.])|(?<![\w)\]])\(\w+\)|\S  +\S")


def hopeful(kata: Kata, judged: Iterable[Judged]) -> list[Judged]:
    """Return the caught mutants that may make good bugs, evenly over operators."""
    catalogued = {meaning(kata.planted_source((bug.id,))) for bug in kata.bugs}
    found = [
        one
        for one in judged
        if one.outcome is MutantOutcome.CAUGHT
        and looks_written(one.mutant.operator, one.mutant.before, one.mutant.after)
        and meaning(one.mutant.source) not in catalogued
        and is_explained(one.mutant.operator)
    ]
    return _evenly(found, _TRIED * MOST_OF_ONE_OPERATOR)[: _TRIED * MOST]


def candidates(judged: Sequence[Judged]) -> list[Judged]:
    """Return those among the hopeful that are good and differ in behaviour, at most `MOST`."""
    good = [one for one in judged if is_good(one.trial)]
    # Of those that behave alike the first is taken.
    different = {one.trial.behaviour: one for one in reversed(good)}
    chosen = [one for one in good if different[one.trial.behaviour] is one]
    return _evenly(chosen, MOST_OF_ONE_OPERATOR)[:MOST]


def _evenly(chosen: Sequence[Judged], most: int) -> list[Judged]:
    """Put the first of each operator before the second of each, and so on, up to `most` of each."""
    groups: defaultdict[str, list[Judged]] = defaultdict(list)
    for one in chosen:
        groups[one.mutant.operator].append(one)
    rounds = zip_longest(*(group[:most] for group in groups.values()))
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


def looks_written(operator: str, before: str, after: str) -> bool:
    """Say whether someone could have written the line so: by its operator, and by its looks."""
    if operator == "core/NumberReplacer" and not _is_off_by_one(before, after):
        return False
    return bool(_WRITTEN.fullmatch(operator)) and len(_ODD.findall(after)) <= len(
        _ODD.findall(before)
    )


def _is_off_by_one(before: str, after: str) -> bool:
    numbers = zip(_NUMBER.findall(before), _NUMBER.findall(after), strict=False)
    changed = next((old for old, new in numbers if old != new), "0")
    return changed.isdigit() and int(changed) <= _LARGEST_INDEX


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
