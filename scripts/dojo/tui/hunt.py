"""The hunt: brief, clock, the verdict of every save, and keys."""

from collections.abc import Sequence
from typing import ClassVar

from rich.console import Group
from rich.text import Text
from textual import work
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, VerticalScroll
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Markdown, Static
from textual.worker import get_current_worker

from dojo.errors import DojoError
from dojo.history.sessions import Ending
from dojo.kata.bug import Bug
from dojo.learner.player import Judgement
from dojo.learner.watcher import (
    Counted,
    Failed,
    Happening,
    Later,
    Logged,
    Ran,
    Started,
    Tick,
    Watching,
    watching,
)
from dojo.practice.asides import debug
from dojo.practice.debrief import HINT_COSTS, PROBE_COSTS
from dojo.practice.loop import (
    Action,
    Asked,
    BugsCounted,
    Compared,
    Debugging,
    Ended,
    Event,
    Hinted,
    HintOn,
    Note,
    Probed,
    RunFails,
    RunJudged,
    RunLogged,
    RunStarted,
    TimedHunt,
    TimeLeft,
)
from dojo.runner.runner import Runner
from dojo.tui.confirm import Confirm
from dojo.tui.diff import diff_text
from dojo.tui.lines import indented
from dojo.tui.note import NoteScreen
from dojo.wording.debriefs import CHANGED
from dojo.wording.events import event_line
from dojo.wording.keys import PRACTICE, QUESTIONS, WORDS
from dojo.wording.probes import probe_lines
from dojo.wording.quantities import minutes
from dojo.wording.runs import run_lines, tested
from dojo.wording.welcome import planted_line, welcome_lines

_TICK_SECONDS = 0.25
_LATE_SECONDS = 60
# The others come to the screen by itself.
_FORWARDED = Started | Failed | Ran | Logged | Counted | Later


def _as_typed(lines: Sequence[str]) -> Text:
    """Return lines that are not wrapped: tables."""
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")


def _binding(key: str, action: Action) -> Binding:
    costs = {Action.HINT: f" (-{HINT_COSTS})", Action.PROBE: f" (-{PROBE_COSTS})"}
    return Binding(key, f"ask({action.name!r})", WORDS[action] + costs.get(action, ""))


