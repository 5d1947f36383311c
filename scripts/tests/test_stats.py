import json
import re
import shutil
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from click.testing import CliRunner

from dojo.cli import main
from dojo.history.history import History
from dojo.history.kinds import Share
from dojo.history.misses import Missed
from dojo.history.proofs import Goal
from dojo.history.reviews import Effect, Reviewed
from dojo.history.sessions import Ending
from dojo.history.statistics import Solved, Times, Timing, gather
from dojo.kata import catalogue
from dojo.wording.quantities import clock, count, duration
from dojo.wording.statistics_page import render_page

TODAY = date(2026, 3, 10)


def at(day, hour=12, minute=0):
    return datetime(2026, 3, day, hour, minute, tzinfo=UTC).isoformat()


class Past:
    """Fills a history with what happened in March."""

    def __init__(self, history):
        self.history = history

    def insert(self, table, **row):
        marks = ", ".join("?" * len(row))
        return self.history.database.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks}) RETURNING id",
            tuple(row.values()),
        ).fetchone()[0]

    def attempt(self, started_at, kata="01_scale", bugs=("divides",), **row):
        planted = json.dumps(bugs)
        return self.insert("attempt", kata=kata, planted=planted, started_at=started_at, **row)

    def run(self, attempt, moment, gone=(), solved=False):
        facts = {"revision": "abc", "passed": 1, "failed": 1, "seconds": 0.1}
        gone = json.dumps(gone)
        self.insert("run", attempt=attempt, at=moment, gone=gone, solved=solved, **facts)

    def session(self, started_at, ended_at=None):
        return self.insert("session", started_at=started_at, interview=0, ended_at=ended_at)

    def exercise(self, session, attempt, outcome, ended_at, spent, **row):
        facts = {"kata": "01_scale", "bugs": json.dumps(["divides"]), "budget": 600, **row}
        facts |= {"grade": 3 if outcome == "solved" else 1} if outcome else {}
        return self.insert(
            "exercise",
            session=session,
            attempt=attempt,
            outcome=outcome,
            ended_at=ended_at,
            spent=spent,
            **facts,
        )


@pytest.fixture
def past(project):
    history = History(project.history)
    yield Past(history)
    history.close()


@pytest.fixture
def two_katas(project, kata):
    """01_scale and a medium kata of another topic, 02_rope."""
    shutil.copytree(kata.folder, project.katas / "02_rope")
    path = project.katas / "02_rope" / "kata.toml"
    text = path.read_text().replace('topic = "layers"', 'topic = "convolution"')
    text = text.replace('level = "easy"', 'level = "medium"')
    path.write_text(text.replace('["adds-factor"]', '["divides", "subtracts-offset"]'))
    return catalogue.load_all(project)


@pytest.fixture
def cli(project):
    def call(*arguments, **options):
        return CliRunner().invoke(main, [str(a) for a in arguments], obj=project, **options)

    return call


def test_katas_are_counted_by_topic_and_level_and_removed_ones_by_name(past, two_katas):
    past.attempt(at(1), "01_scale", solved_at=at(1, 13))
    past.attempt(at(1), "02_rope", revealed_at=at(1, 13), solved_at=at(1, 14))  # too late
    past.attempt(at(2), "77_renamed", solved_at=at(2, 13))
    stats = gather(past.history, two_katas, TODAY, UTC)
    assert stats.topics == (Solved("layers", 1, 1), Solved("convolution", 0, 1))
    assert stats.levels == (Solved("easy", 1, 1), Solved("medium", 0, 1))
    assert stats.removed == ("77_renamed",)


def test_streaks_count_solves_and_runs_in_sessions_by_local_day(past):
    for day in (1, 2, 3):
        past.attempt(at(day), solved_at=at(day))
    past.attempt(at(4), revealed_at=at(4, 11), solved_at=at(4))  # the answer was seen
    past.run(past.attempt(at(5)), at(5))  # neither a solve nor in a session
    practised = past.attempt(at(8, 23))
    past.run(practised, at(8, 23, 30))
    past.run(practised, at(9, 0, 30))
    past.exercise(past.session(at(8, 23)), practised, None, None, 60)
    stats = gather(past.history, [], TODAY, UTC)
    assert [day.day for day in stats.days] == [1, 2, 3, 8, 9]
    assert (stats.current_streak, stats.longest_streak) == (2, 3)  # today is not over
    east = gather(past.history, [], TODAY, timezone(timedelta(hours=1)))
    assert [day.day for day in east.days] == [1, 2, 3, 9]
    assert east.current_streak == 1
    assert gather(past.history, [], date(2026, 3, 11), UTC).current_streak == 0


