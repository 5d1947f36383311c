"""An interview: which system it takes, the notes, and the report at its end."""

import random
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from dojo.cli import main, probe_command
from dojo.cli.events import event_lines
from dojo.errors import DojoError
from dojo.history.moves import MoveKind
from dojo.history.sessions import Ending
from dojo.instruments.probe.facts import Facts, Source
from dojo.kata import kata_toml
from dojo.learner.player import Player
from dojo.learner.watcher import Counted, Key, Later, Logged, Ran, Tick, Typed, watching
from dojo.practice import loop, session
from dojo.practice.debrief import PROBE_COSTS
from dojo.practice.loop import (
    Debugging,
    FreeHunt,
    Note,
    Noted,
    Probed,
    Probing,
    Refused,
    RunLogged,
    Showing,
    Shown,
    TimedHunt,
)
from dojo.practice.planning import INTERVIEW_PLANTS, Planned, Wishes, choose_bugs, plan
from dojo.practice.retrospect import look_back
from dojo.runner.log import RunLog
from dojo.runner.pool import runner_pool
from dojo.verification import healthy
from dojo.wording.debriefs import session_markdown
from dojo.wording.keys import PRACTICE
from dojo.wording.welcome import planted_line, welcome_lines


@pytest.fixture
def practice(project, system, history):
    return session.begin(project, history, [Planned(system, system.default, 600.0)], interview=True)


@pytest.fixture
def hunt(practice):
    return TimedHunt(practice.next_round())


class Happenings:
    """Stands for a watcher: what is put in comes out."""

    planted = ()

    def __init__(self, *happened):
        self._happened = happened

    def events(self, _):
        yield from self._happened


def test_a_bare_interview_takes_one_system_and_the_newest_to_the_learner(kata, system, history):
    (planned,) = plan([kata, system], history, Wishes(interview=True))
    assert planned.kata == system
    assert planned.budget == 45 * 60
    (planned,) = plan([kata, system], history, Wishes(interview=True, minutes=60))
    assert (planned.kata, planned.budget) == (system, 3600)
    folder = shutil.copytree(system.folder, system.folder.with_name("03_ascent"))
    other = kata_toml.load(folder)
    history.start(system.name, system.default)
    (planned,) = plan([kata, system, other], history, Wishes(interview=True))
    assert planned.kata == other
    history.start(other.name, other.default)
    (planned,) = plan([kata, system, other], history, Wishes(interview=True))
    assert planned.kata == system


def test_whoever_says_what_katas_gets_these(kata, system, history):
    for wishes in (Wishes(level=kata.level), Wishes(named=(kata,))):
        (planned,) = plan([kata, system], history, replace(wishes, interview=True))
        assert planned.kata == kata


def test_four_or_five_bugs_are_drawn(system, history):
    lines = "".join(f"def f{n}() -> int:\n    return {n}\n\n\n" for n in range(8))
    system.reference.write_text(lines)
    bugs = tuple(
        replace(
            system.bugs[0],
            id=f"bug-{n}",
            find=f"return {n}",
            replace=f"return 1{n}",
            killed_by=(f"test_{n}",),
        )
        for n in range(8)
    )
    many = replace(system, bugs=bugs, default=("bug-0", "bug-1"))
    drawn = {
        len(choose_bugs(many, history, Wishes(interview=True), random.Random(seed)))
        for seed in range(20)
    }
    assert drawn == set(INTERVIEW_PLANTS)


def test_the_number_of_bugs_is_told_roughly(practice):
    round_ = practice.next_round()
    assert planted_line(round_) == "4 or 5 bugs are planted"
    assert any("what you suspect" in line for line in welcome_lines(round_))


def test_a_typed_line_is_a_note(hunt, practice, history):
    events = [*hunt.events(Happenings(Typed("n the sign, I think\n")), PRACTICE, 0.1)]
    assert events == [Noted()]
    attempt = hunt.round.player.attempt()
    (move,) = history.moves.of(attempt.id)
    assert (move.kind, move.text) == (MoveKind.NOTE, "the sign, I think")


