"""A kata: its folder, its facts, its catalogue of bugs, and its text with bugs planted."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from dojo.errors import DojoError, nearest, typed
from dojo.kata.bug import FRESH, Bug
from dojo.kata.fresh import read_fresh
from dojo.kata.planting import conflict, plant


class Topic(StrEnum):
    """What a kata is about: the chapter of the catalogue that it stands in."""

    TOKENIZATION = "tokenization"
    LAYERS = "layers"
    CONVOLUTION = "convolution"
    ADAPTERS = "adapters and quantization"
    KERNELS = "kernels"
    TRANSFORMER_PARTS = "transformer parts"
    SYSTEMS = "systems"


class Level(StrEnum):
    """How hard a kata is, in rising order."""

    EASY = "easy"
    MEDIUM = "medium"
    HARD = "hard"

    @property
    def rank(self) -> int:
        """Return the level's place in the order, from 0."""
        return list(Level).index(self)

    @property
    def planted(self) -> tuple[int, int]:
        """Return how many bugs a kata of this level plants by default: at least, at most."""
        return {Level.EASY: (1, 1), Level.MEDIUM: (2, 2), Level.HARD: (3, 6)}[self]


@dataclass(frozen=True)
class Decoy:
    """A place of the reference that looks wrong and is right: its text, and why."""

    find: str
    why: str


@dataclass(frozen=True)
class Kata:
    """One kata: its folder, its facts and its catalogue of bugs."""

    folder: Path
    title: str
    topic: Topic
    level: Level
    minutes: int
    default: tuple[str, ...]
    bugs: tuple[Bug, ...]
    draft: bool = False  # its author has not filled in the skeleton yet
    decoys: tuple[Decoy, ...] = ()

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
    def proof(self) -> Path:
        """Return the path of the tests that the learner writes."""
        return self.folder / "proof.py"

    @property
    def reference(self) -> Path:
        """Return the path of the correct implementation."""
        return self.folder / "reference.py"

    @property
    def tests(self) -> Path:
        """Return the path of the test file."""
        return self.folder / f"test_{self.name.partition('_')[2]}.py"

    @property
    def solutions(self) -> list[Path]:
        """Return the paths of the other correct solutions, in other styles than the reference."""
        return sorted((self.folder / "solutions").glob("*.py"))

    @cached_property
    def answerless(self) -> bool:
        """Say whether it has neither reference nor bugs, as in a class's handout."""
        return not (self.bugs or self.default or self.reference.exists())

    @cached_property
    def correct_source(self) -> str:
        """Return the text of the reference, or raise `DojoError` where there is none to have."""
        if self.answerless:
            raise DojoError(f"{self.name}: this handout holds no answers; ask whoever gave it out")
        return self.reference.read_text(encoding="utf-8")

    @property
    def fresh_file(self) -> Path:
        """Return the path of the file that holds the bugs that operators made."""
        return self.folder / "fresh.json"

    @property
    def healthy_file(self) -> Path:
        """Return the path of the file that holds, of a system, what healthy runs look like."""
        return self.folder / "healthy.json"

    @cached_property
    def fresh(self) -> tuple[Bug, ...]:
        """Return the bugs that operators made of the reference."""
        return read_fresh(self.fresh_file, self.correct_source)

    @property
    def needs_triton(self) -> bool:
        """Say whether the kata can run only where triton is installed."""
        return self.topic is Topic.KERNELS

    @property
    def is_system(self) -> bool:
        """Say whether it is a whole system, whose tests show symptoms and keep checks sealed."""
        return self.topic is Topic.SYSTEMS

    def bug(self, bug_id: str) -> Bug:
        """Return the bug of that id, or raise `DojoError` with the nearest ids."""
        bugs = self.fresh if bug_id.startswith(FRESH) else self.bugs
        for bug in bugs:
            if bug.id == bug_id:
                return bug
        raise DojoError(f"{self.name} has no bug {bug_id!r}{nearest(bug_id, [b.id for b in bugs])}")

    def some_fresh(self) -> tuple[Bug, ...]:
        """Return the fresh bugs, or raise `DojoError`, saying how to make some."""
        if not self.fresh:
            raise DojoError(
                f"{self.name} has no fresh bugs; "
                f"{typed('verify', '--mutants', self.name, '--record')} "
                "makes them (it needs the development dependencies)"
            )
        return self.fresh

    def planted_source(self, bug_ids: Sequence[str]) -> str:
        """Return the reference with those bugs planted, or raise `DojoError`."""
        bugs = [self.bug(bug_id) for bug_id in bug_ids]
        clash = conflict(self.correct_source, bugs)
        if clash:
            raise DojoError(
                f"{self.name}: {clash[0]} and {clash[1]} touch the same lines; take one"
            )
        return plant(self.correct_source, bugs)
