"""Makes `.venv`, or brings it up to date. `setup.sh` calls this where the stamp is not as wanted.

Needs nothing but the standard library: it runs before anything is installed.
"""

import fcntl
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"


def main(stamp: str, extras: str) -> None:
    """Install the package with these extras, such as `[dev]`, and leave the stamp."""
    stamps = [VENV / "installed"]
    if extras:
        stamps.append(VENV / f"installed-{extras.strip('[]')}")
    state = ROOT / ".dojo"
    state.mkdir(exist_ok=True)
    with (state / "setup.lock").open("w") as lock:
        _wait_for(lock.fileno())
        if all(path.is_file() and path.read_text() == stamp for path in stamps):
            return  # another set-up has done it meanwhile
        print(
            "Setting up .venv, once; PyTorch is large, so this takes a few minutes ...",
            file=sys.stderr,
        )
        _make_venv()
        _install(extras)
        # Last, so that an interrupted set-up is taken up again.
        for path in stamps:
            path.write_text(stamp)


def _wait_for(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("Another set-up of .venv is under way; waiting for it ...", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _make_venv() -> None:
    """Make the environment, unless there is a sound one; a kill may have left half of one."""
    if PYTHON.is_file() and _runs(PYTHON, "-c", "import pip"):
        return
    if not _runs(Path(sys.executable), "-c", "import ensurepip"):
        sys.exit(
            "Python's venv module is incomplete here: install it (on Debian and Ubuntu, "
            "`apt install python3-venv`), then run the command again."
        )
    venv.create(VENV, with_pip=True, clear=True, symlinks=True)


def _runs(python: Path, *arguments: str) -> bool:
    return subprocess.run([python, *arguments], capture_output=True, check=False).returncode == 0


def _install(extras: str) -> None:
    constraints = ROOT / "scripts" / "constraints.txt"
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = ["--constraint", str(constraints), "--editable", f"{ROOT}{extras}"]
    done = subprocess.run([*pip, *wanted], check=False)
    if done.returncode:
        sys.exit("Set-up did not come to its end; the same command takes it up again.")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