@pytest.mark.parametrize("happened", [Typed("n"), Typed("N  "), Key("n")])
def test_an_empty_note_is_refused_with_an_example(hunt, happened):
    (event,) = hunt.events(Happenings(happened), PRACTICE, 0.1)
    assert isinstance(event, Refused)
    assert "n the mask" in event.reason


def test_a_typed_letter_asks_as_a_key_does(hunt):
    (event,) = hunt.events(Happenings(Typed(" D iff please\n"), Typed("\n")), PRACTICE, 0.1)
    assert event.diff == ""


def test_the_report_sets_what_was_done_beside_the_bugs(project, system, practice, history, runner):
    hunt = TimedHunt(practice.next_round())
    player = hunt.round.player
    attempt = player.attempt()
    planted = system.botched.read_text()

    def run():
        result = runner.run(system, seed=0)
        hunt.handle(Ran(result))
        return result

    run()
    hunt.handle(Note("a | in the gradient"))
    history.moves.add(attempt.id, MoveKind.PROBE)
    system.botched.write_text(planted.replace("3.0)", "3.5)"))
    run()
    system.botched.write_text(planted)
    run()
    system.botched.write_text(planted.replace("2 * x - centre", "2 * (x - centre)"))
    player.judge(run(), runner)
    back = look_back(history, attempt)
    assert back.taken_back == 1
    assert back.first_edit < back.first_fix
    assert [entry.fixed for entry in back.entries if entry.fixed] == [("forgets-centre",)]
    practice.finish(hunt.round, Ending.MISSED)
    (debrief,) = practice.debriefs()
    assert debrief.score == 50 - 5
    report = session_markdown(practice.session, [debrief])
    for said in (
        "Found 1 of 2 bugs: nearly the whole round.",
        "The first edit was tested after",
        "First looked closer after",
        ": probed the model.",
        "Said 1 time what they suspected.",
        "Took 1 edit back.",
        "| noted: a \\| in the gradient |",
        "; fixed: Forgets the centre |",
        "- [ ] Where is the slope 0?",
        "<details><summary>answer</summary>At the centre.</details>",
    ):
        assert said in report, said


def test_nothing_done_is_said(practice, history):
    hunt = TimedHunt(practice.next_round())
    assert hunt.handle(Tick()) == []
    practice.finish(hunt.round, Ending.MISSED)
    report = session_markdown(practice.session, practice.debriefs())
    assert "Nothing was edited." in report
    assert "Found 0 of 2 bugs: none yet." in report


class Working(Happenings):
    """Does at once what a watcher would do later, and tells of it next."""

    def __init__(self, *happened):
        super().__init__()
        self._waiting = list(happened)

    def events(self, _):
        while self._waiting:
            yield self._waiting.pop(0)

    def later(self, work):
        try:
            result = work()
        except DojoError as error:
            result = error
        self._waiting.insert(0, Later(result))


def test_a_probe_costs_points_and_says_what_it_saw(practice, history, monkeypatch):
    hunt = TimedHunt(practice.next_round())
    facts = Facts(Source.RUN, 3, [], [], [])
    monkeypatch.setattr(loop, "probe", lambda project, kata: facts)
    assert [*hunt.events(Working(Key("i")), PRACTICE, 0.1)] == [Probing(), Probed(facts)]
    (line,) = event_lines(Probed(facts), "02_descent")
    assert line.startswith("02_descent: run() calls no module")
    assert PROBE_COSTS == 5
    practice.finish(hunt.round, Ending.MISSED)
    (debrief,) = practice.debriefs()
    assert [move.kind for _, move in debrief.retrospect.moves()] == [MoveKind.PROBE]


def test_heat_maps_are_drawn_aside_and_what_stops_that_is_said(practice, monkeypatch):
    hunt = TimedHunt(practice.next_round())
    monkeypatch.setattr(hunt.round, "interview", False)
    monkeypatch.setattr(loop, "show", lambda project, name: f"wrote {name}.html")
    shown = Shown("wrote 02_descent.html")
    assert [*hunt.events(Working(Key("v")), PRACTICE, 0.1)] == [Showing(), shown]
    assert event_lines(shown, "02_descent") == ["wrote 02_descent.html"]


