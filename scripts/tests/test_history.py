import sqlite3

import pytest

from dojo.errors import DojoError
from dojo.history.history import History, Run
from dojo.history.migrations import MIGRATIONS

RUN = Run("abc", passed=2, failed=1, gone=("divides",), solved=False, seconds=0.5, seed=7)


@pytest.fixture
def db(tmp_path):
    db = History(tmp_path / "state" / "history.sqlite")
    yield db
    db.close()


def test_an_attempt_and_its_runs_are_kept(db):
    attempt = db.start("01_scale", ["divides"])
    db.add_run(attempt, RUN)
    assert db.last_run(attempt) == RUN
    assert db.runs(attempt) == 1
    (kept,) = db.attempts("01_scale")
    assert kept.planted == ("divides",)
    assert kept.solved_at is None
    assert db.solved_katas() == set()


def test_a_solve_counts_unless_the_answer_was_seen_before(db):
    solved = Run("def", 3, 0, ("divides",), True, 0.1)
    first = db.start("01_scale", ["divides"])
    db.reveal(first)
    db.add_run(first, solved)
    assert db.solved_katas() == set()
    second = db.start("01_scale", ["divides"])
    db.add_run(second, solved)
    db.reveal(second)
    assert db.solved_katas() == {"01_scale"}


def test_hints_are_counted_once_each(db):
    attempt = db.start("01_scale", ["divides"])
    db.add_hint(attempt, "divides", 0)
    db.add_hint(attempt, "divides", 0)
    assert db.hints(attempt) == [("divides", 0)]


def test_every_older_version_is_migrated_without_loss(tmp_path):
    for version in range(len(MIGRATIONS) + 1):
        path = tmp_path / f"{version}.sqlite"
        old = sqlite3.connect(path)
        for migration in MIGRATIONS[:version]:
            old.executescript(migration.script)
        if version:
            old.execute(
                "INSERT INTO attempt (kata, planted, started_at) "
                "VALUES ('x', '[]', '2026-01-01T00:00:00+00:00')"
            )
        old.execute(f"PRAGMA user_version = {version}")
        old.commit()
        old.close()
        db = History(path)
        assert len(db.attempts("x")) == (1 if version else 0)
        db.start("y", [])
        db.close()


def test_a_newer_database_is_refused_in_one_line(tmp_path):
    newer = tmp_path / "newer.sqlite"
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version = 999")
    db.close()
    with pytest.raises(DojoError, match="newer version"):
        History(newer)
