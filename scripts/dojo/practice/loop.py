"""The loop of a hunt, without a screen: what happens and what the learner asks for goes in, and
events come out for any interface to show.

It has no thread and no clock of its own: the interface calls it with what the watcher saw.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from dojo.errors import DojoError
from dojo.history.moves import MoveKind
from dojo.history.sessions import Ending
from dojo.instruments.bands import read_band
from dojo.instruments.curves import Curve, Departure, curves, departures
from dojo.instruments.probe.facts import Facts
from dojo.instruments.probe.probing import probe
from dojo.learner.player import Judgement, Player, unknown_line
from dojo.learner.watcher import (
    Counted,
    Failed,
    Happening,
    Key,
    Later,
    Logged,
    Ran,
    Started,
    Tick,
    Typed,
    Watching,
)
from dojo.learner.workspace import Backup
from dojo.practice.asides import show
from dojo.practice.session import Names, Round
from dojo.runner.log import RunLog
from dojo.testrun.results import RunResult, TestResult, Verdict

_WARNINGS = (300.0, 60.0)  # seconds left
_DIGITS = set("123456789")
# Why nothing opens that says which tests fail.
_NAMELESS = {
    Names.LATER: "This says which tests fail: it opens once half the time is gone.",
    Names.NEVER: "This says which tests fail, and this session does not.",
}


class Action(Enum):
    """What a learner asks for."""

    HINT = auto()
    NOTE = auto()
    PROBE = auto()
    DEBUG = auto()
    SHOW = auto()
    RESEED = auto()
    DIFF = auto()
    PAUSE = auto()
    SKIP = auto()
    REVEAL = auto()
    RESET = auto()
    UNDO = auto()
    NEXT = auto()
    QUIT = auto()


@dataclass(frozen=True)
class HintOn:
    """What a learner asks for: a hint on one of the planted bugs, by its number from 1."""

    number: int


@dataclass(frozen=True)
class Note:
    """What a learner suspects, and why, in their own words."""

    text: str


Asked = Action | HintOn | Note

# What ends a kata is asked twice.
CONFIRMED = {Action.SKIP, Action.REVEAL}


@dataclass(frozen=True)
class RunStarted:
    """The tests run."""


@dataclass(frozen=True)
class RunFails:
    """A test failed, and the others go on."""

    test: TestResult


@dataclass(frozen=True)
class RunJudged:
    """The tests ran on the newest text."""

    result: RunResult
    judgement: Judgement
    names: Names = Names.SHOWN  # of the tests that fail
    sealed: frozenset[str] = frozenset()  # tests that are only counted
    left: float | None = None  # seconds, where there is a clock

    @property
    def count_follows(self) -> bool:
        """Say whether the planted bugs are being counted."""
        fails = self.result.verdict is Verdict.FAILED
        return fails and bool(self.judgement.planting.bugs) and self.judgement.count is None


@dataclass(frozen=True)
class RunLogged:
    """The system's own run of the newest text, beside healthy runs."""

    log: RunLog
    curves: list[Curve]
    departures: list[Departure]


@dataclass(frozen=True)
class Probing:
    """The model is probed; what is seen follows."""


@dataclass(frozen=True)
class Probed:
    """What a probe saw."""

    facts: Facts


@dataclass(frozen=True)
class Debugging:
    """The debugger wants the terminal; where an interface has none to give, it says so."""

    name: str  # of the kata


@dataclass(frozen=True)
class Showing:
    """The page of failed comparisons is written; where it is follows."""


@dataclass(frozen=True)
class Shown:
    """It is written."""

    said: str  # where


@dataclass(frozen=True)
class Reseeded:
    """The tests run on other random data from now on."""


@dataclass(frozen=True)
class BugsCounted:
    """It is known how many of the planted bugs are gone."""

    judgement: Judgement


@dataclass(frozen=True)
class Hinted:
    """The learner is told something about a bug."""

    text: str


@dataclass(frozen=True)
class HintWaits:
    """A hint comes once it is known which bugs are gone, for it must not be about one of them."""


@dataclass(frozen=True)
class Noted:
    """A note is written down."""


@dataclass(frozen=True)
class Questioned:
    """What was asked for ends the kata: the learner is to say yes."""

    action: Action


@dataclass(frozen=True)
class Compared:
    """What the learner changed, as a diff; empty for nothing."""

    diff: str


@dataclass(frozen=True)
class Paused:
    """The clock stands, or goes on."""

    stands: bool


