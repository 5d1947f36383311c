"""A diff in the colours of its language, whose lines can be marked."""

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from dojo.history.reviews import Effect
from dojo.practice.review.desk import Judged
from dojo.practice.review.pull_request import Hunk, Line, PullRequest
from dojo.wording.reviews import mark

_GOES, _COMES, _CURSOR = Style(bgcolor="#3c1618"), Style(bgcolor="#12341c"), Style(reverse=True)
_MARKED = Style(color="bright_yellow", bold=True)
_HEADER = Style(color="cyan", dim=True)
_MARK = "●"
_GUTTER = 8  # characters before the text of a line


class MarkedDiff(ScrollView, can_focus=True):
    """A request's diff, with a cursor on one of its lines."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "down", show=False),
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("pagedown", "move(15)", "page down", show=False),
        Binding("pageup", "move(-15)", "page up", show=False),
        Binding("home,g", "move(-100000)", "first line", show=False),
        Binding("end,G", "move(100000)", "last line", show=False),
        Binding("n", "jump(1)", "next change"),
        Binding("p", "jump(-1)", "previous change", show=False),
    ]

    def __init__(self, **options: str) -> None:
        """Begin with nothing to show."""
        super().__init__(id=options.get("id"))
        self.marks: set[int] = set()
        self._rows: list[int | str] = []  # the place of a line, or the header of a hunk
        self._lines: Sequence[Line] = ()
        self._texts: list[Text] = []
        self._numbers: dict[int, int] = {}
        self._said: dict[int, str] = {}  # of a change, once the truth is told
        self._cursor = 0
        self._open = False

    def show(self, request: PullRequest) -> None:
        """Show a request that is to be judged, the cursor on its first line that changes."""
        self.marks, self._said, self._open = set(), {}, True
        self._lines = request.lines
        self._numbers = {place: number for number, place in enumerate(request.numbered, 1)}
        self._texts = [text for hunk in request.hunks for text in _coloured(hunk)]
        self._rows = []
        place = 0
        for hunk in request.hunks:
            self._rows.append(hunk.header)
            self._rows += range(place, place + len(hunk.lines))
            place += len(hunk.lines)
        self._set_width(_GUTTER)
        self.scroll_to(0, 0, animate=False)
        self._cursor = 0
        self.action_jump(1)
        self.refresh()

    def tell(self, judged: Judged) -> None:
        """Show beside each change what became of it."""
        self._open = False
        self._said = {
            number: f"{mark(reviewed)}, {_WORDS[reviewed.effect]}"
            for number, (_, reviewed) in enumerate(judged.changes)
        }
        self._set_width(_GUTTER + 6 + max(map(len, self._said.values())))
        self.refresh()

    def toggle(self) -> bool:
        """Mark the line under the cursor or take its mark away; False where it cannot be marked."""
        place = self._rows[self._cursor]
        if not self._open or isinstance(place, str) or not self._lines[place].changes:
            return False
        self.marks ^= {place}
        self.refresh()
        return True

    def action_move(self, steps: int) -> None:
        """Move the cursor by so many lines."""
        self._go(self._cursor + steps)

    def action_jump(self, direction: int) -> None:
        """Move the cursor to the first line of the next change, or of the one before."""
        starts = [
            row
            for row, place in enumerate(self._rows)
            if isinstance(place, int)
            and self._lines[place].changes
            and not (place and self._lines[place - 1].changes)
        ]
        if direction > 0:
            found = next((row for row in starts if row > self._cursor), None)
        else:
            found = next((row for row in reversed(starts) if row < self._cursor), None)
        if found is not None:
            self._go(found)

    def on_click(self, event: Click) -> None:
        """Move the cursor to the line; a click on the line under the cursor marks it."""
        place = event.get_content_offset(self)
        if place is None:
            return
        row = place.y + self.scroll_offset.y
        if row == self._cursor:
            self.toggle()
        elif row < len(self._rows):
            self._go(row)

    def render_line(self, y: int) -> Strip:
        """Return one line of the screen."""
        row = y + self.scroll_offset.y
        width = self.size.width
        if row >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        place = self._rows[row]
        if isinstance(place, str):
            strip = Strip([Segment(f"       {place}", _HEADER)])
        else:
            strip = self._strip(place)
        strip = strip.crop_extend(self.scroll_offset.x, self.scroll_offset.x + width, None)
        strip = strip.apply_style(self.rich_style)
        if row == self._cursor and self.has_focus:
            strip = Strip([Segment(text, (style or Style()) + _CURSOR) for text, style, _ in strip])
        return strip

    def _set_width(self, beside: int) -> None:
        """Make room for the longest line and so many characters beside it."""
        longest = max(text.cell_len for text in self._texts)
        self.virtual_size = Size(longest + beside, len(self._rows))

    def _strip(self, place: int) -> Strip:
        line = self._lines[place]
        back = {"-": _GOES, "+": _COMES}.get(line.sign, Style())
        number = f"{self._numbers[place]:>4} " if place in self._numbers else " " * 5
        head = [
            Segment(_MARK if place in self.marks else " ", _MARKED),
            Segment(number, Style(dim=True)),
            Segment(f"{line.sign} ", back),
        ]
        body = [
            Segment(text, (style or Style()) + back)
            for text, style, _ in self._texts[place].render(self.app.console)
        ]
        if line.change is not None and self._is_first(place) and line.change in self._said:
            body.append(Segment(f"  <- {self._said[line.change]}", _MARKED))
        return Strip([*head, *body])

    def _is_first(self, place: int) -> bool:
        """Say whether a line is the first of its change."""
        own = self._lines[place].change
        return all(line.change != own for line in self._lines[:place])

    def _go(self, row: int) -> None:
        self._cursor = min(max(0, row), len(self._rows) - 1)
        # Two lines beyond it, so that one sees what comes.
        self.scroll_to_region(Region(0, self._cursor - 2, 1, 5), animate=False, x_axis=False)
        self.refresh()


_WORDS = {
    Effect.BREAKS: "a bug comes in",
    Effect.MENDS: "a bug is mended",
    Effect.HARMLESS: "harmless",
}


def _coloured(hunk: Hunk) -> list[Text]:
    """Return a hunk's lines in the colours of Python: each side as a whole, for strings span lines.

    Not the whole file: that takes a tenth of a second for a long one.
    """
    syntax = Syntax("", "python", theme="ansi_dark")
    sides = {}
    for sign in "-+":
        lines = [line.text for line in hunk.lines if line.sign in (sign, " ")]
        # Highlighting leaves out empty lines at the start and the end.
        padded = "\n".join(["#", *lines, "#"])
        sides[sign] = iter(list(syntax.highlight(padded).split("\n", allow_blank=True))[1:])
    texts = []
    for line in hunk.lines:
        text = {sign: next(sides[sign]) for sign in "-+" if line.sign in (sign, " ")}
        texts.append(text["-" if line.sign == "-" else "+"])
        texts[-1].end = ""
    return texts
