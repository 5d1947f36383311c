"""The set-up of `.venv`: killed, doubled, refused. A package without dependencies is installed."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from dojo.project import Project

pytestmark = pytest.mark.slow

ROOT = Project.here().root

# A build backend of a few lines, so that pip needs nothing from the network.
BACKEND = """
import zipfile


def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "small-1.0-py3-none-any.whl"
    info = "small-1.0.dist-info"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("small.py", "whole = True\\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = ["backend"]
build-backend = "backend"

[project]
name = "small"
version = "1.0"
"""


def write_wheel(folder, name, source):
    """Write a wheel of one module into the folder."""
    folder.mkdir()
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", source)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(params=["checkout", "a b:c [d] $HOME é"])
def checkout(request, tmp_path):
    """The set-up's own files around that package, and `use.sh`, which says what it can import."""
    root = tmp_path / request.param
    (root / "scripts").mkdir(parents=True)
    for name in ("setup.sh", "environment.py"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    (root / "scripts" / "constraints.txt").write_text("")
    write_wheel(tmp_path / "wheels", "backend", BACKEND)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "scripts" / "use.sh").write_text(
        '#!/bin/sh\nset -eu\n. "$(dirname -- "$0")/setup.sh"\n'
        'exec "$PYTHON" -c "import small; print(small.whole)"\n'
    )
    return root


@pytest.fixture
def plain_checkout(checkout):
    if " " in checkout.name:
        pytest.skip("a plain path is enough")
    return checkout


def start(checkout, **environment):
    return subprocess.Popen(
        ["sh", str(checkout / "scripts" / "use.sh")],
        env={
            **os.environ,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(checkout.parent / "wheels"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    output, said = process.communicate(timeout=120)
    assert "Traceback" not in said, said
    return process.returncode, output, said


def works(checkout):
    status, output, said = finish(start(checkout))
    assert (status, output) == (0, "True\n"), said


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def until(condition, process):
    while not condition() and process.poll() is None:
        time.sleep(0.001)


def package(checkout, name):
    return checkout.glob(f".venv/lib/python3*/site-packages/{name}")


def test_it_works_wherever_the_checkout_is(checkout):
    works(checkout)
    status, _, said = finish(start(checkout))
    assert status == 0
    assert "Setting up" not in said, "the second time there is nothing to do"


def test_a_set_up_that_is_killed_while_pip_arrives_begins_anew(plain_checkout):
    process = start(plain_checkout)
    until(lambda: any(package(plain_checkout, "pip/_internal")), process)
    kill(process)
    works(plain_checkout)


def test_half_of_a_package_is_installed_again(plain_checkout):
    works(plain_checkout)
    # As a kill leaves it after pip has written what it goes by, and before it has written all.
    next(package(plain_checkout, "small.py")).unlink()
    (plain_checkout / ".venv" / "installed").unlink()
    (plain_checkout / ".venv" / "under-way").write_text("installing")
    works(plain_checkout)


def test_a_kill_at_any_moment_is_healed_by_the_next_command(plain_checkout):
    for moment in (0.2, 0.8, 1.6, 2.4, 3.6):
        process = start(plain_checkout)
        time.sleep(moment)
        kill(process)
    works(plain_checkout)


def test_an_environment_whose_python_is_gone_is_made_anew(plain_checkout):
    works(plain_checkout)
    python = plain_checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    works(plain_checkout)


def test_of_two_set_ups_at_once_one_waits_and_says_so(plain_checkout):
    first = start(plain_checkout)
    until(lambda: (plain_checkout / ".venv").is_dir(), first)
    second = start(plain_checkout)
    told = [finish(process) for process in (first, second)]
    assert [status for status, _, _ in told] == [0, 0], told
    assert "waiting for it" in told[1][2]
    assert "Setting up" not in told[1][2]


def test_a_python_without_ensurepip_is_told_what_to_install(plain_checkout, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    # As Debian has it without python3-venv.
    (hidden / "ensurepip.py").write_text("raise ModuleNotFoundError('ensurepip')\n")
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11", "python"):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (folder / name).chmod(0o755)
    process = start(plain_checkout, PATH=f"{folder}:{os.environ['PATH']}", PYTHONPATH=str(hidden))
    status, _, said = finish(process)
    assert status == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"apt install python{version}-venv" in said
    assert "run the command again" in said
    works(plain_checkout)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_checkout_that_cannot_be_written_is_named(plain_checkout, tmp_path):
    for folder in (*tmp_path.parents, tmp_path):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    done = subprocess.run(
        ["sh", str(plain_checkout / "scripts" / "use.sh")],
        capture_output=True,
        text=True,
        check=False,
        user=65534,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Set-up cannot make" in done.stderr
    assert "Permission denied" in done.stderr