def test_times_go_from_the_oldest_exercise_to_the_newest_whatever_their_ids(past):
    session = past.session(at(1), at(5))
    past.exercise(session, past.attempt(at(4)), "solved", at(4), 390)
    past.exercise(session, past.attempt(at(2)), "missed", at(2), 845)
    past.exercise(session, past.attempt(at(3)), "skipped", at(3), 5)
    past.exercise(session, past.attempt(at(5)), None, None, 7)
    past.exercise(session, past.attempt(at(1)), "solved", at(1), 60, kata="77_renamed")
    stats = gather(past.history, [], TODAY, UTC)
    assert stats.times == (
        Times("01_scale", (Timing(845, False), Timing(390, True))),
        Times("77_renamed", (Timing(60, True),)),
    )
    assert stats.totals.seconds == 390 + 845 + 5 + 7 + 60
    assert stats.totals.sessions == 1


def test_missed_bugs_are_those_not_gone_when_the_exercise_ended(past, kata):
    session = past.session(at(1), at(5))
    bugs = ("divides", "subtracts-offset")
    first = past.attempt(at(1), bugs=bugs)
    past.run(first, at(1, 13))
    past.run(first, at(1, 14), gone=["divides"])
    past.run(first, at(1, 16), gone=bugs)  # after the end
    past.exercise(session, first, "missed", at(1, 15), 600, bugs=json.dumps(bugs))
    second = past.attempt(at(2), bugs=bugs)
    past.history.add_hint(second, "divides", 0)
    past.exercise(session, second, "solved", at(2), 300, bugs=json.dumps(bugs))
    third = past.attempt(at(3), bugs=["no-longer-here"])
    past.exercise(session, third, "revealed", at(3), 300, bugs='["no-longer-here"]')
    past.exercise(session, past.attempt(at(4)), "skipped", at(4), 300, bugs='["adds-factor"]')
    stats = gather(past.history, [kata], TODAY, UTC)
    assert stats.missed == (
        Missed("01_scale", "no-longer-here", "no-longer-here", 1, 1, 0, ()),
        Missed("01_scale", "subtracts-offset", "Subtracts the offset", 2, 1, 0, ()),
        Missed("01_scale", "divides", "Divides by the factor", 2, 0, 1, ()),
    )
    assert stats.totals.hints == 1
    assert stats.totals.runs == 3


def test_times_and_counts_are_spelt_for_people():
    assert [clock(s) for s in (0, 59.6, 390, 3723)] == ["0:00", "1:00", "6:30", "1:02:03"]
    assert [duration(s) for s in (0, 2700, 18720)] == ["0 min", "45 min", "5 h 12 min"]
    assert [count(n, "day") for n in (0, 1, 2)] == ["0 days", "1 day", "2 days"]


def practise(past, kata="01_scale", bug="adds-factor"):
    """One session with a kata that was missed, then solved."""
    session = past.session(at(8), at(9))
    for day, outcome, spent in ((8, "missed", 845), (9, "solved", 390)):
        ending = {"solved_at": at(day)} if outcome == "solved" else {"revealed_at": at(day)}
        attempt = past.attempt(at(day, 11), kata, [bug], **ending)
        past.run(attempt, at(day), [bug] if outcome == "solved" else [], outcome == "solved")
        bugs = json.dumps([bug])
        past.exercise(session, attempt, outcome, at(day), spent, kata=kata, bugs=bugs)


def test_the_terminal_gets_short_tables(cli, past):
    practise(past)
    result = cli("stats", env={"COLUMNS": "60"})
    assert result.exit_code == 0
    assert "longest 2 days" in result.output
    assert "sessions  1, 21 min" in result.output
    assert "layers  1 of 1" in result.output
    assert "01_scale  (14:05) -> 6:30" in result.output
    assert "1 of 2  Adds the factor (01_scale)" in result.output
    assert max(map(len, result.output.splitlines())) <= 60


