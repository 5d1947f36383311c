"""The curves of a system's run, in the colours of the screen."""

from rich.text import Text

from dojo.practice.loop import RunLogged
from dojo.wording.curves import BAND, CURVE, LEGEND, draw
from dojo.wording.logs import log_lines

_HEIGHT = 9
_NARROWEST = 40


def drawn(logged: RunLogged, width: int) -> Text:
    """Return the first curve, and those that leave the band of healthy runs."""
    left = {departure.name for departure in logged.departures}
    text = Text("\n".join(["", *log_lines(logged.log, logged.departures), ""]), no_wrap=False)
    shown = [curve for place, curve in enumerate(logged.curves) if place == 0 or curve.name in left]
    for curve in shown:
        if len(curve.values) > 1:  # of a single step there is no curve
            text.append("\n" + draw(curve, max(width, _NARROWEST), _HEIGHT) + "\n")
    text.append("\n" + LEGEND if shown else "")
    text.highlight_regex(BAND, "green")
    text.highlight_regex(CURVE, "bold yellow")
    return text
