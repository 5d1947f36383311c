"""What the tests run against: the learner's file, the reference, planted bugs, or any other text.

On pytest's command line it goes by `--impl`: `botched`, `reference`, `bug:ID+ID`, or a path.
"""

from dataclasses import dataclass
from pathlib import Path

from dojo.files import revision

_BUGS = "bug:"


@dataclass(frozen=True)
class Learner:
    """The learner's own file."""

    def __str__(self) -> str:
        """Return it as `--impl` has it."""
        return "botched"


@dataclass(frozen=True)
class Reference:
    """The correct implementation."""

    def __str__(self) -> str:
        """Return it as `--impl` has it."""
        return "reference"


@dataclass(frozen=True)
class Planted:
    """The reference with some of its bugs planted."""

    bugs: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as `--impl` has it."""
        return _BUGS + "+".join(self.bugs)


@dataclass(frozen=True)
class Solution:
    """The file of any solution."""

    path: Path

    def __str__(self) -> str:
        """Return it as `--impl` has it."""
        return str(self.path)


@dataclass(frozen=True)
class Text:
    """A text that is in no file, such as a mutant's."""

    source: str


Implementation = Learner | Reference | Planted | Solution | Text


def parse(option: str, folder: Path) -> Implementation:
    """Return what `--impl` names; a path is taken from the folder."""
    if option == str(Learner()):
        return Learner()
    if option == str(Reference()):
        return Reference()
    if option.startswith(_BUGS):
        return Planted(tuple(option.removeprefix(_BUGS).split("+")))
    return Solution((folder / option).resolve())


def write_variant(source: str, kata_name: str, folder: Path) -> Solution:
    """Put a text that is in no file into one: triton.jit refuses what it cannot read from disk."""
    content = source.encode()
    path = folder / f"{kata_name}_{revision(content)}.py"
    path.write_bytes(content)
    return Solution(path)
