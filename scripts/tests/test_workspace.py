import random
import signal
import subprocess
import sys
import time

import pytest

from dojo.errors import DojoError
from dojo.learner.workspace import Workspace

MINE = b"# my own work \xff\n"


@pytest.fixture
def workspace(project, kata):
    return Workspace(project, kata)


def test_a_file_belongs_to_no_attempt_unless_recorded(workspace):
    assert workspace.attempt() is None


def test_what_is_replaced_is_kept_to_the_byte(workspace, kata):
    kata.botched.write_bytes(MINE)
    workspace.replace(b"new\n", 3, "reset")
    assert kata.botched.read_bytes() == b"new\n"
    assert workspace.attempt() == 3
    assert workspace.restore().path.read_bytes() == MINE
    assert kata.botched.read_bytes() == MINE
    assert workspace.attempt() is None


def test_undo_twice_changes_nothing(workspace, kata):
    kata.botched.write_bytes(MINE)
    workspace.replace(b"new\n", 3, "reset")
    workspace.restore()
    workspace.restore()
    assert kata.botched.read_bytes() == b"new\n"
    assert workspace.attempt() == 3


def test_any_kept_text_can_be_had_back(workspace, kata):
    for text in (b"one\n", b"two\n", b"three\n"):
        workspace.replace(text, 3, "reset")
    two = next(b for b in workspace.backups() if b.path.read_bytes() == b"two\n")
    workspace.restore(two.number)
    assert kata.botched.read_bytes() == b"two\n"
    with pytest.raises(DojoError, match="no kept text 99"):
        workspace.restore(99)


def test_nothing_to_undo_is_said(workspace):
    with pytest.raises(DojoError, match="nothing to undo"):
        workspace.restore()


def test_a_missing_file_is_put_back(workspace, kata):
    kata.botched.unlink()
    assert workspace.replace(b"new\n", 3, "reset") is None
    assert kata.botched.read_bytes() == b"new\n"


def test_a_broken_state_file_loses_no_text(workspace, kata, project):
    workspace.replace(b"new\n", 3, "reset")
    (project.state / "katas" / "01_scale" / "state.json").write_text("{")
    assert workspace.attempt() is None
    assert len(workspace.backups()) == 1


def test_a_link_and_permissions_survive(workspace, kata, tmp_path):
    target = tmp_path / "elsewhere.py"
    target.write_bytes(MINE)
    target.chmod(0o600)
    kata.botched.unlink()
    kata.botched.symlink_to(target)
    workspace.replace(b"new\n", 3, "reset")
    assert kata.botched.is_symlink()
    assert target.read_bytes() == b"new\n"
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this platform")
def test_a_kill_at_any_moment_leaves_the_old_text_or_the_new(project, kata, player):
    texts = {kata.planted_source((bug.id,)).encode() for bug in kata.bugs}
    script = (
        "import itertools\n"
        "from dojo.history.history import History\n"
        "from dojo.kata import catalogue\n"
        "from dojo.learner.player import Player\n"
        "from dojo.project import Project\n"
        "kata = catalogue.find(Project.here(), '1')\n"
        "for bug in itertools.cycle(kata.bugs):\n"
        "    with History(Project.here().history) as history:\n"
        "        Player(Project.here(), kata, history).plant([bug.id])\n"
        "        print(flush=True)\n"
    )
    rng = random.Random(0)
    for _ in range(15):
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": str(project.root / "scripts")},
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.wait()
        process.stdout.close()
        content = kata.botched.read_bytes()
        assert content in texts
        assert kata.planted_source(player.attempt().planted).encode() == content
        for backup in Workspace(project, kata).backups():
            assert backup.path.read_bytes() in texts


def test_a_state_of_an_older_version_is_understood(workspace, project):
    state = project.state / "katas" / "01_scale" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"bugs": ["divides"], "attempt": 4}')
    assert workspace.attempt() == 4
    state.write_text(
        '{"bugs": ["divides"], "attempt": 4, '
        '"pending": {"old": "000000000000", "planting": {"bugs": ["divides"], "attempt": 5}}}'
    )
    assert workspace.attempt() == 5
