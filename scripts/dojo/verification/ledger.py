"""Keeps what running a kata's tests proved, so that what has not changed is not proved again."""

import hashlib
import json
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from dojo.files import read_bytes, revision, write_atomically
from dojo.kata.kata import Kata
from dojo.project import Project
from dojo.verification.findings import Proof

# What has a say in a verdict, beside the kata's own files.
_SHARED = (
    "conftest.py",
    "pyproject.toml",
    "fixtures/*",
    "scripts/dojo/*.py",
    "scripts/dojo/kata/*.py",
    "scripts/dojo/testrun/*.py",
    "scripts/dojo/runner/*.py",
    "scripts/dojo/pytest_plugin/*.py",
    "scripts/dojo/verification/*.py",
)
_PACKAGES = ("torch", "numpy", "pytest", "triton")


class Ledger:
    """The proofs of one machine, a file a kata; deleting them loses time alone."""

    def __init__(self, project: Project, has_gpu: bool) -> None:
        """Look at what all katas depend on."""
        self._folder = project.state / "proofs"
        shared = [path for pattern in _SHARED for path in sorted(project.root.glob(pattern))]
        self._surroundings = [
            f"gpu {has_gpu}",
            f"python {platform.python_version()}",
            *(f"{name} {_version(name)}" for name in _PACKAGES),
            *_revisions(shared),
        ]

    def proof(self, kata: Kata) -> Proof | None:
        """Return what was proved of the kata as it is now, if something was."""
        try:
            facts = json.loads(read_bytes(self._file(kata)) or b"{}")
            return Proof.of(facts["proof"]) if facts.get("of") == self._state(kata) else None
        except (ValueError, TypeError, KeyError, AttributeError):  # damaged: it is proved again
            return None

    def keep(self, kata: Kata, proof: Proof) -> None:
        """Note what was proved of the kata as it is now."""
        facts = {"of": self._state(kata), "proof": asdict(proof)}
        write_atomically(self._file(kata), json.dumps(facts).encode())

    def _file(self, kata: Kata) -> Path:
        return self._folder / f"{kata.name}.json"

    def _state(self, kata: Kata) -> str:
        """Return the name of all that a proof of the kata rests on."""
        # Not the learner's file: no proof reads it.
        files = (kata.reference, kata.tests, kata.folder / "kata.toml", *kata.solutions)
        lines = [*self._surroundings, *_revisions([path for path in files if path.is_file()])]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _revisions(paths: list[Path]) -> list[str]:
    return [f"{path} {revision(path.read_bytes())}" for path in paths if path.is_file()]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
