import json
import os
from datetime import UTC, date, timedelta

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.errors import DojoError
from dojo.history.export import export_history, import_history
from dojo.history.history import History, Run
from dojo.history.merge import rows
from dojo.history.migrations import MIGRATIONS
from dojo.history.moves import MoveKind
from dojo.history.proofs import Goal
from dojo.history.reviews import Effect, Reviewed
from dojo.history.sessions import Ending
from dojo.history.statistics import gather
from dojo.kata.bug import Kind

TODAY = date(2026, 3, 10)
TABLES = ("attempt", "run", "hint", "move", "session", "exercise", "proof", "review", "daily")
SOLVED = Run("abc", 3, 0, ("divides",), True, 0.1)
FAILED = Run("def", 1, 2, (), False, 0.1)


@pytest.fixture
def history(tmp_path):
    history = History(tmp_path / "here" / "history.sqlite")
    yield history
    history.close()


@pytest.fixture
def other(tmp_path):
    history = History(tmp_path / "there" / "history.sqlite")
    yield history
    history.close()


@pytest.fixture
def cli(project):
    def call(*arguments, **options):
        return CliRunner().invoke(main, [str(a) for a in arguments], obj=project, **options)

    return call


def practise(history, day=TODAY):
    """A kata solved with a hint outside sessions, and a session with one solved and one missed."""
    attempt = history.start("01_scale", ["divides"])
    history.add_hint(attempt, "divides", 0)
    history.moves.add(attempt, MoveKind.NOTE, "divides?")
    history.add_run(attempt, FAILED)
    history.add_run(attempt, SOLVED)
    sessions = history.sessions
    session = sessions.begin([("01_scale", ["divides"], 600), ("02_rope", ["twist"], 900)])
    first, second = sessions.exercises(session.id)
    attempt = history.start("01_scale", ["divides"])
    sessions.begin_exercise(first.id, attempt)
    history.add_run(attempt, SOLVED)
    sessions.end_exercise(first.id, Ending.SOLVED, 390, 3)
    sessions.begin_exercise(second.id, history.start("02_rope", ["twist"]))
    sessions.end_exercise(second.id, Ending.MISSED, 900, 1)
    sessions.end(session.id)
    proof = history.proofs.begin("01_scale", Goal.HALF, ["divides", "adds-factor"])
    history.proofs.judged(proof.id, ["divides"], alarms=0)
    history.proofs.end(proof.id, Ending.SOLVED, 3)
    read = [
        Reviewed("01_scale", Effect.BREAKS, "divides", Kind.FORMULA, True),
        Reviewed("01_scale", Effect.HARMLESS, "", None, False),
    ]
    history.reviews.add(read, 40.0)
    history.dailies.add(day, found=True)


