"""Fresh bugs: mutants that make good katas, recorded beside the kata in `fresh.json`.

`kata verify --mutants --record` chooses them.
"""

import json
from pathlib import Path
from typing import Any

from dojo.errors import CatalogueError, typed
from dojo.kata.bug import FRESH, Bug
from dojo.kata.explanations import explain


def read_fresh(path: Path, reference: str) -> tuple[Bug, ...]:
    """Return a kata's fresh bugs, or raise `CatalogueError` for a file that is out of step."""
    if not path.is_file():
        return ()
    remedy = f"{typed('verify', '--mutants', path.parent.name, '--record')} makes the file anew"
    try:
        bugs = tuple(map(_bug, json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, KeyError, TypeError) as error:
        raise CatalogueError(f"{path}: {type(error).__name__}: {error}; {remedy}") from None
    for bug in bugs:
        if not bug.id.startswith(FRESH) or reference.count(bug.find) != 1:
            raise CatalogueError(f"{path}: {bug.id} does not fit reference.py; {remedy}")
    return bugs


def is_explained(operator: str) -> bool:
    """Say whether a bug made by that operator would have a story to tell."""
    try:
        explain(operator)
    except KeyError:
        return False
    return True


def _bug(facts: dict[str, Any]) -> Bug:
    explanation = explain(facts["operator"])
    return Bug(
        id=facts["id"],
        title=explanation.title,
        kind=explanation.kind,
        find=facts["find"],
        replace=facts["replace"],
        killed_by=tuple(facts["killed_by"]),
        hints=tuple(explanation.hints),
        why=explanation.why,
    )