@dataclass(frozen=True)
class TimeLeft:
    """Little time is left: so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Replanted:
    """The bugs are planted again."""

    kept: bool  # whether the learner's text made room


@dataclass(frozen=True)
class Undone:
    """An earlier text is back."""


@dataclass(frozen=True)
class Refused:
    """What was asked for cannot be done."""

    reason: str


@dataclass(frozen=True)
class Noticed:
    """Something that the learner should know, and that stops nothing: of the history, mostly."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The hunt is over; without an ending, the learner left it."""

    ending: Ending | None = None


@dataclass(frozen=True)
class NextKata:
    """The learner goes on with the kata that comes after."""


Event = (
    RunStarted
    | RunFails
    | RunJudged
    | RunLogged
    | BugsCounted
    | Probing
    | Probed
    | Debugging
    | Showing
    | Shown
    | Reseeded
    | Hinted
    | HintWaits
    | Noted
    | Questioned
    | Compared
    | Paused
    | TimeLeft
    | Replanted
    | Undone
    | Refused
    | Noticed
    | Ended
    | NextKata
)


class Hunt(ABC):
    """A learner hunting in one kata."""

    def __init__(self, player: Player) -> None:
        """Begin with nothing judged."""
        self._player = player
        self._last: RunJudged | None = None  # the newest run, with what was counted of it
        self._hint_waits: HintOn | Action | None = None
        self._questioned: Action | None = None  # waits for a yes
        self.over = False

    def events(
        self, watcher: Watching, keys: Mapping[str, Action], tick_seconds: float
    ) -> Iterator[Event]:
        """Yield what comes of all that happens, keys being actions, until the hunt is over."""
        for happened in watcher.events(tick_seconds):
            watcher.planted = self._player.planting().bugs  # for a text of another attempt
            for event in self._events_of(happened, keys):
                yield event
                self.serve(event, watcher)
            if self.over:
                return

    def serve(self, event: Event, watcher: Watching) -> None:
        """Have the watcher do what an event says is done now."""
        match event:
            case Probing():
                watcher.later(self._probe)
            case Showing():
                watcher.later(self._show)
            case Reseeded():
                watcher.reseed()

    def _events_of(self, happened: Happening, keys: Mapping[str, Action]) -> Iterator[Event]:
        match happened:
            case Key(character):
                yield from self._pressed(character, keys)
            case Typed(line):
                yield from self._typed(line, keys)
            case _:
                yield from self.handle(happened)

    def _probe(self) -> Probed:
        """Return what a probe of the learner's file sees, or raise `DojoError`; takes seconds."""
        return Probed(probe(self._player.project, self._player.kata))

    def _show(self) -> Shown:
        """Write the page of failed comparisons, or raise `DojoError`; takes seconds."""
        return Shown(show(self._player.project, self._player.kata.name))

    def _pressed(self, character: str, keys: Mapping[str, Action]) -> Iterator[Event]:
        questioned, self._questioned = self._questioned, None
        asked = HintOn(int(character)) if character in _DIGITS else keys.get(character)
        if character == "y" and questioned:
            yield from self.handle(questioned)
        elif asked in CONFIRMED:
            self._questioned = asked
            yield Questioned(asked)
        elif asked:
            yield from self.handle(asked)

    def _typed(self, line: str, keys: Mapping[str, Action]) -> Iterator[Event]:
        """Take a line for what its first letter asks for; what follows an n is a note."""
        words = line.strip()
        letter = words[:1].lower()
        if keys.get(letter) is Action.NOTE:
            _, _, text = words.partition(" ")
            yield from self.handle(Note(text.strip()))
        elif letter:
            yield from self._pressed(letter, keys)

    def handle(self, happened: Happening | Asked) -> list[Event]:
        """Take what happened, or what the learner asks for, and return what comes of it.

        Nothing comes of what happens once the hunt is over, and nothing is recorded: an interface
        may still have a timer, or a run in flight.
        """
        events: list[Event] = []
        if self.over:
            return events
        try:
            for event in self._handle(happened):
                events.append(event)
                if isinstance(event, RunJudged):
                    self._last = event
                if isinstance(event, Ended | NextKata):
                    self.over = True
                    break  # what comes of the same moment comes too late
        except DojoError as error:
            events.append(Refused(str(error)))
        notices = map(Noticed, self._player.history.notices())
        # An ending stays the last: whoever shows the events leaves with it.
        return [*events[:-1], *notices, *events[-1:]] if self.over else [*events, *notices]

    def _handle(self, happened: Happening | Asked) -> Iterator[Event]:
        match happened:
            case Started():
                yield RunStarted()
            case Failed(test):
                if test.function not in self._player.sealed():
                    yield RunFails(test)
            case Ran(result):
                yield from self._judge(result)
            case Logged(log):
                band = read_band(self._player.kata.healthy_file)
                drawn = curves(log.steps, band)
                left = departures(log.steps, band, ended=not log.failure) if band else []
                yield RunLogged(log, drawn, left)
            case Action.PROBE:
                self._player.look(MoveKind.PROBE)
                yield Probing()
            case Action.DEBUG:
                yield Debugging(self._player.kata.name)
            case Action.SHOW:
                yield Showing()
            case Action.RESEED:
                yield Reseeded()
            case Later(Probed() | Shown() as done):
                yield done
            case Later(DojoError() as error):
                raise error
            case Counted(count, revision):
                judgement = self._player.record_count(count, revision)
                if self._last:
                    self._last = replace(self._last, judgement=judgement)
                if self._may_count():
                    yield BugsCounted(judgement)
                if asked := self._hint_waits:
                    self._hint_waits = None
                    yield from self._give_hint(asked.number if isinstance(asked, HintOn) else None)
            case Action.HINT | HintOn() if self._last and self._last.count_follows:
                self._hint_waits = happened
                yield HintWaits()
            case Action.HINT:
                yield from self._give_hint(None)
            case HintOn(number):
                yield from self._give_hint(number)
            case Action.NOTE | Note(""):
                raise DojoError("write what you suspect behind it: n the mask looks too late")
            case Note(text):
                self._player.note(text)
                yield Noted()
            case Action.DIFF:
                yield Compared(self._player.diff_from_planted())
            case Action.QUIT:
                yield Ended()

    def _may_count(self) -> bool:
        """Say whether the learner may know how many bugs are gone."""
        return True

    def _give_hint(self, number: int | None) -> Iterator[Event]:
        """Give a hint; where it opens a check, show the last run again, with what that says."""
        sealed = self._player.sealed()
        yield Hinted(self._hint(number))
        opened = sealed - self._player.sealed()
        if self._last and opened:
            yield replace(self._last, sealed=self._last.sealed - opened)

    @abstractmethod
    def _judge(self, result: RunResult) -> Iterator[Event]:
        """Record a run."""

    def _hint(self, number: int | None) -> str:
        """Return the next hint on a bug, or that one, that was not gone at the last count."""
        return self._player.give_hint(number)


