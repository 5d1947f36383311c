"""Requests to review: a diff to mark, then the truth about it."""

import sys
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Static

from dojo.errors import DojoError
from dojo.practice.review.desk import Desk
from dojo.practice.review.pull_request import PullRequest
from dojo.tui.lines import indented
from dojo.tui.marked_diff import MarkedDiff
from dojo.wording.reviews import TASK, head_lines, truth_lines, verdict_line

_LOOK_SECONDS = 1.0
_FINISHED = "That was the last one: Enter shows the score."


class ReviewScreen(Screen[None]):
    """One request after another, each read, then told."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "mark"),
        Binding("a", "approve", "approve"),
        Binding("enter", "submit", "submit"),
        Binding("tab", "app.focus_next", "scroll", show=False),
        Binding("q", "app.leave", "quit"),
    ]

    def __init__(self, desk: Desk, request: PullRequest) -> None:
        """Begin with a request."""
        super().__init__()
        self._desk = desk
        self._request = request
        self._told = False

    def compose(self) -> ComposeResult:
        """Lay out the title above, the diff, the truth once it is told, and the keys."""
        yield Static(id="title")
        yield Static(id="description")
        yield MarkedDiff(id="diff")
        with VerticalScroll(id="truth"):
            yield Static(id="told")
        yield Static(id="note")
        yield Footer()

    def on_mount(self) -> None:
        """Show the first request."""
        self._show(self._request)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave out the keys for marks once the truth is told."""
        return not (self._told and action in ("mark", "approve"))

    def action_mark(self) -> None:
        """Mark the line under the cursor as wrong, or take the mark away."""
        if not self._diff.toggle():
            self._note("Only a line that goes or comes can be marked.")
        else:
            self._note(TASK)

    def action_approve(self) -> None:
        """Approve the request."""
        if self._diff.marks:
            self._note("You have marked lines: Enter submits them, space takes a mark away.")
        else:
            self._tell()

    def action_submit(self) -> None:
        """Submit the marks; once the truth is told, go on."""
        if self._told:
            try:
                request = self._desk.next()
            except DojoError as error:
                self.app.exit(error)
                return
            if request is None:
                self.app.exit()
            else:
                self._show(request)
        elif self._diff.marks:
            self._tell()
        else:
            self._note("Mark a line with space first, or approve with a.")

    @property
    def _diff(self) -> MarkedDiff:
        return self.query_one(MarkedDiff)

    def _show(self, request: PullRequest) -> None:
        self._request, self._told = request, False
        title, *description = head_lines(request, self._desk)
        self.query_one("#title", Static).update(Text(title))
        self.query_one("#description", Static).update(Text("\n".join(description)))
        self.query_one("#description").display = True
        self.query_one("#truth").display = False
        self._diff.show(request)
        self._diff.focus()
        self._note(TASK)
        self.refresh_bindings()

    def _tell(self) -> None:
        judged = self._desk.judge(self._request, self._diff.marks)
        self._told = True
        self._diff.tell(judged)
        truth = self.query_one("#truth", VerticalScroll)
        truth.border_title = verdict_line(judged)
        truth.display = True
        self.query_one("#description").display = False  # it has told all it can
        truth.scroll_home(animate=False)
        self.query_one("#told", Static).update(indented(truth_lines(judged, None), bold=("[",)))
        self._note(
            "Enter goes on, Tab scrolls the other pane." if self._desk.has_more else _FINISHED
        )
        self.refresh_bindings()

    def _note(self, text: str) -> None:
        self.query_one("#note", Static).update(Text(text))


class ReviewApp(App[DojoError]):
    """Leads through the requests of a desk; its result is why it could not go on, if so."""

    CSS_PATH = "app.tcss"
    TITLE = "kata review"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,ctrl+q", "leave", "quit", show=False, priority=True)
    ]

    def __init__(self, desk: Desk) -> None:
        """Take a desk that has requests."""
        super().__init__()
        self._desk = desk
        self._first = desk.next()

    def on_mount(self) -> None:
        """Show the first request."""
        if self._first is None:
            self.exit()
            return
        self.push_screen(ReviewScreen(self._desk, self._first))
        if sys.stdin.isatty():
            self.set_interval(_LOOK_SECONDS, self._leave_with_the_terminal)

    def action_leave(self) -> None:
        """Stop here; what was judged is kept."""
        self.exit()

    def _leave_with_the_terminal(self) -> None:
        """Leave where the terminal is gone; Textual would go on reading from it for ever."""
        if not sys.stdin.isatty():
            self.exit()
