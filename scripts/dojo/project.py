"""Where things are: one object that knows the project's folders."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Project:
    """A checkout of the katas, or a small copy of one in a test."""

    root: Path

    @classmethod
    def here(cls) -> "Project":
        """Return the project that this package is part of."""
        return cls(Path(__file__).resolve().parents[2])

    def copied_to(self, root: Path, *parts: str) -> "Project":
        """Copy the package, pytest's configuration, and those folders; return the copy."""
        for part in ("scripts/dojo", *parts):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(self.root / part, root / part, ignore=ignore)
        for name in ("conftest.py", "pyproject.toml"):
            shutil.copy(self.root / name, root / name)
        return Project(root)

    @property
    def katas(self) -> Path:
        """Return the folder that holds one folder a kata."""
        return self.root / "katas"

    @property
    def fixtures(self) -> Path:
        """Return the folder of what tests read: the output of libraries, and small data."""
        return self.root / "fixtures"

    @property
    def readme(self) -> Path:
        """Return the path of the page that a visitor sees first."""
        return self.root / "README.md"

    @property
    def state(self) -> Path:
        """Return the git-ignored folder that holds the learner's history and backups.

        KATA_STATE names another: what the author of a kata tries is no practice.
        """
        return self.root / os.environ.get("KATA_STATE", ".dojo")

    @property
    def history(self) -> Path:
        """Return the path of the database of attempts and runs."""
        return self.state / "history.sqlite"