class FreeHunt(Hunt):
    """A hunt without a clock."""

    def _handle(self, happened: Happening | Asked) -> Iterator[Event]:
        match happened:
            case Action.RESET:
                yield Replanted(kept=self._plant_again() is not None)
            case Action.UNDO:
                self._player.workspace.restore()
                yield Undone()
            case Action.NEXT:
                yield NextKata()
            case _:
                yield from super()._handle(happened)

    def _plant_again(self) -> Backup | None:
        """Plant the same bugs, or the default ones where nobody knows any more which they were."""
        kata, planting = self._player.kata, self._player.planting()
        bugs = kata.default
        if unknown_line(kata.name, planting) is None:
            bugs = tuple(bug.id for bug in planting.bugs)
        return self._player.plant(bugs)

    def _judge(self, result: RunResult) -> Iterator[Event]:
        yield RunJudged(result, self._player.record(result), sealed=self._player.sealed())


class TimedHunt(Hunt):
    """A hunt against the clock, as a round of a practice session."""

    def __init__(self, round_: Round) -> None:
        """Take a round that has begun."""
        super().__init__(round_.player)
        self.round = round_
        self._warnings = [left for left in _WARNINGS if left < round_.remaining()]

    def _handle(self, happened: Happening | Asked) -> Iterator[Event]:
        match happened:
            case Started():
                self.round.run_started()
                yield RunStarted()
            case Action.PAUSE:
                yield Paused(self.round.toggle_pause())
            case Action.SKIP:
                yield Ended(Ending.SKIPPED)
            case Action.REVEAL:
                yield Ended(Ending.REVEALED)
            case Action.DEBUG | Action.SHOW if self.round.names is not Names.SHOWN:
                raise DojoError(_NAMELESS[self.round.names])
            case Failed(test) if not self.round.may_name(test):
                pass
            case Logged() if self.round.names is Names.NEVER:
                pass
            case Tick():
                pass
            case _:
                yield from super()._handle(happened)
        yield from self._look_at_the_clock()

    def _judge(self, result: RunResult) -> Iterator[Event]:
        judgement = self.round.judge(result)
        yield RunJudged(
            result, judgement, self.round.names, self.round.sealed(), self.round.remaining()
        )
        if judgement.solved:
            yield Ended(Ending.SOLVED)

    def _may_count(self) -> bool:
        return self.round.names is Names.SHOWN

    def _hint(self, number: int | None) -> str:
        return self.round.hint(number)

    def _look_at_the_clock(self) -> Iterator[Event]:
        left = self.round.remaining()
        if left <= 0:
            yield Ended(Ending.MISSED)
        while self._warnings and left <= self._warnings[0]:
            yield TimeLeft(self._warnings.pop(0))