def begin_session(history):
    """A session whose first exercise is at work; return the session."""
    sessions = history.sessions
    session = sessions.begin([("01_scale", ["divides"], 600), ("02_rope", ["twist"], 900)])
    (first, _) = sessions.exercises(session.id)
    sessions.begin_exercise(first.id, history.start("01_scale", ["divides"]))
    return session


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The text of a sound export."""
    history = History(tmp_path_factory.mktemp("sound") / "history.sqlite")
    practise(history)
    text = export_history(history)
    history.close()
    return text


def everything(history):
    return {table: rows(history.database, table) for table in TABLES}


def carry(source, target):
    return import_history(target, export_history(source).encode(), "history.json")


def test_every_table_is_exported_and_merged(history):
    tables = json.loads(export_history(history))["tables"]
    assert set(tables) == set(TABLES)  # a new table needs its place in dojo.history.merge


def test_a_fresh_history_becomes_equal_and_a_second_import_changes_nothing(history, other):
    practise(other)
    new = carry(other, history)
    assert new == {
        "attempt": 3,
        "run": 3,
        "hint": 1,
        "move": 1,
        "session": 1,
        "exercise": 2,
        "proof": 1,
        "review": 2,
        "daily": 1,
    }
    assert gather(history, [], TODAY, UTC) == gather(other, [], TODAY, UTC)
    once = everything(history)
    assert once == everything(other)
    assert not carry(other, history)
    assert everything(history) == once


def test_references_follow_their_rows_to_new_ids(history, other):
    practise(history, day=TODAY - timedelta(days=1))
    before = everything(history)
    practise(other)
    carry(other, history)
    after = everything(history)
    for table in TABLES:
        assert after[table][: len(before[table])] == before[table]
        assert len(after[table]) == 2 * len(before[table])
    for session in history.sessions.all():
        solved, missed = history.sessions.exercises(session.id)
        assert (solved.kata, missed.kata) == ("01_scale", "02_rope")
        assert history.last_run(solved.attempt) == SOLVED
        assert history.attempt(missed.attempt).kata == "02_rope"
    first_of_theirs = history.attempts("01_scale")[2]
    assert history.runs(first_of_theirs.id) == 2
    assert history.hints(first_of_theirs.id) == [("divides", 0)]


def test_an_unfinished_session_comes_as_ended_and_later_with_how_it_ended(history, other):
    session = begin_session(other)
    early = export_history(other).encode()
    import_history(history, early, "history.json")
    ours = history.sessions
    assert ours.unfinished() is None
    assert [exercise.ending for exercise in ours.exercises()] == [Ending.SKIPPED] * 2

    theirs = other.sessions
    exercise = theirs.exercises(session.id)[0]
    other.add_run(exercise.attempt, SOLVED)
    theirs.end_exercise(exercise.id, Ending.SOLVED, 390, 3)
    theirs.end(session.id)
    assert carry(other, history) == {"run": 1}
    assert [exercise.ending for exercise in ours.exercises()] == [Ending.SOLVED, Ending.SKIPPED]
    assert history.solved_katas() == {"01_scale"}

    import_history(history, early, "history.json")  # an old file takes nothing back
    assert ours.exercises()[0].ending is Ending.SOLVED
    assert history.solved_katas() == {"01_scale"}


def test_what_is_here_already_stays_as_it_is(history, sound):
    import_history(history, sound.encode(), "history.json")
    before = everything(history)
    document = json.loads(sound)
    document["tables"]["exercise"][0].update(grade=1, spent=7)
    document["tables"]["attempt"][0].update(solved_at="2026-01-02T03:04:05+00:00")
    assert not import_history(history, json.dumps(document).encode(), "history.json")
    assert everything(history) == before


def test_a_session_at_work_here_goes_on(history, other):
    session = begin_session(history)
    carry(history, other)
    carry(other, history)
    assert history.sessions.unfinished() == session
    assert history.sessions.exercises()[0].ending is None


def test_an_export_of_the_first_version_imports(history):
    moment = "2026-01-02T03:04:05.000006+00:00"
    facts = {"revision": "abc", "passed": 3, "failed": 0, "solved": 1, "seconds": 0.5}
    attempt = {
        "id": 7,
        "kata": "01_scale",
        "planted": '["divides"]',
        "started_at": moment,
        "revealed_at": None,
        "solved_at": moment,
    }
    tables = {
        "attempt": [attempt],
        "run": [{"id": 3, "attempt": 7, "at": moment, "gone": '["divides"]', **facts}],
        "hint": [{"id": 1, "attempt": 7, "at": moment, "bug": "divides", "level": 0}],
    }
    document = {"format": "history of ml-bug-katas", "version": 1, "tables": tables}
    new = import_history(history, json.dumps(document).encode(), "history.json")
    assert new == {"attempt": 1, "run": 1, "hint": 1}
    assert history.solved_katas() == {"01_scale"}
    (kept,) = history.attempts("01_scale")
    assert history.hints(kept.id) == [("divides", 0)]


def changed(table, **columns):
    def change(document):
        document["tables"][table][0].update(columns)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: document.update(version=len(MIGRATIONS) + 1), "newer version"),
        (lambda document: document.update(version=0), "no export of these katas"),
        (lambda document: document.update(version="2"), "no export of these katas"),
        (lambda document: document.update(format="something"), "no export of these katas"),
        (lambda document: document.pop("tables"), "no whole export"),
        (lambda document: document.update(tables=[]), "damaged"),
        (lambda document: document["tables"].pop("run"), "its tables should be"),
        (lambda document: document["tables"].update(run=None), "damaged"),
        (lambda document: document["tables"].update(run=[1]), "damaged"),
        (lambda document: document["tables"]["run"][0].pop("gone"), "run 1 should have"),
        (changed("run", extra=1), "run 1 should have"),
        (changed("run", attempt=99), "refers to one that is not there"),
        (changed("run", id=2), "UNIQUE"),
        (changed("run", id=None), "run 1: id cannot be None"),
        (changed("run", gone="[1]"), "no list of names"),
        (changed("run", gone='"divides"'), "no list of names"),
        (changed("run", gone="nonsense"), "damaged"),
        (changed("run", seconds=float("nan")), "run 1: seconds cannot be nan"),
        (changed("run", passed=2**70), "damaged"),
        (changed("attempt", kata=5), "attempt 1: kata cannot be 5"),
        (changed("attempt", kata="\ud800"), "damaged"),
        (changed("attempt", started_at="yesterday"), "damaged"),
        (changed("attempt", solved_at="2026-01-02T03:04:05"), "no moment in UTC"),
        (changed("session", interview_on="soon"), "damaged"),
        (changed("exercise", outcome="won"), "damaged"),
        (changed("exercise", grade=9), "9 is no grade"),
    ],
)
def test_a_file_that_is_no_sound_export_changes_nothing(history, sound, change, reason):
    document = json.loads(sound)
    change(document)
    with pytest.raises(DojoError, match=reason) as caught:
        import_history(history, json.dumps(document).encode(), "history.json")
    assert str(caught.value).startswith("history.json ")
    assert "\n" not in str(caught.value)
    assert not any(everything(history).values())


@pytest.mark.parametrize("content", [b"", b"\x80", b"[]", b"7", b"{}", b"[" * 100_000])
def test_what_is_not_json_is_refused(history, content):
    with pytest.raises(DojoError, match="no whole export"):
        import_history(history, content, "history.json")


def test_half_a_file_is_refused(history, sound):
    with pytest.raises(DojoError, match="no whole export"):
        import_history(history, sound[: len(sound) // 2].encode(), "history.json")


def test_a_merge_that_fails_half_way_leaves_nothing(history, other):
    practise(other)
    history.database.execute(
        "CREATE TEMP TRIGGER stop BEFORE INSERT ON exercise BEGIN SELECT RAISE(ABORT, 'full'); END"
    )
    with pytest.raises(Exception, match="full"):
        carry(other, history)
    assert not any(everything(history).values())


def test_the_commands_carry_a_history_and_overwrite_nothing_unasked(cli, project, tmp_path):
    history = History(project.history)
    practise(history)
    history.close()
    file = tmp_path / "history.json"
    assert cli("export", file).exit_code == 0
    first = file.read_bytes()
    refused = cli("export", file)
    assert refused.exit_code == 1
    assert "add --force" in refused.output
    assert file.read_bytes() == first
    assert cli("export", file, "--force").exit_code == 0
    piped = cli("export", "-").stdout
    assert "standard input is no whole export" in cli("import", "-", input="{").output
    assert json.loads(piped)["tables"] == json.loads(first)["tables"]
    assert cli("import", file).output == "nothing new in it\n"
    project.history.unlink()
    assert cli("import", "-", input=piped).output == (
        "imported 3 attempts, 3 runs, 1 hint, 1 move, 1 session, 1 proof, 1 daily, 2 reviews, "
        "2 exercises\n"
    )


def test_files_that_cannot_be_used_get_one_clear_line(cli, tmp_path):
    for arguments, reason in [
        (["export", tmp_path], "is not a file"),
        (["export", os.devnull, "--force"], "is not a file"),
        (["export", tmp_path / "no" / "x.json"], "does not exist"),
        (["import", tmp_path], "is a directory"),
        (["import", tmp_path / "x.json"], "does not exist"),
    ]:
        result = cli(*arguments)
        assert result.exit_code in (1, 2)
        assert reason in result.output
        assert "Traceback" not in result.output


def test_the_histories_of_a_class_stand_side_by_side(cli, project, tmp_path, history, other):
    practise(other)
    (tmp_path / "one.json").write_text(export_history(other, "Ada \x1b[31mLovelace"))
    (tmp_path / "bob.json").write_text(export_history(history))
    (tmp_path / "damaged.json").write_text("{")
    result = cli("import", *sorted(tmp_path.glob("*.json")))
    assert result.exit_code == 1
    assert "damaged.json is no whole export" in result.output
    ada, bob = result.output.splitlines()[-2:]
    assert ada.startswith("Ada Lovelace  1 of 1 ")
    assert bob.startswith("bob           0 of 1 ")
    assert "nothing new" not in result.output
    with History(project.history) as here:
        assert not here.solved_katas()


def test_a_name_is_in_an_export_if_it_is_wanted(cli, tmp_path):
    cli("export", tmp_path / "without.json")
    assert "learner" not in json.loads((tmp_path / "without.json").read_text())
    cli("export", tmp_path / "with.json", "--name", "Ada")
    assert json.loads((tmp_path / "with.json").read_text())["learner"] == "Ada"
    assert "nothing new in it" in cli("import", tmp_path / "with.json").output
