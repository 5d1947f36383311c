"""Fresh bugs: mutants that make good katas, chosen by `kata verify --mutants --record`."""

import json
from pathlib import Path
from typing import Any

from dojo.errors import DojoError
from dojo.kata.catalogue import FRESH, Bug, CatalogueError, Kata
from dojo.kata.explanations import explain


def fresh_path(kata: Kata) -> Path:
    """Return the path of the file that holds a kata's fresh bugs."""
    return kata.folder.parent.parent / "fixtures" / "fresh" / f"{kata.name}.json"


def fresh_bugs(kata: Kata) -> tuple[Bug, ...]:
    """Return a kata's fresh bugs, or raise `CatalogueError` for a file that is out of step."""
    path = fresh_path(kata)
    if not path.is_file():
        return ()
    try:
        bugs = tuple(map(_bug, json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, TypeError) as error:
        raise CatalogueError(f"{path}: {type(error).__name__}: {error}; {_remedy(kata)}") from None
    for bug in bugs:
        if not bug.id.startswith(FRESH) or kata.correct_source.count(bug.find) != 1:
            raise CatalogueError(f"{path}: {bug.id} does not fit reference.py; {_remedy(kata)}")
    return bugs


def some_fresh_bugs(kata: Kata) -> tuple[Bug, ...]:
    """Return a kata's fresh bugs, or raise `DojoError`, saying how to make some, if it has none."""
    if not kata.fresh:
        raise DojoError(
            f"{kata.name} has no fresh bugs; `scripts/verify.sh --mutants {kata.name} --record` "
            "makes them (it needs the development dependencies)"
        )
    return kata.fresh


def is_explained(operator: str) -> bool:
    """Say whether a bug made by that operator would have a story to tell."""
    try:
        explain(operator)
    except KeyError:
        return False
    return True


def _remedy(kata: Kata) -> str:
    return f"scripts/verify.sh --mutants {kata.name} --record makes the file anew"


def _bug(facts: dict[str, Any]) -> Bug:
    explanation = explain(facts["operator"])
    return Bug(
        id=facts["id"],
        title=explanation.title,
        find=facts["find"],
        replace=facts["replace"],
        killed_by=tuple(facts["killed_by"]),
        hints=tuple(explanation.hints),
        why=explanation.why,
    )
