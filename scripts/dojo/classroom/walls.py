"""What keeps a submission in: the strongest walls that the system has."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from dojo.classroom.namespaces import FILES_BYTES, SCRATCH
from dojo.project import Project

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")


class Walls(Enum):
    """What there may be, the strongest first."""

    NAMESPACES = "namespaces"  # one process has torch imported and serves all
    BUBBLEWRAP = "bubblewrap"  # where only that program may make them: one start a submission
    NONE = "none"

    @property
    def warning(self) -> str:
        """Return what is not protected; nothing if everything is."""
        if self is not Walls.NONE:
            return ""
        return (
            "no sandbox: this system permits neither namespaces nor bubblewrap, so submissions can "
            "read your files, the answers among them, use the network and reach each other's "
            "results; install bubblewrap, or grade where nothing else is"
        )


@dataclass(frozen=True)
class Room:
    """What a submission sees: an answerless checkout, and the folder that its text is put in."""

    project: Project  # the real one, of which nothing is seen
    answerless: Project
    texts: Path

    def command(self, walls: Walls, module: str) -> tuple[str, ...]:
        """Return the words that start a module of the package between such walls."""
        python = (sys.executable, "-m", module)
        if walls is Walls.NONE:
            return python
        if walls is Walls.BUBBLEWRAP:
            return (*self._bubblewrap(), *python)
        seen = map(str, (self.project.root, *self._seen()))
        variables = [f"{name}={value}" for name, value in self._environment().items()]
        return ("env", "-i", *variables, *python, *seen)

    def _seen(self) -> list[Path]:
        """Return the folders that a run needs, and sees alone."""
        system = [Path(name) for name in _SYSTEM if os.path.lexists(name)]
        python = [Path(sys.prefix), Path(sys.base_prefix)]
        root = self.project.root
        seen = [*system, *python, self.answerless.root, self.texts]
        within = [path for path in seen if path.is_relative_to(root)]
        return _outermost(set(seen) - set(within)) + _outermost(within)

    def _environment(self) -> dict[str, str]:
        """Return the variables of its processes: no secret of the teacher's is among them."""
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": SCRATCH,
            "TMPDIR": SCRATCH,
            "LOGNAME": "nobody",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.answerless.root / "scripts"),
            # As for every warm process: a fork has fewer pages to copy.
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        }

    def _bubblewrap(self) -> list[str]:
        hidden = self.project.root
        words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
        words += ["--cap-drop", "ALL"]
        for name, value in self._environment().items():
            words += ["--setenv", name, value]
        seen = self._seen()
        within = [path for path in seen if path.is_relative_to(hidden)]
        for path in seen:
            if path not in within:
                words += _bind(path)
        words += ["--tmpfs", str(hidden)]
        for path in within:
            words += _bind(path)
        words += ["--remount-ro", str(hidden), "--proc", "/proc", "--dev", "/dev"]
        words += ["--size", str(FILES_BYTES), "--tmpfs", SCRATCH]
        return [*words, "--chdir", str(self.answerless.root)]


def _bind(path: Path) -> list[str]:
    if path.parent == Path("/") and path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)]


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Return those that do not lie in others, in order."""
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def strongest(room: Room) -> Walls:
    """Return the strongest walls that this system permits."""
    trials = {
        Walls.NAMESPACES: room.command(Walls.NAMESPACES, "dojo.classroom.namespaces"),
        Walls.BUBBLEWRAP: room.command(Walls.BUBBLEWRAP, "dojo.classroom.answerless"),
    }
    return next((walls for walls, command in trials.items() if _works(command, room)), Walls.NONE)


def _works(command: Sequence[str], room: Room) -> bool:
    if shutil.which(command[0]) is None:
        return False
    environment = {**os.environ, "PYTHONPATH": str(room.answerless.root / "scripts")}
    trial = subprocess.run(
        command,
        check=False,
        capture_output=True,
        cwd=room.answerless.root,
        env=environment,
    )
    return trial.returncode == 0
