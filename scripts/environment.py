"""Makes `.venv`, or brings it up to date. `setup.sh` calls this where the stamp is not as wanted.

Needs nothing but the standard library: it runs before anything is installed.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UNDER_WAY = VENV / "under-way"


class Step(StrEnum):
    """What a set-up is at; it stands in `UNDER_WAY`, also after a kill."""

    MAKING = "making"  # the environment itself, with pip: half of one is of no use
    INSTALLING = "installing"  # packages, of which one may be there by half


def main(stamp: str, extras: str) -> None:
    """Install the package with these extras, such as `[dev]`, and leave the stamp."""
    stamps = [VENV / "installed"]
    if extras:
        stamps.append(VENV / f"installed-{extras.strip('[]')}")
    os.chdir(ROOT)
    state = ROOT / ".dojo"
    state.mkdir(exist_ok=True)
    with (state / "setup.lock").open("w") as lock:
        _wait_for(lock)
        made = all(path.is_file() and path.read_text() == stamp for path in stamps)
        if made and _runs(PYTHON, "-c", ""):
            return  # another set-up has done it meanwhile
        print(
            "Setting up .venv, once; PyTorch is large, so this takes a few minutes ...",
            file=sys.stderr,
        )
        # Read before anything is changed: how far the last set-up came.
        cut_off = Step(UNDER_WAY.read_text()) if UNDER_WAY.is_file() else None
        if cut_off is Step.MAKING or not _runs(PYTHON, "-c", "import pip"):
            cut_off = None
            _make_venv(lock)
        _install(extras, lock, anew=cut_off is Step.INSTALLING)
        for path in stamps:
            path.write_text(stamp)
        UNDER_WAY.unlink()


def _wait_for(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("Another set-up of .venv is under way; waiting for it ...", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _make_venv(lock: IO[str]) -> None:
    """Make the environment from nothing."""
    if not _runs(Path(sys.executable), "-c", "import ensurepip"):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(
            f"Python {version} is here without its venv module. On Debian and Ubuntu, "
            f"`sudo apt install python{version}-venv` adds it; elsewhere, install Python 3.11 or "
            "newer from python.org. Then run the command again."
        )
    PYTHON.unlink(missing_ok=True)  # first, so that no kill leaves half an environment that runs
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir(exist_ok=True)
    UNDER_WAY.write_text(Step.MAKING)
    _Anywhere(symlinks=True).create(VENV)
    # Not by venv: the lock is held until this has ended, which may outlive a set-up that is killed.
    ensurepip = [str(PYTHON), "-m", "ensurepip", "--upgrade", "--default-pip"]
    subprocess.run(ensurepip, stdout=subprocess.DEVNULL, check=True, pass_fds=[lock.fileno()])


class _Anywhere(venv.EnvBuilder):
    """Makes an environment in any folder: venv itself refuses a path with a colon.

    To activate such a one does not work, for PATH cannot hold it; the scripts activate none.
    """

    def ensure_directories(self, env_dir: Any) -> SimpleNamespace:
        context = super().ensure_directories(os.path.relpath(env_dir))
        context.env_dir = env_dir
        return context


def _runs(python: Path, *arguments: str) -> bool:
    try:
        done = subprocess.run([python, *arguments], capture_output=True, check=False)
    except OSError:  # there is none, or a link to one that is gone
        return False
    return done.returncode == 0


def _install(extras: str, lock: IO[str], *, anew: bool) -> None:
    UNDER_WAY.write_text(Step.INSTALLING)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # By relative paths: pip would take brackets in an absolute one for extras.
    wanted = ["--constraint", "scripts/constraints.txt", "--editable", f".{extras}"]
    again = ["--force-reinstall"] if anew else []  # else it believes half a package to be whole
    done = subprocess.run([*pip, *again, *wanted], check=False, pass_fds=[lock.fileno()])
    if done.returncode:
        sys.exit("Set-up did not come to its end; the same command takes it up again.")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"Set-up cannot make {VENV}: {error}. Then run the command again.")