class HuntScreen(Screen[Ending | None]):
    """One kata against the clock. Its result is how it ended; none if the session is left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(_binding(key, action) for key, action in PRACTICE.items()),
        *(Binding(str(n), f"ask_hint({n})", f"hint on bug {n}", show=False) for n in range(1, 10)),
        Binding("tab", "app.focus_next", "scroll", show=False),
    ]

    class Happened(Message):
        """The watcher saw something."""

        def __init__(self, happening: Happening | DojoError) -> None:
            """Carry what it saw."""
            super().__init__()
            self.happening = happening

    def __init__(self, hunt: TimedHunt, runner: Runner) -> None:
        """Show a hunt that has begun."""
        super().__init__()
        self._hunt = hunt
        self._round = hunt.round
        self._runner = runner
        self._tests: Group | Text = Text("the tests are getting ready ...")
        self._shows_other: Action | None = None  # what stands in place of the tests
        self._judged: RunJudged | None = None
        self._logged: RunLogged | None = None
        self._watcher: Watching | None = None

    def compose(self) -> ComposeResult:
        """Lay out the clock, the brief beside the verdict, the notes and the keys."""
        kata = self._round.kata
        with Horizontal(id="status"):
            yield Static(f"{kata.name}: {planted_line(self._round)}", id="kata")
            yield Static(id="clock")
        with Container(id="panes"):
            with VerticalScroll(id="brief") as brief:
                brief.border_title = "brief"
                yield Markdown(kata.brief_text(), open_links=False)
            with VerticalScroll(id="verdict") as verdict:
                verdict.border_title = "tests"
                yield Static(self._tests, id="lines")
        yield Static(id="hints")
        yield Static(Text("\n".join(welcome_lines(self._round))), id="note")
        yield Footer()

    def on_mount(self) -> None:
        """Start the clock on the screen, and follow the saves."""
        self._show_clock()
        self._show_hints()
        self.set_interval(_TICK_SECONDS, lambda: self._take(Tick()))
        self._follow(self._round.player.planting().bugs)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave out the key for hints where there are none."""
        return not (parameters == (Action.HINT.name,) and self._round.interview)

    @work(thread=True)
    def _follow(self, planted: Sequence[Bug]) -> None:
        worker = get_current_worker()
        try:
            with watching(self._round.kata, self._runner, planted) as watcher:
                self._watcher = watcher
                for happening in watcher.events(_TICK_SECONDS):
                    if worker.is_cancelled:
                        return
                    if isinstance(happening, _FORWARDED):
                        self.post_message(self.Happened(happening))
        except DojoError as error:
            self.post_message(self.Happened(error))

    def on_hunt_screen_happened(self, message: Happened) -> None:
        """Take what the watcher saw to the hunt."""
        if isinstance(message.happening, DojoError):
            self._note(str(message.happening))
        else:
            self._take(message.happening)

    def action_ask(self, name: str) -> None:
        """Take what a key asks for to the hunt, once that is confirmed where it ends the kata."""
        action = Action[name]
        if action is Action.NOTE:
            self.app.push_screen(NoteScreen(), self._write_down)
        elif action in QUESTIONS:
            self._confirm(QUESTIONS[action], action)
        elif action is self._shows_other:
            self._show_tests()  # the same key takes it away
        else:
            self._take(action)

    def _write_down(self, text: str | None) -> None:
        if text and text.strip():
            self._take(Note(text.strip()))

    def action_ask_hint(self, number: int) -> None:
        """Take to the hunt that a hint on one bug is asked for."""
        self._take(HintOn(number))

    def _confirm(self, question: str, action: Action) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self._take(action)

        self.app.push_screen(Confirm(question), answered)

    def _take(self, happened: Happening | Asked) -> None:
        """Take what happened to the hunt, and what comes of it to the screen."""
        for event in self._hunt.handle(happened):
            self._show_event(event)
            if self._watcher:
                self._hunt.serve(event, self._watcher)
        if not self._hunt.over:
            self._show_clock()

    def _show_event(self, event: Event) -> None:
        verdict = self.query_one("#verdict")
        match event:
            case RunStarted():
                verdict.border_subtitle = "running ..."
            case RunFails(test):
                verdict.border_subtitle = f"{test.function} fails, others run ..."
            case RunJudged():
                verdict.border_subtitle = tested(event.result)
                self._show_run(event)
            case RunLogged():
                self._logged = event
                self._show_run_again()
            case Debugging(name):
                self._debug(name, event)
            case Probed(facts):
                self._note("")
                self._shows_other = Action.PROBE
                self._show("probe", _as_typed(probe_lines(self._round.kata.name, facts, 0)))
            case BugsCounted(judgement):
                self._show_count(judgement)
            case Compared(diff):
                self._shows_other = Action.DIFF
                self._show(CHANGED, diff_text(diff or event_line(event)))
            case Ended(ending):
                self._finish(ending)
            case TimeLeft():
                pass  # the clock is in sight
            case Hinted(text):
                given = self._show_hints()
                self._note("" if text in given else text)
            case _:
                self._note(event_line(event))

    def _debug(self, name: str, event: Debugging) -> None:
        """Give the terminal to the debugger, and take it back once that has ended."""
        try:
            with self.app.suspend():
                debug(self._round.player.project, name)
        except SuspendNotSupported:
            self._note(event_line(event))

    def _show_run(self, event: RunJudged) -> None:
        if self._judged is None or self._judged.result is not event.result:
            self._logged = None
        self._judged = event
        self._tests = self._lines(event.judgement)
        self._show_tests()

    def _show_count(self, judgement: Judgement) -> None:
        """Put the count under the tests on the screen, which stay where they are scrolled to."""
        self._tests = self._lines(judgement)
        self._show_run_again()

    def _lines(self, judgement: Judgement) -> Group:
        name, event = self._round.kata.name, self._judged
        assert event is not None  # something ran
        lines = run_lines(
            name,
            event.result,
            judgement,
            names=event.names,
            sealed=event.sealed,
            at_most=None,  # it scrolls
        )
        return indented(lines, bold=("  fails", name))

    def _show_run_again(self) -> None:
        """Put what is known by now of the run on the screen, unless something else stands there."""
        if self._shows_other is None:
            self.query_one("#lines", Static).update(self._with_curves())

    def _show_tests(self) -> None:
        self._shows_other = None
        self._show("tests", self._with_curves())

    def _with_curves(self) -> Group | Text:
        """Return the tests, and below them the curves of a system's run."""
        if self._logged is None:
            return self._tests
        from dojo.tui.curves import drawn  # not above: it loads what only systems need

        width = self.query_one("#verdict").content_size.width
        return Group(self._tests, drawn(self._logged, width))

    def _show(self, title: str, content: Group | Text) -> None:
        verdict = self.query_one("#verdict")
        verdict.border_title = title
        verdict.scroll_home(animate=False)
        self.query_one("#lines", Static).update(content)

    def _show_hints(self) -> list[str]:
        """Show the hints that were given, and return them."""
        given = self._round.player.hints_given()
        hints = self.query_one("#hints", Static)
        hints.display = bool(given)
        hints.update(Text("\n".join(given)))
        return given

    def _show_clock(self) -> None:
        left = self._round.remaining()
        clock = self.query_one("#clock", Static)
        clock.update(("paused " if self._round.paused else "") + minutes(left))
        self.query_one("#status").set_class(left <= _LATE_SECONDS, "late")

    def _finish(self, ending: Ending | None) -> None:
        """End the kata, also under a question that is not answered yet."""
        while self.app.screen is not self:
            self.app.pop_screen()
        self.dismiss(ending)

    def _note(self, text: str) -> None:
        self.query_one("#note", Static).update(Text(text))
