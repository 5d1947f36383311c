"""The debrief: what the learner changed beside what was planted."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Static

from dojo.practice.session import Finished
from dojo.tui.diff import diff_text
from dojo.tui.lines import indented
from dojo.wording.debriefs import (
    CHANGED,
    CLOCK_STANDS,
    GO_ON,
    PLANTED,
    UNCHANGED,
    bug_lines,
    outcome_line,
    over_line,
)


class DebriefScreen(Screen[bool]):
    """How a kata went, unless that waits for the report at the session's end."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("enter", "go_on(True)", "go on"),
        ("q", "go_on(False)", "quit"),
    ]

    def __init__(self, finished: Finished) -> None:
        """Show what came of a round."""
        super().__init__()
        self._debrief = finished.debrief
        self._more = finished.more
        self._hidden = finished.hidden

    def compose(self) -> ComposeResult:
        """Lay out the outcome above, the changes beside the bugs."""
        name = self._debrief.kata.name
        coming = f"{GO_ON if self._more else 'Enter ends the session'}."
        if self._hidden:
            yield Static(f"{over_line(name)} {CLOCK_STANDS} {coming}", id="outcome")
        else:
            yield Static(f"{name}: {outcome_line(self._debrief)}. {coming}", id="outcome")
            with Container(id="panes"):
                with VerticalScroll(id="changes") as changes:
                    changes.border_title = CHANGED
                    yield Static(diff_text(self._debrief.diff or UNCHANGED))
                with VerticalScroll(id="bugs") as bugs:
                    bugs.border_title = PLANTED
                    lines = bug_lines(self._debrief, width=None)
                    yield Static(indented(lines, bold=("[",)))
        yield Footer()

    def action_go_on(self, go_on: bool) -> None:
        """Go on with the session, or leave it here."""
        self.dismiss(go_on)
