"""Finds katas and reads their `kata.toml`, refusing whatever is malformed."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import GenericAlias
from typing import Any

from dojo.errors import DojoError
from dojo.kata.planting import conflict, plant, span
from dojo.project import Project

# How many bugs a kata of each level plants by default: at least, at most.
LEVELS = {"easy": (1, 1), "medium": (2, 2), "hard": (3, 6)}

# How the id of a bug begins that an operator made; see `dojo.kata.fresh`.
FRESH = "fresh-"

_KINDS: dict[Any, str] = {int: "a whole number", str: "a string", bool: "true or false"}
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class CatalogueError(DojoError):
    """A `kata.toml` that breaks the format; the message names file, bug and reason."""


@dataclass(frozen=True)
class Bug:
    """An edit of the reference that plants one bug, and the story told about it."""

    id: str
    title: str
    find: str
    replace: str
    killed_by: tuple[str, ...]
    hints: tuple[str, ...]
    why: str
    seen_in: tuple[str, ...] = ()
    gpu: bool = False


@dataclass(frozen=True)
class Equivalent:
    """A mutant of the reference that no test can tell from it, and why not.

    `before` and `after` are the lines that the mutant changes, each stripped, joined by newlines.
    An `after` of `*` stands for whatever those lines become, as where they set how a kernel is
    launched, which shows in its speed alone.
    """

    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class Kata:
    """One kata: its folder, its facts and its catalogue of bugs."""

    folder: Path
    title: str
    topic: str
    level: str
    minutes: int
    default: tuple[str, ...]
    bugs: tuple[Bug, ...]
    equivalents: tuple[Equivalent, ...] = ()

    @property
    def name(self) -> str:
        """Return the folder's name, such as `03_softmax`."""
        return self.folder.name

    @property
    def brief(self) -> Path:
        """Return the path of the brief."""
        return self.folder / "README.md"

    @property
    def botched(self) -> Path:
        """Return the path of the learner's file."""
        return self.folder / "botched.py"

    @property
    def reference(self) -> Path:
        """Return the path of the correct implementation."""
        return self.folder / "reference.py"

    @property
    def tests(self) -> Path:
        """Return the path of the test file."""
        return self.folder / f"test_{self.name.partition('_')[2]}.py"

    @cached_property
    def correct_source(self) -> str:
        """Return the text of the reference."""
        return self.reference.read_text(encoding="utf-8")

    @cached_property
    def fresh(self) -> tuple[Bug, ...]:
        """Return the bugs that operators made of the reference."""
        from dojo.kata.fresh import (
            fresh_bugs,  # not above: it makes `Bug`s, and few commands need it
        )

        return fresh_bugs(self)

    def bug(self, bug_id: str) -> Bug:
        """Return the bug of that id, or raise `DojoError` with the nearest ids."""
        bugs = self.fresh if bug_id.startswith(FRESH) else self.bugs
        for bug in bugs:
            if bug.id == bug_id:
                return bug
        raise DojoError(
            f"{self.name} has no bug {bug_id!r}{_nearest(bug_id, [b.id for b in bugs])}"
        )

    def planted_source(self, bug_ids: tuple[str, ...]) -> str:
        """Return the reference with those bugs planted, or raise `DojoError`."""
        bugs = [self.bug(bug_id) for bug_id in bug_ids]
        clash = conflict(self.correct_source, bugs)
        if clash:
            raise DojoError(
                f"{self.name}: {clash[0]} and {clash[1]} touch the same lines; take one"
            )
        return plant(self.correct_source, bugs)


def kata_folders(project: Project) -> list[Path]:
    """Return the folders under `katas/` that hold a `kata.toml`, in order."""
    return sorted(path.parent for path in project.katas.glob("*/kata.toml"))


def load_all(project: Project) -> list[Kata]:
    """Return every kata in order, or raise `CatalogueError` for the first malformed one."""
    return [load(folder) for folder in kata_folders(project)]


def named(project: Project, names: Sequence[str]) -> list[Kata]:
    """Return the katas of these names, or every kata if there are none."""
    return [find(project, name) for name in names] if names else load_all(project)


def find(project: Project, name: str) -> Kata:
    """Return the kata called `03`, `softmax` or `03_softmax`, or raise with the nearest names."""
    folders = kata_folders(project)
    wanted = name.rstrip("/").removeprefix("katas/")
    for folder in folders:
        number, _, topic = folder.name.partition("_")
        if wanted in (folder.name, topic, number) or wanted == number.lstrip("0"):
            return load(folder)
    names = [folder.name for folder in folders]
    topics = {folder.name.partition("_")[2]: folder.name for folder in folders}
    close = difflib.get_close_matches(wanted, [*names, *topics], n=3, cutoff=0.5)
    close += [n for n in names if wanted and wanted in n]
    suggestions = dict.fromkeys(topics.get(match, match) for match in close)
    hint = f"did you mean {' or '.join(suggestions)}? " if suggestions else ""
    raise DojoError(f"no kata is called {name!r}; {hint}scripts/list.sh shows them all")


def load(folder: Path) -> Kata:
    """Read and check one kata's `kata.toml`; raise `CatalogueError` for what is malformed."""
    path = folder / "kata.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogueError(f"{path}: {error}") from None
    tables = {
        "bug": _tables(path, data.pop("bug", []), "bug"),
        "equivalent": _tables(path, data.pop("equivalent", []), "equivalent"),
    }
    bugs = tuple(
        _build(Bug, table, f"{path}: bug {table.get('id', number)!r}")
        for number, table in enumerate(tables["bug"], 1)
    )
    equivalents = tuple(
        _build(Equivalent, table, f"{path}: equivalent {number}")
        for number, table in enumerate(tables["equivalent"], 1)
    )
    given = {"folder": folder, "bugs": bugs, "equivalents": equivalents}
    if clash := given.keys() & data.keys():
        raise CatalogueError(f"{path}: unknown key {min(clash)!r}")
    kata: Kata = _build(Kata, data, str(path), given)
    _check(kata, path)
    return kata


def _check(kata: Kata, path: Path) -> None:
    if kata.level not in LEVELS:
        raise CatalogueError(f"{path}: level {kata.level!r} is none of {', '.join(LEVELS)}")
    if kata.minutes < 1:
        raise CatalogueError(f"{path}: minutes must be at least 1, not {kata.minutes}")
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
    for bug_id in kata.default:
        if bug_id not in seen:
            raise CatalogueError(
                f"{path}: default names an unknown bug {bug_id!r}{_nearest(bug_id, sorted(seen))}"
            )
    least, most = LEVELS[kata.level]
    if not least <= len(set(kata.default)) <= most or len(set(kata.default)) != len(kata.default):
        wanted = str(least) if least == most else f"{least} to {most}"
        raise CatalogueError(
            f"{path}: level {kata.level} plants {wanted} different bugs by default, "
            f"not {len(kata.default)}"
        )
    if clash := conflict(source, [kata.bug(bug_id) for bug_id in kata.default]):
        raise CatalogueError(f"{path}: default bugs {clash[0]} and {clash[1]} touch the same lines")


def _check_edit(source: str, bug: Bug, where: str) -> None:
    count = source.count(bug.find) if bug.find else 0
    if count != 1:
        raise CatalogueError(f"{where}: find stands {count} times in reference.py, not once")
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
            raise CatalogueError(f"{where}: unknown key {key!r}{_nearest(key, list(known))}")
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
        elif type(value) is not field.type:
            raise CatalogueError(f"{where}: {name} must be {_KINDS[field.type]}, not {value!r}")
        values[name] = value
    return kind(**values)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"