def test_many_times_keep_the_newest_within_the_width(cli, past):
    session = past.session(at(1), at(2))
    for minute in range(20):
        past.exercise(session, past.attempt(at(1, 1, minute)), "solved", at(1, 2, minute), minute)
    lines = cli("stats", env={"COLUMNS": "60"}).output.splitlines()
    (line,) = [line for line in lines if line.startswith("01_scale")]
    assert line.startswith("01_scale  ... -> 0:1")
    assert line.endswith("-> 0:18 -> 0:19")
    assert len(line) <= 60


def test_with_nothing_practised_it_says_how_to_begin(cli, tmp_path):
    result = cli("stats")
    assert result.exit_code == 0
    assert result.output == "Nothing practised yet. scripts/practice.sh starts a session.\n"
    assert json.loads(cli("stats", "--json").output)["totals"]["runs"] == 0
    page = tmp_path / "stats.html"
    assert cli("stats", "--html", page).exit_code == 0
    assert "Nothing practised yet" in page.read_text()


def test_json_has_the_documented_keys(cli, past):
    practise(past)
    numbers = json.loads(cli("stats", "--json").stdout)
    assert numbers["topics"] == [{"name": "layers", "solved": 1, "katas": 1}]
    assert numbers["days"] == ["2026-03-08", "2026-03-09"]
    assert numbers["times"][0]["timings"][0] == {"seconds": 845, "solved": False}
    documented = cli("stats", "--help").output
    assert all(re.search(rf"\b{key}\b", documented) for key in numbers)


def test_a_malformed_kata_is_named_and_the_rest_is_shown(cli, past, project):
    practise(past)
    shutil.copytree(project.katas / "01_scale", project.katas / "02_rope")
    (project.katas / "02_rope" / "kata.toml").write_text("nonsense")
    result = cli("stats")
    assert result.exit_code == 0
    assert "layers  1 of 1" in result.stdout
    assert "02_rope/kata.toml" in result.stderr


def test_the_page_needs_nothing_from_elsewhere(past, kata):
    practise(past)
    page = render_page(gather(past.history, [kata], TODAY, UTC))
    assert re.findall(r"https?:[^\"]*", page) == ["https://example.org/issues/1"]
    assert not re.search(r"<(script|link|img|iframe)|\bsrc=|url\(|@import", page)
    assert "(14:05) → 6:30" in " ".join(page.split())
    assert "missed 1 of 2" in page
    assert page.count('class="on"') == 2 + 1  # two days, and the solved exercise
    assert page.count('class="open"') == 1


def test_names_are_escaped_in_the_page(past):
    practise(past, kata="<script>alert(1)</script>", bug="<b>&")
    page = render_page(gather(past.history, [], TODAY, UTC))
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page


def test_a_page_that_cannot_be_written_is_refused_in_one_line(cli, past, tmp_path):
    practise(past)
    for target, reason in [
        (tmp_path, "is not a file"),
        (tmp_path / "no" / "stats.html", "does not exist"),
    ]:
        result = cli("stats", "--html", target)
        assert result.exit_code == 1
        assert reason in result.output
    assert not (tmp_path / "no").exists()
    assert cli("stats", "--html", tmp_path / "x", "--json").exit_code == 2


def test_kinds_are_added_up_over_hunts_proofs_and_reviews(project, kata, history):
    session = history.sessions.begin([("01_scale", ["divides"], 600)])
    (exercise,) = history.sessions.exercises(session.id)
    history.sessions.begin_exercise(exercise.id, history.start("01_scale", ["divides"]))
    history.sessions.end_exercise(exercise.id, Ending.SOLVED, 60, 3)
    proof = history.proofs.begin("01_scale", Goal.ALL, ["divides", "adds-factor", "gone"])
    history.proofs.judged(proof.id, ["adds-factor"], alarms=0)
    history.proofs.end(proof.id, Ending.REVEALED, 1)
    history.reviews.add([Reviewed("02_old", Effect.BREAKS, "x", kata.bugs[0].kind, False)], 9.0)

    stats = gather(history, [kata], date(2026, 3, 10))
    by_kind = {one.kind: one for one in stats.kinds}
    first = by_kind[kata.bug("divides").kind]
    assert first.hunted == Share(1, 1)
    assert sum(one.proved.met for one in stats.kinds) == 2  # what has gone has no kind
    assert sum(one.proved.found for one in stats.kinds) == 1
    assert by_kind[kata.bugs[0].kind].reviewed == Share(0, 1)
    assert stats.totals.proofs == 1
    shown = CliRunner().invoke(main, ["stats"], obj=project).output
    assert "kind of bug, found by  hunting  proving  reviewing" in shown
