"""Reads a kata's `kata.toml`, and refuses whatever is malformed."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, replace
from enum import StrEnum
from pathlib import Path
from types import GenericAlias
from typing import Any

from dojo.errors import CatalogueError, nearest
from dojo.kata.bug import FRESH, Bug, Question, kept_apart
from dojo.kata.kata import Decoy, Kata
from dojo.kata.planting import conflict, plant, span

_KINDS: dict[Any, str] = {int: "a whole number", str: "a string", bool: "true or false"}
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def load(folder: Path) -> Kata:
    """Read and check one kata's `kata.toml`; raise `CatalogueError` for what is malformed."""
    path = folder / "kata.toml"
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogueError(f"{path}: {error}") from None
    tables = _tables(path, data.pop("bug", []), "bug")
    bugs = tuple(
        _bug(table, f"{path}: bug {table.get('id', number)!r}")
        for number, table in enumerate(tables, 1)
    )
    decoys = tuple(
        _folded(_build(Decoy, table, f"{path}: decoy {number}"))
        for number, table in enumerate(_tables(path, data.pop("decoy", []), "decoy"), 1)
    )
    given = {
        "folder": folder,
        "bugs": bugs,
        "decoys": decoys,
        "draft": "TODO" in text,
    }
    if clash := given.keys() & data.keys():
        raise CatalogueError(f"{path}: unknown key {min(clash)!r}")
    kata: Kata = _build(Kata, data, str(path), given)
    _check(kata, path)
    return kata


def _bug(table: dict[str, Any], where: str) -> Bug:
    ask = tuple(_questions(table.pop("ask", []), where))
    bug: Bug = _folded(_build(Bug, table, where, {"ask": ask}))
    return bug


def _questions(value: object, where: str) -> Iterator[Question]:
    malformed = f"{where}: ask must be a list of pairs: a question and its answer, as strings"
    if not isinstance(value, list):
        raise CatalogueError(malformed)
    for pair in value:
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise CatalogueError(malformed)
        question, answer = (" ".join(text.split()) for text in pair)
        yield Question(question, answer)


def _folded(told: Any) -> Any:
    """Return a bug or a decoy with its story on one line; where it is shown, it is wrapped."""
    return replace(told, why=" ".join(told.why.split()))


def _check(kata: Kata, path: Path) -> None:
    if kata.minutes < 1:
        raise CatalogueError(f"{path}: minutes must be at least 1, not {kata.minutes}")
    if kata.answerless:
        return
    try:
        source = kata.correct_source
        compile(source, str(kata.reference), "exec")
    except (OSError, SyntaxError, ValueError) as error:
        raise CatalogueError(f"{kata.reference}: {error}") from None
    seen: set[str] = set()
    for bug in kata.bugs:
        where = f"{path}: bug {bug.id!r}"
        if not _ID.fullmatch(bug.id):
            raise CatalogueError(f"{where}: an id is lower-case words joined by hyphens")
        if bug.id.startswith(FRESH):
            raise CatalogueError(f"{where}: ids that begin with {FRESH} are for fresh bugs")
        if bug.id in seen:
            raise CatalogueError(f"{where}: another bug has the same id")
        seen.add(bug.id)
        if not bug.hints:
            raise CatalogueError(f"{where}: at least one hint is needed")
        _check_edit(source, bug, where)
    for bug in kata.bugs:
        named = [("apart", bug_id) for bug_id in bug.apart]
        named += [("over_fix_of", bug.over_fix_of)] if bug.over_fix_of else []
        for key, bug_id in named:
            if bug_id not in seen - {bug.id}:
                raise CatalogueError(
                    f"{path}: bug {bug.id!r}: {key} names an unknown bug {bug_id!r}"
                    f"{nearest(bug_id, sorted(seen))}"
                )
    for number, decoy in enumerate(kata.decoys, 1):
        _check_place(source, decoy.find, f"{path}: decoy {number}")
    for bug_id in kata.default:
        if bug_id not in seen:
            raise CatalogueError(
                f"{path}: default names an unknown bug {bug_id!r}{nearest(bug_id, sorted(seen))}"
            )
    least, most = kata.level.planted
    if not least <= len(set(kata.default)) <= most or len(set(kata.default)) != len(kata.default):
        wanted = str(least) if least == most else f"{least} to {most}"
        raise CatalogueError(
            f"{path}: level {kata.level} plants {wanted} different bugs by default, "
            f"not {len(kata.default)}"
        )
    default = [kata.bug(bug_id) for bug_id in kata.default]
    if clashing := kept_apart(default):
        raise CatalogueError(f"{path}: default bug {min(clashing)} is kept apart from another")
    if clash := conflict(source, default):
        raise CatalogueError(f"{path}: default bugs {clash[0]} and {clash[1]} touch the same lines")


def _check_place(source: str, find: str, where: str) -> None:
    count = source.count(find) if find else 0
    if count != 1:
        raise CatalogueError(f"{where}: find stands {count} times in reference.py, not once")


def _check_edit(source: str, bug: Bug, where: str) -> None:
    _check_place(source, bug.find, where)
    if bug.find == bug.replace:
        raise CatalogueError(f"{where}: find and replace are the same")
    try:
        compile(plant(source, [bug]), "botched.py", "exec")
    except SyntaxError as error:
        first, _ = span(source, bug)
        raise CatalogueError(f"{where}: leaves invalid Python near line {first}: {error}") from None


def _tables(path: Path, value: object, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise CatalogueError(f"{path}: {key} must be written as [[{key}]] tables")
    return value


def _build(kind: Any, table: Mapping[str, Any], where: str, given: Mapping[str, Any] = {}) -> Any:
    """Make a dataclass from a TOML table, checking keys and types against its fields."""
    known = {field.name: field for field in fields(kind) if field.name not in given}
    for key in table:
        if key not in known:
            raise CatalogueError(f"{where}: unknown key {key!r}{nearest(key, list(known))}")
    values: dict[str, Any] = dict(given)
    for name, field in known.items():
        if name not in table:
            if field.default is MISSING:
                raise CatalogueError(f"{where}: key {name!r} is missing")
            continue
        value = table[name]
        if isinstance(field.type, GenericAlias):  # tuple[str, ...] is the only one in use
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise CatalogueError(f"{where}: {name} must be a list of strings")
            value = tuple(value)
        elif isinstance(field.type, type) and issubclass(field.type, StrEnum):
            if value not in list(field.type):
                raise CatalogueError(
                    f"{where}: {name} {value!r} is none of {', '.join(field.type)}"
                )
            value = field.type(value)
        elif type(value) is not field.type:
            raise CatalogueError(f"{where}: {name} must be {_KINDS[field.type]}, not {value!r}")
        values[name] = value
    return kind(**values)
