"""The practice session's application: hunts and debriefs in turn."""

import sys
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from dojo.history.sessions import Ending
from dojo.practice.loop import Action, TimedHunt
from dojo.practice.session import Practice
from dojo.runner.runner import Runner
from dojo.tui.debrief import DebriefScreen
from dojo.tui.hunt import HuntScreen

_LOOK_SECONDS = 1.0


class PracticeApp(App[bool]):
    """Leads through a session; its result says whether the session came to its end."""

    CSS_PATH = "app.tcss"
    TITLE = "kata practice"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (90, "-wide")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,ctrl+q", "leave", "quit", show=False, priority=True)
    ]

    def __init__(self, practice: Practice, runner: Runner) -> None:
        """Take a session that begins or is taken up again."""
        super().__init__()
        self._practice = practice
        self._runner = runner
        self._hunt: TimedHunt | None = None

    def on_mount(self) -> None:
        """Begin with the first kata that is left."""
        self._next_round()
        if sys.stdin.isatty():
            self.set_interval(_LOOK_SECONDS, self._leave_with_the_terminal)

    def on_unmount(self) -> None:
        """Record the time, however the application ends."""
        if self._hunt is not None:
            self._hunt.handle(Action.QUIT)  # a timer that fires late finds it over
            self._practice.finish(self._hunt.round, None)

    def action_leave(self) -> None:
        """Stop here; the session can be taken up again."""
        self.exit(False)

    def _leave_with_the_terminal(self) -> None:
        """Leave where the terminal is gone; Textual would go on reading from it for ever."""
        if not sys.stdin.isatty():
            self.action_leave()

    def _next_round(self) -> None:
        round_ = self._practice.next_round()
        if round_ is None:
            self.exit(True)
        else:
            self._hunt = TimedHunt(round_)
            self.push_screen(HuntScreen(self._hunt, self._runner), self._end_round)

    def _end_round(self, ending: Ending | None) -> None:
        """End the kata, or leave the session where the hunt was left without an end."""
        assert self._hunt is not None  # it was on the screen
        finished = self._practice.finish(self._hunt.round, ending)
        self._hunt = None
        if finished is None:
            self.exit(False)
        else:
            self.push_screen(DebriefScreen(finished), self._go_on)

    def _go_on(self, go_on: bool | None) -> None:
        # Leaving the last debrief ends the session as reading on does.
        if go_on or self._practice.standing() is None:
            self._next_round()
        else:
            self.exit(False)