@pytest.mark.parametrize("key", ["b", "v"])
def test_what_names_the_tests_opens_with_their_names(practice, monkeypatch, key):
    hunt = TimedHunt(practice.next_round())
    (refused,) = hunt.events(Working(Key(key)), PRACTICE, 0.1)
    assert "opens once half the time is gone" in event_lines(refused, "02_descent")[0]
    monkeypatch.setattr(hunt.round, "budget", 0.0)
    monkeypatch.setattr(loop, "show", lambda project, name: "")
    event, *_ = hunt.events(Working(Key(key)), PRACTICE, 0.1)
    assert event == {"b": Debugging("02_descent"), "v": Showing()}[key]


def test_a_probe_that_cannot_be_had_is_refused_with_the_reason(hunt, monkeypatch):
    def probe(project, kata):
        raise DojoError("an endless loop?")

    monkeypatch.setattr(loop, "probe", probe)
    assert [*hunt.events(Working(Key("i")), PRACTICE, 0.1)] == [
        Probing(),
        Refused("an endless loop?"),
    ]


def test_after_each_save_the_log_of_a_system_is_laid_beside_healthy_runs(
    project, system, history, runner
):
    with runner_pool(project) as pool:
        healthy.record(system, pool)
    player = Player(project, system, history)
    seen = []
    with watching(system, runner, player.planting().bugs) as watcher:
        for happened in watcher.events(0.1):
            seen.append(happened)
            if isinstance(happened, Counted):
                break
    (logged,) = (happened for happened in seen if isinstance(happened, Logged))
    assert any(isinstance(happened, Ran) for happened in seen[: seen.index(logged)])
    (event,) = FreeHunt(player).handle(logged)
    assert isinstance(event, RunLogged)
    assert [curve.name for curve in event.curves] == ["loss", "lr"]
    lines = event_lines(event, "02_descent")
    assert any("run: lr is below healthy runs from step 1" in line for line in lines), lines


def test_a_quiet_session_draws_no_curves(practice, monkeypatch):
    hunt = TimedHunt(practice.next_round())
    monkeypatch.setattr(hunt.round, "quiet", True)
    assert hunt.handle(Logged(RunLog(({"loss": 1.0},), "", 0.1))) == []


def test_looks_from_another_terminal_are_seen(project, system, history, monkeypatch):
    monkeypatch.setattr(probe_command, "probe", lambda *_, **__: Facts(Source.RUN, 3, [], [], []))
    for command in ("run", "probe"):
        CliRunner().invoke(main, [command, "descent"], obj=project)
    attempt = Player(project, system, history).attempt()
    kinds = [move.kind for move in history.moves.of(attempt.id)]
    assert kinds == [MoveKind.LOG, MoveKind.PROBE]


def test_no_command_gives_away_what_an_interview_hides(project, system, practice, history):
    round_ = practice.next_round()
    for command in ("hint", "check"):
        result = CliRunner().invoke(main, [command, "descent"], obj=project)
        assert result.exit_code == 1
        assert "02_descent is under way in an interview" in result.output
    practice.finish(round_, Ending.MISSED)
    assert "Hint 1" in CliRunner().invoke(main, ["hint", "descent"], obj=project).output


def test_a_run_that_breaks_is_no_verdict_in_the_report(system, practice, history, runner):
    hunt = TimedHunt(practice.next_round())
    system.botched.write_text("def run(:")
    hunt.handle(Ran(runner.run(system, seed=0)))
    practice.finish(hunt.round, Ending.MISSED)
    assert "| tested: no verdict |" in session_markdown(practice.session, practice.debriefs())


def test_bugs_that_were_met_come_last(system, history):
    bugs = tuple(
        replace(system.bugs[0], id=f"bug-{n}", find=f"return {n}", killed_by=(f"test_{n}",))
        for n in range(8)
    )
    system.reference.write_text("".join(f"def f{n}() -> int:\n    return {n}\n" for n in range(8)))
    many = replace(system, bugs=bugs, default=("bug-0", "bug-1"))
    rng = random.Random(3)
    first = choose_bugs(many, history, Wishes(interview=True), rng)
    history.start(many.name, first)
    second = choose_bugs(many, history, Wishes(interview=True), rng)
    assert len(set(first) & set(second)) <= len(first) + len(second) - len(bugs)
