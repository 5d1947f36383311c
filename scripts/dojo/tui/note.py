"""A line in which a learner writes down what they suspect."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label


class NoteScreen(ModalScreen[str]):
    """Takes one line over the screen that stays visible beneath; empty if it is left."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "leave", "leave")]

    def compose(self) -> ComposeResult:
        """Show what is asked for, and the line."""
        with Vertical():
            yield Label("What do you suspect, and why?  Enter writes it down, Escape leaves.")
            yield Input()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Close with what was written."""
        self.dismiss(event.value)

    def action_leave(self) -> None:
        """Close with nothing."""
        self.dismiss("")
