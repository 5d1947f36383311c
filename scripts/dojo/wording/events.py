"""What is said of the events of a hunt, in every interface with the same words."""

from dojo.errors import typed
from dojo.practice.loop import (
    Compared,
    Debugging,
    Event,
    Hinted,
    HintWaits,
    Noted,
    Noticed,
    Paused,
    Probing,
    Questioned,
    Refused,
    Replanted,
    Reseeded,
    Showing,
    Shown,
    TimeLeft,
    Undone,
)
from dojo.wording.keys import QUESTIONS
from dojo.wording.quantities import minutes

# Of the lines of a diff, by how they begin.
COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def event_line(event: Event) -> str:
    """Return an event in one line; empty where there is nothing to say, or more than a line."""
    match event:
        case Hinted(text) | Refused(text) | Noticed(text) | Shown(text):
            return text
        case Probing():
            return "Probing the model ..."
        case Debugging(name):
            return f"The debugger needs a terminal of its own: type {typed('debug', name)} there."
        case Showing():
            return "Drawing heat maps ..."
        case Reseeded():
            return "Other random data from now on."
        case HintWaits():
            return "The hint comes once it is known which bugs are fixed."
        case Noted():
            return "Noted; the report sets it beside what you did."
        case Questioned(action):
            return f"{QUESTIONS[action]} y for yes"
        case Compared(""):
            return "You have changed nothing yet."
        case Paused(stands):
            return (
                "The clock stands; p or a save lets it go on." if stands else "The clock goes on."
            )
        case TimeLeft(seconds):
            return f"{minutes(seconds)} left"
        case Replanted(kept):
            return "Planted again" + ("; u brings your text back." if kept else ".")
        case Undone():
            return "Your earlier text is back."
        case _:
            return ""
