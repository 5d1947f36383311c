"""Keeps each grade as it comes, a line of JSON each, so that a killed run goes on where it was."""

import json
import threading
from pathlib import Path

from dojo.classroom.grading import Grade
from dojo.errors import DojoError
from dojo.files import revision
from dojo.kata.kata import Kata


class Journal:
    """The grades of one class's folder. Only what was graded by the same measure is known again."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that a kill cut off counts as never written."""
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], Grade] = {}
        self.seed: int | None = None  # of the random data that all were tested on
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise DojoError(f"{path} cannot be read: {error}; take it away to begin anew") from None
        for line in text.splitlines():
            try:
                facts = json.loads(line)
                grade = Grade.from_json(facts["grade"])
                self._known[facts["measure"], grade.learner, grade.kata, grade.revision] = grade
                self.seed = facts["seed"]
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def known(self, measure: str, learner: str, kata: str, text: str) -> Grade | None:
        """Return the grade of a learner's text by this measure, if it was graded."""
        return self._known.get((measure, learner, kata, revision(text.encode())))

    def add(self, measure: str, seed: int, grade: Grade) -> None:
        """Write a grade down, from any thread."""
        facts = {"measure": measure, "seed": seed, "grade": grade.to_json()}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def measure_of(kata: Kata, planted: tuple[str, ...]) -> str:
    """Return the name of what a kata's submissions are graded by: tests, reference and bugs."""
    parts = (kata.tests.read_bytes(), kata.correct_source.encode(), " ".join(planted).encode())
    return revision(b"\0".join(parts))
