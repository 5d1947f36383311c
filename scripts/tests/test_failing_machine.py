"""Disks that are full or read-only, files that are damaged, streams that are closed.

Each is told in a line, without a traceback, and whatever does not need it goes on.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.errors import DojoError
from dojo.history.history import History
from dojo.learner.saves import saves
from dojo.learner.workspace import Workspace

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount or to become nobody")


@pytest.fixture
def cli(project):
    def call(*arguments, **options):
        return CliRunner().invoke(main, [str(a) for a in arguments], obj=project, **options)

    return call


@pytest.fixture
def start(project):
    """Start a command in a process of its own."""

    def start(*arguments, before=(), shell="", **options):
        usual = {
            # Where Python looks first: a whole path in PYTHONPATH may have a colon.
            "cwd": project.root / "scripts",
            "env": {**os.environ, "PYTHONUNBUFFERED": "1"},
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        dojo = (*before, sys.executable, "-m", "dojo", *map(str, arguments))
        return subprocess.Popen(["sh", "-c", f'exec "$@" {shell}', "sh", *dojo], **usual | options)

    return start


@pytest.fixture
def run(start):
    def run(*arguments, **options):
        process = start(*arguments, **options)
        output, said = process.communicate(timeout=120)
        output, said = output or "", said or ""
        assert "Traceback" not in output + said, output + said
        return process.returncode, output, said

    return run


@contextlib.contextmanager
def mounted(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(arguments[-1])], check=True)


def fill(folder):
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 512):
            pass


@pytest.fixture
def disk(project, kata, player):
    """A small disk of its own for what is kept, with a history in it; `fill` fills it."""
    player.attempt()
    player.history.close()
    kept = {path.name: path.read_bytes() for path in project.state.glob("*") if path.is_file()}
    with mounted("-t", "tmpfs", "-o", "size=512k", "tmpfs", project.state):
        for name, content in kept.items():
            (project.state / name).write_bytes(content)
        yield project.state


class Reader:
    """Reads what a process says as it comes."""

    def __init__(self, process):
        self.process = process
        self.said = ""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.said += line

    def kill(self):
        self.process.kill()
        self.process.wait()
        self._thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def wait_for(self, text, times=1):
        deadline = time.monotonic() + 60
        while self.said.count(text) < times:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)


@as_root
@pytest.mark.slow
def test_check_judges_on_a_full_disk_and_says_last_that_nothing_is_recorded(run, disk):
    fill(disk)
    status, output, said = run("check", "scale", stderr=subprocess.STDOUT)
    assert status == 1
    lines = output.splitlines()
    assert "0 of 1 bug fixed" in lines[-2]
    assert "cannot be written" in lines[-1]
    assert output.count("cannot be written") == 1
    assert not said


@as_root
@pytest.mark.slow
@pytest.mark.parametrize("command", ["watch", "practice"])
def test_a_disk_that_fills_meanwhile_stops_no_judging(start, disk, project, kata, command):
    process = start(command, "scale", stdin=subprocess.PIPE, stderr=subprocess.STDOUT)
    reader = Reader(process)
    try:
        reader.wait_for("0 of 1 bug fixed")
        fill(disk)
        for number in range(2):
            kata.botched.write_text(f"# {number}\n{kata.planted_source(('divides',))}")
            reader.wait_for("0 of 1 bug fixed", number + 2)
        reader.wait_for("cannot be written")
        kata.botched.write_text(kata.correct_source)
        reader.wait_for("1 of 1 bug fixed")
    finally:
        reader.kill()
    assert reader.said.count("is not recorded") == 1, reader.said
    assert "Traceback" not in reader.said
    assert reader.said.index("0 of 1 bug fixed") < reader.said.index("is not recorded")


@as_root
@pytest.mark.slow
@pytest.mark.own_process
def test_a_full_folder_for_temporary_files_is_told_and_watch_goes_on(start, kata, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=512k", "tmpfs", temporary):
        environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
        process = start("watch", "scale", env=environment, stderr=subprocess.STDOUT)
        reader = Reader(process)
        try:
            reader.wait_for("0 of 1 bug fixed")
            fill(temporary)
            changed = kata.planted_source(("adds-factor",)).replace("x + factor", "factor + x")
            kata.botched.write_text(changed)
            reader.wait_for("cannot be written: No space left")
            kata.botched.write_text(kata.correct_source)
            reader.wait_for("1 of 1 bug fixed")
        finally:
            reader.kill()
    assert "Traceback" not in reader.said


@as_root
@pytest.mark.slow
def test_nothing_is_planted_where_nothing_can_be_kept(run, disk, kata):
    kata.botched.write_text("# mine\n")
    fill(disk)
    for command in (["reset", "scale"], ["practice", "scale"]):
        status, output, said = run(*command)
        assert status == 1, output
        assert len(said.splitlines()) <= 2, said
        assert kata.botched.read_text() == "# mine\n"


@as_root
@pytest.mark.slow
def test_a_checkout_that_is_read_only_is_judged(run, run_pytest, project):
    with mounted("--bind", project.root, project.root):
        subprocess.run(["mount", "-o", "remount,bind,ro", project.root], check=True)
        status, output, said = run("check", "scale")
        assert status == 1
        assert "0 of 1 bug fixed" in output
        assert "Read-only" in said
        plain = run_pytest("katas/01_scale")
        assert plain.returncode == 1, plain.stdout
        assert "0 of 1 bug fixed" in plain.stdout or "not solved yet" in plain.stdout
        assert "cannot be written" in plain.stdout
        for command in ("list", "stats", "hint"):
            status, output, said = run(command, *(["scale"] if command == "hint" else []))
            assert (status, len(said.splitlines())) == (0, 1), said
        status, output, said = run("reset", "scale")
        assert status == 1
        assert "nothing is planted" in said


@as_root
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv, to take rights away")
def test_what_may_not_be_written_or_read_is_named(start, run, project, kata, player):
    player.attempt()
    player.history.close()
    # Root, without the rights that let root read and write what its permissions forbid.
    plain = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    for path in [project.history, kata.folder, project.state]:
        path.chmod(0o555)
    status, output, said = run("check", "scale", before=plain)
    assert status == 1
    assert "0 of 1 bug fixed" in output
    assert "cannot be written" in said
    kata.botched.chmod(0)
    status, output, said = run("check", "scale", before=plain)
    assert status == 1
    assert "botched.py cannot be read: Permission denied" in output
    for command in (["reset", "scale"], ["undo", "scale"], ["import", "history.json"]):
        status, output, said = run(*command, before=plain)
        assert status in (1, 2), command
        assert said, command


@pytest.mark.slow
def test_a_catalogue_that_is_malformed_is_told_in_a_line(run, cli, project, system, kata):
    system.tests.write_text("def (")
    for command in ("check", "hint", "show"):
        result = cli(command, "descent")
        assert (result.exit_code, len(result.output.splitlines())) == (1, 1), result.output
        assert "test_descent.py, line 1: invalid syntax" in result.output
    kata.brief.unlink()
    status, output, said = run("practice", "scale", "--minutes", "0.02")
    assert status == 0, said
    assert "README.md cannot be read: [Errno 2] No such file" in output
    kata.tests.rename(project.root / "tests.py")
    result = cli("check", "scale")
    assert result.output == f"Error: {kata.tests} is missing\n"
    shutil.copytree(kata.folder, project.katas / "01_other")
    assert "01_other and of 01_scale" in cli("check", "01").output
    assert "has the same number or the same word; rename one" in cli("list").output
    for command in (["reset", "--all"], ["verify"], ["practice"]):
        result = cli(*command)
        assert (result.exit_code, len(result.output.splitlines())) == (1, 1), result.output


@pytest.mark.parametrize("damage", ["all", "a page"])
def test_a_damaged_history_makes_room_for_a_new_one(cli, project, player, damage):
    player.plant(["divides"])
    player.history.close()
    content = bytearray(project.history.read_bytes())
    start, end = (0, 4096) if damage == "all" else (4096, len(content))
    content[start:end] = b"\x5a" * (end - start)
    project.history.write_bytes(content)
    result = cli("list")
    assert result.exit_code == 0, result.output
    assert "begins anew" in result.output
    (kept,) = project.state.glob("damaged-*.sqlite")
    assert kept.read_bytes() == content
    assert str(kept) in result.output
    result = cli("hint", "scale")
    assert "the history no longer knows what is planted" in result.output
    assert "reset" in result.output
    assert "anew" in result.output


def test_what_was_begun_is_in_the_copy_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "history.sqlite"
    with History(path) as history:
        attempt = history.start("01_scale", ["divides"])
    with History(path) as history:
        database = history.database
        with database.transaction():
            database.execute("UPDATE attempt SET kata = 'changed'")
            database._connection.execute("PRAGMA query_only = ON")  # refuses writing from here on
            database.execute("UPDATE attempt SET revealed_at = 'then'")
        assert history.database.trouble
        assert len(history.notices()) == 1
        assert history.notices() == []
        rows = database.execute("SELECT kata, revealed_at FROM attempt").fetchall()
        assert rows == [("changed", "then")]
    with History(path) as history:
        assert history.attempt(attempt).kata == "01_scale"


def test_a_damaged_state_is_told_and_a_backup_without_its_facts_comes_back(cli, project, kata):
    kata.botched.write_text("# mine\n")
    assert cli("reset", "scale", "--bugs", "divides").exit_code == 0
    folder = project.state / "katas" / "01_scale"
    (folder / "0001.json").unlink()
    result = cli("undo", "scale", "--list")
    assert "not known" in result.output
    (folder / "0001.json").write_text("{")
    (folder / "state.json").write_text("[")
    result = cli("hint", "scale")
    assert "no longer knows what is planted" in result.output
    assert cli("undo", "scale").exit_code == 0
    assert kata.botched.read_text() == "# mine\n"


def test_proofs_that_are_damaged_are_made_again(cli, project):
    first = cli("verify", "scale")
    for proof in (project.state / "proofs").iterdir():
        proof.write_text('{"of": 1, "proof": ')
    again = cli("verify", "scale")
    assert again.output.splitlines()[0] == first.output.splitlines()[0]
    assert isinstance(again.exception, SystemExit), again.exception  # of its own, with findings


COMMANDS = [
    "check scale",
    "list",
    "stats",
    "hint scale",
    "reset scale",
    "reveal scale --yes",
    "export -",
    "run descent",
    "review",
    "practice scale --minutes 0.02",
    "verify scale",
    "probe scale",
]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "| head -1"])
def test_closed_streams_leave_no_traceback(run, system, project, shell):
    def try_one(command):
        status, output, _ = run(*command.split(), shell=shell, stdin=None)
        if shell == "<&-" and "verify" not in command and "probe" not in command:
            assert output, command
        return status

    with ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(try_one, COMMANDS))
    assert set(statuses) <= {0, 1}, statuses


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a [b] c", "x$HOME", "p:q", "é 漢"])
def test_a_checkout_may_have_any_path(project, system, run, run_pytest, tmp_path, name):
    odd = tmp_path / name
    project.root.rename(odd)
    plain = run_pytest("katas/01_scale", cwd=odd)
    assert "2 failed, 1 passed" in plain.stdout, plain.stdout + plain.stderr
    for command, status, expected in [
        ("check scale", 1, "0 of 1 bug fixed"),
        ("reset scale", 0, "planted"),
        ("run descent", 0, "40 steps"),
        ("verify scale", 1, "seen_in"),
        ("export x.json", 0, "wrote"),
        ("list", 0, "01_scale"),
        ("practice scale --minutes 0.02", 0, "The session is over"),
    ]:
        done = run(*command.split(), cwd=odd / "scripts")
        assert done[0] == status, done
        assert expected in done[1], done


@pytest.mark.slow
def test_six_resets_at_once_keep_six_texts(start, project, kata):
    kata.botched.write_text("# mine\n")
    bugs = ["adds-factor", "divides", "subtracts-offset"] * 2
    processes = [start("reset", "scale", "--bugs", bug) for bug in bugs]
    for process in processes:
        assert process.wait() == 0, process.communicate()
        process.communicate()
    workspace = Workspace(project, kata)
    backups = workspace.backups()
    assert [backup.number for backup in backups] == list(range(1, len(backups) + 1))
    texts = {backup.path.read_text() for backup in backups}
    assert "# mine\n" in texts
    # A reset that finds its own bugs planted already has nothing to keep.
    assert {kata.planted_source([bug]) for bug in bugs} <= texts | {kata.botched.read_text()}
    with History(project.history) as history:
        planted = history.attempt(workspace.attempt()).planted
    assert kata.botched.read_text() == kata.planted_source(planted)


@pytest.mark.slow
@pytest.mark.own_process
def test_no_temporary_folder_outlives_a_killed_command(start, kata, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    process = start("watch", "scale", env=environment, stderr=subprocess.STDOUT)
    reader = Reader(process)
    reader.wait_for("0 of 1 bug fixed")
    for number in range(4):
        kata.botched.write_text(f"# {number}\n{kata.planted_source(('divides',))}")
        time.sleep(0.05)
    assert list(temporary.iterdir())
    reader.kill()
    deadline = time.monotonic() + 20
    while list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(temporary.iterdir()) == []


def test_a_link_and_a_file_in_its_place_are_followed(kata, tmp_path):
    target = tmp_path / "elsewhere.py"
    target.write_text("# 0\n")
    kata.botched.unlink()
    kata.botched.symlink_to(target)
    stop = threading.Event()
    seen = []

    def follow():
        for _ in saves(kata.botched, b"# 0\n", stop):
            seen.append(kata.botched.read_text())

    thread = threading.Thread(target=follow)
    thread.start()

    def saw(text):
        deadline = time.monotonic() + 10
        while text not in seen:
            assert time.monotonic() < deadline, seen
            time.sleep(0.02)

    try:
        time.sleep(0.3)
        target.write_text("# through the link\n")
        saw("# through the link\n")
        new = tmp_path / "new.py"
        new.write_text("# a new target\n")
        new.replace(target)
        saw("# a new target\n")
        beside = kata.folder / ".new"
        beside.write_text("# in place of the link\n")
        beside.replace(kata.botched)
        saw("# in place of the link\n")
    finally:
        stop.set()
        thread.join()


def test_a_text_that_cannot_be_read_is_an_error_of_one_line(project, kata):
    kata.botched.unlink()
    kata.botched.mkdir()
    with pytest.raises(DojoError, match="cannot be read: Is a directory"):
        Workspace(project, kata).text()
