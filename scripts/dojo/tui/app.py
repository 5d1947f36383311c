"""The practice session's application: hunts and debriefs in turn."""

from contextlib import ExitStack
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from dojo.history.sessions import Ending
from dojo.practice.session import Practice, Round
from dojo.runner.runner import Runner
from dojo.tui.debrief import DebriefScreen
from dojo.tui.hunt import HuntScreen


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
        self._opened = ExitStack()
        self._round: Round | None = None

    def on_mount(self) -> None:
        """Begin with the first kata that is left."""
        self._next_round()

    def on_unmount(self) -> None:
        """Record the time, however the application ends."""
        self._close_round()

    def action_leave(self) -> None:
        """Stop here; the session can be taken up again."""
        self.exit(False)

    def _next_round(self) -> None:
        self._round = self._opened.enter_context(self._practice.next_round())
        if self._round is None:
            self.exit(True)
        else:
            self.push_screen(HuntScreen(self._round, self._runner), self._end_round)

    def _end_round(self, ending: Ending | None) -> None:
        """End the kata, or leave the session where the hunt was left without an end."""
        if ending is None or self._round is None:
            self.exit(False)
            return
        debrief = self._round.end(ending)
        self._round = None
        self._close_round()
        more = self._practice.standing() is not None
        hidden = self._practice.session.interview
        self.push_screen(DebriefScreen(debrief, more=more, hidden=hidden), self._go_on)

    def _go_on(self, go_on: bool | None) -> None:
        if go_on:
            self._next_round()
        else:
            # Leaving the last debrief ends the session as reading on does.
            self.exit(self._practice.standing() is None)

    def _close_round(self) -> None:
        if self._round is not None:
            self._round.leave()
            self._round = None
        self._opened.close()
